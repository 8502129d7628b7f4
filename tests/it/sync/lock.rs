//! The lock.

use super::suite::lock as suite;
use crate::process::suite::By;

by_both_safe_ways! {
    a_lock_held_in_another_process_is_waited_for
    a_holder_that_is_killed_gives_the_lock_on_and_the_next_one_is_told
    what_a_process_held_is_free_when_its_end_is_told
    a_lock_taken_without_a_guard_leaves_it_to_the_next_one_to_tell_of_a_death
    a_waiter_that_is_killed_takes_nothing_along
    a_handle_that_came_sideways_is_as_good_as_any
    any_process_may_release_what_was_acquired_without_a_guard
    debug_tells_who_has_the_lock
    a_lock_is_handed_over_and_swept_while_the_creators_runtime_is_blocked
    nobody_who_competes_for_a_lock_is_left_out
}
