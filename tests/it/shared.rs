//! Shared memory between processes, by both safe start methods.

mod suite;

use crate::process::suite::By;

by_both_safe_ways! {
    what_a_child_writes_is_there_for_its_parent
    additions_of_four_processes_are_all_there
    raw_arrays_are_read_and_written_element_by_element
    shared_bytes_are_the_same_in_every_process
    a_guard_tells_of_a_death_though_the_value_was_used_without_one_before
}
