//! The lock between processes.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::shared::{RawArray, Value};
use tokio_multiprocess::sync::{Event, Lock};
use tokio_multiprocess::{Process, TryLockError};

use crate::process::suite::By;
use crate::soon;

async fn hold((lock, taken, go_on): (Lock, Event, Event)) {
    let _guard = lock.lock().await.unwrap();
    taken.set();
    go_on.wait().await.unwrap();
}

pub(crate) async fn a_lock_held_in_another_process_is_waited_for(by: By) {
    let (lock, taken, go_on) = (
        Lock::new().unwrap(),
        Event::new().unwrap(),
        Event::new().unwrap(),
    );
    let arg = (lock.clone(), taken.clone(), go_on.clone());
    let child = by.start_async(hold, arg).await;
    soon(taken.wait()).await.unwrap();

    assert_eq!(lock.try_lock().unwrap_err(), TryLockError::Busy);
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await.unwrap().recovered() }
    });
    go_on.set();

    assert!(!soon(waiter).await.unwrap());
    soon(child.join()).await.unwrap();
    assert!(!lock.is_locked());
}

pub(crate) async fn a_holder_that_is_killed_gives_the_lock_on_and_the_next_one_is_told(by: By) {
    let (lock, taken, never) = (
        Lock::new().unwrap(),
        Event::new().unwrap(),
        Event::new().unwrap(),
    );
    let arg = (lock.clone(), taken.clone(), never);
    let child = by.start_async(hold, arg).await;
    soon(taken.wait()).await.unwrap();
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await.unwrap().recovered() }
    });

    child.kill().unwrap();

    assert!(soon(waiter).await.unwrap());
    assert!(!soon(lock.lock()).await.unwrap().recovered());
}

fn end_with_it(lock: Lock) {
    let _guard = lock.blocking_lock().unwrap();
    std::process::exit(3);
}

pub(crate) async fn what_a_process_held_is_free_when_its_end_is_told(by: By) {
    for _ in 0..50 {
        let lock = Lock::new().unwrap();
        let child = by.start(end_with_it, lock.clone()).await;

        soon(child.wait()).await;

        assert!(lock.try_lock().unwrap().recovered());
    }
}

pub(crate) async fn a_lock_taken_without_a_guard_leaves_it_to_the_next_one_to_tell_of_a_death(
    by: By,
) {
    let (lock, taken, never) = (
        Lock::new().unwrap(),
        Event::new().unwrap(),
        Event::new().unwrap(),
    );
    let arg = (lock.clone(), taken.clone(), never);
    let child = by.start_async(hold, arg).await;
    soon(taken.wait()).await.unwrap();

    child.kill().unwrap();
    soon(lock.acquire()).await.unwrap();
    lock.release().unwrap();

    assert!(soon(lock.lock()).await.unwrap().recovered());
    assert!(!soon(lock.lock()).await.unwrap().recovered());
}

pub(crate) async fn a_waiter_that_is_killed_takes_nothing_along(by: By) {
    let (lock, taken, never) = (
        Lock::new().unwrap(),
        Event::new().unwrap(),
        Event::new().unwrap(),
    );
    let guard = soon(lock.lock()).await.unwrap();
    let arg = (lock.clone(), taken.clone(), never);
    let child = by.start_async(hold, arg).await;

    child.kill().unwrap();
    drop(guard);

    // Whether it was killed before, in, or after its wait.
    drop(soon(lock.lock()).await.unwrap());
    assert!(soon(child.join()).await.is_err());
}

async fn pass_on((lock, counter): (Lock, Value<u64>)) {
    async fn count((lock, counter): (Lock, Value<u64>)) {
        let _guard = lock.lock().await.unwrap();
        *counter.lock().await.unwrap() += 1;
    }
    let grandchild = Process::start(count, (lock, counter)).await.unwrap();
    grandchild.join().await.unwrap();
}

pub(crate) async fn a_handle_that_came_sideways_is_as_good_as_any(by: By) {
    let (lock, counter) = (Lock::new().unwrap(), Value::new(0).unwrap());

    let child = by
        .start_async(pass_on, (lock.clone(), counter.clone()))
        .await;
    soon(child.join()).await.unwrap();

    assert_eq!(soon(counter.get()).await.unwrap(), 1);
    assert!(lock.try_lock().is_ok());
}

fn release(lock: Lock) -> bool {
    lock.release().is_ok()
}

pub(crate) async fn any_process_may_release_what_was_acquired_without_a_guard(by: By) {
    let lock = Lock::new().unwrap();
    soon(lock.acquire()).await.unwrap();

    let child = by.start(release, lock.clone()).await;

    assert!(soon(child.join()).await.unwrap());
    assert!(lock.release().is_err());
    let _guard = lock.try_lock().unwrap();
    assert!(lock.release().is_err());
}

pub(crate) async fn debug_tells_who_has_the_lock(by: By) {
    let (lock, taken, go_on) = (
        Lock::new().unwrap(),
        Event::new().unwrap(),
        Event::new().unwrap(),
    );
    assert_eq!(format!("{lock:?}"), "Lock(free)");
    let guard = lock.try_lock().unwrap();
    assert_eq!(format!("{lock:?}"), "Lock(held by this process)");
    guard.forget();
    assert_eq!(format!("{lock:?}"), "Lock(taken without a guard)");
    lock.release().unwrap();

    let arg = (lock.clone(), taken.clone(), go_on.clone());
    let child = by.start_async(hold, arg).await;
    soon(taken.wait()).await.unwrap();

    let shown = format!("{lock:?}");
    assert!(shown.starts_with("Lock(held by another process"), "{shown}");
    go_on.set();
    soon(child.join()).await.unwrap();
}

fn take_turns((lock, Fd(mut orders), Fd(mut reports)): (Lock, Fd<PipeReader>, Fd<PipeWriter>)) {
    let mut order = [0];
    while orders.read_exact(&mut order).is_ok() {
        let guard = lock.blocking_lock().unwrap();
        reports.write_all(&[0]).unwrap();
        let _ = orders.read_exact(&mut order);
        drop(guard);
    }
}

/// No task runs in this process meanwhile: its only thread waits for the pipe.
pub(crate) async fn a_lock_is_handed_over_and_swept_while_the_creators_runtime_is_blocked(by: By) {
    let lock = Lock::new().unwrap();
    let (read_orders, mut orders) = pipe().unwrap();
    let (mut reports, write_reports) = pipe().unwrap();
    let mut helpers = Vec::new();
    for _ in 0..2 {
        let orders = Fd(read_orders.try_clone().unwrap());
        let reports = Fd(write_reports.try_clone().unwrap());
        let arg = (lock.clone(), orders, reports);
        helpers.push(by.start(take_turns, arg).await);
    }

    // Both come; one has the lock. It goes on when an order says so, and the other gets it.
    orders.write_all(&[0, 0]).unwrap();
    reports.read_exact(&mut [0]).unwrap();
    orders.write_all(&[0]).unwrap();
    reports.read_exact(&mut [0]).unwrap();
    // Whoever has it now dies.
    for helper in &helpers {
        helper.kill().unwrap();
    }

    assert!(lock.blocking_lock().unwrap().recovered());
}

/// How long each holds the lock, in turns of an empty loop: some tens of microseconds.
const WORK: u32 = 20_000;

fn compete((lock, rounds, stop, index): (Lock, RawArray<u64>, Event, usize)) {
    while !stop.is_set() {
        let guard = lock.blocking_lock().unwrap();
        for _ in 0..WORK {
            std::hint::spin_loop();
        }
        rounds.update(index, |n| n + 1);
        drop(guard);
    }
}

pub(crate) async fn nobody_who_competes_for_a_lock_is_left_out(by: By) {
    let (lock, stop) = (Lock::new().unwrap(), Event::new().unwrap());
    let rounds = RawArray::zeroed(4).unwrap();
    let mut children = Vec::new();
    for index in 0..rounds.len() {
        let arg = (lock.clone(), rounds.clone(), stop.clone(), index);
        children.push(by.start(compete, arg).await);
    }

    soon(async {
        while rounds.to_vec().iter().any(|n| *n < 100) {
            tokio::task::yield_now().await;
        }
    })
    .await;

    stop.set();
    for child in children {
        soon(child.join()).await.unwrap();
    }
}
