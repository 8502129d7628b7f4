//! Python's `multiprocessing`, rethought for tokio.

#[cfg(not(target_os = "linux"))]
compile_error!("tokio-multiprocess works on Linux only");

pub mod docs;
mod error;
pub mod fd;
pub mod pool;
mod process;
mod supervisor;
#[expect(unsafe_code, reason = "the one place where unsafe code lives")]
mod sys;
mod wire;

pub use self::error::{ExitStatus, ForeignFunction, Panic, ProcessError, StartError};
pub use self::pool::{Pool, TaskError};
pub use self::process::entry::init;
pub use self::process::{
    Async, Blocking, Context, Limits, Outcome, ParentProcess, Process, ProcessBuilder, ProcessInfo,
    StartMethod, Stdio, active_children, cpu_count, current_process, parent_process,
    set_start_method, start_method,
};
