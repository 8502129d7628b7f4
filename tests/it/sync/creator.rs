//! What becomes of objects whose creator has ended, and what objects leave behind.

use super::suite::creator as suite;
use super::suite::creator::create;
use crate::alone::alone;
use crate::process::suite::By;

by_both_safe_ways! {
    what_a_process_has_created_fails_once_it_has_ended
    what_a_process_has_created_fails_though_a_copy_of_it_lives_on
    who_waits_is_told_of_the_creators_end_though_a_copy_of_it_lives_on
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
