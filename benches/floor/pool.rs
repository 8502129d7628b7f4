//! Workers behind raw stream sockets, driven by tokio: 16 bytes out, 16 bytes back, no codec.
//!
//! A worker reads all that waits, computes, and answers with one write. The parent keeps a window
//! of tasks in each worker and tops it up when half of it is done. Every result is put at its
//! task's index, and all of them are checked.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;

use super::kernel::{
    die_with_parent, fork, read, reap, set_nonblocking, socket_pair, try_read, try_write, write_all,
};
use crate::harness::{median_us_async, per_op_ns, runtime};

const TASK_BYTES: usize = 16;
const BUFFER_BYTES: usize = 64 << 10;

/// Nanoseconds a task, at this number of workers, tasks in flight a worker, and tasks.
pub(crate) fn tasks(n_workers: usize, window: usize, n_tasks: usize) -> f64 {
    let (workers, pids): (Vec<_>, Vec<_>) = start(n_workers).into_iter().unzip();
    let figure = runtime().block_on(LocalSet::new().run_until(async {
        let job = Rc::new(Job {
            next: Cell::new(0),
            results: RefCell::new(vec![0; n_tasks]),
            window,
        });
        let started = Instant::now();
        let drivers: Vec<_> = workers
            .into_iter()
            .map(|socket| tokio::task::spawn_local(Rc::clone(&job).drive(register(socket))))
            .collect();
        for driver in drivers {
            driver.await.expect("no panic");
        }
        let elapsed = started.elapsed();
        let results = job.results.borrow();
        assert!(
            (0..)
                .zip(results.iter())
                .all(|(task, result)| *result == work(argument(task)))
        );
        per_op_ns(elapsed, n_tasks)
    }));
    pids.into_iter().for_each(reap);
    figure
}

/// Microseconds of one call to an idle worker and its answer.
pub(crate) fn round_trip() -> f64 {
    let (socket, pid) = start(1).remove(0);
    let figure = runtime().block_on(async {
        let socket = register(socket);
        let mut buffer = vec![0; BUFFER_BYTES];
        median_us_async(3000, async || {
            send(&socket, &encode(7, argument(7))).await;
            let n = receive(&socket, &mut buffer).await;
            assert_eq!(decode(&buffer[..n]), (7, work(argument(7))));
        })
        .await
    });
    reap(pid);
    figure
}

struct Job {
    next: Cell<usize>,
    results: RefCell<Vec<u64>>,
    window: usize,
}

impl Job {
    /// Keeps one worker busy until no task is left.
    async fn drive(self: Rc<Self>, socket: AsyncFd<OwnedFd>) {
        let refill_below = if self.window >= 4 {
            self.window / 2
        } else {
            self.window - 1
        };
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut out = Vec::new();
        let (mut in_flight, mut partial) = (0, 0);
        loop {
            if in_flight <= refill_below {
                out.clear();
                in_flight += self.fill(&mut out, self.window - in_flight);
                send(&socket, &out).await;
            }
            if in_flight == 0 {
                return;
            }
            let filled = partial + receive(&socket, &mut buffer[partial..]).await;
            let whole = filled - filled % TASK_BYTES;
            let mut results = self.results.borrow_mut();
            for answer in buffer[..whole].chunks_exact(TASK_BYTES) {
                let (task, result) = decode(answer);
                results[task] = result;
            }
            drop(results);
            in_flight -= whole / TASK_BYTES;
            buffer.copy_within(whole..filled, 0);
            partial = filled - whole;
        }
    }

    fn fill(&self, out: &mut Vec<u8>, room: usize) -> usize {
        let n_tasks = self.results.borrow().len();
        let first = self.next.get();
        let after = n_tasks.min(first + room);
        (first..after).for_each(|task| out.extend_from_slice(&encode(task, argument(task))));
        self.next.set(after);
        after - first
    }
}

/// Forks the workers while this process has one thread and no runtime.
fn start(n_workers: usize) -> Vec<(OwnedFd, libc::pid_t)> {
    let mut workers: Vec<(OwnedFd, libc::pid_t)> = Vec::with_capacity(n_workers);
    for _ in 0..n_workers {
        let (ours, theirs) = socket_pair(libc::SOCK_STREAM);
        let pid = fork(|| {
            die_with_parent();
            // A copy of another worker's socket would keep that worker from seeing its end.
            workers.iter().for_each(|(socket, _)| close(socket));
            close(&ours);
            serve(&theirs);
        });
        set_nonblocking(&ours);
        workers.push((ours, pid));
    }
    workers
}

fn close(fd: &OwnedFd) {
    // SAFETY: the process leaves by `_exit`, so no owner will use or close the number again.
    unsafe { libc::close(fd.as_raw_fd()) };
}

fn serve(socket: &OwnedFd) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut out = Vec::with_capacity(BUFFER_BYTES);
    let mut partial = 0;
    loop {
        let n = read(socket, &mut buffer[partial..]);
        if n == 0 {
            return;
        }
        let filled = partial + n;
        let whole = filled - filled % TASK_BYTES;
        out.clear();
        for request in buffer[..whole].chunks_exact(TASK_BYTES) {
            let (task, argument) = decode(request);
            out.extend_from_slice(&encode(task, work(argument)));
        }
        write_all(socket, &out);
        buffer.copy_within(whole..filled, 0);
        partial = filled - whole;
    }
}

/// What every task of every pool here does.
pub(crate) fn work(x: u64) -> u64 {
    black_box(x.wrapping_add(1))
}

fn argument(task: usize) -> u64 {
    task as u64 * 3
}

fn encode(task: usize, word: u64) -> [u8; TASK_BYTES] {
    let mut bytes = [0; TASK_BYTES];
    bytes[..8].copy_from_slice(&(task as u64).to_ne_bytes());
    bytes[8..].copy_from_slice(&word.to_ne_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> (usize, u64) {
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    (word(0) as usize, word(8))
}

/// Registered for reading only: half of the wake-ups of one registered for both.
fn register(socket: OwnedFd) -> AsyncFd<OwnedFd> {
    // SAFETY: an `OwnedFd` is open, and the same, for as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.expect("a registration")
}

async fn receive(socket: &AsyncFd<OwnedFd>, into: &mut [u8]) -> usize {
    loop {
        match try_read(socket.as_raw_fd(), into) {
            Ok(0) => panic!("the worker is gone"),
            Ok(n) => return n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await.expect("a driver").clear_ready();
            }
            Err(error) => panic!("read: {error}"),
        }
    }
}

/// The windows here are far smaller than a socket's buffer: a write is never refused for long.
async fn send(socket: &AsyncFd<OwnedFd>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match try_write(socket.as_raw_fd(), bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("write: {error}"),
        }
    }
}
