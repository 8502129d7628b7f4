//! What holds for a pool whichever way its workers are started.
//!
//! Each function here is a test that is told the way. `super` runs them for the two safe methods.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{PipeWriter, Read, Seek, SeekFrom, Write};
use std::process::id;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::pipe::{self, PipeReceiver, PipeSender};
use tokio_multiprocess::pool::{PoolBuilder, PoolError, Task, WorkerState};
use tokio_multiprocess::{
    ExitStatus, Pool, RecvError, StartError, StartMethod, TaskError, current_process,
};
use tokio_util::sync::CancellationToken;

use crate::soon;

/// The ways to start workers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    Spawn,
    ForkServer,
}

impl By {
    fn builder(self, processes: usize) -> PoolBuilder {
        let builder = Pool::builder().processes(processes);
        match self {
            Self::Spawn => builder.start_method(StartMethod::SPAWN),
            Self::ForkServer => builder.start_method(StartMethod::FORK_SERVER),
        }
    }

    async fn pool(self, processes: usize) -> Pool {
        soon(self.builder(processes).build()).await.unwrap()
    }
}

fn square(x: u64) -> u64 {
    x * x
}

fn pid((): ()) -> u32 {
    id()
}

fn sleep_ms(ms: u64) -> u64 {
    thread::sleep(Duration::from_millis(ms));
    ms
}

/// Says so, and runs until its process is killed.
fn say_and_run_for_ever(mut said: Fd<PipeWriter>) {
    said.write_all(b"!").unwrap();
    run_for_ever(());
}

/// Where a task can say that it runs, and what tells of it.
fn announcement() -> (Fd<PipeWriter>, impl Future<Output = ()>) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let read = tokio::task::spawn_blocking(move || reader.read_exact(&mut [0]).unwrap());
    (Fd(writer), async { read.await.unwrap() })
}

/// Runs until its process is killed.
fn run_for_ever((): ()) {
    loop {
        thread::park();
    }
}

/// Ways to take one's process down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Crash {
    Exit0,
    Exit3,
    Abort,
    Segfault,
    Kill,
}

const CRASHES: [Crash; 5] = [
    Crash::Exit0,
    Crash::Exit3,
    Crash::Abort,
    Crash::Segfault,
    Crash::Kill,
];

impl Crash {
    fn now(self) {
        match self {
            Self::Exit0 => std::process::exit(0),
            Self::Exit3 => std::process::exit(3),
            Self::Abort => std::process::abort(),
            // The first one is taken for a fault that will come again.
            Self::Segfault => loop {
                signal(id(), Signal::SIGSEGV);
            },
            Self::Kill => signal(id(), Signal::SIGKILL),
        }
        run_for_ever(());
    }

    fn is(self, status: ExitStatus) -> bool {
        match self {
            Self::Exit0 => status == ExitStatus::Exited(0),
            Self::Exit3 => status == ExitStatus::Exited(3),
            Self::Abort => status.signal() == Some(6),
            Self::Segfault => status.signal() == Some(11),
            Self::Kill => status.signal() == Some(9),
        }
    }
}

fn crash(how: Crash) {
    how.now();
}

fn signal(pid: u32, signal: Signal) {
    // An error means that it has ended.
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

#[track_caller]
fn assert_died<R: std::fmt::Debug>(result: Result<R, TaskError>, how: Crash) {
    match result {
        Err(TaskError::WorkerDied { status, .. }) => assert!(how.is(status), "{how:?}: {status:?}"),
        other => panic!("{how:?}: {other:?}"),
    }
}

/// Waits until a process is gone.
async fn gone(pid: u32) {
    while kill(Pid::from_raw(pid.cast_signed()), None).is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn pids(pool: &Pool) -> BTreeSet<u32> {
    pool.stats()
        .workers
        .iter()
        .filter_map(|worker| worker.pid)
        .collect()
}

/// Waits until `is_so`, which no event tells.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

// What comes back.

pub(crate) async fn what_a_function_returns_comes_back(by: By) {
    fn show<T: std::fmt::Display>(value: T) -> String {
        value.to_string()
    }
    let pool = by.pool(2).await;

    assert_eq!(soon(pool.apply(square, 7)).await, Ok(49));
    assert_eq!(soon(pool.apply(show::<u8>, 7)).await, Ok("7".to_owned()));
    assert_eq!(
        soon(pool.apply(|(a, b): (u64, u64)| a + b, (1, 2))).await,
        Ok(3)
    );
    assert_ne!(soon(pool.apply(pid, ())).await, Ok(id()));

    soon(pool.close()).await.unwrap();
}

pub(crate) async fn map_keeps_the_order_for_any_number_of_items(by: By) {
    let pool = by.pool(3).await;
    for n in [0, 1, 2, 7, 100, 30_000] {
        let squares: Vec<u64> = (0..n).map(square).collect();
        assert_eq!(soon(pool.map(square, 0..n)).await.unwrap(), squares);
        assert_eq!(soon(pool.try_map(square, 0..n)).await.unwrap(), squares);
        let items = stream::iter(0..n);
        assert_eq!(soon(pool.map_stream(square, items)).await.unwrap(), squares);
        for chunk_size in [1, 3, 1000] {
            let mapped = soon(pool.map_chunked(square, 0..n.min(200), chunk_size)).await;
            assert_eq!(mapped.unwrap(), squares[..squares.len().min(200)]);
        }
    }
    let refused = pool.map_chunked(square, 0..3, 0).await;
    assert_eq!(refused, Err(TaskError::ChunkSize));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn streams_bring_every_result_once(by: By) {
    let pool = by.pool(2).await;
    let n = 20_000;
    let squares: Vec<u64> = (0..n).map(square).collect();

    let ordered: Vec<u64> = soon(pool.imap(square, 0..n).try_collect()).await.unwrap();
    assert_eq!(ordered, squares);
    let items = stream::iter(0..n);
    let ordered: Vec<u64> = soon(pool.imap_stream(square, items).try_collect())
        .await
        .unwrap();
    assert_eq!(ordered, squares);
    let mut any: Vec<u64> = soon(pool.imap_unordered(square, 0..n).try_collect())
        .await
        .unwrap();
    any.sort_unstable();
    assert_eq!(any, squares);
    let items = pool.imap_unordered_stream(square, stream::iter(0..n));
    let mut any: Vec<u64> = soon(items.try_collect()).await.unwrap();
    any.sort_unstable();
    assert_eq!(any, squares);

    soon(pool.close()).await.unwrap();
}

pub(crate) async fn large_arguments_and_results_arrive_unchanged(by: By) {
    fn back(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.reverse();
        bytes
    }
    let pool = by.pool(2).await;
    for len in [0, 1, 4095, 65_408, 65_409, 300_000, 1 << 20] {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let both = soon(pool.map(back, [bytes.clone(), bytes.clone(), bytes.clone()])).await;
        let expected: Vec<u8> = bytes.into_iter().rev().collect();
        assert!(
            both.unwrap().iter().all(|result| *result == expected),
            "{len}"
        );
    }
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn what_is_longer_than_allowed_is_an_error_of_its_own(by: By) {
    let pool = soon(by.builder(1).max_message_size(1000).build())
        .await
        .unwrap();

    let long = soon(pool.apply(|bytes: Vec<u8>| bytes.len(), vec![0; 1001])).await;
    assert!(matches!(long, Err(TaskError::Encode(_))), "{long:?}");
    let long = soon(pool.apply(|len: usize| vec![0_u8; len], 1001)).await;
    assert!(matches!(long, Err(TaskError::Encode(_))), "{long:?}");
    let worker = soon(pool.apply(pid, ())).await.unwrap();
    let fits = soon(pool.apply(|len: usize| vec![0_u8; len], 900)).await;
    assert_eq!(fits.unwrap().len(), 900);
    assert_eq!(soon(pool.apply(pid, ())).await, Ok(worker));

    soon(pool.close()).await.unwrap();
}

pub(crate) async fn ends_of_pipes_travel_in_arguments_and_results(by: By) {
    type Ends = (PipeReceiver<u64>, PipeSender<u64>);
    async fn pass_on((rx, tx): Ends) -> Ends {
        let number = rx.recv().await.unwrap();
        tx.send(number + 1).await.unwrap();
        (rx, tx)
    }
    let pool = by.pool(2).await;
    let (to_task, rx) = pipe::one_way().unwrap();
    let (tx, from_task) = pipe::one_way().unwrap();
    let mut ends = (rx, tx);

    for number in 0..10 {
        to_task.send(number).await.unwrap();
        ends = soon(pool.apply(pass_on, ends)).await.unwrap();
        assert_eq!(soon(from_task.recv()).await.unwrap(), number + 1);
    }
    drop(ends);
    assert!(matches!(
        soon(from_task.recv()).await,
        Err(RecvError::Closed)
    ));

    soon(pool.close()).await.unwrap();
}

pub(crate) async fn files_travel_in_arguments_and_results(by: By) {
    fn write(mut file: Fd<File>) -> Fd<File> {
        file.write_all(b"hello").unwrap();
        file
    }
    let pool = by.pool(2).await;
    let memory = || Fd(File::from(memfd()));
    let read = |mut file: Fd<File>| {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };

    let file = soon(pool.apply(write, memory())).await.unwrap();
    assert_eq!(read(file), "hello");
    let files = soon(pool.map(write, (0..50).map(|_| memory())))
        .await
        .unwrap();
    assert!(files.into_iter().map(read).all(|text| text == "hello"));

    soon(pool.close()).await.unwrap();
}

fn memfd() -> std::os::fd::OwnedFd {
    nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap()
}

// What fails.

pub(crate) async fn a_tasks_own_error_is_data(by: By) {
    let pool = by.pool(1).await;
    let parse = |text: String| text.parse::<u8>().map_err(|error| error.to_string());
    assert_eq!(soon(pool.apply(parse, "7".to_owned())).await, Ok(Ok(7)));
    assert!(
        soon(pool.apply(parse, "x".to_owned()))
            .await
            .unwrap()
            .is_err()
    );
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_panic_tells_what_and_where_and_its_worker_lives_on(by: By) {
    fn fail(text: String) {
        panic!("no {text} today")
    }
    let pool = by.pool(1).await;
    let before = soon(pool.apply(pid, ())).await.unwrap();

    let error = soon(pool.apply(fail, "bread".to_owned()))
        .await
        .unwrap_err();

    let TaskError::Panicked(panic) = error else {
        panic!("{error:?}")
    };
    assert_eq!(panic.message, "no bread today");
    assert!(panic.location.contains("suite.rs:"), "{}", panic.location);
    assert!(panic.backtrace.contains("fail"), "{}", panic.backtrace);
    async fn later((): ()) {
        tokio::task::yield_now().await;
        panic!("later")
    }
    let error = soon(pool.apply(later, ())).await.unwrap_err();
    assert!(matches!(error, TaskError::Panicked(panic) if panic.message == "later"));
    assert_eq!(soon(pool.apply(pid, ())).await, Ok(before));
    soon(pool.close()).await.unwrap();
}

/// Refuses to travel in the way it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wayward {
    Unencodable,
    Undecodable,
    Fine,
    CrashesDecoding(Crash),
    PanicsDecoding,
}

impl Serialize for Wayward {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = match self {
            Self::Unencodable => return Err(serde::ser::Error::custom("it stays here")),
            Self::Undecodable => 0,
            Self::Fine => 1,
            Self::PanicsDecoding => 2,
            Self::CrashesDecoding(how) => 3 + *how as u8,
        };
        number.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Wayward {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Err(serde::de::Error::custom("it stays there")),
            1 => Ok(Self::Fine),
            2 => panic!("not to be decoded"),
            number => {
                CRASHES[usize::from(number) - 3].now();
                Ok(Self::Fine)
            }
        }
    }
}

/// Takes its process down when it is encoded.
#[derive(Debug, Deserialize)]
struct CrashesEncoding(Crash);

impl Serialize for CrashesEncoding {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.now();
        self.0.serialize(serializer)
    }
}

/// Takes its process down when it is dropped there.
#[derive(Debug, Serialize, Deserialize)]
struct CrashesDropped {
    how: Crash,
    parent: u32,
}

impl Drop for CrashesDropped {
    fn drop(&mut self) {
        if id() != self.parent {
            self.how.now();
        }
    }
}

pub(crate) async fn what_cannot_travel_is_an_error_of_its_task_alone(by: By) {
    let pool = by.pool(2).await;
    let fine = |_: Wayward| 1_u8;

    let error = soon(pool.apply(fine, Wayward::Unencodable))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it stays here"), "{error}");
    let error = soon(pool.apply(fine, Wayward::Undecodable))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it stays there"), "{error}");
    let error = soon(pool.apply(fine, Wayward::PanicsDecoding))
        .await
        .unwrap_err();
    assert!(matches!(error, TaskError::Panicked(_)), "{error:?}");
    let error = soon(pool.apply(|()| Wayward::Unencodable, ()))
        .await
        .unwrap_err();
    assert!(matches!(error, TaskError::Encode(_)), "{error:?}");
    let error = soon(pool.apply(|()| Wayward::Undecodable, ()))
        .await
        .unwrap_err();
    assert!(matches!(error, TaskError::Decode(_)), "{error:?}");

    let items = [
        Wayward::Fine,
        Wayward::Unencodable,
        Wayward::Fine,
        Wayward::Undecodable,
        Wayward::Fine,
    ];
    let results: Vec<_> = soon(pool.imap(fine, items).collect()).await;
    let are_ok: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(are_ok, [true, false, true, false, true]);
    let mut results: Vec<_> = soon(pool.imap_unordered(fine, items).collect()).await;
    results.sort_by_key(Result::is_ok);
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    assert_eq!(results.len(), 5);

    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_result_whose_decoding_panics_panics_whoever_takes_it(by: By) {
    fn one_of(x: u8) -> Wayward {
        if x == 2 {
            Wayward::PanicsDecoding
        } else {
            Wayward::Fine
        }
    }
    let pool = by.pool(1).await;
    let mut results = pool.imap(one_of, 0..5);
    for x in 0..5 {
        let next = std::panic::AssertUnwindSafe(soon(results.next()));
        let result = futures::FutureExt::catch_unwind(next).await;
        if x == 2 {
            assert!(result.is_err());
        } else {
            assert_eq!(result.unwrap(), Some(Ok(Wayward::Fine)), "{x}");
        }
    }
    assert_eq!(soon(results.next()).await, None);
    drop(results);
    let task = std::panic::AssertUnwindSafe(soon(pool.apply(one_of, 2)));
    assert!(futures::FutureExt::catch_unwind(task).await.is_err());
    assert_eq!(soon(pool.apply(square, 2)).await, Ok(4));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn map_runs_all_and_returns_the_first_error_in_order(by: By) {
    fn some_fail(x: u64) -> u64 {
        assert!(x != 30 && x != 70, "not {x}");
        x
    }
    let pool = by.pool(2).await;

    let error = soon(pool.map(some_fail, 0..100)).await.unwrap_err();

    assert!(matches!(error, TaskError::Panicked(panic) if panic.message == "not 30"));
    assert_eq!(pool.stats().finished, 100);
    let error = soon(pool.try_map(some_fail, 0..)).await.unwrap_err();
    assert!(matches!(error, TaskError::Panicked(panic) if panic.message == "not 30"));
    soon(pool.close()).await.unwrap();
}

// What dies.

pub(crate) async fn each_crash_fails_its_task_and_the_pool_lives_on(by: By) {
    let pool = by.pool(2).await;
    for how in CRASHES {
        assert_died(soon(pool.apply(crash, how)).await, how);
        let decoding = Wayward::CrashesDecoding(how);
        assert_died(soon(pool.apply(|_: Wayward| (), decoding)).await, how);
        assert_died(soon(pool.apply(CrashesEncoding, how)).await, how);
        let dropped = CrashesDropped { how, parent: id() };
        assert_died(soon(pool.apply(|_: CrashesDropped| (), dropped)).await, how);
        assert_eq!(soon(pool.map(square, 0..4)).await.unwrap(), [0, 1, 4, 9]);
    }
    until(|| {
        pool.stats()
            .workers
            .iter()
            .all(|worker| worker.state == WorkerState::Idle)
    })
    .await;
    assert_eq!(pool.stats().workers.len(), 2);
    assert_eq!(pool.stats().restarts, 20);
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_death_tells_the_end_of_what_the_worker_wrote(by: By) {
    let pool = by.pool(1).await;
    fn last_words((): ()) {
        eprintln!("the very last words");
        std::process::exit(7)
    }

    let error = soon(pool.apply(last_words, ())).await.unwrap_err();

    let TaskError::WorkerDied {
        pid,
        status,
        stderr_tail,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_ne!(pid, id());
    assert_eq!(status, ExitStatus::Exited(7));
    assert!(stderr_tail.contains("the very last words"), "{stderr_tail}");
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_crash_among_many_items_fails_that_item_alone(by: By) {
    fn crash_at_some(x: u64) -> u64 {
        if x % 1000 == 500 {
            Crash::Kill.now();
        }
        x
    }
    let pool = by.pool(2).await;
    let n = 10_000;

    for _ in 0..2 {
        let results: Vec<_> = soon(pool.imap(crash_at_some, 0..n).collect()).await;

        assert_eq!(results.len(), n as usize);
        for (x, result) in (0..n).zip(results) {
            if x % 1000 == 500 {
                assert_died(result, Crash::Kill);
            } else {
                assert_eq!(result, Ok(x));
            }
        }
    }
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn tasks_behind_a_crash_run_once_and_elsewhere(by: By) {
    let pool = by.pool(2).await;
    // Makes the tasks known as short, so that several are sent ahead.
    soon(pool.map(square, 0..1000)).await.unwrap();

    let tasks: Vec<Task<u64>> = (0..200)
        .map(|x| {
            pool.apply_async(
                |x: u64| {
                    if x % 50 == 25 {
                        Crash::Kill.now();
                    }
                    x
                },
                x,
            )
        })
        .collect();

    for (x, task) in (0..).zip(tasks) {
        let result = soon(task).await;
        if x % 50 == 25 {
            assert_died(result, Crash::Kill);
        } else {
            assert_eq!(result, Ok(x));
        }
    }
    assert_eq!(pool.stats().restarts, 4);
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn an_idle_worker_that_is_killed_is_replaced_and_nothing_is_lost(by: By) {
    let pool = by.pool(2).await;
    for round in 0..5 {
        let before = pids(&pool);
        for pid in &before {
            signal(*pid, Signal::SIGKILL);
        }
        let squares = soon(pool.map(square, 0..100)).await;
        // What was sent to a worker that was dying already is nobody's crash but its own.
        if let Err(error) = squares {
            assert!(
                matches!(error, TaskError::WorkerDied { .. }),
                "{round}: {error:?}"
            );
        }
        until(|| pids(&pool).len() == 2 && pids(&pool).is_disjoint(&before)).await;
    }
    assert_eq!(soon(pool.map(square, 0..3)).await.unwrap(), [0, 1, 4]);
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_crashed_task_is_tried_again_as_often_as_asked_for(by: By) {
    fn crash_twice(path: String) -> usize {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        file.write_all(b"x").unwrap();
        let n = std::fs::metadata(&path).unwrap().len();
        if n <= 2 {
            Crash::Kill.now();
        }
        usize::try_from(n).unwrap()
    }
    let pool = soon(by.builder(2).retries(2).build()).await.unwrap();
    let name = |n| {
        let path = std::env::temp_dir().join(format!("pool-retry-{by:?}-{}-{n}", id()));
        path.to_str().unwrap().to_owned()
    };

    assert_eq!(soon(pool.apply(crash_twice, name(0))).await, Ok(3));
    let all = soon(pool.map(crash_twice, (1..4).map(name))).await;
    assert_eq!(all, Ok(vec![3; 3]));
    assert_died(soon(pool.apply(crash, Crash::Exit3)).await, Crash::Exit3);

    (0..4).for_each(|n| std::fs::remove_file(name(n)).unwrap());
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_row_of_fruitless_workers_breaks_the_pool(by: By) {
    let pool = by.pool(2).await;
    let tasks: Vec<Task<()>> = (0..100)
        .map(|_| pool.apply_async(crash, Crash::Exit3))
        .collect();

    let mut n_died = 0;
    let mut n_given_up = 0;
    for task in tasks {
        match soon(task).await {
            Err(TaskError::WorkerDied { .. }) => n_died += 1,
            Err(TaskError::Restarts(_)) => n_given_up += 1,
            other => panic!("{other:?}"),
        }
    }

    assert!((9..=12).contains(&n_died), "{n_died}");
    assert_eq!(n_died + n_given_up, 100);
    let refused = soon(pool.apply(square, 1)).await;
    assert!(
        matches!(refused, Err(TaskError::Restarts(_))),
        "{refused:?}"
    );
    let refused = soon(pool.map(square, 0..10)).await;
    assert!(
        matches!(refused, Err(TaskError::Restarts(_))),
        "{refused:?}"
    );
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_worker_that_breaks_the_protocol_is_killed(by: By) {
    fn babble(len: usize) {
        // The link to the pool is a socket among the descriptors of this process.
        for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let path = entry.path();
            let link = std::fs::read_link(&path).unwrap_or_default();
            let number = path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .parse::<i32>()
                .unwrap();
            if number > 2 && link.to_string_lossy().starts_with("socket:") {
                let _ = nix::sys::socket::send(
                    number,
                    &vec![0xa5; len],
                    nix::sys::socket::MsgFlags::empty(),
                );
            }
        }
        run_for_ever(());
    }
    let pool = by.pool(2).await;
    for len in [16, 100, 60_000] {
        let error = soon(pool.apply(babble, len)).await.unwrap_err();
        assert!(
            matches!(error, TaskError::ProtocolViolation { .. }),
            "{error:?}"
        );
        assert_eq!(soon(pool.map(square, 0..3)).await.unwrap(), [0, 1, 4]);
    }
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_grandchild_that_keeps_everything_open_delays_nobody(by: By) {
    fn leave_one_behind((): ()) {
        let mut sleep = std::process::Command::new("sleep");
        // It shall stay.
        std::mem::forget(sleep.arg("1000").spawn().unwrap());
        Crash::Exit3.now();
    }
    let pool = by.pool(1).await;
    assert_died(soon(pool.apply(leave_one_behind, ())).await, Crash::Exit3);
    assert_eq!(soon(pool.apply(square, 3)).await, Ok(9));
    soon(pool.close()).await.unwrap();
}

// What is stopped.

pub(crate) async fn cancelling_stops_what_runs_and_forgets_what_waits(by: By) {
    let pool = by.pool(1).await;
    let worker = soon(pool.apply(pid, ())).await.unwrap();
    let (said, runs) = announcement();
    let running = pool.apply_async(say_and_run_for_ever, said);
    let waiting = pool.apply_async(square, 3);
    let after = pool.apply_async(square, 4);
    soon(runs).await;

    waiting.cancel();
    assert_eq!(soon(waiting).await, Err(TaskError::Cancelled));
    assert!(!running.is_finished());
    running.cancel();
    assert_eq!(soon(running).await, Err(TaskError::Cancelled));

    assert_eq!(soon(after).await, Ok(16));
    soon(gone(worker)).await;
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_token_stops_a_task_unless_its_result_came_first(by: By) {
    let pool = by.pool(1).await;
    let worker = soon(pool.apply(pid, ())).await.unwrap();
    let token = CancellationToken::new();
    let (said, runs) = announcement();
    let done = pool.apply_async(square, 3).stop_with(token.clone());
    assert_eq!(soon(done).await, Ok(9));
    let running = pool
        .apply_async(say_and_run_for_ever, said)
        .stop_with(token.clone());
    let running = tokio::spawn(running);
    soon(runs).await;

    token.cancel();

    assert_eq!(soon(running).await.unwrap(), Err(TaskError::Cancelled));
    soon(gone(worker)).await;
    let late = pool
        .apply_async(thread::sleep, Duration::from_secs(1000))
        .stop_with(token);
    assert_eq!(soon(late).await, Err(TaskError::Cancelled));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn an_async_task_is_cancelled_at_an_await_point(by: By) {
    async fn wait_for_ever((): ()) {
        std::future::pending::<()>().await;
    }
    async fn spin(mut said: Fd<PipeWriter>) {
        said.write_all(b"!").unwrap();
        loop {
            thread::yield_now();
        }
    }
    let pool = by.pool(1).await;
    let worker = soon(pool.apply(pid, ())).await.unwrap();

    let task = pool.apply_async(wait_for_ever, ());
    task.cancel();
    assert_eq!(soon(task).await, Err(TaskError::Cancelled));
    assert_eq!(soon(pool.apply(pid, ())).await, Ok(worker));

    // One that reaches no await point takes its worker with it.
    let (said, runs) = announcement();
    let task = pool.apply_async(spin, said);
    soon(runs).await;
    task.cancel();
    assert_eq!(soon(task).await, Err(TaskError::Cancelled));
    assert_ne!(soon(pool.apply(pid, ())).await, Ok(worker));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_task_that_runs_too_long_is_stopped(by: By) {
    let pool = by.pool(2).await;
    let worker = soon(pool.apply(pid, ())).await.unwrap();
    let limit = Duration::from_millis(50);

    let begun = std::time::Instant::now();
    let task = pool.apply_async(run_for_ever, ()).timeout(limit);
    assert_eq!(soon(task).await, Err(TaskError::TimedOut));
    assert!(begun.elapsed() >= limit);
    soon(gone(worker)).await;
    // The time in which it waits does not count.
    let tasks: Vec<_> = (0..8)
        .map(|_| pool.apply_async(sleep_ms, 20).timeout(limit * 40))
        .collect();
    for task in tasks {
        assert_eq!(soon(task).await, Ok(20));
    }
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_pools_time_limit_holds_for_each_item(by: By) {
    fn some_hang(x: u64) -> u64 {
        if x % 10 == 5 {
            run_for_ever(());
        }
        x
    }
    let builder = by.builder(2).task_timeout(Duration::from_millis(100));
    let pool = soon(builder.build()).await.unwrap();

    let results: Vec<_> = soon(pool.imap(some_hang, 0..30).collect()).await;

    for (x, result) in (0..).zip(results) {
        let expected = if x % 10 == 5 {
            Err(TaskError::TimedOut)
        } else {
            Ok(x)
        };
        assert_eq!(result, expected, "{x}");
    }
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_dropped_handle_cancels_what_waits_and_lets_finish_what_runs(by: By) {
    let pool = by.pool(1).await;
    let path = std::env::temp_dir().join(format!("pool-drop-{by:?}-{}", id()));
    let name = path.to_str().unwrap().to_owned();
    fn write((name, text, mut said): (String, String, Option<Fd<PipeWriter>>)) {
        if let Some(said) = &mut said {
            said.write_all(b"!").unwrap();
        }
        thread::sleep(Duration::from_millis(20));
        std::fs::write(name, text).unwrap();
    }
    let (said, runs) = announcement();
    let running = pool.apply_async(write, (name.clone(), "first".to_owned(), Some(said)));
    let waiting = pool.apply_async(write, (name.clone(), "second".to_owned(), None));
    soon(runs).await;

    drop(waiting);
    drop(running);

    assert_eq!(soon(pool.apply(square, 2)).await, Ok(4));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
    std::fs::remove_file(&path).unwrap();
    let worker = soon(pool.apply(pid, ())).await.unwrap();
    let (said, runs) = announcement();
    let task = pool.apply_async(say_and_run_for_ever, said).kill_on_drop();
    soon(runs).await;
    drop(task);
    soon(gone(worker)).await;
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_wait_that_is_given_up_harms_nobody(by: By) {
    let pool = by.pool(1).await;
    let slow = pool.apply_async(sleep_ms, 100);
    assert!(
        tokio::time::timeout(Duration::from_millis(5), slow)
            .await
            .is_err()
    );
    assert_eq!(soon(pool.apply(square, 5)).await, Ok(25));
    soon(pool.close()).await.unwrap();
}

// Streams.

pub(crate) async fn an_input_without_end_is_pulled_as_needed(by: By) {
    static PULLED: AtomicU64 = AtomicU64::new(0);
    let pool = by.pool(2).await;
    let before = PULLED.load(Relaxed);
    let mut results = pool.imap(
        sleep_ms,
        (0..).map(|_| {
            PULLED.fetch_add(1, Relaxed);
            1
        }),
    );
    assert_eq!(PULLED.load(Relaxed), before, "it starts at the first poll");

    for _ in 0..5 {
        assert_eq!(soon(results.next()).await, Some(Ok(1)));
    }

    // Nobody takes more results: the workers go idle.
    until(|| {
        pool.stats()
            .workers
            .iter()
            .all(|worker| worker.state == WorkerState::Idle)
    })
    .await;
    let pulled = PULLED.load(Relaxed) - before;
    assert!(pulled <= 5 + 400, "{pulled}");
    drop(results);
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_dropped_stream_cancels_the_rest(by: By) {
    let pool = by.pool(2).await;
    let mut results = pool.imap_unordered(sleep_ms, std::iter::repeat(1));
    for _ in 0..3 {
        soon(results.next()).await.unwrap().unwrap();
    }
    drop(results);
    let (queued, finished) = (pool.stats().queued, pool.stats().finished);
    assert_eq!(queued, 0);
    assert_eq!(soon(pool.apply(square, 6)).await, Ok(36));
    assert!(pool.stats().finished <= finished + 3 + 2);
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn unordered_results_come_as_they_are_ready_and_ordered_ones_wait(by: By) {
    let pool = by.pool(2).await;
    let items = [300, 1, 1, 1];
    let any: Vec<u64> = soon(pool.imap_unordered(sleep_ms, items).try_collect())
        .await
        .unwrap();
    assert_eq!(any, [1, 1, 1, 300]);
    let ordered: Vec<u64> = soon(pool.imap(sleep_ms, items).try_collect())
        .await
        .unwrap();
    assert_eq!(ordered, items);
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn items_behind_a_slow_one_go_to_an_idle_worker(by: By) {
    let pool = by.pool(2).await;
    // Known as instant, so chunks are long.
    soon(pool.map(sleep_ms, std::iter::repeat_n(0, 5000)))
        .await
        .unwrap();
    let items = std::iter::once(20_000).chain(std::iter::repeat_n(0, 3000));
    let mut results = pool.imap_unordered(sleep_ms, items);

    for _ in 0..3000 {
        assert_eq!(soon(results.next()).await, Some(Ok(0)));
    }

    drop(results);
    soon(pool.terminate()).await.unwrap();
}

pub(crate) async fn a_panic_of_the_input_comes_after_the_results_before_it(by: By) {
    let pool = by.pool(2).await;
    let items = (0..).inspect(|x| assert!(*x < 10, "the input is bad"));
    let mut results = pool.imap(square, items);
    for x in 0..10 {
        assert_eq!(soon(results.next()).await, Some(Ok(square(x))));
    }
    let next = std::panic::AssertUnwindSafe(soon(results.next()));
    let panic = futures::FutureExt::catch_unwind(next).await.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"the input is bad"));
    assert_eq!(soon(results.next()).await, None);
    drop(results);
    assert_eq!(soon(pool.apply(square, 6)).await, Ok(36));
    soon(pool.close()).await.unwrap();
}

// Life.

pub(crate) async fn close_finishes_what_was_accepted_and_takes_no_more(by: By) {
    let pool = by.pool(2).await;
    let workers = pids(&pool);
    let tasks: Vec<_> = (0..50).map(|_| pool.apply_async(sleep_ms, 1)).collect();

    soon(pool.close()).await.unwrap();

    for task in tasks {
        assert!(task.is_finished());
        assert_eq!(soon(task).await, Ok(1));
    }
    for worker in workers {
        soon(gone(worker)).await;
    }
    assert_eq!(
        soon(pool.apply(square, 1)).await,
        Err(TaskError::PoolClosed)
    );
    assert_eq!(
        soon(pool.map(square, 0..3)).await,
        Err(TaskError::PoolClosed)
    );
    assert_eq!(
        soon(pool.imap(square, 0..3).collect::<Vec<_>>()).await,
        [Err(TaskError::PoolClosed)]
    );
    assert!(matches!(soon(pool.resize(3)).await, Err(PoolError::Closed)));
    soon(pool.close()).await.unwrap();
    soon(pool.terminate()).await.unwrap();
}

pub(crate) async fn close_finishes_a_stream_that_was_begun(by: By) {
    let pool = by.pool(2).await;
    let mut results = pool.imap(sleep_ms, std::iter::repeat_n(1, 60));
    soon(results.next()).await.unwrap().unwrap();
    let consumer = tokio::spawn(results.count());

    soon(pool.close()).await.unwrap();

    assert_eq!(soon(consumer).await.unwrap(), 59);
}

pub(crate) async fn close_does_not_wait_for_a_stream_that_nobody_polls(by: By) {
    let pool = by.pool(1).await;
    let mut results = pool.imap(square, 0..);
    soon(results.next()).await.unwrap().unwrap();

    soon(pool.close()).await.unwrap();

    let last = soon(
        results
            .filter_map(async |result| result.err())
            .collect::<Vec<_>>(),
    )
    .await;
    assert_eq!(last, [TaskError::PoolClosed]);
}

pub(crate) async fn terminate_ends_at_once(by: By) {
    let pool = by.pool(2).await;
    let workers = pids(&pool);
    let tasks: Vec<_> = (0..5).map(|_| pool.apply_async(run_for_ever, ())).collect();
    let mut results = pool.imap(sleep_ms, std::iter::repeat(1000));
    assert!(futures::FutureExt::now_or_never(results.next()).is_none());

    soon(pool.terminate()).await.unwrap();

    for worker in workers {
        soon(gone(worker)).await;
    }
    for task in tasks {
        assert_eq!(soon(task).await, Err(TaskError::Cancelled));
    }
    let rest: Vec<_> = soon(results.collect()).await;
    assert!(rest.iter().all(Result::is_err), "{rest:?}");
    assert_eq!(rest.last(), Some(&Err(TaskError::PoolClosed)));
}

pub(crate) async fn the_last_handle_takes_the_workers_along(by: By) {
    let pool = by.pool(2).await;
    let workers = pids(&pool);
    let other = pool.clone();
    drop(pool);
    assert_eq!(soon(other.apply(square, 2)).await, Ok(4));

    let task = other.apply_async(sleep_ms, 50);
    let mut results = other.imap(square, 0..3);
    drop(other);
    assert_eq!(soon(task).await, Ok(50));
    assert_eq!(soon(results.next()).await, Some(Ok(0)));
    drop(results);

    for worker in workers {
        soon(gone(worker)).await;
    }
}

pub(crate) async fn each_worker_is_initialized_and_finalized(by: By) {
    static GREETING: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let path = std::env::temp_dir().join(format!("pool-final-{by:?}-{}", id()));
    fn greet(text: String) {
        GREETING.set(text).unwrap();
    }
    fn greeting((): ()) -> Option<String> {
        GREETING.get().cloned()
    }
    fn leave() {
        let path = GREETING.get().unwrap();
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(b"x").unwrap();
    }
    let text = path.to_str().unwrap().to_owned();
    let builder = by
        .builder(2)
        .initializer(greet, text.clone())
        .finalizer(leave);
    let pool = soon(builder.build()).await.unwrap();

    assert_eq!(soon(pool.apply(greeting, ())).await, Ok(Some(text.clone())));
    assert_died(soon(pool.apply(crash, Crash::Exit3)).await, Crash::Exit3);
    let all = soon(pool.map(greeting, [(); 20])).await.unwrap();
    assert!(all.iter().all(|greeting| greeting.as_ref() == Some(&text)));

    until(|| pids(&pool).len() == 2).await;
    soon(pool.close()).await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "xx");
    std::fs::remove_file(path).unwrap();
}

pub(crate) async fn an_async_initializer_runs_in_the_workers_runtime(by: By) {
    async fn wait((): ()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let pool = soon(by.builder(1).initializer(wait, ()).build())
        .await
        .unwrap();
    assert_eq!(soon(pool.apply(square, 2)).await, Ok(4));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn an_initializer_that_fails_is_reported_by_build(by: By) {
    fn fail(text: String) {
        panic!("no {text}")
    }
    let build = by.builder(3).initializer(fail, "luck".to_owned()).build();
    let error = soon(build).await.unwrap_err();
    let PoolError::Start(StartError::Initializer(panic)) = error else {
        panic!("{error:?}")
    };
    assert_eq!(panic.message, "no luck");

    let build = by.builder(3).initializer(crash, Crash::Exit3).build();
    let error = soon(build).await.unwrap_err();
    let PoolError::Start(StartError::Died { status, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(status, ExitStatus::Exited(3));
}

pub(crate) async fn settings_that_make_no_sense_are_refused(by: By) {
    let refused = soon(by.builder(0).build()).await;
    assert!(matches!(refused, Err(PoolError::NoProcesses)));
    for builder in [
        by.builder(1).max_tasks_per_child(0),
        by.builder(1).concurrency(0),
        by.builder(1).max_message_size(0),
    ] {
        assert!(matches!(
            soon(builder.build()).await,
            Err(PoolError::Zero(_))
        ));
    }
    let pool = by.pool(1).await;
    assert!(matches!(
        soon(pool.resize(0)).await,
        Err(PoolError::NoProcesses)
    ));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_worker_is_replaced_after_so_many_tasks(by: By) {
    let pool = soon(by.builder(2).max_tasks_per_child(5).build())
        .await
        .unwrap();

    let pids = soon(pool.map(|_: u32| id(), 0..100)).await.unwrap();

    let mut n_tasks = std::collections::HashMap::new();
    pids.iter()
        .for_each(|pid| *n_tasks.entry(pid).or_insert(0) += 1);
    assert!(n_tasks.len() >= 20, "{}", n_tasks.len());
    assert!(n_tasks.values().all(|n| *n <= 5));
    assert_eq!(pool.stats().restarts, 0);
    let tasks: Vec<_> = (0..30).map(|x| pool.apply_async(square, x)).collect();
    soon(pool.close()).await.unwrap();
    for (x, task) in (0..).zip(tasks) {
        assert_eq!(soon(task).await, Ok(square(x)));
    }
}

pub(crate) async fn a_worker_that_grows_too_large_is_replaced(by: By) {
    static HOARD: std::sync::Mutex<Vec<Vec<u8>>> = std::sync::Mutex::new(Vec::new());
    fn hoard((): ()) -> u32 {
        HOARD.lock().unwrap().push(vec![1; 8 << 20]);
        id()
    }
    let builder = by.builder(1).max_memory_per_child(100 << 20);
    let pool = soon(builder.build()).await.unwrap();

    let pids: HashSet<u32> = soon(pool.map(hoard, [(); 40]))
        .await
        .unwrap()
        .into_iter()
        .collect();

    assert!(pids.len() >= 2, "{pids:?}");
    assert_eq!(pool.stats().restarts, 0);
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_pool_grows_and_shrinks(by: By) {
    let pool = by.pool(1).await;
    for n in [4, 2, 3, 1, 6, 1] {
        soon(pool.resize(n)).await.unwrap();
        assert_eq!(pool.stats().workers.len(), n);
        assert_eq!(soon(pool.map(square, 0..100)).await.unwrap().len(), 100);
    }
    // What runs is finished before its worker leaves.
    soon(pool.resize(3)).await.unwrap();
    let tasks: Vec<_> = (0..6).map(|_| pool.apply_async(sleep_ms, 20)).collect();
    soon(pool.resize(1)).await.unwrap();
    for task in tasks {
        assert_eq!(soon(task).await, Ok(20));
    }
    assert_eq!(pool.stats().restarts, 0);
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn stats_tell_what_workers_do(by: By) {
    let pool = by.pool(2).await;
    let task = pool.apply_async(run_for_ever, ());
    let queued: Vec<_> = (0..3).map(|_| pool.apply_async(run_for_ever, ())).collect();

    let stats = pool.stats();

    assert_eq!(stats.queued, 2);
    assert_eq!(stats.workers.len(), 2);
    for worker in &stats.workers {
        assert_eq!(worker.state, WorkerState::Busy);
        assert!(worker.resident_bytes.is_some_and(|bytes| bytes > 100_000));
    }
    let ids: Vec<_> = stats
        .workers
        .iter()
        .map(|worker| worker.running.unwrap().id)
        .collect();
    assert_eq!(ids, [Some(task.id()), Some(queued[0].id())]);
    soon(pool.terminate()).await.unwrap();
    assert_eq!(pool.stats().workers.len(), 0);
}

// Several at a time.

pub(crate) async fn one_worker_runs_several_tasks_at_once(by: By) {
    async fn meet(n: usize) -> usize {
        static HERE: std::sync::LazyLock<tokio::sync::Barrier> =
            std::sync::LazyLock::new(|| tokio::sync::Barrier::new(8));
        HERE.wait().await;
        n
    }
    fn meet_blocking(n: usize) -> usize {
        static HERE: std::sync::Barrier = std::sync::Barrier::new(8);
        HERE.wait();
        n
    }
    let pool = soon(by.builder(1).concurrency(8).build()).await.unwrap();

    assert_eq!(
        soon(pool.map(meet, 0..80)).await.unwrap(),
        (0..80).collect::<Vec<_>>()
    );
    assert_eq!(
        soon(pool.map(meet_blocking, 0..80)).await.unwrap(),
        (0..80).collect::<Vec<_>>()
    );
    let task = pool.apply_async(|()| std::future::pending::<()>(), ());
    task.cancel();
    assert_eq!(soon(task).await, Err(TaskError::Cancelled));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn tasks_that_run_together_share_the_death_of_their_worker(by: By) {
    async fn wait_or_crash(x: u32) -> u32 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if x == 2 {
            Crash::Kill.now();
        }
        std::future::pending().await
    }
    let pool = soon(by.builder(1).concurrency(4).build()).await.unwrap();
    let tasks: Vec<_> = (0..4).map(|x| pool.apply_async(wait_or_crash, x)).collect();
    let after: Vec<_> = (0..4).map(|x| pool.apply_async(square, x)).collect();
    for task in tasks {
        assert_died(soon(task).await, Crash::Kill);
    }
    for (x, task) in (0..).zip(after) {
        assert_eq!(soon(task).await, Ok(square(x)));
    }
    soon(pool.close()).await.unwrap();
}

// What the user's code finds.

pub(crate) async fn async_functions_run_in_a_runtime_of_the_worker(by: By) {
    async fn later(x: u64) -> u64 {
        let task = tokio::spawn(async move { x + 1 });
        tokio::time::sleep(Duration::from_millis(1)).await;
        task.await.unwrap()
    }
    static TICKS: AtomicU64 = AtomicU64::new(0);
    async fn start_ticking((): ()) {
        tokio::spawn(async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                TICKS.fetch_add(1, Relaxed);
            }
        });
    }
    let pool = by.pool(1).await;
    assert_eq!(soon(pool.apply(later, 1)).await, Ok(2));
    assert_eq!(
        soon(pool.map(later, 0..50)).await.unwrap(),
        (1..51).collect::<Vec<_>>()
    );

    // What a task has spawned goes on while the worker waits for the next one.
    soon(pool.apply(start_ticking, ())).await.unwrap();
    let ticks = |()| TICKS.load(Relaxed);
    while soon(pool.apply(ticks, ())).await.unwrap() < 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn blocking_functions_may_block_on_futures(by: By) {
    let block = |x: u64| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { x + 1 })
    };
    let pool = by.pool(1).await;
    assert_eq!(soon(pool.apply(block, 1)).await, Ok(2));
    assert_eq!(soon(pool.apply(|()| async {}, ())).await, Ok(()));
    assert_eq!(soon(pool.apply(block, 2)).await, Ok(3));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn workers_bear_the_pools_name_and_its_environment(by: By) {
    let pool = soon(
        by.builder(1)
            .name("Baker")
            .env("POOL_TEST", "flour")
            .build(),
    )
    .await
    .unwrap();
    let name = soon(pool.apply(|()| current_process().name, ()))
        .await
        .unwrap();
    assert!(name.starts_with("Baker-"), "{name}");
    let value = soon(pool.apply(|()| std::env::var("POOL_TEST").ok(), ())).await;
    assert_eq!(value, Ok(Some("flour".to_owned())));
    soon(pool.close()).await.unwrap();
}

pub(crate) async fn a_task_may_have_a_pool_of_its_own(by: By) {
    async fn inner(n: u64) -> u64 {
        let pool = Pool::new(2).await.unwrap();
        let squares = pool.map(square, 0..n).await.unwrap();
        pool.close().await.unwrap();
        squares.into_iter().sum()
    }
    let pool = by.pool(2).await;
    assert_eq!(soon(pool.map(inner, [3, 4])).await.unwrap(), [5, 14]);
    soon(pool.close()).await.unwrap();
}
