//! The worlds that are searched, and every rule that breaks one of them.

use super::*;

use Op::{Add, Arrive, Await, Clear, Forget, Give, Notify, Reset, Set, Take, Wait};

const ONCE: &[Op] = &[Take, Give];
const TWICE: &[Op] = &[Take, Give, Take, Give];
const WAITS: &[Op] = &[Take, Wait, Give];
const ARRIVES: &[Op] = &[Arrive, Arrive];

fn lock() -> World {
    World::lock(&[ONCE, ONCE, ONCE])
}

fn lock_twice() -> World {
    World::lock(&[TWICE, TWICE])
}

fn two_permits() -> World {
    World::semaphore(2, 0, &[ONCE, ONCE, ONCE])
}

fn without_guards() -> World {
    World::semaphore(1, 0, &[&[Take, Forget, Add], ONCE, ONCE])
}

fn lock_without_guards() -> World {
    World::lock(&[&[Take, Forget, Add], ONCE, ONCE])
}

fn given_back_twice() -> World {
    World::semaphore(1, 0, &[&[Take, Forget, Add], &[Add], ONCE])
}

fn ledger() -> World {
    World::semaphore(0, 1, &[ONCE, ONCE, ONCE])
}

fn word_and_ledger() -> World {
    World::semaphore(1, 1, &[ONCE, ONCE, ONCE])
}

fn notify_one() -> World {
    World::lock(&[WAITS, WAITS, &[Take, Notify(1), Give]])
}

fn notify_all() -> World {
    World::lock(&[WAITS, WAITS, &[Take, Notify(u32::MAX), Give]])
}

fn parked() -> World {
    lock().with_sleepers(0, &[])
}

fn parked_twice() -> World {
    lock_twice().with_sleepers(0, &[])
}

fn parked_by_two() -> World {
    World::lock(&[ONCE, ONCE]).with_sleepers(0, &[])
}

fn parked_threads_twice() -> World {
    lock_twice().with_sleepers(0, &[0, 1])
}

fn vigil_by_two() -> World {
    World::lock(&[WAITS, &[Take, Notify(1), Give]]).with_sleepers(1, &[])
}

fn parked_threads() -> World {
    lock().with_sleepers(0, &[1, 2])
}

fn parked_for_permits() -> World {
    two_permits().with_sleepers(0, &[2])
}

fn parked_for_the_ledger() -> World {
    word_and_ledger().with_sleepers(0, &[])
}

fn vigil() -> World {
    notify_one().with_sleepers(2, &[]).when_waiting(&[0, 1])
}

fn vigil_of_threads() -> World {
    notify_one().with_sleepers(2, &[0, 1]).when_waiting(&[0, 1])
}

fn vigils() -> World {
    notify_all().with_sleepers(2, &[1]).when_waiting(&[0, 1])
}

fn vigil_and_queue() -> World {
    notify_all().with_sleepers(1, &[]).when_waiting(&[0, 1])
}

fn barrier() -> World {
    World::barrier(3, false, &[ARRIVES, ARRIVES, ARRIVES])
}

fn barrier_with_action() -> World {
    World::barrier(3, true, &[ARRIVES, ARRIVES, ARRIVES])
}

fn barrier_with_reset() -> World {
    World::barrier(2, true, &[&[Arrive], &[Arrive], &[Reset]])
}

fn event() -> World {
    World::event(&[&[Await], &[Await, Await], &[Set, Clear, Set]])
}

fn event_with_two_setters() -> World {
    World::event(&[&[Await, Await], &[Set], &[Clear, Set]])
}

/// Searches with each budget of (kills, stops, cancellations).
fn holds(world: fn() -> World, budgets: &[(u32, u32, u32)]) {
    for (kills, stops, cancels) in budgets {
        match search(world().budget(*kills, *stops, *cancels), None) {
            Ok(n) => println!("{kills} kills, {stops} stops, {cancels} cancels: {n} states"),
            Err(what) => panic!("{what}"),
        }
    }
}

#[test]
fn a_lock_survives_every_order() {
    holds(lock, &[(1, 0, 0), (0, 1, 1), (1, 0, 1), (2, 0, 0)]);
}

#[test]
fn a_lock_taken_again_survives_every_order() {
    holds(lock_twice, &[(1, 0, 1), (1, 1, 1)]);
}

#[test]
fn two_permits_survive_every_order() {
    holds(two_permits, &[(0, 1, 0), (1, 0, 1)]);
}

#[test]
fn permits_without_guards_survive_every_order() {
    holds(without_guards, &[(0, 1, 0), (1, 0, 1)]);
    holds(lock_without_guards, &[(1, 0, 1)]);
    holds(given_back_twice, &[(1, 0, 1), (1, 1, 0)]);
}

#[test]
fn the_ledger_survives_every_order() {
    holds(ledger, &[(1, 0, 1)]);
    holds(word_and_ledger, &[(0, 0, 1), (1, 0, 0)]);
}

#[test]
fn a_condition_survives_every_order() {
    holds(notify_one, &[(1, 0, 0), (0, 0, 1), (0, 1, 0)]);
    holds(notify_all, &[(0, 0, 1), (1, 0, 1)]);
}

#[test]
fn a_sleeper_beside_the_queue_survives_every_order() {
    holds(parked, &[(0, 0, 0)]);
    holds(parked_by_two, &[(1, 0, 1), (0, 1, 1), (2, 0, 0)]);
    holds(parked_twice, &[(1, 0, 0), (0, 0, 1), (0, 1, 0)]);
    holds(parked_threads, &[(0, 0, 0)]);
    holds(parked_threads_twice, &[(1, 0, 0), (0, 1, 0)]);
    holds(parked_for_permits, &[(1, 0, 0)]);
    holds(parked_for_the_ledger, &[(1, 0, 0)]);
}

#[test]
fn a_sleeper_that_the_broker_rings_survives_every_order() {
    holds(|| parked_twice().without_bells(), &[(1, 0, 0)]);
}

#[test]
fn a_vigil_survives_every_order() {
    holds(vigil_by_two, &[(1, 0, 0), (0, 0, 1), (0, 1, 0)]);
    holds(vigil, &[(1, 0, 0), (0, 0, 1), (0, 1, 0)]);
    holds(vigil_of_threads, &[(1, 0, 0)]);
    holds(vigils, &[(1, 0, 0), (0, 0, 1)]);
    holds(vigil_and_queue, &[(1, 0, 0), (0, 0, 1)]);
}

#[test]
fn a_barrier_survives_every_order() {
    holds(barrier, &[(1, 0, 1)]);
    holds(barrier_with_action, &[(0, 0, 1), (1, 0, 1)]);
    holds(barrier_with_reset, &[(1, 0, 1)]);
}

#[test]
fn an_event_survives_every_order() {
    holds(event, &[(1, 0, 0), (0, 0, 1)]);
    holds(event_with_two_setters, &[(0, 1, 1), (1, 0, 1)]);
}

/// A rule, a world, (kills, stops, cancellations), and what the fault says.
type Broken = (Rule, fn() -> World, (u32, u32, u32), &'static str);

/// Every rule, a world in which breaking it shows, and what shows.
const RULES: [Broken; 42] = [
    (Rule::TakeRespectsDue, lock, (0, 0, 1), "promised"),
    (Rule::GiveRespectsDue, lock, (0, 1, 0), "waits while"),
    (Rule::GivePokes, lock, (0, 0, 0), "waits while"),
    (Rule::AddClaims, given_back_twice, (0, 0, 0), "twice"),
    (Rule::ServeFreesGiven, given_back_twice, (0, 0, 0), "given"),
    (Rule::UnseenKeepsMark, lock, (1, 0, 1), "mark"),
    (Rule::GiveIsOneStep, lock, (0, 0, 0), "waits while"),
    (Rule::TakeIsOneStep, lock, (0, 0, 0), "permit"),
    (Rule::CancelGivesBack, lock, (0, 0, 1), "lost"),
    (Rule::CancelPassesOn, notify_one, (0, 0, 1), "notification"),
    (Rule::QueueShows, lock, (0, 0, 0), "waits while"),
    (Rule::QueueBeforeLook, lock, (0, 0, 0), "waits while"),
    (Rule::UnpokeBeforeLook, lock_twice, (0, 0, 0), "waits while"),
    (Rule::NameBeforeAnswer, lock, (0, 0, 0), "name"),
    (Rule::RefusedGrantGoesOn, lock, (0, 0, 1), "lost"),
    (Rule::DeathFrees, lock, (1, 0, 0), "dead process has"),
    (Rule::DeathUnlinks, lock, (1, 0, 0), "dead process has"),
    (Rule::DeathServes, lock, (1, 0, 0), "waits while"),
    (Rule::DeathMarksAtOnce, lock, (1, 0, 0), "mark"),
    (Rule::DeathReturnsLedger, ledger, (1, 0, 0), "ledger"),
    (Rule::TimeServes, lock, (0, 1, 0), "waits while"),
    (Rule::TimeCloses, lock, (0, 1, 0), "waits while"),
    (Rule::HandOverRearms, lock, (0, 1, 0), "waits while"),
    (Rule::EmptyQueueOpens, lock, (0, 0, 0), "closed"),
    (
        Rule::WaitBeforeRelease,
        notify_one,
        (0, 0, 0),
        "notification",
    ),
    (Rule::GonePassesOn, notify_one, (1, 0, 0), "notification"),
    (Rule::WokenPassesOn, notify_one, (1, 0, 0), "notification"),
    (Rule::BarrierCancelBreaks, barrier, (0, 0, 1), "Cancel"),
    (Rule::BarrierDeathBreaks, barrier, (1, 0, 0), "Gone"),
    (
        Rule::BarrierLeaderDeathBreaks,
        barrier_with_action,
        (1, 0, 0),
        "Gone",
    ),
    (
        Rule::BarrierOneLeader,
        barrier_with_action,
        (0, 0, 0),
        "generation",
    ),
    (
        Rule::BarrierResetReleases,
        barrier_with_reset,
        (0, 0, 0),
        "Reset",
    ),
    (
        Rule::ParkLooksAgain,
        parked_by_two,
        (0, 0, 0),
        "sleeps while",
    ),
    (
        Rule::GiveWakesSleeper,
        parked_by_two,
        (0, 0, 0),
        "sleeps while",
    ),
    (
        Rule::VigilSleepIsOneStep,
        vigil_by_two,
        (0, 0, 0),
        "notification",
    ),
    (Rule::VigilPassesOn, vigil, (0, 0, 1), "notification"),
    (Rule::VigilDeathPassesOn, vigil, (1, 0, 0), "notification"),
    (Rule::EventSetRings, event, (0, 0, 0), "sleeps"),
    (Rule::EventSetBeforeRing, event, (0, 0, 0), "sleeps"),
    (Rule::EventLooksAgain, event, (0, 0, 0), "sleeps"),
    (Rule::EventSleeperShows, event, (0, 0, 0), "sleeps"),
    (Rule::EventDeathRings, event, (1, 0, 0), "sleeps"),
];

#[test]
fn every_broken_rule_is_noticed() {
    let mut unnoticed = Vec::new();
    for (rule, world, (kills, stops, cancels), wanted) in RULES {
        match search(world().budget(kills, stops, cancels), Some(rule)) {
            Ok(n) => unnoticed.push(format!("{rule:?}: not in {n} states")),
            Err(what) => {
                let what = what.lines().next().unwrap_or_default();
                println!("{rule:?}: {what}");
                if !what.contains(wanted) {
                    unnoticed.push(format!("{rule:?}: by something else: {what}"));
                }
            }
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}
