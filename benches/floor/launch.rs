//! One child after the other by fork and by exec, and many at once.

use tokio::process::Command;

use super::kernel::{fork, pipe, read_exact, reap, vfork_exec, write_all};
use crate::harness::{median_us, median_us_async, runtime};

/// The argument with which this program ends at once.
pub(crate) const END_AT_ONCE: &str = "--end-at-once";

/// fork, eight bytes back, reap.
pub(crate) fn by_fork() -> f64 {
    by_fork_n(200)
}

/// The same a few times, for a process so large that each takes long.
pub(crate) fn by_fork_n(n: usize) -> f64 {
    let (from_child, to_parent) = pipe();
    let mut answer = [0; 8];
    median_us(n, || {
        let pid = fork(|| write_all(&to_parent, &42_u64.to_ne_bytes()));
        read_exact(&from_child, &mut answer);
        reap(pid);
    })
}

/// vfork, exec of this program, which ends at once, reap.
pub(crate) fn by_vfork_exec() -> f64 {
    median_us(100, || reap(vfork_exec(c"--end-at-once")))
}

/// The same program, run and awaited as tokio offers it.
pub(crate) fn by_tokio_command() -> f64 {
    runtime().block_on(median_us_async(100, end_at_once))
}

/// One such child.
pub(crate) async fn end_at_once() {
    let status = Command::new("/proc/self/exe")
        .arg(END_AT_ONCE)
        .status()
        .await;
    assert!(status.expect("a child").success());
}

/// Microseconds a child, when 256 are forked and then reaped.
pub(crate) fn many_by_fork() -> f64 {
    let (from_children, to_parent) = pipe();
    many(
        || fork(|| write_all(&to_parent, &[0])),
        |n| read_exact(&from_children, &mut vec![0; n]),
    )
}

/// Microseconds a child, when 256 are executed and then reaped.
pub(crate) fn many_by_vfork_exec() -> f64 {
    many(|| vfork_exec(c"--end-at-once"), |_| ())
}

fn many(mut start: impl FnMut() -> libc::pid_t, mut up: impl FnMut(usize)) -> f64 {
    const CHILDREN: usize = 256;
    let all = median_us(3, || {
        let children: Vec<_> = (0..CHILDREN).map(|_| start()).collect();
        up(CHILDREN);
        children.into_iter().for_each(reap);
    });
    all / CHILDREN as f64
}
