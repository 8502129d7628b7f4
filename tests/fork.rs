//! Children that are copies of the running process.
//!
//! A fork wants a process that has no thread beside the caller and has not used tokio, and no test
//! harness gives one. So this one has none: each case is this program again, with the case's name
//! in the environment, and runs on the main thread. The runner that starts these programs is like
//! libtest's, so that `cargo test` and nextest list and filter the cases like any test.

use std::io::{Read, Write};
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::executor::block_on;
use libtest_mimic::{Arguments, Failed, Trial};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio_multiprocess::pipe;
use tokio_multiprocess::sync::Event;
use tokio_multiprocess::{AsyncPipe, Process, RecvError, StartError};

#[path = "it/queue/suite.rs"]
mod queue_suite;
#[path = "it/shared/suite.rs"]
mod shared_suite;
#[path = "it/process/suite.rs"]
mod suite;
#[path = "it/sync/suite/mod.rs"]
mod sync_suite;

/// Where the other suites look for it.
mod process {
    pub(crate) use crate::suite;
}

#[path = "it/pipe/between.rs"]
mod between;

use crate::suite::{By, sleep};

/// Names the case that a process is for.
const CASE: &str = "FORK_CASE";

type Case = (&'static str, fn());

macro_rules! cases {
    (every way: $($every:ident)* ; queues: $($queue:ident)* ; pipes: $($between:ident)* ;
     memory: $($memory:ident)* ; $(sync, $object:ident: $($sync:ident)* ;)* fork: $($own:ident)*) => {
        const CASES: &[Case] = &[
            $((stringify!($every), || block_on(suite::$every(By::Fork))),)*
            $((stringify!($queue), || on_a_runtime(queue_suite::$queue(By::Fork))),)*
            $((stringify!($between), || block_on(between::$between(By::Fork))),)*
            $((stringify!($memory), || on_a_runtime(shared_suite::$memory(By::Fork))),)*
            $($((
                concat!(stringify!($object), "::", stringify!($sync)),
                || on_a_runtime(sync_suite::$object::$sync(By::Fork)),
            ),)*)*
            $((stringify!($own), $own),)*
        ];
    };
}

cases! {
    every way:
        what_the_function_returns_comes_back
        arguments_of_every_shape_arrive_unchanged
        large_arguments_and_results_arrive_unchanged
        an_error_that_the_function_returns_is_data
        a_child_is_another_process_and_knows_its_parent
        a_child_bears_its_name
        a_child_without_a_name_gets_one_of_its_own
        children_are_listed_while_they_live
        a_child_has_no_children_at_first
        children_start_children
        a_panic_comes_with_message_place_and_backtrace
        exit_codes_are_exact
        a_function_that_returns_ends_its_process_with_success
        an_abort_is_a_signal
        a_stack_overflow_says_so
        terminate_kill_and_interrupt_end_a_child
        a_child_that_spins_is_killed
        a_result_is_taken_once_and_the_end_is_told_any_number_of_times
        a_process_is_awaited_itself
        the_sentinel_is_readable_at_the_end_and_not_before
        a_join_that_is_given_up_can_be_repeated
        a_child_leads_a_group_of_its_own
        what_a_child_started_goes_with_it
        a_child_has_the_arguments_and_the_folder_of_its_parent
        the_environment_is_the_parents_with_the_changes_asked_for
        a_child_starts_in_the_folder_asked_for
        stdin_is_empty_unless_asked_for
        what_a_child_wrote_is_complete_at_its_end
        a_child_has_no_more_descriptors_than_its_elder_siblings
        a_hundred_children_live_at_once
        a_result_that_cannot_be_encoded_is_an_error
        a_result_that_cannot_be_decoded_is_an_error
        dropping_the_handle_lets_the_child_run_on
        a_child_that_shall_die_with_its_handle_does
        the_end_of_stderr_is_kept
        a_child_may_close_its_streams
        a_child_has_the_signals_that_a_program_begins_with
        a_child_that_is_stopped_can_be_killed
        a_grandchild_that_keeps_everything_open_delays_nobody
        a_child_that_sends_nonsense_is_killed
        a_child_that_closes_its_link_is_killed
        a_child_that_dies_inside_a_message_has_no_result
        children_start_at_once_in_any_number
    ;
    queues:
        items_of_a_child_arrive_in_order
        items_reach_a_child_in_order
        a_queue_ends_when_its_producers_are_gone
        a_queue_ends_when_its_producers_are_killed
        a_full_queue_makes_a_child_wait
        a_producer_gets_its_item_back_when_the_consumers_are_killed
        large_items_arrive_unchanged
        descriptors_travel_in_items
        queues_travel_in_queues
        a_handle_in_a_message_counts
        join_waits_for_all_workers
        what_nobody_can_get_any_more_is_dropped_and_counts_as_done
        what_a_dead_consumer_had_got_counts_as_done
        a_lease_of_a_dead_consumer_is_delivered_again
        blocking_twins_work_between_processes
        the_creators_death_is_an_error_for_all
        a_stopped_consumer_stops_nobody_else
        a_stopped_producer_stops_nobody_else
        many_producers_and_consumers_lose_and_double_nothing
    ;
    pipes:
        messages_of_every_length_go_there_and_back
        the_end_of_a_child_is_the_end_of_its_pipe
        a_child_that_is_killed_leaves_whole_messages_in_order
        an_end_in_a_message_works_where_it_arrives_and_comes_back
        files_travel_in_messages_in_any_number
    ;
    memory:
        what_a_child_writes_is_there_for_its_parent
        additions_of_four_processes_are_all_there
        raw_arrays_are_read_and_written_element_by_element
        shared_bytes_are_the_same_in_every_process
        a_guard_tells_of_a_death_though_the_value_was_used_without_one_before
    ;
    sync, barrier:
        parties_of_three_processes_keep_step
        a_party_that_is_killed_breaks_the_barrier_until_it_is_reset
    ;
    sync, condition:
        each_notification_wakes_one_waiter_of_whatever_process
        a_waiter_that_dies_does_not_block_the_notifier
        a_predicate_is_waited_for_across_processes
    ;
    sync, creator:
        what_a_process_has_created_fails_once_it_has_ended
        what_a_process_has_created_fails_though_a_copy_of_it_lives_on
        who_waits_is_told_of_the_creators_end_though_a_copy_of_it_lives_on
    ;
    sync, event:
        a_set_in_another_process_releases_every_waiter
        a_short_set_releases_those_who_waited
        a_child_waits_for_its_parent
    ;
    sync, lock:
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
    ;
    sync, rlock:
        an_owner_takes_it_again_and_others_do_not
    ;
    sync, semaphore:
        permits_are_shared_by_all_processes
        the_permit_of_a_killed_process_comes_back
    ;
    fork:
        a_closure_captures_what_cannot_be_sent
        a_descriptor_that_was_captured_is_open_in_the_child_alone
        the_ends_of_a_pipe_go_on_in_the_copy
        a_pipe_that_the_parent_awaits_still_wakes_it_after_the_child_has_used_its_copy
        a_wait_that_was_begun_before_the_fork_goes_on_in_the_copy
        a_process_with_other_threads_is_refused
        other_threads_are_allowed_to_whom_asks_for_it
        a_child_is_outside_the_runtime_that_forked_it
        what_the_child_registers_leaves_the_parents_driver_alone
        what_the_child_inherits_of_tokio_still_works_in_the_parent
        signals_are_seen_by_both_where_tokio_starts_after_the_fork
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CASE) {
        let (_, case) = CASES.iter().find(|(case, _)| *case == name).unwrap();
        case();
        return ExitCode::SUCCESS;
    }
    let trials = CASES
        .iter()
        .map(|(name, _)| Trial::test(*name, || run(name)));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Runs a case in a process of its own.
fn run(name: &str) -> Result<(), Failed> {
    let program = std::env::current_exe()?;
    let output = Command::new("timeout")
        .arg("60")
        .arg(program)
        .env(CASE, name)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}\n{errors}", output.status).into())
}

/// The runner has the clock here, since tokio's would need a runtime.
async fn soon<F: Future>(future: F) -> F::Output {
    future.await
}

/// Starts a fork in a process that keeps its side of the contract.
#[expect(
    unsafe_code,
    reason = "fork has a contract that only its caller can keep"
)]
fn fork<R>(child: impl FnOnce() -> R + Send + 'static) -> Result<Process<R>, StartError>
where
    R: Serialize + DeserializeOwned + Send + 'static,
{
    // SAFETY: each case says for itself what it does to tokio; this process has no thread beside
    // the caller, or the fork is to be refused.
    unsafe { Process::builder().fork(child) }
}

fn a_closure_captures_what_cannot_be_sent() {
    let numbers = Arc::new(Mutex::new(vec![1, 2, 3]));
    let add: Box<dyn Fn(u32) -> u32 + Send> = Box::new(|n| n + 1);
    let its = Arc::clone(&numbers);
    let mut child = fork(move || {
        its.lock().unwrap().push(4);
        add(its.lock().unwrap().iter().sum())
    });
    assert_eq!(block_on(child.as_mut().unwrap().join()).unwrap(), 11);
    // The child had a copy.
    assert_eq!(*numbers.lock().unwrap(), [1, 2, 3]);
}

fn a_descriptor_that_was_captured_is_open_in_the_child_alone() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let child = fork(move || writer.write_all(b"hello").unwrap()).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    block_on(child.join()).unwrap();
}

fn the_ends_of_a_pipe_go_on_in_the_copy() {
    let (here, there) = AsyncPipe::<Vec<u8>, usize>::pair().unwrap();
    let child = fork(move || {
        let message = there.blocking_recv().unwrap();
        there.blocking_send(message.len()).unwrap();
        there.blocking_send_bytes(&message).unwrap();
    });
    here.blocking_send(vec![7; 3 << 20]).unwrap();
    assert_eq!(here.blocking_recv().unwrap(), 3 << 20);
    assert!(here.blocking_recv_bytes().unwrap() == vec![7; 3 << 20]);
    assert!(matches!(here.blocking_recv(), Err(RecvError::Closed)));
    block_on(child.unwrap().join()).unwrap();
}

/// The child's copy is registered with the driver of the parent, which it shares.
fn a_pipe_that_the_parent_awaits_still_wakes_it_after_the_child_has_used_its_copy() {
    let (tx, rx) = pipe::one_way::<u8>().unwrap();
    on_a_runtime(async move {
        assert!(rx.recv().now_or_never().is_none());
        let rx = Arc::new(rx);
        let copy = Arc::clone(&rx);
        let child = fork(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { assert!(copy.recv().now_or_never().is_none()) });
            drop(runtime);
        });
        child.unwrap().join().await.unwrap();

        let received = tokio::spawn(async move { rx.recv().await.unwrap() });
        tokio::task::yield_now().await;
        tx.send(7).await.unwrap();
        assert_eq!(received.await.unwrap(), 7);
    });
}

/// The driver that would wake it is that of the parent.
fn a_wait_that_was_begun_before_the_fork_goes_on_in_the_copy() {
    let event = Event::new().unwrap();
    on_a_runtime(async move {
        let its = event.clone();
        let mut wait = Box::pin(async move { its.wait().await });
        assert!(futures::poll!(wait.as_mut()).is_pending());
        let (mut waits, mut says) = std::io::pipe().unwrap();
        let child = fork(move || {
            on_a_runtime(async move {
                assert!(futures::poll!(wait.as_mut()).is_pending());
                says.write_all(&[0]).unwrap();
                wait.await.unwrap();
            })
        });
        waits.read_exact(&mut [0]).unwrap();
        event.set();
        child.unwrap().join().await.unwrap();
    });
}

fn a_process_with_other_threads_is_refused() {
    let thread = std::thread::Builder::new().name("beside".to_owned());
    // It gives itself its name before it runs this.
    let (tell, told) = std::sync::mpsc::channel();
    let run = move || {
        tell.send(()).unwrap();
        sleep(());
    };
    thread.spawn(run).unwrap();
    told.recv().unwrap();
    match fork(|| ()) {
        Err(StartError::MultiThreaded { threads }) => assert_eq!(threads, ["beside"]),
        other => panic!("{other:?}"),
    }
}

#[expect(
    unsafe_code,
    reason = "fork has a contract that only its caller can keep"
)]
fn other_threads_are_allowed_to_whom_asks_for_it() {
    std::thread::spawn(|| sleep(()));
    // SAFETY: the other thread sleeps and holds no lock.
    let child = unsafe { Process::builder().fork_multithreaded(|| 5) };
    assert_eq!(block_on(child.unwrap().join()).unwrap(), 5);
}

fn a_child_is_outside_the_runtime_that_forked_it() {
    let has_runtime = || tokio::runtime::Handle::try_current().is_ok();
    let outcome = on_a_runtime(async move {
        assert!(has_runtime());
        fork(has_runtime).unwrap().join().await
    });
    assert!(!outcome.unwrap());
}

/// In a child that goes on where its parent stood, the runtime's driver is that of the parent: what
/// it registers there has addresses of its own memory, and the parent crashes over them.
fn what_the_child_registers_leaves_the_parents_driver_alone() {
    on_a_runtime(async {
        let (mut ours, mut others) = UnixStream::pair().unwrap();
        let child = fork(|| on_a_runtime(ping_pong())).unwrap();
        for _ in 0..100 {
            ours.write_all(b"x").await.unwrap();
            assert_eq!(others.read_u8().await.unwrap(), b'x');
        }
        child.join().await.unwrap();
        ping_pong().await;
    });
}

/// In a child that ends by unwinding, the parent's sockets are dropped, which takes them out of the
/// set that both share: the parent would never wake again.
fn what_the_child_inherits_of_tokio_still_works_in_the_parent() {
    on_a_runtime(async {
        let (mut ours, mut others) = UnixStream::pair().unwrap();
        others.readable().now_or_never();
        for ends in [|| (), || panic!("it unwinds"), || std::process::exit(3)] {
            let child = fork(ends).unwrap();
            drop(child.join().await);
            let mut read = pin!(others.read_u8());
            assert!(futures::poll!(read.as_mut()).is_pending());
            ours.write_all(b"x").await.unwrap();
            assert_eq!(read.await.unwrap(), b'x');
        }
    });
}

/// Where tokio's signal pipe was made before the fork, both read from it and each misses signals.
fn signals_are_seen_by_both_where_tokio_starts_after_the_fork() {
    let child = fork(|| on_a_runtime(signal_oneself())).unwrap();
    on_a_runtime(signal_oneself());
    block_on(child.join()).unwrap();
}

async fn signal_oneself() {
    let mut signals = signal(SignalKind::user_defined1()).unwrap();
    for _ in 0..100 {
        nix::sys::signal::raise(nix::sys::signal::SIGUSR1).unwrap();
        signals.recv().await.unwrap();
    }
}

async fn ping_pong() {
    let (mut a, mut b) = UnixStream::pair().unwrap();
    let echo = tokio::spawn(async move {
        for _ in 0..100 {
            let byte = b.read_u8().await.unwrap();
            b.write_u8(byte).await.unwrap();
        }
    });
    for n in 0..100 {
        a.write_u8(n).await.unwrap();
        assert_eq!(a.read_u8().await.unwrap(), n);
        tokio::time::sleep(Duration::from_micros(10)).await;
    }
    echo.await.unwrap();
}

fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}
