//! What becomes of objects whose creator has ended, and what objects leave behind.

use tokio_multiprocess::sync::{Barrier, Event, Lock, Semaphore};
use tokio_multiprocess::{BrokenBarrier, CreatorGone, Process, TryLockError};

use crate::alone::alone;
use crate::soon;

fn create(_: ()) -> (Lock, Semaphore, Event, Barrier) {
    (
        Lock::new().unwrap(),
        Semaphore::new(1).unwrap(),
        Event::new().unwrap(),
        Barrier::new(2).unwrap(),
    )
}

#[tokio::test]
async fn what_a_process_has_created_fails_once_it_has_ended() {
    let child = soon(Process::start(create, ())).await.unwrap();
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

#[test]
fn objects_that_are_dropped_leave_nothing_behind() {
    alone(async || {
        // The broker, its link and the runtime's ears stay.
        let keep = create(());
        for _ in 0..1000 {
            let objects = create(());
            let _guard = objects.0.lock().await.unwrap();
        }
        drop(keep);
    });
}
