//! Events.

use tokio_multiprocess::sync::Event;

use super::suite::event as suite;
use crate::process::suite::By;
use crate::soon;

by_both_safe_ways! {
    a_set_in_another_process_releases_every_waiter
    a_short_set_releases_those_who_waited
    a_child_waits_for_its_parent
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
