//! Events between processes.

use tokio_multiprocess::Process;
use tokio_multiprocess::sync::Event;

use crate::soon;

fn set(event: Event) {
    event.set();
}

fn pulse(event: Event) {
    event.set();
    event.clear();
}

#[tokio::test]
async fn a_set_in_another_process_releases_every_waiter() {
    let event = Event::new().unwrap();
    let mut first = Box::pin(event.wait());
    let mut second = Box::pin(event.wait());
    assert!(futures::poll!(first.as_mut()).is_pending());
    assert!(futures::poll!(second.as_mut()).is_pending());

    let child = soon(Process::start(set, event.clone())).await.unwrap();

    soon(first).await.unwrap();
    soon(second).await.unwrap();
    soon(child.join()).await.unwrap();
    assert!(event.is_set());
    event.clear();
    assert!(!event.is_set());
}

#[tokio::test]
async fn a_short_set_releases_those_who_waited() {
    let event = Event::new().unwrap();
    let mut waiter = Box::pin(event.wait());
    assert!(futures::poll!(waiter.as_mut()).is_pending());

    let child = soon(Process::start(pulse, event.clone())).await.unwrap();
    soon(child.join()).await.unwrap();

    soon(waiter).await.unwrap();
    assert!(!event.is_set());
}

async fn wait(event: Event) {
    event.wait().await.unwrap();
}

#[tokio::test]
async fn a_child_waits_for_its_parent() {
    let event = Event::new().unwrap();
    let child = soon(Process::start(wait, event.clone())).await.unwrap();

    event.set();

    soon(child.join()).await.unwrap();
}

#[test]
fn waits_outlive_the_runtime_that_began_them() {
    let event = Event::new().unwrap();
    for _ in 0..10 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let waiter = runtime.spawn({
            let event = event.clone();
            async move { event.wait().await }
        });
        event.set();
        runtime.block_on(soon(waiter)).unwrap().unwrap();
        event.clear();
        runtime.spawn({
            let event = event.clone();
            async move { event.wait().await }
        });
    }
    assert!(!event.is_set());
}
