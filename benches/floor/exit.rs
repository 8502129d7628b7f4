//! From the kill of a child to the moment at which its parent has heard of its end.
//!
//! The child is this program, asleep; the time includes what the kernel needs to take it apart.

use std::process::Stdio;
use std::time::Instant;

use tokio::process::Command;

use super::kernel::{epoll_of, epoll_wait, pidfd_open, pipe, read_exact};
use crate::harness::{median, runtime};

/// The argument with which this program sleeps until it is killed.
pub(crate) const SLEEP: &str = "--sleep";

const SAMPLES: usize = 60;

/// epoll on the pidfd, then the wait of the standard library, which does not sleep any more.
pub(crate) fn by_epoll() -> f64 {
    let samples = (0..SAMPLES).map(|_| {
        let (up, childs) = pipe();
        let mut command = std::process::Command::new("/proc/self/exe");
        let mut child = command.arg(SLEEP).stdout(childs).spawn().expect("a child");
        drop(command);
        read_exact(&up, &mut [0]);
        let pidfd = pidfd_open(libc::pid_t::try_from(child.id()).expect("a pid"));
        let epoll = epoll_of(&[&pidfd]);
        let started = Instant::now();
        child.kill().expect("a kill");
        epoll_wait(&epoll);
        child.wait().expect("its end");
        started.elapsed().as_secs_f64() * 1e6
    });
    median(&samples.collect::<Vec<_>>())
}

/// tokio's handle of a child.
pub(crate) fn by_tokio() -> f64 {
    runtime().block_on(async {
        let mut samples = Vec::new();
        for _ in 0..SAMPLES {
            let mut command = Command::new("/proc/self/exe");
            let mut child = command
                .arg(SLEEP)
                .stdout(Stdio::piped())
                .spawn()
                .expect("a child");
            let mut up = child.stdout.take().expect("its output");
            let word = tokio::io::AsyncReadExt::read_u8(&mut up).await;
            word.expect("a word that it is up");
            let started = Instant::now();
            child.start_kill().expect("a kill");
            child.wait().await.expect("its end");
            samples.push(started.elapsed().as_secs_f64() * 1e6);
        }
        median(&samples)
    })
}

/// What the child does.
pub(crate) fn sleep_until_killed() -> ! {
    print!("x");
    std::io::Write::flush(&mut std::io::stdout()).expect("a parent that listens");
    loop {
        std::thread::park();
    }
}
