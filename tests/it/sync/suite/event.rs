//! Events between processes.

use tokio_multiprocess::sync::Event;

use crate::process::suite::By;
use crate::soon;

fn set(event: Event) {
    event.set();
}

fn pulse(event: Event) {
    event.set();
    event.clear();
}

pub(crate) async fn a_set_in_another_process_releases_every_waiter(by: By) {
    let event = Event::new().unwrap();
    let mut first = Box::pin(event.wait());
    let mut second = Box::pin(event.wait());
    assert!(futures::poll!(first.as_mut()).is_pending());
    assert!(futures::poll!(second.as_mut()).is_pending());

    let child = by.start(set, event.clone()).await;

    soon(first).await.unwrap();
    soon(second).await.unwrap();
    soon(child.join()).await.unwrap();
    assert!(event.is_set());
    event.clear();
    assert!(!event.is_set());
}

pub(crate) async fn a_short_set_releases_those_who_waited(by: By) {
    let event = Event::new().unwrap();
    let mut waiter = Box::pin(event.wait());
    assert!(futures::poll!(waiter.as_mut()).is_pending());

    let child = by.start(pulse, event.clone()).await;
    soon(child.join()).await.unwrap();

    soon(waiter).await.unwrap();
    assert!(!event.is_set());
}

async fn wait(event: Event) {
    event.wait().await.unwrap();
}

pub(crate) async fn a_child_waits_for_its_parent(by: By) {
    let event = Event::new().unwrap();
    let child = by.start_async(wait, event.clone()).await;

    event.set();

    soon(child.join()).await.unwrap();
}
