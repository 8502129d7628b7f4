//! One child: how it starts, what it finds, how it ends.
//!
//! What holds for each way to start one is in `suite`; here it runs for the two safe ways, and what
//! is peculiar to them follows.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess::{
    Context, ExitStatus, Limits, Process, ProcessError, StartError, StartMethod, Stdio,
    active_children, cpu_count, current_process, parent_process, start_method,
};

use crate::alone::{alone, children_of};
use crate::process::suite::{By, Undecodable, Unencodable, assert_ends, sleep};
use crate::soon;

pub(crate) mod suite;

by_both_safe_ways! {
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
}

const SAFE: [StartMethod; 2] = [StartMethod::SPAWN, StartMethod::FORK_SERVER];

#[tokio::test]
async fn an_async_function_runs_in_a_runtime_of_its_own() {
    async fn later(x: u64) -> u64 {
        let task = tokio::spawn(async move { x + 1 });
        tokio::time::sleep(Duration::from_millis(1)).await;
        task.await.unwrap()
    }
    for method in SAFE {
        let builder = Process::builder().start_method(method);
        let child = builder.start(later, 1).await.unwrap();
        assert_eq!(soon(child.join()).await.unwrap(), 2);
        let builder = Process::builder().start_method(method);
        let closure = |x: u64| async move { later(x).await + 1 };
        let child = builder.start(closure, 1).await.unwrap();
        assert_eq!(soon(child.join()).await.unwrap(), 3);
    }
}

#[tokio::test]
async fn a_blocking_function_may_make_a_runtime() {
    let block = |()| Runtime::new().unwrap().block_on(async { 4 });
    let child = Process::start(block, ()).await.unwrap();
    assert_eq!(soon(child.join()).await.unwrap(), 4);
}

#[tokio::test]
async fn a_panic_of_an_async_function_is_told_like_any_other() {
    let fail = |()| async {
        tokio::task::yield_now().await;
        panic!("later")
    };
    let child = Process::start(fail, ()).await.unwrap();
    let result: Result<(), _> = soon(child.join()).await;
    assert!(matches!(result, Err(ProcessError::Panicked { message, .. }) if message == "later"));
}

#[tokio::test]
async fn an_argument_that_cannot_be_encoded_is_an_error_of_start() {
    let started = Process::start(|_: Unencodable| (), Unencodable).await;
    assert!(matches!(started, Err(StartError::Encode(_))), "{started:?}");
}

#[tokio::test]
async fn an_argument_that_cannot_be_decoded_is_an_error_of_join() {
    let child = Process::start(|_: Undecodable| (), Undecodable)
        .await
        .unwrap();
    let result = soon(child.join()).await;
    assert!(
        matches!(result, Err(ProcessError::DecodeArgument(_))),
        "{result:?}"
    );
}

#[tokio::test]
async fn this_process_is_itself() {
    assert_eq!(current_process().pid, std::process::id());
    assert!(parent_process().is_none());
    assert!(cpu_count() >= 1);
}

#[tokio::test]
async fn a_context_starts_by_its_method_and_changes_no_default() {
    for method in SAFE {
        let own = |()| format!("{:?}", start_method());
        let child = Context::new(method).process(own, ()).await.unwrap();
        assert_eq!(soon(child.join()).await.unwrap(), format!("{method:?}"));
        assert_eq!(start_method(), StartMethod::FORK_SERVER);
    }
}

#[tokio::test]
async fn limits_bind_the_child() {
    let limit = |()| {
        let limits = fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        line.unwrap().split_whitespace().nth(3).unwrap().to_owned()
    };
    for method in SAFE {
        let builder = Process::builder().start_method(method);
        let builder = builder.limits(Limits::new().open_files(77));
        let child = builder.start(limit, ()).await.unwrap();
        assert_eq!(soon(child.join()).await.unwrap(), "77");
    }
}

#[test]
fn the_default_method_can_be_chosen_and_is_passed_on() {
    alone(async || {
        assert_eq!(start_method(), StartMethod::FORK_SERVER);
        for method in SAFE {
            tokio_multiprocess::set_start_method(method);
            assert_eq!(start_method(), method);
            let own = |()| format!("{:?}", start_method());
            let child = Process::start(own, ()).await.unwrap();
            assert_eq!(child.join().await.unwrap(), format!("{method:?}"));
        }
    });
}

/// The fork server was started before, and hands on what it is told, not what it has.
#[test]
fn a_child_gets_the_environment_and_the_folder_of_this_moment() {
    alone(async || {
        change_environment();
        std::env::set_current_dir("/proc/sys").unwrap();
        for method in SAFE {
            let builder = Process::builder().start_method(method);
            let state = |()| (std::env::var("CHANGED").ok(), std::env::current_dir().ok());
            let child = builder.start(state, ()).await.unwrap();
            let expected = (Some("later".to_owned()), Some("/proc/sys".into()));
            assert_eq!(child.join().await.unwrap(), expected);
        }
    });
}

#[expect(unsafe_code, reason = "the test is about a changed environment")]
fn change_environment() {
    // SAFETY: the process is alone with this test, and its other threads read no variable.
    unsafe { std::env::set_var("CHANGED", "later") };
}

#[test]
fn a_descriptor_without_close_on_exec_stays_here() {
    alone(async || {
        let open = fs::File::open("/proc/self/limits").unwrap();
        let stray = dup_without_cloexec(&open);
        for method in SAFE {
            let builder = Process::builder().start_method(method);
            let strays = |()| {
                let fds = fs::read_dir("/proc/self/fd").unwrap();
                let targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
                targets.filter(|target| target.ends_with("limits")).count()
            };
            let child = builder.start(strays, ()).await.unwrap();
            assert_eq!(child.join().await.unwrap(), 0);
        }
        drop(stray);
    });

    fn dup_without_cloexec(file: &fs::File) -> OwnedFd {
        let copy = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_DUPFD(3)).unwrap();
        #[expect(unsafe_code, reason = "nix gives the copy as a number")]
        // SAFETY: the kernel has just made it, and nobody else knows of it.
        let copy = unsafe { OwnedFd::from_raw_fd(copy) };
        assert!(copy.as_raw_fd() > 2);
        copy
    }
}

#[test]
fn a_process_without_standard_streams_starts_children() {
    alone(async || {
        let streams = [0, 1, 2].map(|number| {
            let copy = dup_above_standard(number);
            nix::unistd::close(number).unwrap();
            copy
        });
        let mut results = Vec::new();
        for method in SAFE {
            let builder = Process::builder().start_method(method);
            let child = builder.start(|x: u8| x + 1, 1).await;
            results.push(child.unwrap().join().await);
        }
        restore(streams);
        assert!(
            results.iter().all(|result| matches!(result, Ok(2))),
            "{results:?}"
        );
    });

    #[expect(
        unsafe_code,
        reason = "the standard streams are numbers that nobody owns"
    )]
    fn dup_above_standard(number: i32) -> OwnedFd {
        // SAFETY: the standard streams are open.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        stream.try_clone_to_owned().unwrap()
    }

    #[expect(
        unsafe_code,
        reason = "the standard streams are numbers that nobody owns"
    )]
    fn restore(streams: [OwnedFd; 3]) {
        // What the library opened has taken the numbers, and is closed in its own time.
        while (0..3).any(|number| fs::exists(format!("/proc/self/fd/{number}")).unwrap()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for (number, stream) in (0..).zip(&streams) {
            // SAFETY: takes numbers; nobody owns a standard stream.
            assert_eq!(unsafe { libc::dup2(stream.as_raw_fd(), number) }, number);
        }
    }
}

#[test]
fn a_process_that_has_no_descriptor_left_is_told_so() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    alone(async || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        for method in SAFE {
            for spare in 0..12 {
                let n_open = fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
                setrlimit(Resource::RLIMIT_NOFILE, n_open + spare, hard).unwrap();
                let builder = Process::builder().start_method(method);
                let started = soon(builder.start(|x: u8| x + 1, 1)).await;
                setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
                match started {
                    Ok(child) => drop(child.join().await),
                    Err(error) => assert!(matches!(error, StartError::Os { .. }), "{error:?}"),
                }
            }
            let builder = Process::builder().start_method(method);
            let child = builder.start(|x: u8| x + 1, 1).await.unwrap();
            assert_eq!(child.join().await.unwrap(), 2);
        }
    });
}

/// Puts a pipe in the place of this process' stderr while `body` runs, which gets the read end.
async fn with_stderr_in_a_pipe<F: AsyncFnOnce(&mut std::io::PipeReader)>(body: F) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    redirect_stderr(writer.as_fd());
    drop(writer);
    body(&mut reader).await;
    redirect_stderr(stderr.as_fd());
}

#[expect(
    unsafe_code,
    reason = "the standard streams are numbers that nobody owns"
)]
fn redirect_stderr(to: BorrowedFd<'_>) {
    // SAFETY: takes numbers; nobody owns a standard stream.
    assert_eq!(unsafe { libc::dup2(to.as_raw_fd(), 2) }, 2);
}

#[test]
fn what_a_child_wrote_to_stderr_is_passed_on_before_its_end_is_told() {
    alone(async || {
        for method in SAFE {
            with_stderr_in_a_pipe(async |reader| {
                let builder = Process::builder().start_method(method);
                let child = builder.start(|()| eprintln!("hello"), ()).await.unwrap();
                child.join().await.unwrap();
                let mut text = [0; 100];
                let len = std::io::Read::read(reader, &mut text).unwrap();
                assert_eq!(&text[..len], b"hello\n");
            })
            .await;
        }
    });
}

#[test]
fn a_stderr_that_nobody_reads_holds_up_no_other_child() {
    fn flood((): ()) {
        let line = "x".repeat(1000);
        for _ in 0..1000 {
            eprintln!("{line}");
        }
    }
    alone(async || {
        for method in SAFE {
            with_stderr_in_a_pipe(async |_| {
                let builder = Process::builder().start_method(method);
                let flooding = builder.start(flood, ()).await.unwrap();
                for n in 0..10 {
                    let builder = Process::builder().start_method(method);
                    let child = builder.start(|n| n, n).await.unwrap();
                    assert_eq!(child.join().await.unwrap(), n);
                }
                flooding.kill().unwrap();
                flooding.wait().await;
            })
            .await;
        }
    });
}

#[tokio::test]
async fn handlers_of_the_exit_run() {
    #[expect(unsafe_code, reason = "the test is about a handler of the C library")]
    fn register((): ()) {
        extern "C" fn say_goodbye() {
            print!("goodbye");
        }
        // SAFETY: the handler is a function that lives as long as the program.
        assert_eq!(unsafe { libc::atexit(say_goodbye) }, 0);
    }
    for method in SAFE {
        let builder = Process::builder().start_method(method);
        let mut child = builder
            .stdout(Stdio::piped())
            .start(register, ())
            .await
            .unwrap();
        let mut text = String::new();
        let mut stdout = child.stdout().unwrap();
        soon(stdout.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "goodbye");
        soon(child.join()).await.unwrap();
    }
}

#[test]
fn a_child_survives_the_thread_that_started_it() {
    let (tx, rx) = mpsc::channel();
    for method in SAFE {
        let tx = tx.clone();
        let start = move || {
            let builder = Process::builder().start_method(method);
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            tx.send(runtime.block_on(builder.start(sleep, ())).unwrap())
                .unwrap();
        };
        std::thread::spawn(start).join().unwrap();
    }
    drop(tx);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    for child in rx {
        // Its death would come at the latest when the next child has come and gone.
        runtime.block_on(async {
            let other = Process::start(|()| (), ()).await.unwrap();
            soon(other.join()).await.unwrap();
        });
        assert!(child.is_alive());
        child.kill().unwrap();
        runtime.block_on(child.wait());
    }
}

#[tokio::test]
async fn a_child_survives_the_blocking_task_that_started_it() {
    let start = || futures::executor::block_on(Process::start(sleep, ()));
    let child = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    assert!(child.is_alive());
    child.kill().unwrap();
    soon(child.wait()).await;
}

#[test]
fn ends_are_noticed_while_every_thread_of_the_runtime_is_blocked() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let child = runtime.block_on(Process::start(sleep, ())).unwrap();
    let (tx, rx) = mpsc::channel::<()>();
    let blocked = runtime.spawn(async move { rx.recv().unwrap_err() });
    child.kill().unwrap();
    let status = futures::executor::block_on(child.wait());
    assert_eq!(status.signal(), Some(9));
    drop(tx);
    runtime.block_on(blocked).unwrap();
}

#[test]
fn a_child_outlives_the_runtime_that_started_it() {
    let first = Builder::new_current_thread().enable_all().build().unwrap();
    let child = first.block_on(Process::start(|x: u8| x + 1, 1)).unwrap();
    let sleeper = first.block_on(Process::start(sleep, ())).unwrap();
    drop(first);

    let second = Runtime::new().unwrap();
    assert_eq!(second.block_on(child.join()).unwrap(), 2);
    sleeper.kill().unwrap();
    assert!(second.block_on(sleeper.join()).is_err());
}

#[test]
fn a_killed_fork_server_harms_no_child_and_is_replaced() {
    alone(async || {
        let before = Process::start(sleep, ()).await.unwrap();
        kill_helper(nix::sys::signal::SIGKILL, before.pid());
        assert!(before.is_alive());

        let after = Process::start(|x: u8| x + 1, 1).await.unwrap();
        assert_eq!(after.join().await.unwrap(), 2);
        before.kill().unwrap();
        assert_eq!(before.wait().await.signal(), Some(9));
    });
}

#[test]
fn an_interrupt_of_the_fork_server_harms_nobody() {
    alone(async || {
        let before = Process::start(sleep, ()).await.unwrap();
        kill_helper(nix::sys::signal::SIGINT, before.pid());
        let after = Process::start(|x: u8| x + 1, 1).await.unwrap();
        assert_eq!(after.join().await.unwrap(), 2);
        assert!(before.is_alive());
        before.kill().unwrap();
        before.wait().await;
    });
}

/// The helper is a child of this process, and no child of its user's.
fn kill_helper(signal: nix::sys::signal::Signal, child: u32) {
    let children = children_of(std::process::id());
    let helpers = children
        .into_iter()
        .filter(|pid| *pid != child)
        .collect::<Vec<_>>();
    let &[helper] = &helpers[..] else {
        panic!("{helpers:?}, {:?}", active_children());
    };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper.cast_signed()), signal).unwrap();
    if signal == nix::sys::signal::SIGKILL {
        assert_ends(helper);
    }
}

/// Somebody else in the application who reaps whatever he can must cost no more than the status.
#[test]
fn a_stranger_who_reaps_our_children_makes_nobody_hang() {
    use nix::sys::wait::{WaitPidFlag, waitpid};
    alone(async || {
        for _ in 0..20 {
            let child = Process::start(sleep, ()).await.unwrap();
            child.kill().unwrap();
            while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_err() {
                if !child.is_alive() {
                    break;
                }
            }
            let status = child.wait().await;
            let is_right = matches!(status, ExitStatus::Signaled { signal: 9, .. });
            assert!(is_right || status == ExitStatus::Unknown, "{status:?}");
        }
    });
}

#[test]
fn ignored_child_signals_make_nobody_hang() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    alone(async || {
        #[expect(unsafe_code, reason = "the test is about a changed signal handler")]
        // SAFETY: no handler is installed, and none was.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.unwrap();
        for method in SAFE {
            let builder = Process::builder().start_method(method);
            let child = builder.start(|x: u8| x + 1, 1).await.unwrap();
            assert_eq!(child.join().await.unwrap(), 2);
            child.wait().await;
        }
    });
}
