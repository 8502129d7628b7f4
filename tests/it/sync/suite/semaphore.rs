//! Semaphores between processes.

use tokio_multiprocess::sync::{Event, Semaphore};

use crate::process::suite::By;
use crate::soon;

async fn hold((semaphore, taken, go_on): (Semaphore, Event, Event)) {
    let _permit = semaphore.acquire().await.unwrap();
    taken.set();
    go_on.wait().await.unwrap();
}

pub(crate) async fn permits_are_shared_by_all_processes(by: By) {
    let (semaphore, taken, go_on) = (
        Semaphore::new(2).unwrap(),
        Event::new().unwrap(),
        Event::new().unwrap(),
    );
    let arg = (semaphore.clone(), taken.clone(), go_on.clone());
    let child = by.start_async(hold, arg).await;
    soon(taken.wait()).await.unwrap();

    assert_eq!(semaphore.available_permits(), 1);
    let permit = semaphore.try_acquire().unwrap();
    assert!(semaphore.try_acquire().is_err());
    go_on.set();
    drop(soon(semaphore.acquire()).await.unwrap());

    soon(child.join()).await.unwrap();
    drop(permit);
    assert_eq!(semaphore.available_permits(), 2);
}

pub(crate) async fn the_permit_of_a_killed_process_comes_back(by: By) {
    let (semaphore, taken, never) = (
        Semaphore::new(1).unwrap(),
        Event::new().unwrap(),
        Event::new().unwrap(),
    );
    let arg = (semaphore.clone(), taken.clone(), never);
    let child = by.start_async(hold, arg).await;
    soon(taken.wait()).await.unwrap();

    child.kill().unwrap();

    drop(soon(semaphore.acquire()).await.unwrap());
    assert_eq!(semaphore.available_permits(), 1);
}
