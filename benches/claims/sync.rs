//! Rows 22 to 26: what is shared and waited for.

use crate::floor::sync as floor;
use crate::floor::sync::on_one_core;
use crate::harness::Contender::{self, Here, Python};
use crate::harness::{Claim, Row, Unit};
use crate::ours::sync as ours;

/// Everything of these rows that can be measured.
pub(crate) const CONTENDERS: &[(&str, Contender)] = &[
    ("lock, borrowed guard", Here(ours::lock_borrowed)),
    ("lock, owned guard", Here(ours::lock_owned)),
    ("semaphore", Here(ours::semaphore_alone)),
    ("event, is_set", Here(ours::is_set)),
    ("floor: futex by hand", Here(floor::futex_alone)),
    ("floor: pthread mutex, shared", Here(floor::pthread_alone)),
    ("floor: sem_t", Here(floor::sem_alone)),
    (
        "floor: parking_lot, threads",
        Here(floor::parking_lot_alone),
    ),
    ("floor: tokio Mutex, threads", Here(floor::tokio_alone)),
    ("floor: load", Here(floor::load)),
    ("python: Lock", Python("alone Lock 500000")),
    ("python: Semaphore", Python("alone Semaphore 500000")),
    ("python: Event.is_set", Python("alone Event.is_set 200000")),
    ("lock, 2 processes", Here(|| ours::lock_contended(2))),
    ("lock, 8 processes", Here(|| ours::lock_contended(8))),
    ("floor: sem_t, 2", Here(|| floor::sem_contended(2))),
    ("floor: sem_t, 8", Here(|| floor::sem_contended(8))),
    ("floor: futex + spin, 2", Here(|| floor::futex_contended(2))),
    ("floor: futex + spin, 8", Here(|| floor::futex_contended(8))),
    ("floor: pthread, 2", Here(|| floor::pthread_contended(2))),
    ("event", Here(ours::event_round_trip)),
    (
        "event, one core",
        Here(|| on_one_core(ours::event_round_trip)),
    ),
    ("condition", Here(ours::condition_round_trip)),
    (
        "condition, one core",
        Here(|| on_one_core(ours::condition_round_trip)),
    ),
    ("semaphores", Here(ours::semaphore_round_trip)),
    (
        "semaphores, one core",
        Here(|| on_one_core(ours::semaphore_round_trip)),
    ),
    (
        "semaphores, blocking, one core",
        Here(|| on_one_core(ours::semaphore_round_trip_blocking)),
    ),
    ("lock, 1,000 tasks", Here(ours::lock_by_tasks)),
    (
        "floor: tokio Mutex, 1,000 tasks",
        Here(floor::tokio_by_tasks),
    ),
    ("floor: sem_t pair", Here(floor::sem_round_trip)),
    (
        "floor: sem_t pair, one core",
        Here(|| on_one_core(floor::sem_round_trip)),
    ),
    ("floor: pthread cond", Here(floor::condition_round_trip)),
    (
        "floor: pthread cond, one core",
        Here(|| on_one_core(floor::condition_round_trip)),
    ),
    ("python: Event", Python("hand_over Event 2 2000")),
    ("python: Event, one core", Python("hand_over Event 1 5000")),
    ("python: Condition", Python("hand_over Condition 2 2000")),
    (
        "python: Condition, one core",
        Python("hand_over Condition 1 5000"),
    ),
    ("python: Semaphores", Python("hand_over Semaphore 2 5000")),
    (
        "python: Semaphores, one core",
        Python("hand_over Semaphore 1 10000"),
    ),
    ("barrier, 4", Here(|| ours::barrier(4))),
    ("barrier, 16", Here(|| ours::barrier(16))),
    (
        "barrier, 4, one core",
        Here(|| on_one_core(|| ours::barrier(4))),
    ),
    (
        "barrier, 16, one core",
        Here(|| on_one_core(|| ours::barrier(16))),
    ),
    ("floor: pthread barrier, 4", Here(|| floor::barrier(4))),
    ("floor: pthread barrier, 16", Here(|| floor::barrier(16))),
    (
        "floor: pthread barrier, 4, one core",
        Here(|| on_one_core(|| floor::barrier(4))),
    ),
    (
        "floor: pthread barrier, 16, one core",
        Here(|| on_one_core(|| floor::barrier(16))),
    ),
    ("python: Barrier, 4", Python("barrier 4 2 1000")),
    ("python: Barrier, 16", Python("barrier 16 2 300")),
    ("python: Barrier, 4, one core", Python("barrier 4 1 1000")),
    ("python: Barrier, 16, one core", Python("barrier 16 1 300")),
    ("value, add", Here(ours::add)),
    ("value, add under its lock", Here(ours::add_locked)),
    ("floor: atomic add", Here(floor::add)),
    ("floor: add under a futex", Here(floor::add_under_futex)),
    ("python: Value += 1", Python("alone Value 200000")),
];

/// The claims, rows in order.
pub(crate) fn claim(claims: &mut Vec<Claim>) {
    let work = "take a free lock and give it back";
    let mut row = Row::new(claims, 22, work, Unit::Ns, "lock, borrowed guard");
    row.figure(Some(20.0), 20.0);
    row.aim("floor: parking_lot, threads", 1.4);
    row.aim("floor: tokio Mutex, threads", 0.45);
    row.show("floor: futex by hand");
    row.show("floor: pthread mutex, shared");
    row.must("python: Lock", 1.0, 0.3);
    let mut row = Row::new(claims, 22, work, Unit::Ns, "lock, owned guard");
    row.show("floor: tokio Mutex, threads");
    row.must("python: Lock", 1.0, 0.45);
    let work = "take a free permit and give it back";
    let mut row = Row::new(claims, 22, work, Unit::Ns, "semaphore");
    row.show("floor: sem_t");
    row.must("python: Semaphore", 1.0, 0.45);
    let mut row = Row::new(claims, 22, "ask an event", Unit::Ns, "event, is_set");
    row.figure(Some(5.0), 5.0);
    row.show("floor: load");
    row.aim("python: Event.is_set", 0.02);

    let work = "a contended lock, 1-2 us held";
    let mut row = Row::new(claims, 23, work, Unit::Ns, "lock, 2 processes");
    row.must("floor: sem_t, 2", 1.0, 1.0);
    row.aim("floor: futex + spin, 2", 1.15);
    row.aim("floor: pthread, 2", 0.65);
    let mut row = Row::new(claims, 23, work, Unit::Ns, "lock, 8 processes");
    row.show("floor: sem_t, 8");
    row.show("floor: futex + spin, 8");

    let work = "a turn with a lock, 1,000 tasks";
    let mut row = Row::new(claims, 23, work, Unit::Ns, "lock, 1,000 tasks");
    row.show("floor: tokio Mutex, 1,000 tasks");

    let work = "hand over and back";
    let mut row = Row::new(claims, 24, work, Unit::Us, "event");
    row.must("python: Event", 1.0 / 1.5, 0.4);
    row.show("floor: pthread cond");
    let mut row = Row::new(claims, 24, work, Unit::Us, "event, one core");
    row.must("python: Event, one core", 1.0 / 1.5, 0.55);
    row.show("floor: pthread cond, one core");
    let mut row = Row::new(claims, 24, work, Unit::Us, "condition");
    row.must("python: Condition", 1.0 / 1.5, 0.4);
    row.aim("floor: pthread cond", 1.1);
    let mut row = Row::new(claims, 24, work, Unit::Us, "condition, one core");
    row.must("python: Condition, one core", 1.0 / 1.5, 0.55);
    row.show("floor: pthread cond, one core");
    let mut row = Row::new(claims, 24, work, Unit::Us, "semaphores");
    row.must("python: Semaphores", 1.0, 1.0);
    row.show("floor: sem_t pair");
    let mut row = Row::new(claims, 24, work, Unit::Us, "semaphores, one core");
    row.must("python: Semaphores, one core", 1.0, 1.0);
    row.show("floor: sem_t pair, one core");
    let mut row = Row::new(claims, 24, work, Unit::Us, "semaphores, blocking, one core");
    row.must("python: Semaphores, one core", 1.0, 1.0);

    let work = "processes meet at a barrier";
    let mut row = Row::new(claims, 25, work, Unit::Us, "barrier, 4");
    row.must("python: Barrier, 4", 1.0 / 1.5, 0.35);
    row.aim("floor: pthread barrier, 4", 1.5);
    let mut row = Row::new(claims, 25, work, Unit::Us, "barrier, 16");
    row.must("python: Barrier, 16", 1.0 / 1.5, 0.15);
    row.aim("floor: pthread barrier, 16", 1.5);
    let mut row = Row::new(claims, 25, work, Unit::Us, "barrier, 4, one core");
    row.must("python: Barrier, 4, one core", 1.0 / 1.5, 0.35);
    row.show("floor: pthread barrier, 4, one core");
    let mut row = Row::new(claims, 25, work, Unit::Us, "barrier, 16, one core");
    row.must("python: Barrier, 16, one core", 1.0 / 1.5, 0.15);
    row.show("floor: pthread barrier, 16, one core");

    let work = "add to a shared value";
    let mut row = Row::new(claims, 26, work, Unit::Ns, "value, add");
    row.aim("floor: atomic add", 1.2);
    let mut row = Row::new(claims, 26, work, Unit::Ns, "value, add under its lock");
    row.show("floor: add under a futex");
    row.must("python: Value += 1", 0.1, 0.05);
}
