//! What becomes of objects whose creator has ended.

use tokio_multiprocess::sync::{Barrier, Event, Lock, Semaphore};
use tokio_multiprocess::{BrokenBarrier, CreatorGone, TryLockError};

use crate::process::suite::By;
use crate::soon;

pub(crate) fn create(_: ()) -> (Lock, Semaphore, Event, Barrier) {
    (
        Lock::new().unwrap(),
        Semaphore::new(1).unwrap(),
        Event::new().unwrap(),
        Barrier::new(2).unwrap(),
    )
}

pub(crate) async fn what_a_process_has_created_fails_once_it_has_ended(by: By) {
    let child = by.start(create, ()).await;
    let (lock, semaphore, event, barrier) = soon(child.join()).await.unwrap();
    soon(child.wait()).await;

    // The event sleeps until the news comes; after that all are told at once.
    assert_eq!(soon(event.wait()).await, Err(CreatorGone));
    assert_eq!(soon(lock.lock()).await.unwrap_err(), CreatorGone);
    let refused = lock.try_lock().unwrap_err();
    assert_eq!(refused, TryLockError::CreatorGone(CreatorGone));
    assert_eq!(soon(semaphore.acquire()).await.unwrap_err(), CreatorGone);
    let broken = soon(barrier.wait()).await.unwrap_err();
    assert_eq!(broken, BrokenBarrier::CreatorGone(CreatorGone));
}
