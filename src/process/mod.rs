//! Starting, watching and ending one child.
//!
//! In reading order: the builder and the handle (`builder`, `handle`) are what users see; `start`
//! knows the ways a process comes to be; `entry` is where a child begins; `function` names what it
//! is to run; `inherit` is what it takes over from this process.

mod builder;
pub(crate) mod call;
mod context;
pub(crate) mod entry;
pub(crate) mod function;
mod handle;
mod info;
mod inherit;
mod limits;
mod panic;
pub(crate) mod start;
mod stdio;

pub use self::builder::ProcessBuilder;
pub use self::context::{Context, StartMethod, set_start_method, start_method};
pub use self::function::{Async, Blocking, Outcome};
pub use self::handle::Process;
pub(crate) use self::info::next_child;
pub use self::info::{
    ParentProcess, ProcessInfo, active_children, cpu_count, current_process, parent_process,
};
pub use self::limits::Limits;
pub use self::stdio::Stdio;
