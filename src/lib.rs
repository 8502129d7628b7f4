//! Python's `multiprocessing`, rethought for tokio: functions run in other processes, and what
//! becomes of them is awaited.
//!
//! ```
//! use futures::TryStreamExt;
//! use tokio_multiprocess::{Pool, Process};
//!
//! fn square(x: u64) -> u64 {
//!     x * x
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let child = Process::start(square, 12).await?;
//!     assert_eq!(child.join().await?, 144);
//!
//!     let pool = Pool::new(2).await?;
//!     assert_eq!(pool.map(square, 0..4).await?, [0, 1, 4, 9]);
//!     let mut squares = pool.imap_unordered(square, 0..1000); // lazy input, a stream of results
//!     let mut sum = 0;
//!     while let Some(square) = squares.try_next().await? {
//!         sum += square;
//!     }
//!     assert_eq!(sum, (0..1000).map(square).sum());
//!     Ok(pool.close().await?)
//! }
//! ```
//!
//! Nothing is called first, and no function is registered or annotated: it works in programs,
//! tests, doctests and benches as they are. See [`docs::start_methods`] for how.
//!
//! # Which do I need?
//!
//! - *Many calls of functions*, on as many processors as there are, which one crash must not stop:
//!   a [`Pool`]. A dead worker fails the one task that it was running; everything else goes on.
//! - *One call*, or a process that lives as long as something else: a [`Process`].
//! - A function that blocks but neither crashes nor leaks needs no process: `spawn_blocking`.
//!
//! # From Python
//!
//! | Python | here |
//! |---|---|
//! | `Process(target=f, args=(a,)).start()`, `join()` | [`Process::start`], [`join`](Process::join), which gives what `f` returned |
//! | `terminate()`, `kill()`, `is_alive()`, `exitcode`, `sentinel` | [`terminate`](Process::terminate), [`kill`](Process::kill), [`is_alive`](Process::is_alive), [`exit_status`](Process::exit_status), the handle's pidfd ([`AsFd`](std::os::fd::AsFd)) |
//! | `Pool(n)`, `apply`, `apply_async`, `map`, `imap`, `imap_unordered` | [`Pool`] and the same names |
//! | `Queue`, `JoinableQueue`, `SimpleQueue` | [`AsyncQueue`] |
//! | `get_context(m)`, `set_start_method(m)` | [`Context`], [`set_start_method`] |
//! | `active_children`, `current_process`, `parent_process`, `cpu_count` | the same names |
//! | pickling | serde, see [`docs::values`] |
//! | managers, `ShareableList`, listeners with keys | none: typed channels and shared memory take their place |
//!
//! # Promises
//!
//! - **No hang.** Every future resolves once what it waits for runs, ends or dies.
//! - **`kill -9` of any process at any moment** loses at most what that process had taken, and a
//!   pool tells or retries exactly those tasks.
//! - **Nothing is left behind**: no zombie, orphan, descriptor, thread or file, also when the
//!   application itself is killed.
//! - **Cancel safety** is told by each async method; dropping a future harms nobody else.
//! - **No global surprise**: no `SIGCHLD` handler, no `waitpid(-1)`, no runtime of its own in the
//!   application. It works on both of tokio's runtimes, with several at once, and after one was
//!   dropped. An idle pool makes no wake-up.
//!
//! # Features
//!
//! - `auto-init` (default): the hook before `main`. Without it, call [`init`] first in `main`.
//!
//! Linux 5.10 or newer, and nothing else.

#[cfg(not(target_os = "linux"))]
compile_error!("tokio-multiprocess works on Linux only");

mod broker;
pub mod docs;
mod error;
pub mod fd;
pub mod pipe;
pub mod pool;
mod process;
pub mod queue;
pub mod shared;
mod supervisor;
pub mod sync;
#[expect(unsafe_code, reason = "the one place where unsafe code lives")]
mod sys;
mod wire;

pub use self::error::{
    BrokenBarrier, CreatorGone, ExitStatus, ForeignFunction, GetError, OverRelease, Panic,
    ProcessError, PutError, RecvError, SendError, SendFailure, StartError, TaskDoneError,
    TryLockError, TryRecvError,
};
pub use self::pipe::{AsyncPipe, PipeReceiver, PipeSender};
pub use self::pool::{Pool, TaskError};
pub use self::process::entry::init;
pub use self::process::{
    Async, Blocking, Context, Limits, Outcome, ParentProcess, Process, ProcessBuilder, ProcessInfo,
    StartMethod, Stdio, active_children, cpu_count, current_process, parent_process,
    set_start_method, start_method,
};
pub use self::queue::{AsyncQueue, QueueReceiver, QueueSender};

/// The readme's program is tried like any example here.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
