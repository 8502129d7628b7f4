//! The lock between processes.

use tokio_multiprocess::Process;
use tokio_multiprocess::sync::{Event, Lock};

use crate::soon;

async fn hold((lock, taken, go_on): (Lock, Event, Event)) {
    let _guard = lock.lock().await.unwrap();
    taken.set();
    go_on.wait().await.unwrap();
}

#[tokio::test]
async fn a_lock_held_in_another_process_is_waited_for() {
    let (lock, taken, go_on) = (
        Lock::new().unwrap(),
        Event::new().unwrap(),
        Event::new().unwrap(),
    );
    let arg = (lock.clone(), taken.clone(), go_on.clone());
    let child = soon(Process::start(hold, arg)).await.unwrap();
    soon(taken.wait()).await.unwrap();

    assert!(lock.try_lock().is_err());
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await.unwrap().recovered() }
    });
    go_on.set();

    assert!(!soon(waiter).await.unwrap());
    soon(child.join()).await.unwrap();
    assert!(!lock.is_locked());
}
