//! Pools: tasks and streams, deaths and ends.
//!
//! What holds for each way to start workers is in `suite`; here it runs for the two safe ways, and
//! what is peculiar to none of them follows.

mod runtimes;
mod soak;
mod suite;

use self::suite::By;

by_both_safe_ways! {
    what_a_function_returns_comes_back
    map_keeps_the_order_for_any_number_of_items
    streams_bring_every_result_once
    large_arguments_and_results_arrive_unchanged
    what_is_longer_than_allowed_is_an_error_of_its_own
    files_travel_in_arguments_and_results
    ends_of_pipes_travel_in_arguments_and_results
    a_tasks_own_error_is_data
    a_panic_tells_what_and_where_and_its_worker_lives_on
    what_cannot_travel_is_an_error_of_its_task_alone
    a_result_whose_decoding_panics_panics_whoever_takes_it
    map_runs_all_and_returns_the_first_error_in_order
    each_crash_fails_its_task_and_the_pool_lives_on
    a_death_tells_the_end_of_what_the_worker_wrote
    a_crash_among_many_items_fails_that_item_alone
    tasks_behind_a_crash_run_once_and_elsewhere
    an_idle_worker_that_is_killed_is_replaced_and_nothing_is_lost
    a_crashed_task_is_tried_again_as_often_as_asked_for
    a_row_of_fruitless_workers_breaks_the_pool
    a_worker_that_breaks_the_protocol_is_killed
    a_grandchild_that_keeps_everything_open_delays_nobody
    cancelling_stops_what_runs_and_forgets_what_waits
    a_token_stops_a_task_unless_its_result_came_first
    an_async_task_is_cancelled_at_an_await_point
    a_task_that_runs_too_long_is_stopped
    a_pools_time_limit_holds_for_each_item
    a_dropped_handle_cancels_what_waits_and_lets_finish_what_runs
    a_wait_that_is_given_up_harms_nobody
    an_input_without_end_is_pulled_as_needed
    a_dropped_stream_cancels_the_rest
    unordered_results_come_as_they_are_ready_and_ordered_ones_wait
    items_behind_a_slow_one_go_to_an_idle_worker
    a_panic_of_the_input_comes_after_the_results_before_it
    close_finishes_what_was_accepted_and_takes_no_more
    close_finishes_a_stream_that_was_begun
    close_does_not_wait_for_a_stream_that_nobody_polls
    terminate_ends_at_once
    the_last_handle_takes_the_workers_along
    each_worker_is_initialized_and_finalized
    an_async_initializer_runs_in_the_workers_runtime
    an_initializer_that_fails_is_reported_by_build
    settings_that_make_no_sense_are_refused
    a_worker_is_replaced_after_so_many_tasks
    a_worker_that_grows_too_large_is_replaced
    a_pool_grows_and_shrinks
    stats_tell_what_workers_do
    one_worker_runs_several_tasks_at_once
    tasks_that_run_together_share_the_death_of_their_worker
    async_functions_run_in_a_runtime_of_the_worker
    blocking_functions_may_block_on_futures
    workers_bear_the_pools_name_and_its_environment
    a_task_may_have_a_pool_of_its_own
}
