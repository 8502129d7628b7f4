//! The kernel, one file an object: the only place that holds unsafe code and names `libc` or `nix`.
//!
//! Each file wraps one kind of kernel object or call, links its man page, and deals with `EINTR`
//! and `EAGAIN` where they arise. What stands above sees owned fds, plain numbers and
//! [`std::io::Error`].

pub(crate) mod async_fd;
pub(crate) mod child_setup;
pub(crate) mod clone;
pub(crate) mod cpu;
pub(crate) mod entry_hook;
pub(crate) mod environment;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod exit;
pub(crate) mod fork_epoch;
pub(crate) mod futex;
pub(crate) mod image;
pub(crate) mod inherited_fds;
pub(crate) mod inode;
pub(crate) mod memfd;
pub(crate) mod overflow;
pub(crate) mod pidfd;
pub(crate) mod pieces;
pub(crate) mod pipe;
pub(crate) mod program;
pub(crate) mod reactor;
pub(crate) mod rlimit;
pub(crate) mod sealed;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod tasks;
pub(crate) mod timerfd;
