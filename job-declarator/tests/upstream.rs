//! Claims about which pool is used, as the owner of a house would say them. Time is a number.

use job_declarator::limits::{
    POOL_RETRY_FIRST_MS, POOL_RETRY_LAST_MS, POOL_RETRY_REFUSED_LAST_MS, POOL_RETRY_REFUSED_MS,
    POOL_RETURN_AFTER_MS, POOL_SOUND_AFTER_MS, POOL_STAGGER_MS, POOL_UNCREDITED_MAX_MS,
};
use job_declarator::upstream::{Credited, Kind, Source, Step, Upstream};

const fn own(pool: usize) -> Source {
    Source::Pool { pool, kind: Kind::Own }
}

/// A house whose node is up, with so many pools that take declared jobs.
fn house(pools: usize) -> Upstream {
    let mut upstream = Upstream::new(vec![true; pools], 7);
    upstream.node_is_up(true);
    upstream
}

/// With the first of two pools in use and the second not dialled.
fn at_first() -> Upstream {
    let mut upstream = house(2);
    assert_eq!(upstream.steps(0), [Step::Dial(0, Kind::Own)]);
    upstream.is_ready(0, Kind::Own, 100);
    assert_eq!(upstream.steps(100), [Step::Use(own(0))]);
    upstream
}

/// With the second in use because the first failed at 200; when it will be tried again.
fn at_second() -> (Upstream, u64) {
    let mut upstream = at_first();
    upstream.has_failed(0, Kind::Own, false, Credited::Yes, 200);
    assert_eq!(upstream.steps(200), [Step::Use(Source::Solo), Step::Dial(1, Kind::Own)]);
    upstream.is_ready(1, Kind::Own, 300);
    assert_eq!(upstream.steps(300), [Step::Use(own(1))]);
    let retry_ms = upstream.retry_at_ms(0).expect("it waits");
    (upstream, retry_ms)
}

#[test]
fn a_lost_pool_is_left_at_once_for_solo_and_the_next_is_dialled_in_the_same_breath() {
    let (upstream, _) = at_second();
    assert_eq!(upstream.using(), own(1));
}

#[test]
fn a_lost_pool_is_left_at_once_for_one_that_is_ready() {
    let mut upstream = house(2);
    upstream.steps(0);
    assert_eq!(upstream.steps(POOL_STAGGER_MS - 1), []);
    assert_eq!(upstream.steps(POOL_STAGGER_MS), [Step::Dial(1, Kind::Own)]);
    upstream.is_ready(1, Kind::Own, 3_100);
    assert_eq!(upstream.steps(3_100), [Step::Use(own(1))]);
    upstream.is_ready(0, Kind::Own, 3_200);
    upstream.has_failed(1, Kind::Own, true, Credited::Yes, 3_300);
    assert_eq!(upstream.steps(3_300), [Step::Use(own(0))]);
}

#[test]
fn a_pool_is_out_of_reach_in_its_pause_or_when_it_takes_its_time_and_not_before() {
    let mut upstream = house(2);
    assert!(!upstream.is_out_of_reach(0, 0), "nobody tried");
    upstream.steps(0);
    assert!(!upstream.is_out_of_reach(0, POOL_STAGGER_MS - 1));
    assert!(upstream.is_out_of_reach(0, POOL_STAGGER_MS));
    upstream.is_ready(0, Kind::Own, POOL_STAGGER_MS);
    assert!(!upstream.is_out_of_reach(0, POOL_STAGGER_MS));
    upstream.has_failed(0, Kind::Own, true, Credited::Yes, POOL_STAGGER_MS);
    let back_ms = upstream.retry_at_ms(0).expect("a pause");
    assert!(upstream.is_out_of_reach(0, back_ms - 1) && !upstream.is_out_of_reach(0, back_ms));
}

#[test]
fn a_pool_that_was_left_for_what_was_true_has_no_pause_and_nothing_held_against_it() {
    let mut upstream = at_first();
    upstream.has_failed(0, Kind::Own, true, Credited::Yes, 200);
    upstream.was_right(0, Kind::Own);
    assert_eq!(upstream.steps(200), [Step::Use(Source::Solo), Step::Dial(0, Kind::Own)]);
    upstream.has_failed(0, Kind::Own, true, Credited::Yes, 300);
    let pause_ms = upstream.retry_at_ms(0).expect("a pause") - 300;
    assert!(pause_ms <= POOL_RETRY_REFUSED_MS * 5 / 4, "the first: {pause_ms}");
}

#[test]
fn the_preferred_pool_has_to_be_good_for_a_while_before_another_is_left_for_it() {
    let (mut upstream, retry_ms) = at_second();
    assert_eq!(upstream.steps(retry_ms - 1), []);
    assert_eq!(upstream.deadline_ms(300), Some(retry_ms));
    assert_eq!(upstream.steps(retry_ms), [Step::Dial(0, Kind::Own)]);
    upstream.is_ready(0, Kind::Own, retry_ms + 50);
    let proved_ms = retry_ms + 50 + POOL_RETURN_AFTER_MS;
    assert_eq!(upstream.steps(proved_ms - 1), []);
    assert_eq!(upstream.deadline_ms(proved_ms - 1), Some(proved_ms));
    assert_eq!(upstream.steps(proved_ms), [Step::Use(own(0)), Step::Drop(1, Kind::Own)]);
}

#[test]
fn one_that_comes_and_goes_is_never_returned_to() {
    let (mut upstream, mut at_ms) = at_second();
    for _ in 0..50 {
        assert_eq!(upstream.steps(at_ms), [Step::Dial(0, Kind::Own)]);
        upstream.is_ready(0, Kind::Own, at_ms + 10);
        assert_eq!(upstream.steps(at_ms + POOL_RETURN_AFTER_MS - 1), []);
        at_ms += POOL_RETURN_AFTER_MS - 1;
        upstream.has_failed(0, Kind::Own, false, Credited::Yes, at_ms);
        assert_eq!(upstream.using(), own(1));
        at_ms = upstream.retry_at_ms(0).expect("it waits");
    }
}

#[test]
fn pauses_double_up_to_the_bound_and_start_over_once_a_pool_was_sound() {
    let mut upstream = house(1);
    let mut now_ms = 0;
    for failures in 0..20 {
        upstream.steps(now_ms);
        upstream.has_failed(0, Kind::Own, false, Credited::Yes, now_ms);
        let pause_ms = upstream.retry_at_ms(0).expect("it waits") - now_ms;
        let plain_ms = (POOL_RETRY_FIRST_MS << failures).min(POOL_RETRY_LAST_MS);
        assert!(
            (plain_ms * 3 / 4..=plain_ms * 5 / 4).contains(&pause_ms),
            "{failures}: {pause_ms}"
        );
        now_ms += pause_ms;
    }
    for (used_ms, is_sound) in [(POOL_SOUND_AFTER_MS - 1, false), (POOL_SOUND_AFTER_MS, true)] {
        upstream.steps(now_ms);
        upstream.is_ready(0, Kind::Own, now_ms);
        upstream.steps(now_ms);
        now_ms += used_ms;
        upstream.has_failed(0, Kind::Own, false, Credited::Yes, now_ms);
        let pause_ms = upstream.retry_at_ms(0).expect("it waits") - now_ms;
        assert_eq!(pause_ms <= POOL_RETRY_FIRST_MS * 5 / 4, is_sound, "{pause_ms}");
        now_ms += pause_ms;
    }
}

#[test]
fn a_pool_that_says_no_waits_longer_each_time_and_not_for_ever() {
    let mut upstream = at_first();
    for refusals in 0..20 {
        upstream.has_failed(0, Kind::Own, true, Credited::Yes, 1_000);
        let pause_ms = upstream.retry_at_ms(0).expect("it waits") - 1_000;
        let plain_ms = (POOL_RETRY_REFUSED_MS << refusals).min(POOL_RETRY_REFUSED_LAST_MS);
        let bounds = plain_ms * 3 / 4..=plain_ms * 5 / 4;
        assert!(bounds.contains(&pause_ms), "{refusals}: {pause_ms}");
    }
}

/// The only pool takes the devices for so long, again and again: the pauses before the last of them.
fn taken_for(used_ms: u64, credited: Credited) -> (u64, u64) {
    let (mut upstream, mut now_ms, mut pauses_ms) = (house(1), 0, Vec::new());
    for _ in 0..20 {
        upstream.steps(now_ms);
        upstream.is_ready(0, Kind::Own, now_ms);
        assert_eq!(upstream.steps(now_ms), [Step::Use(own(0))]);
        now_ms += used_ms;
        upstream.has_failed(0, Kind::Own, false, credited, now_ms);
        pauses_ms.push(upstream.retry_at_ms(0).expect("it waits") - now_ms);
        now_ms += pauses_ms[pauses_ms.len() - 1];
    }
    (pauses_ms[0], pauses_ms[19])
}

#[test]
fn a_pool_that_takes_the_devices_and_credits_nothing_has_them_ever_more_seldom() {
    let least_ms = POOL_RETRY_REFUSED_LAST_MS * 3 / 4;
    let (first_ms, last_ms) = taken_for(POOL_UNCREDITED_MAX_MS, Credited::No);
    assert!(first_ms >= POOL_RETRY_REFUSED_MS * 3 / 4 && last_ms >= least_ms, "in silence");
    let (first_ms, last_ms) = taken_for(POOL_SOUND_AFTER_MS - 1, Credited::No);
    assert!(first_ms <= POOL_RETRY_FIRST_MS * 5 / 4 && last_ms >= least_ms, "in short turns");
    let (_, last_ms) = taken_for(POOL_SOUND_AFTER_MS, Credited::Yes);
    assert!(last_ms <= POOL_RETRY_FIRST_MS * 5 / 4, "one that credits is sound");
    let (_, last_ms) = taken_for(POOL_UNCREDITED_MAX_MS, Credited::NothingFound);
    assert!(last_ms <= POOL_RETRY_LAST_MS * 5 / 4, "nothing was found for it");
}

#[test]
fn a_pool_that_asks_to_be_dialled_anew_and_credits_nothing_is_not_at_once() {
    let mut upstream = at_first();
    let now_ms = 100 + POOL_UNCREDITED_MAX_MS;
    upstream.is_asked_back(0, Kind::Own, Credited::No, now_ms);
    assert!(upstream.retry_at_ms(0).is_some_and(|at_ms| at_ms >= now_ms + 30_000));
}

#[test]
fn nothing_behind_what_is_in_use_is_dialled() {
    let mut upstream = at_first();
    for now_ms in (0..600_000).step_by(1_000) {
        assert_eq!(upstream.steps(now_ms), []);
    }
    assert_eq!(upstream.deadline_ms(600_000), None);
}

#[test]
fn a_pool_that_asks_to_be_dialled_anew_is_at_once_and_the_next_time_after_a_pause() {
    let mut upstream = at_first();
    upstream.is_asked_back(0, Kind::Own, Credited::Yes, 500);
    assert_eq!(upstream.steps(500), [Step::Use(Source::Solo), Step::Dial(0, Kind::Own)]);
    upstream.is_asked_back(0, Kind::Own, Credited::Yes, 510);
    assert_eq!(upstream.steps(510), [Step::Dial(1, Kind::Own)]);
    assert!(upstream.retry_at_ms(0).is_some_and(|at_ms| at_ms > 510 + POOL_RETRY_FIRST_MS));
}

#[test]
fn without_a_node_the_pools_own_jobs_are_wanted_and_the_own_work_stays_until_they_are_there() {
    let mut upstream = at_first();
    upstream.node_is_up(false);
    assert_eq!(upstream.steps(1_000), [Step::Dial(0, Kind::Theirs)]);
    assert_eq!(upstream.using(), own(0));
    upstream.is_ready(0, Kind::Theirs, 1_200);
    let theirs = Source::Pool { pool: 0, kind: Kind::Theirs };
    assert_eq!(upstream.steps(1_200), [Step::Use(theirs), Step::Drop(0, Kind::Own)]);
    upstream.node_is_up(true);
    assert_eq!(upstream.steps(2_000), [Step::Dial(0, Kind::Own)]);
    upstream.is_ready(0, Kind::Own, 2_100);
    assert_eq!(upstream.steps(2_100), [Step::Use(own(0)), Step::Drop(0, Kind::Theirs)]);
}

#[test]
fn a_pool_that_takes_no_declared_jobs_is_asked_for_its_own() {
    let mut upstream = Upstream::new([false], 7);
    upstream.node_is_up(true);
    assert_eq!(upstream.wanted(0), Kind::Theirs);
    assert_eq!(upstream.steps(0), [Step::Dial(0, Kind::Theirs)]);
}

#[test]
fn a_house_without_pools_is_solo_and_asks_for_nothing() {
    let mut upstream = house(0);
    assert_eq!(upstream.steps(0), []);
    assert_eq!((upstream.using(), upstream.deadline_ms(0)), (Source::Solo, None));
}
