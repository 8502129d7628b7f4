//! Conditions between processes.

use tokio_multiprocess::shared::Value;
use tokio_multiprocess::sync::{Condition, Lock};

use crate::process::suite::By;
use crate::soon;

pub(crate) async fn wait((lock, condition, woken): (Lock, Condition, Value<u32>)) {
    let guard = lock.lock().await.unwrap();
    let guard = condition.wait(guard).await.unwrap();
    *woken.lock().await.unwrap() += 1;
    drop(guard);
}

/// Comes back with the lock once `n` wait.
pub(crate) async fn once_waiting(
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

pub(crate) async fn each_notification_wakes_one_waiter_of_whatever_process(by: By) {
    let (lock, woken) = (Lock::new().unwrap(), Value::new(0).unwrap());
    let condition = Condition::new(&lock).unwrap();
    let arg = (lock.clone(), condition.clone(), woken.clone());
    let child = by.start_async(wait, arg.clone()).await;
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

async fn wait_and_die((lock, condition): (Lock, Condition)) {
    let guard = lock.lock().await.unwrap();
    let _guard = condition.wait(guard).await.unwrap();
    std::process::abort();
}

pub(crate) async fn a_waiter_that_dies_does_not_block_the_notifier(by: By) {
    let lock = Lock::new().unwrap();
    let condition = Condition::new(&lock).unwrap();
    let arg = (lock.clone(), condition.clone());
    let child = by.start_async(wait_and_die, arg).await;

    let guard = once_waiting(&lock, &condition, 1).await;
    child.kill().unwrap();
    condition.notify_all();
    drop(guard);

    drop(soon(lock.lock()).await.unwrap());
    assert!(soon(child.join()).await.is_err());
}

async fn count_up((lock, condition, value): (Lock, Condition, Value<i32>)) {
    for _ in 0..4 {
        let guard = lock.lock().await.unwrap();
        *value.lock().await.unwrap() += 1;
        condition.notify_all();
        drop(guard);
    }
}

pub(crate) async fn a_predicate_is_waited_for_across_processes(by: By) {
    let (lock, value) = (Lock::new().unwrap(), Value::new(0).unwrap());
    let condition = Condition::new(&lock).unwrap();
    let guard = soon(lock.lock()).await.unwrap();
    let arg = (lock.clone(), condition.clone(), value.clone());
    let child = by.start_async(count_up, arg).await;

    let wait = condition.wait_while(guard, |_| value.blocking_get().unwrap() < 4);
    drop(soon(wait).await.unwrap());

    assert_eq!(soon(value.get()).await.unwrap(), 4);
    soon(child.join()).await.unwrap();
}
