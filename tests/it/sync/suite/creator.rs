//! What becomes of objects whose creator has ended.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork, pause, setsid};
use serde::{Deserialize, Serialize};
use tokio_multiprocess::AsyncPipe;
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

/// A copy that a process has left behind, as a program does that goes into the background.
#[derive(Serialize, Deserialize)]
struct Copy(i32);

impl Copy {
    #[expect(unsafe_code, reason = "the copy has to come about without the library")]
    fn leave() -> Self {
        // SAFETY: the copy makes system calls only.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self(child.as_raw()),
            ForkResult::Child => {
                let _ = setsid();
                loop {
                    pause();
                }
            }
        }
    }
}

/// Ends a copy in any case, as nobody else does.
struct Ended(Copy);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.0), Signal::SIGKILL);
    }
}

fn taken_lock() -> Lock {
    let lock = Lock::new().unwrap();
    std::mem::forget(lock.try_lock().unwrap());
    lock
}

fn leave_a_copy(_: ()) -> (Lock, Copy) {
    (taken_lock(), Copy::leave())
}

async fn leave_a_copy_later(pipe: AsyncPipe<Lock, ()>) -> Copy {
    pipe.send(taken_lock()).await.unwrap();
    pipe.recv().await.unwrap();
    Copy::leave()
}

pub(crate) async fn what_a_process_has_created_fails_though_a_copy_of_it_lives_on(by: By) {
    let child = by.start(leave_a_copy, ()).await;
    let (lock, copy) = soon(child.join()).await.unwrap();
    let _copy = Ended(copy);

    assert_eq!(soon(lock.lock()).await.unwrap_err(), CreatorGone);
}

pub(crate) async fn who_waits_is_told_of_the_creators_end_though_a_copy_of_it_lives_on(by: By) {
    let (ours, theirs) = AsyncPipe::pair().unwrap();
    let child = by.start_async(leave_a_copy_later, theirs).await;
    let lock = soon(ours.recv()).await.unwrap();
    let waiter = tokio::spawn(async move { lock.lock().await.map(drop) });
    ours.send(()).await.unwrap();
    let _copy = Ended(soon(child.join()).await.unwrap());

    assert_eq!(soon(waiter).await.unwrap(), Err(CreatorGone));
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
