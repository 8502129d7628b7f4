//! Conditions between processes.

use tokio_multiprocess::Process;
use tokio_multiprocess::shared::Value;
use tokio_multiprocess::sync::{Condition, Lock, RLock};

use crate::soon;

async fn wait((lock, condition, woken): (Lock, Condition, Value<u32>)) {
    let guard = lock.lock().await.unwrap();
    let guard = condition.wait(guard).await.unwrap();
    *woken.lock().await.unwrap() += 1;
    drop(guard);
}

/// Comes back with the lock once `n` wait.
async fn once_waiting(
    lock: &Lock,
    condition: &Condition,
    n: usize,
) -> tokio_multiprocess::sync::LockGuard {
    loop {
        let guard = soon(lock.lock()).await.unwrap();
        if condition.n_waiting() == n {
            return guard;
        }
        drop(guard);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn each_notification_wakes_one_waiter_of_whatever_process() {
    let (lock, woken) = (Lock::new().unwrap(), Value::new(0).unwrap());
    let condition = Condition::new(&lock).unwrap();
    let arg = (lock.clone(), condition.clone(), woken.clone());
    let child = soon(Process::start(wait, arg.clone())).await.unwrap();
    let task = tokio::spawn(wait(arg));

    let guard = once_waiting(&lock, &condition, 2).await;
    condition.notify_one();
    drop(guard);
    let guard = once_waiting(&lock, &condition, 1).await;
    condition.notify_one();
    drop(guard);

    soon(task).await.unwrap();
    soon(child.join()).await.unwrap();
    assert_eq!(soon(woken.get()).await.unwrap(), 2);
    assert_eq!(condition.n_waiting(), 0);
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

async fn wait_and_die((lock, condition): (Lock, Condition)) {
    let guard = lock.lock().await.unwrap();
    let _guard = condition.wait(guard).await.unwrap();
    std::process::abort();
}

#[tokio::test]
async fn a_waiter_that_dies_does_not_block_the_notifier() {
    let lock = Lock::new().unwrap();
    let condition = Condition::new(&lock).unwrap();
    let arg = (lock.clone(), condition.clone());
    let child = soon(Process::start(wait_and_die, arg)).await.unwrap();

    let guard = once_waiting(&lock, &condition, 1).await;
    child.kill().unwrap();
    condition.notify_all();
    drop(guard);

    drop(soon(lock.lock()).await.unwrap());
    assert!(soon(child.join()).await.is_err());
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

async fn count_up((lock, condition, value): (Lock, Condition, Value<i32>)) {
    for _ in 0..4 {
        let guard = lock.lock().await.unwrap();
        *value.lock().await.unwrap() += 1;
        condition.notify_all();
        drop(guard);
    }
}

#[tokio::test]
async fn a_predicate_is_waited_for_across_processes() {
    let (lock, value) = (Lock::new().unwrap(), Value::new(0).unwrap());
    let condition = Condition::new(&lock).unwrap();
    let guard = soon(lock.lock()).await.unwrap();
    let arg = (lock.clone(), condition.clone(), value.clone());
    let child = soon(Process::start(count_up, arg)).await.unwrap();

    let wait = condition.wait_while(guard, |_| value.blocking_get().unwrap() < 4);
    drop(soon(wait).await.unwrap());

    assert_eq!(soon(value.get()).await.unwrap(), 4);
    soon(child.join()).await.unwrap();
}
