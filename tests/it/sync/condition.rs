//! Conditions.

use std::time::Duration;

use tokio_multiprocess::shared::Value;
use tokio_multiprocess::sync::{Condition, Lock, RLock, RLockOwner};

use super::suite::condition as suite;
use super::suite::condition::{once_waiting, wait};
use crate::process::suite::By;
use crate::soon;

by_both_safe_ways! {
    each_notification_wakes_one_waiter_of_whatever_process
    a_waiter_that_dies_does_not_block_the_notifier
    a_predicate_is_waited_for_across_processes
}

#[tokio::test]
async fn a_surplus_of_notifications_is_not_remembered() {
    let (lock, woken) = (Lock::new().unwrap(), Value::new(0).unwrap());
    let condition = Condition::new(&lock).unwrap();
    let tasks: Vec<_> = (0..5)
        .map(|_| tokio::spawn(wait((lock.clone(), condition.clone(), woken.clone()))))
        .collect();

    let guard = once_waiting(&lock, &condition, 5).await;
    condition.notify(2);
    drop(guard);
    let guard = once_waiting(&lock, &condition, 3).await;
    condition.notify_all();
    condition.notify(3);
    drop(guard);
    for task in tasks {
        soon(task).await.unwrap();
    }

    let late = tokio::spawn(wait((lock.clone(), condition.clone(), woken.clone())));
    drop(once_waiting(&lock, &condition, 1).await);
    assert!(!late.is_finished());
    condition.notify_one();
    soon(late).await.unwrap();
}

#[tokio::test]
async fn a_notified_waiter_that_is_dropped_passes_it_on() {
    let lock = Lock::new().unwrap();
    let condition = Condition::new(&lock).unwrap();
    let guard = soon(lock.lock()).await.unwrap();
    let mut first = Box::pin(condition.wait(guard));
    assert!(futures::poll!(first.as_mut()).is_pending());
    let guard = soon(lock.lock()).await.unwrap();
    let mut second = Box::pin(condition.wait(guard));
    assert!(futures::poll!(second.as_mut()).is_pending());

    let guard = once_waiting(&lock, &condition, 2).await;
    condition.notify_one();
    drop(guard);
    drop(first);

    drop(soon(second).await.unwrap());
    assert!(lock.try_lock().is_ok());
}

#[tokio::test]
async fn waiting_gives_back_all_levels_and_takes_them_again() {
    let lock = RLock::new().unwrap();
    let condition = Condition::new(&lock).unwrap();
    let outer = soon(lock.lock()).await.unwrap();
    let inner = outer.again();
    let mut waiter = Box::pin(condition.wait(inner));
    assert!(futures::poll!(waiter.as_mut()).is_pending());

    let other = soon(lock.lock()).await.unwrap();
    condition.notify_one();
    drop(other);

    let inner = soon(waiter).await.unwrap();
    assert_eq!(inner.depth(), 2);
    drop(outer);
    assert!(lock.is_locked());
    drop(inner);
    assert!(!lock.is_locked());
}

#[tokio::test]
async fn a_wait_with_a_timeout_has_the_lock_again_whether_it_was_notified_or_not() {
    let lock = RLock::new().unwrap();
    let condition = Condition::new(&lock).unwrap();
    let outer = soon(lock.lock()).await.unwrap();

    let short = condition.wait_timeout(outer.again(), Duration::from_millis(1));
    let (inner, is_notified) = soon(short).await.unwrap();
    assert!(!is_notified && outer.has_lock() && lock.try_lock().is_err());
    assert_eq!(condition.n_waiting(), 0);

    let mut long = Box::pin(condition.wait_timeout(inner, Duration::MAX));
    assert!(futures::poll!(long.as_mut()).is_pending());
    drop(soon(lock.lock()).await.unwrap());
    condition.notify_one();
    let (_inner, is_notified) = soon(long).await.unwrap();
    assert!(is_notified && outer.has_lock() && lock.try_lock().is_err());
}

#[tokio::test]
async fn a_wait_with_a_timeout_is_the_same_in_a_crowd() {
    let lock = Lock::new().unwrap();
    let condition = Condition::new(&lock).unwrap();
    let mut waiters = Vec::new();
    for _ in 0..20 {
        let guard = soon(lock.lock()).await.unwrap();
        let mut waiter = Box::pin(condition.wait(guard));
        assert!(futures::poll!(waiter.as_mut()).is_pending());
        waiters.push(waiter);
    }

    let guard = soon(lock.lock()).await.unwrap();
    let short = condition.wait_timeout(guard, Duration::from_millis(1));
    let (guard, is_notified) = soon(short).await.unwrap();
    assert!(!is_notified && lock.try_lock().is_err());

    let mut long = Box::pin(condition.wait_timeout(guard, Duration::MAX));
    assert!(futures::poll!(long.as_mut()).is_pending());
    drop(once_waiting(&lock, &condition, 21).await);
    condition.notify_all();
    // At one time, as each is next when it is.
    let others = waiters
        .into_iter()
        .map(|waiter| async { drop(waiter.await.unwrap()) });
    let long = async {
        let (_guard, is_notified) = long.await.unwrap();
        assert!(is_notified && lock.try_lock().is_err());
    };
    soon(async { tokio::join!(futures::future::join_all(others), long) }).await;
}

#[tokio::test]
#[should_panic = "a wait of another guard of its owner was dropped"]
async fn guards_say_so_when_a_dropped_wait_has_left_them_without_the_lock() {
    let (lock, owner) = (RLock::new().unwrap(), RLockOwner::new());
    let condition = Condition::new(&lock).unwrap();
    let outer = soon(lock.lock_as(&owner)).await.unwrap();
    let mut waiter = Box::pin(condition.wait(outer.again()));
    assert!(futures::poll!(waiter.as_mut()).is_pending());
    drop(waiter);

    assert!(!outer.has_lock());
    assert!(soon(lock.lock_as(&owner)).await.unwrap().has_lock());

    let _ = condition.wait(outer).await;
}

/// With so many others that wait at the condition already.
async fn blocking_waits_with_a_timeout(n_others: usize) {
    let lock = Lock::new().unwrap();
    let condition = Condition::new(&lock).unwrap();
    let mut others = Vec::new();
    for _ in 0..n_others {
        let guard = soon(lock.lock()).await.unwrap();
        let mut other = Box::pin(condition.wait(guard));
        assert!(futures::poll!(other.as_mut()).is_pending());
        others.push(other);
    }
    drop(once_waiting(&lock, &condition, n_others).await);

    let guard = lock.blocking_lock().unwrap();
    let short = condition.blocking_wait_timeout(guard, Duration::from_millis(1));
    let (guard, is_notified) = short.unwrap();
    assert!(!is_notified && lock.try_lock().is_err());
    drop(guard);
    drop(once_waiting(&lock, &condition, n_others).await);

    drop(others);
    drop(once_waiting(&lock, &condition, 0).await);
    for timeout in [Duration::from_secs(60), Duration::MAX] {
        let guard = lock.blocking_lock().unwrap();
        let notifier = std::thread::spawn({
            let (lock, condition) = (lock.clone(), condition.clone());
            move || {
                let _guard = lock.blocking_lock().unwrap();
                condition.notify_one();
            }
        });
        let (guard, is_notified) = condition.blocking_wait_timeout(guard, timeout).unwrap();
        assert!(is_notified && lock.try_lock().is_err());
        drop(guard);
        notifier.join().unwrap();
    }
}

#[tokio::test]
async fn a_thread_that_waits_with_a_timeout_has_the_lock_again() {
    blocking_waits_with_a_timeout(0).await;
    blocking_waits_with_a_timeout(20).await;
}
