//! Messages to bytes and back: `proto::message` and `proto::job` beside `parsers_sv2` and `binary_sv2`.
//! A share with 16 rolled bytes and a job with 12 branches. SRI's messages are made before its time
//! starts, and are not made owned after it, though its pool needs both.

use std::hint::black_box;

use anyhow::{Context, Result, anyhow, bail, ensure};
use framing_sv2::framing::{EncodableFrame, MessageFrame};
use parsers_sv2::Mining;

use proto::limits::FRAME_HEADER_LEN;
use proto::message::{FrameHeader, Message, Received};
use proto::mining::Kind;
use proto::target::Difficulty;

use super::clock::{rounds, time, try_time};
use super::inputs::{CHANNEL, World, submit};
use super::report::{Goal, Row, Unit};
use super::{Effort, allocations, sri};

/// Ours are so short that one of SRI's is timed for many of ours.
const OURS_FOR_ONE: usize = 16;

/// Every row about encoding and decoding.
///
/// # Errors
/// What one side writes the other does not read to the same fields or write to the same bytes.
pub(super) fn compare(effort: Effort) -> Result<Vec<Row>> {
    let world = World::new(Kind::Extended, Difficulty::MIN)?;
    let frames = Frames::new(&world)?;
    frames.agree(&world)?;
    let count = effort.shares;
    let [share, share_sri, job, job_sri] = rounds(effort.rounds, || {
        Ok([
            time(count * OURS_FOR_ONE, || ours_decode(&frames.share, count * OURS_FOR_ONE)),
            time(count, || theirs_decode(&mut frames.share.clone(), count)),
            time(count * OURS_FOR_ONE, || ours_decode(&frames.job, count * OURS_FOR_ONE)),
            time(count, || theirs_decode(&mut frames.job.clone(), count)),
        ])
    })?;
    let mut rows = vec![
        Row::time("decode share", share, share_sri, Goal::Faster(100.0)),
        Row::time("decode job", job, job_sri, Goal::Faster(100.0)),
    ];
    for (path, frame) in [("decode share", &frames.share), ("decode job", &frames.job)] {
        let (ours, ()) = allocations::during(|| ours_decode(frame, 1));
        let mut frame = frame.clone();
        let (sri, ()) = allocations::during(|| theirs_decode(&mut frame, 1));
        let (ours, sri) = (ours.allocations as f64, sri.allocations as f64);
        rows.push(Row::counted(path, Unit::Allocations, ours, sri, Goal::AtMost(0.0)));
    }
    rows.extend(encoding(effort, &world, &frames)?);
    Ok(rows)
}

/// Encoded frames, header included.
struct Frames {
    share: Vec<u8>,
    job: Vec<u8>,
}

impl Frames {
    fn new(world: &World) -> Result<Self> {
        let (mut share, mut job) = (Vec::new(), Vec::new());
        submit(&world.claim(1), 1).encode(&mut share);
        world.job.say_extended(CHANNEL, world.job_id, None, &mut job);
        Ok(Self { share, job })
    }

    fn agree(&self, world: &World) -> Result<()> {
        for frame in [&self.share, &self.job] {
            let mut again = vec![0; frame.len()];
            theirs_frame(&mut frame.clone())?.encode_into(&mut again).map_err(refused)?;
            ensure!(again == *frame, "SRI writes what it read of ours to other bytes");
            let mut again = Vec::new();
            let Received::Known(message, _) = ours_read(frame)? else { bail!("not known") };
            message.encode(&mut again);
            ensure!(again == *frame, "we write what we read to other bytes");
        }
        let mut theirs = vec![0; self.job.len()];
        job_frame(world)?.encode_into(&mut theirs).map_err(refused)?;
        ensure!(theirs == self.job, "SRI's frame of the job has other bytes");
        Ok(())
    }
}

fn encoding(effort: Effort, world: &World, frames: &Frames) -> Result<Vec<Row>> {
    let count = effort.shares;
    let share = submit(&world.claim(1), 1);
    let mut out = Vec::with_capacity(frames.job.len());
    let mut theirs = [vec![0; frames.share.len()], vec![0; frames.job.len()]];
    let [ours_share, sri_share, ours_job, sri_job] = rounds(effort.rounds, || {
        let shares: Result<Vec<_>> = (0..count).map(|_| share_frame(world)).collect();
        let jobs: Result<Vec<_>> = (0..count).map(|_| job_frame(world)).collect();
        let (shares, jobs) = (shares?, jobs?);
        let [share_room, job_room] = &mut theirs;
        let figures = [
            time(count * OURS_FOR_ONE, || ours_encode(&share, count * OURS_FOR_ONE, &mut out)),
            try_time(count, || theirs_encode(shares, share_room))?,
            time(count * OURS_FOR_ONE, || say_job(world, count * OURS_FOR_ONE, &mut out)),
            try_time(count, || theirs_encode(jobs, job_room))?,
        ];
        ensure!(out == frames.job && theirs == [&frames.share[..], &frames.job[..]]);
        Ok(figures)
    })?;
    let (ours, ()) = allocations::during(|| say_job(world, 1, &mut out));
    let (one, [_, room]) = (job_frame(world)?, &mut theirs);
    let (sri, written) = allocations::during(|| theirs_encode(vec![one], room));
    written?;
    // One of SRI's is the vector that it is handed over in.
    let (ours, sri) = (ours.allocations as f64, sri.allocations as f64 - 1.0);
    Ok(vec![
        Row::time("encode share", ours_share, sri_share, Goal::Shown),
        Row::time("encode job", ours_job, sri_job, Goal::Faster(40.0)),
        Row::counted("encode job", Unit::Allocations, ours, sri, Goal::Shown),
    ])
}

fn ours_read(frame: &[u8]) -> Result<Received<'_>> {
    let (header, payload) = frame.split_first_chunk::<FRAME_HEADER_LEN>().context("a header")?;
    let header = FrameHeader::decode(*header);
    Ok(Message::decode(header.extension(), header.msg_type, payload)?)
}

fn ours_decode(frame: &[u8], count: usize) {
    for _ in 0..count {
        let frame: &[u8] = black_box(frame);
        let Some((header, payload)) = frame.split_first_chunk::<FRAME_HEADER_LEN>() else { return };
        let header = FrameHeader::decode(*header);
        // By reference, as the machines look at a message: a move of it would cost more than the rest.
        black_box(&Message::decode(header.extension(), header.msg_type, payload));
    }
}

fn theirs_decode(frame: &mut [u8], count: usize) {
    let number = frame[2];
    for _ in 0..count {
        let payload = black_box(&mut frame[FRAME_HEADER_LEN..]);
        black_box(&Mining::try_from((number, payload)));
    }
}

fn theirs_frame(frame: &mut [u8]) -> Result<MessageFrame<Mining<'_>>> {
    let number = frame[2];
    let message = Mining::try_from((number, &mut frame[FRAME_HEADER_LEN..])).map_err(refused)?;
    MessageFrame::from_message(message, number, 0, true).map_err(refused)
}

fn ours_encode(message: &Message<'_>, count: usize, out: &mut Vec<u8>) {
    for _ in 0..count {
        out.clear();
        black_box(message).encode(out);
        black_box(&out);
    }
}

fn say_job(world: &World, count: usize, out: &mut Vec<u8>) {
    for _ in 0..count {
        out.clear();
        black_box(world).job.say_extended(CHANNEL, world.job_id, None, out);
        black_box(&out);
    }
}

fn job_frame(world: &World) -> Result<impl EncodableFrame + use<>> {
    MessageFrame::from_message(sri::job_message(world)?, 0x1f, 0, true).map_err(refused)
}

fn share_frame(world: &World) -> Result<impl EncodableFrame + use<>> {
    let sri::Submit::Extended(share) = sri::submit(&world.claim(1), 1)? else {
        bail!("a claim of an extended channel")
    };
    MessageFrame::from_message(share, 0x1b, 0, true).map_err(refused)
}

fn theirs_encode(frames: Vec<impl EncodableFrame>, room: &mut [u8]) -> Result<()> {
    for frame in frames {
        frame.encode_into(black_box(room)).map_err(refused)?;
    }
    Ok(())
}

fn refused(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow!("SRI: {error:?}")
}
