//! What holds for a child whichever way it was started.
//!
//! Each function here is a test that is told the way. `super` runs them for the two safe methods;
//! the fork runs them from a program of its own, where no thread stands beside the caller.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::id;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;
use tokio_multiprocess::{
    ExitStatus, Process, ProcessBuilder, ProcessError, StartMethod, active_children,
    current_process, parent_process,
};

use crate::soon;

/// The ways to start a child.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum By {
    Spawn,
    ForkServer,
    Fork,
}

impl By {
    /// Starts a child that runs a function that blocks.
    pub(crate) async fn start<A, R>(self, function: fn(A) -> R, argument: A) -> Process<R>
    where
        A: Serialize + DeserializeOwned + Send + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.start_as(Process::builder(), function, argument).await
    }

    #[expect(
        unsafe_code,
        reason = "fork has a contract that only its caller can keep"
    )]
    pub(crate) async fn start_as<A, R>(
        self,
        builder: ProcessBuilder,
        function: fn(A) -> R,
        argument: A,
    ) -> Process<R>
    where
        A: Serialize + DeserializeOwned + Send + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        let builder = match self {
            Self::Spawn => builder.start_method(StartMethod::SPAWN),
            Self::ForkServer => builder.start_method(StartMethod::FORK_SERVER),
            // SAFETY: only tests/fork.rs says so, which uses nothing of tokio before and has no
            // thread beside the caller.
            Self::Fork => return unsafe { builder.fork(move || function(argument)) }.unwrap(),
        };
        soon(builder.start(function, argument)).await.unwrap()
    }

    /// Starts a child that runs an async function.
    #[expect(
        unsafe_code,
        reason = "fork has a contract that only its caller can keep"
    )]
    pub(crate) async fn start_async<A, F>(
        self,
        function: fn(A) -> F,
        argument: A,
    ) -> Process<F::Output>
    where
        A: Serialize + DeserializeOwned + Send + 'static,
        F: Future + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        let builder = Process::builder();
        let builder = match self {
            Self::Spawn => builder.start_method(StartMethod::SPAWN),
            Self::ForkServer => builder.start_method(StartMethod::FORK_SERVER),
            Self::Fork => {
                let run = move || {
                    let runtime = Builder::new_current_thread().enable_all().build();
                    runtime.expect("a runtime").block_on(function(argument))
                };
                // SAFETY: only tests/fork.rs says so, whose cases have no thread beside the caller;
                // the child has a runtime of its own, and nothing of the one that it inherits.
                return unsafe { builder.fork(run) }.unwrap();
            }
        };
        soon(builder.start(function, argument)).await.unwrap()
    }
}

/// Runs until it is killed.
pub(crate) fn sleep((): ()) {
    loop {
        std::thread::park();
    }
}

pub(crate) async fn what_the_function_returns_comes_back(by: By) {
    fn square(x: u64) -> u64 {
        x * x
    }
    fn show<T: Display>(value: T) -> String {
        value.to_string()
    }
    assert_eq!(by.start(square, 7).await.join().await.unwrap(), 49);
    assert_eq!(by.start(show::<u8>, 7).await.join().await.unwrap(), "7");
    let child = by.start(|x: i64| x.checked_abs(), i64::MIN).await;
    assert_eq!(child.join().await.unwrap(), None);
}

pub(crate) async fn arguments_of_every_shape_arrive_unchanged(by: By) {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Unit,
        Tuple(u8, String),
        Struct {
            map: HashMap<String, Vec<i64>>,
            option: Option<char>,
        },
    }
    let map = HashMap::from([("a".to_owned(), vec![1, -2]), (String::new(), Vec::new())]);
    let shapes = vec![
        Shape::Unit,
        Shape::Tuple(255, "žluťoučký\0kůň".to_owned()),
        Shape::Struct {
            map,
            option: Some('€'),
        },
    ];
    let child = by.start(|shapes: Vec<Shape>| shapes, shapes.clone()).await;
    assert_eq!(soon(child.join()).await.unwrap(), shapes);
}

pub(crate) async fn large_arguments_and_results_arrive_unchanged(by: By) {
    let bytes = (0..16 << 20)
        .map(|n: u32| n.to_le_bytes()[n as usize % 4])
        .collect::<Vec<_>>();
    let reverse = |mut bytes: Vec<u8>| {
        bytes.reverse();
        bytes
    };
    let child = by.start(reverse, bytes.clone()).await;
    let mut result = soon(child.join()).await.unwrap();
    result.reverse();
    assert!(result == bytes);
}

pub(crate) async fn an_error_that_the_function_returns_is_data(by: By) {
    let child = by
        .start(
            |text: String| text.parse::<u8>().map_err(drop),
            "x".to_owned(),
        )
        .await;
    assert_eq!(soon(child.join()).await.unwrap(), Err(()));
}

pub(crate) async fn a_child_is_another_process_and_knows_its_parent(by: By) {
    let who = |()| (id(), parent_process().map(|parent| parent.pid()));
    let child = by.start(who, ()).await;
    let pid = child.pid();
    assert_ne!(pid, id());
    assert_eq!(soon(child.join()).await.unwrap(), (pid, Some(id())));
}

pub(crate) async fn a_child_bears_its_name(by: By) {
    let names = |()| (current_process().name, comm(id()));
    let child = by
        .start_as(Process::builder().name("miller"), names, ())
        .await;
    assert_eq!(child.name(), "miller");
    let expected = ("miller".to_owned(), "miller".to_owned());
    assert_eq!(soon(child.join()).await.unwrap(), expected);
}

pub(crate) async fn a_child_without_a_name_gets_one_of_its_own(by: By) {
    let name = |()| current_process().name;
    let first = by.start(name, ()).await;
    let second = by.start(name, ()).await;
    assert_ne!(first.name(), second.name());
    let expected = first.name().to_owned();
    assert_eq!(soon(first.join()).await.unwrap(), expected);
    soon(second.join()).await.unwrap();
}

pub(crate) async fn children_are_listed_while_they_live(by: By) {
    let child = by.start(sleep, ()).await;
    let pid = child.pid();
    let is_listed = || active_children().iter().any(|info| info.pid == pid);
    assert!(is_listed());
    assert!(child.is_alive());
    child.kill().unwrap();
    soon(child.wait()).await;
    assert!(!is_listed());
    assert!(!child.is_alive());
}

pub(crate) async fn a_child_has_no_children_at_first(by: By) {
    let _sibling = KillOnDrop(by.start(sleep, ()).await);
    let child = by.start(|()| active_children().len(), ()).await;
    assert_eq!(soon(child.join()).await.unwrap(), 0);
}

pub(crate) async fn children_start_children(by: By) {
    fn depth((by, levels): (By, u32)) -> u32 {
        if levels == 0 {
            return 1;
        }
        let start = async {
            let child = by.start(depth, (by, levels - 1)).await;
            child.join().await.unwrap()
        };
        1 + futures::executor::block_on(start)
    }
    // A forked process has its watcher and the user's thread, so its children are of another kind.
    let below = if matches!(by, By::Fork) {
        By::Spawn
    } else {
        by
    };
    let child = by.start(depth, (below, 2)).await;
    assert_eq!(soon(child.join()).await.unwrap(), 3);
}

pub(crate) async fn a_panic_comes_with_message_place_and_backtrace(by: By) {
    let line = line!() + 1;
    let child = by.start(|n: u8| -> u8 { panic!("no {n} here") }, 4).await;
    match soon(child.join()).await {
        Err(ProcessError::Panicked {
            message,
            location,
            backtrace,
        }) => {
            assert_eq!(message, "no 4 here");
            let place = format!("{}:{line}:", file!());
            assert!(location.starts_with(&place), "{location}");
            assert!(!backtrace.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn exit_codes_are_exact(by: By) {
    for code in [0, 1, 3, 255] {
        let child = by
            .start(|code| -> () { std::process::exit(code) }, code)
            .await;
        let error = soon(child.join()).await.unwrap_err();
        assert!(
            matches!(error, ProcessError::Exited(actual) if actual == code),
            "{error:?}"
        );
        assert_eq!(child.exit_status(), Some(ExitStatus::Exited(code)));
    }
}

pub(crate) async fn a_function_that_returns_ends_its_process_with_success(by: By) {
    let child = by.start(|()| (), ()).await;
    soon(child.join()).await.unwrap();
    assert_eq!(soon(child.wait()).await, ExitStatus::Exited(0));
}

pub(crate) async fn an_abort_is_a_signal(by: By) {
    let child = by.start(|()| -> () { std::process::abort() }, ()).await;
    assert_signaled(soon(child.join()).await, 6);
}

pub(crate) async fn a_stack_overflow_says_so(by: By) {
    #[expect(unconditional_recursion, reason = "that is the point")]
    fn overflow(n: u64) -> u64 {
        std::hint::black_box([n; 128]);
        overflow(n + 1) + 1
    }
    let child = by.start(overflow, 0).await;
    assert_signaled(soon(child.join()).await, 6);
    let tail = child.stderr_tail().unwrap();
    assert!(tail.contains("overflowed its stack"), "{tail}");
}

pub(crate) async fn terminate_kill_and_interrupt_end_a_child(by: By) {
    type End = fn(&Process<()>) -> std::io::Result<()>;
    let ends: [(End, i32); 3] = [
        (|child| child.terminate(), 15),
        (|child| child.kill(), 9),
        (|child| child.interrupt(), 2),
    ];
    for (end, signal) in ends {
        let child = by.start(sleep, ()).await;
        assert_eq!(child.exit_status(), None);
        end(&child).unwrap();
        assert_signaled(soon(child.join()).await, signal);
        // What is dead already can be told to end again.
        end(&child).unwrap();
        assert_eq!(
            child.exit_status().and_then(ExitStatus::signal),
            Some(signal)
        );
    }
}

pub(crate) async fn a_child_that_spins_is_killed(by: By) {
    let spin = |()| -> () {
        loop {
            std::hint::spin_loop();
        }
    };
    let child = by.start(spin, ()).await;
    child.terminate().unwrap();
    assert_signaled(soon(child.join()).await, 15);
}

pub(crate) async fn a_result_is_taken_once_and_the_end_is_told_any_number_of_times(by: By) {
    let child = by.start(|()| 5, ()).await;
    assert_eq!(soon(child.join()).await.unwrap(), 5);
    assert!(matches!(
        soon(child.join()).await,
        Err(ProcessError::ResultTaken)
    ));
    for _ in 0..3 {
        assert_eq!(soon(child.wait()).await, ExitStatus::Exited(0));
    }
}

pub(crate) async fn a_process_is_awaited_itself(by: By) {
    assert_eq!(
        soon(by.start(|x: u8| x + 1, 1).await.into_future())
            .await
            .unwrap(),
        2
    );
}

pub(crate) async fn the_sentinel_is_readable_at_the_end_and_not_before(by: By) {
    let child = by.start(sleep, ()).await;
    let is_readable = |child: &Process<()>, patience: PollTimeout| {
        let mut fds = [PollFd::new(child.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, patience).unwrap() == 1
    };
    assert!(!is_readable(&child, PollTimeout::ZERO));
    child.kill().unwrap();
    assert!(is_readable(&child, PollTimeout::from(30_000_u16)));
    soon(child.wait()).await;
    assert!(is_readable(&child, PollTimeout::ZERO));
}

pub(crate) async fn a_join_that_is_given_up_can_be_repeated(by: By) {
    let child = by.start(sleep, ()).await;
    for _ in 0..3 {
        let mut join = Box::pin(child.join());
        assert!(futures::poll!(join.as_mut()).is_pending());
    }
    child.kill().unwrap();
    assert_signaled(soon(child.join()).await, 9);
}

pub(crate) async fn a_child_leads_a_group_of_its_own(by: By) {
    let group = |()| nix::unistd::getpgrp().as_raw().cast_unsigned();
    let child = by.start(group, ()).await;
    let pid = child.pid();
    assert_eq!(soon(child.join()).await.unwrap(), pid);
}

pub(crate) async fn what_a_child_started_goes_with_it(by: By) {
    fn start_sleeper((): ()) -> u32 {
        let sleeper = std::process::Command::new("sleep").arg("1000").spawn();
        sleeper.unwrap().id()
    }
    let child = by.start(start_sleeper, ()).await;
    let pid = soon(child.join()).await.unwrap();
    soon(child.wait()).await;
    assert_ends(pid);
}

pub(crate) async fn a_child_has_the_arguments_and_the_folder_of_its_parent(by: By) {
    let place = |()| {
        (
            std::env::args().collect::<Vec<_>>(),
            std::env::current_dir().unwrap(),
        )
    };
    let child = by.start(place, ()).await;
    assert_eq!(soon(child.join()).await.unwrap(), place(()));
}

pub(crate) async fn the_environment_is_the_parents_with_the_changes_asked_for(by: By) {
    let variables = |()| std::env::vars().collect::<HashMap<_, _>>();
    let builder = Process::builder().env("NEW", "value").env_remove("PATH");
    let child = by.start_as(builder, variables, ()).await;
    let mut expected = variables(());
    expected.insert("NEW".to_owned(), "value".to_owned());
    expected.remove("PATH");
    assert_eq!(soon(child.join()).await.unwrap(), expected);

    let builder = Process::builder()
        .env("OLD", "1")
        .env_clear()
        .env("NEW", "2");
    let child = by.start_as(builder, variables, ()).await;
    let expected = HashMap::from([("NEW".to_owned(), "2".to_owned())]);
    assert_eq!(soon(child.join()).await.unwrap(), expected);
}

pub(crate) async fn a_child_starts_in_the_folder_asked_for(by: By) {
    let folder = |()| std::env::current_dir().unwrap();
    let child = by
        .start_as(Process::builder().current_dir("/proc/sys"), folder, ())
        .await;
    let actual = soon(child.join()).await.unwrap();
    assert_eq!(actual, std::path::Path::new("/proc/sys"));
}

pub(crate) async fn stdin_is_empty_unless_asked_for(by: By) {
    let read = |()| {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).unwrap();
        text
    };
    let child = by.start(read, ()).await;
    assert_eq!(soon(child.join()).await.unwrap(), "");
}

/// The end of a process flushes nothing by itself, so the library must.
pub(crate) async fn what_a_child_wrote_is_complete_at_its_end(by: By) {
    use tokio_multiprocess::Stdio;
    fn write((): ()) {
        for n in 0..1000 {
            print!("{n} ");
            eprint!("{n} ");
        }
        std::io::stdout().write_all(b"end").unwrap();
    }
    if matches!(by, By::Fork) {
        // Reading here needs a runtime, which must not exist before a fork.
        return;
    }
    let builder = Process::builder()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = by.start_as(builder, write, ()).await;
    let mut stdout = child.stdout().unwrap();
    let mut stderr = child.stderr().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    let out_read = tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut out);
    let err_read = tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut err);
    let (out_read, err_read) = soon(futures::future::join(out_read, err_read)).await;
    out_read.unwrap();
    err_read.unwrap();
    let expected = (0..1000).map(|n| format!("{n} ")).collect::<String>();
    assert_eq!(err, expected);
    assert_eq!(out, expected + "end");
    soon(child.join()).await.unwrap();
}

pub(crate) async fn a_child_has_no_more_descriptors_than_its_elder_siblings(by: By) {
    if matches!(by, By::Fork) {
        // A fork keeps what it captures, and everything else beside it.
        return;
    }
    let count = |()| fs::read_dir("/proc/self/fd").unwrap().count();
    let first = by.start(count, ()).await;
    let expected = soon(first.join()).await.unwrap();
    let mut siblings = Vec::new();
    for _ in 0..20 {
        siblings.push(KillOnDrop(by.start(sleep, ()).await));
    }
    let last = by.start(count, ()).await;
    // Its own watcher may open one at this very moment, hence not the same to the last one.
    assert!(soon(last.join()).await.unwrap() < expected + siblings.len());
}

pub(crate) async fn a_hundred_children_live_at_once(by: By) {
    let mut children = Vec::new();
    for _ in 0..100 {
        children.push(by.start(sleep, ()).await);
    }
    for child in &children {
        assert!(child.is_alive());
        child.terminate().unwrap();
    }
    for child in &children {
        assert_signaled(soon(child.join()).await, 15);
    }
}

pub(crate) async fn a_result_that_cannot_be_encoded_is_an_error(by: By) {
    let child = by.start(|()| Unencodable, ()).await;
    let error = soon(child.join()).await.unwrap_err();
    assert!(matches!(error, ProcessError::Encode(_)), "{error:?}");
}

pub(crate) async fn a_result_that_cannot_be_decoded_is_an_error(by: By) {
    let child = by.start(|()| Undecodable, ()).await;
    let error = soon(child.join()).await.unwrap_err();
    assert!(matches!(error, ProcessError::Decode(_)), "{error:?}");
}

pub(crate) async fn dropping_the_handle_lets_the_child_run_on(by: By) {
    let child = by.start(sleep, ()).await;
    let pid = child.pid();
    drop(child);
    let listed = || active_children().iter().any(|info| info.pid == pid);
    assert!(listed());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    assert_ends(pid);
}

pub(crate) async fn a_child_that_shall_die_with_its_handle_does(by: By) {
    let child = by
        .start_as(Process::builder().kill_on_drop(true), sleep, ())
        .await;
    let pid = child.pid();
    drop(child);
    assert_ends(pid);
}

pub(crate) async fn the_end_of_stderr_is_kept(by: By) {
    let complain = |code: i32| -> () {
        for n in 0..5 {
            eprintln!("line {n}");
        }
        eprint!("and no more");
        std::process::exit(code)
    };
    let child = by.start(complain, 3).await;
    assert_eq!(soon(child.wait()).await, ExitStatus::Exited(3));
    let expected = "line 0\nline 1\nline 2\nline 3\nline 4\nand no more";
    assert_eq!(child.stderr_tail().unwrap(), expected);
}

pub(crate) async fn a_child_may_close_its_streams(by: By) {
    let close = |()| {
        for number in 0..=2 {
            nix::unistd::close(number).unwrap();
        }
        5
    };
    let child = by.start(close, ()).await;
    assert_eq!(soon(child.join()).await.unwrap(), 5);
    assert_eq!(soon(child.wait()).await, ExitStatus::Exited(0));
}

pub(crate) async fn a_child_has_the_signals_that_a_program_begins_with(by: By) {
    /// Which classic signals are blocked in this thread, and ignored.
    fn masks((): ()) -> [u64; 2] {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        ["SigBlk:", "SigIgn:"].map(|title| {
            let mut lines = status.lines();
            let mask = lines.find_map(|line| line.strip_prefix(title)).unwrap();
            u64::from_str_radix(mask.trim(), 16).unwrap() & ((1 << 31) - 1)
        })
    }
    let own = masks(());
    let child = by.start(masks, ()).await;
    assert_eq!(soon(child.join()).await.unwrap(), [0, own[1]]);
    assert_eq!(masks(()), own);
}

pub(crate) async fn a_child_that_is_stopped_can_be_killed(by: By) {
    let stop = |()| -> () {
        nix::sys::signal::raise(nix::sys::signal::SIGSTOP).unwrap();
    };
    let child = by.start(stop, ()).await;
    child.kill().unwrap();
    assert_signaled(soon(child.join()).await, 9);
}

/// It has left the group, so it lives on; and it holds a copy of every descriptor of the child's.
pub(crate) async fn a_grandchild_that_keeps_everything_open_delays_nobody(by: By) {
    #[expect(
        unsafe_code,
        reason = "only a bare fork keeps descriptors that close on exec"
    )]
    fn leave_a_copy((): ()) -> u32 {
        // SAFETY: the copy makes system calls only.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => child.as_raw().cast_unsigned(),
            nix::unistd::ForkResult::Child => {
                let _ = nix::unistd::setsid();
                loop {
                    nix::unistd::pause();
                }
            }
        }
    }
    let child = by.start(leave_a_copy, ()).await;
    let copy = soon(child.join()).await.unwrap();
    assert_eq!(soon(child.wait()).await, ExitStatus::Exited(0));
    let copy = nix::unistd::Pid::from_raw(copy.cast_signed());
    nix::sys::signal::kill(copy, nix::sys::signal::SIGKILL).unwrap();
}

/// The numbers of this process' sockets, its link to its parent among them.
fn sockets() -> impl Iterator<Item = i32> {
    let fds = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|fd| fd.unwrap().path());
    let is_socket = |path: &PathBuf| {
        let target = fs::read_link(path);
        target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    let numbers = fds.filter(is_socket).map(|path| {
        let number = path.file_name().unwrap().to_str().unwrap();
        number.parse().unwrap()
    });
    numbers.collect::<Vec<_>>().into_iter()
}

pub(crate) async fn a_child_that_sends_nonsense_is_killed(by: By) {
    let send = |()| {
        for socket in sockets() {
            let _ =
                nix::sys::socket::send(socket, &[0xff; 64], nix::sys::socket::MsgFlags::empty());
        }
        sleep(());
    };
    let child = by.start(send, ()).await;
    let result = soon(child.join()).await;
    assert!(
        matches!(result, Err(ProcessError::ProtocolViolation(_))),
        "{result:?}"
    );
    assert_eq!(child.exit_status().and_then(ExitStatus::signal), Some(9));
}

pub(crate) async fn a_child_that_closes_its_link_is_killed(by: By) {
    if matches!(by, By::Fork) {
        // It has other sockets beside, which its own descriptors keep in use.
        return;
    }
    let close = |()| {
        for socket in sockets() {
            nix::unistd::close(socket).unwrap();
        }
        sleep(());
    };
    let child = by.start(close, ()).await;
    assert!(soon(child.join()).await.is_err());
    assert_eq!(child.exit_status().and_then(ExitStatus::signal), Some(9));
}

pub(crate) async fn a_child_that_dies_inside_a_message_has_no_result(by: By) {
    if matches!(by, By::Fork) {
        // It has other sockets beside, which are its parent's.
        return;
    }
    let send = |()| -> () {
        // A header that promises a result of 8 bytes, and 2 of them.
        let torn = [8, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2];
        let socket = sockets().next().unwrap();
        nix::sys::socket::send(socket, &torn, nix::sys::socket::MsgFlags::empty()).unwrap();
        std::process::abort()
    };
    let child = by.start(send, ()).await;
    assert_signaled(soon(child.join()).await, 6);
}

pub(crate) async fn children_start_at_once_in_any_number(by: By) {
    let starts = (0..200).map(|n| async move {
        let child = by.start(|n| n, n).await;
        assert_eq!(soon(child.join()).await.unwrap(), n);
    });
    futures::future::join_all(starts).await;
}

/// Can be told to stay away from the wire.
#[derive(Debug)]
pub(crate) struct Unencodable;

impl Serialize for Unencodable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it stays here"))
    }
}

impl<'de> Deserialize<'de> for Unencodable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Self)
    }
}

/// Goes over the wire and is refused behind it.
#[derive(Debug, Serialize)]
pub(crate) struct Undecodable;

impl<'de> Deserialize<'de> for Undecodable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("it stays there"))
    }
}

/// A child that goes with the test, whether that passes or fails.
struct KillOnDrop(Process<()>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill().unwrap();
    }
}

#[track_caller]
fn assert_signaled<R: std::fmt::Debug>(result: Result<R, ProcessError>, expected: i32) {
    match result {
        Err(ProcessError::Signaled { signal, .. }) => assert_eq!(signal, expected),
        other => panic!("not ended by signal {expected}: {other:?}"),
    }
}

/// Waits until a process is gone, or only a zombie of somebody else.
#[track_caller]
pub(crate) fn assert_ends(pid: u32) {
    let since = Instant::now();
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        let state = stat
            .as_deref()
            .ok()
            .and_then(|stat| stat.rsplit(") ").next());
        if state.is_none_or(|state| state.starts_with('Z')) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{pid} lives on");
        // It may be no child of this process, so there is nothing better to wait for.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn comm(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    comm.trim_end().to_owned()
}
