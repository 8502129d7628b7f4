//! Conditions.

use tokio_multiprocess::shared::Value;
use tokio_multiprocess::sync::{Condition, Lock, RLock};

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
