//! What the pool's side of an idle connection asks of the allocator, to the byte: what is left when jobs
//! and tips have come and gone. The memory of a whole process, with its sockets and tasks, is what
//! `load --idle` measures.

#![allow(clippy::unwrap_used, reason = "a builder outside a #[test] fails it just as well")]

use std::sync::Arc;

use benches::compare::allocations::{Counting, during};
use benches::compare::inputs::{NOW, World};
use proto::job::ActiveTemplate;
use proto::limits::{JOB_REFRESH_MS, PAST_JOBS_MAX};
use proto::mining::server::{Input, Outbox, Server};
use proto::mining::{Kind, Now};
use proto::target::Difficulty;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A server with one channel, without the `Server` itself, which its task holds: the channel, its node of
/// the map, and the jobs of three tips.
const OPEN_MAX: i64 = 1_400;
/// With seventeen jobs of the present tip and four of each of the two before.
const AGED_MAX: i64 = 2_100;

fn settle(server: &mut Server, now: Now, input: Input<'_>) {
    let mut out = Outbox::default();
    server.handle(now, input, &mut out).unwrap();
    server.handle(now, Input::BurstEnd, &mut out).unwrap();
}

/// Tips with as many jobs each as a server keeps, one every half minute.
fn grow_old(server: &mut Server, tips: &[Arc<ActiveTemplate>]) {
    let mut now = NOW;
    for tip in tips {
        settle(server, now, Input::Template(Arc::clone(tip)));
        for _ in 0..2 * PAST_JOBS_MAX {
            now.mono_ms += JOB_REFRESH_MS;
            settle(server, now, Input::Time);
        }
    }
}

#[test]
fn what_an_idle_connection_holds_is_bounded_however_many_jobs_and_tips_came() {
    let world = World::new(Kind::Extended, Difficulty::MIN).unwrap();
    let tips: Vec<_> =
        (1..=8).map(|blocks| Arc::new(world.blocks_later(blocks).unwrap())).collect();
    let (open, mut server) = during(|| world.server().unwrap());
    assert!(open.bytes_kept <= OPEN_MAX, "{} bytes when open", open.bytes_kept);
    let mut held = open.bytes_kept;
    let mut after = Vec::new();
    for some in tips.chunks(4) {
        held += during(|| grow_old(&mut server, some)).0.bytes_kept;
        after.push(held);
    }
    assert!(held <= AGED_MAX, "{after:?} bytes");
    assert_eq!(after[0], after[1], "four more tips leave nothing more");
}
