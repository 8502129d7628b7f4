//! A peer that is killed at every instruction of a `send` and of a `recv`.
//!
//! The victim performs one operation on its end of a pipe while this process single-steps it, and
//! is killed at an instruction of the program's own code. Here somebody uses the other end all the
//! while, and must be told rightly: whole messages in order, and then that the pipe is closed, or
//! that it is torn if the victim had begun and not finished. Nobody may wait for ever.
//!
//! For each system call of the operation one victim is taken through all instructions behind it, up
//! to the next call. Each of these instructions is then a point at which another victim is killed: it
//! runs at full speed to the same call and on to the same instruction, which the processor watches.
//! A victim that takes another way, as the other end was faster or slower, is killed at its next call.
//! Points that were missed so are looked for in the end by victims that walk as those who found them,
//! each of which is killed at the first that it comes to; one to which none comes is counted as strayed.
//!
//! `cargo test --test kill_pipe` takes a sample; `cargo test --release --test kill_pipe -- --full`
//! takes every instruction; `--only=`, `--stride=`, `--seconds=` (of each operation) and `--visits=`
//! (of each instruction between two system calls) take fewer.

use std::env;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::pipe::{self, PipeReceiver, PipeSender};
use tokio_multiprocess::{Process, RecvError, SendFailure, StartMethod};

use crate::trace::Traced;
use crate::walk::{Missed, Point};

#[expect(dead_code, reason = "it is shared, and others need more of it")]
#[path = "kill/trace.rs"]
mod trace;

#[path = "kill/walk.rs"]
mod walk;

/// How long something may take that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longer than what a socket holds, so that its sender waits half-way; and no longer, as the loop
/// that copies it has a round for each 2 KiB, and to go to a visit means to stop at all before it.
const LONG: usize = 512 << 10;

const SHORT: usize = 3000;

/// Bytes that are not encoded one by one, which would be all that is seen.
struct Blob(Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Blob;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// What the victim does when it is told to go.
#[derive(Serialize, Deserialize)]
enum Act {
    /// Sends a message of so many bytes, as a value or as it is.
    SendValue(PipeSender<Blob>, usize),
    SendBytes(PipeSender<Blob>, usize),
    /// Sends a message that brings the end of another pipe.
    SendEnd(PipeSender<PipeSender<u8>>, PipeSender<u8>),
    /// Receives a message.
    RecvValue(PipeReceiver<Blob>),
    RecvBytes(PipeReceiver<Blob>),
    RecvEnd(PipeReceiver<PipeSender<u8>>),
}

fn suffer((act, Fd(mut go), Fd(mut report)): (Act, Fd<PipeReader>, Fd<PipeWriter>)) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    // Made before it goes, as they are no part of what is looked at.
    let value = match &act {
        Act::SendValue(_, len) | Act::SendBytes(_, len) => vec![7; *len],
        _ => Vec::new(),
    };
    report.write_all(&trace::own_tid().to_le_bytes()).unwrap();
    let mut order = [0];
    go.read_exact(&mut order).unwrap();
    runtime.block_on(async {
        match act {
            Act::SendValue(tx, _) => drop(tx.send(Blob(value)).await),
            Act::SendBytes(tx, _) => drop(tx.send_bytes(&value).await),
            Act::SendEnd(tx, end) => drop(tx.send(end).await),
            Act::RecvValue(rx) => drop(rx.recv().await),
            Act::RecvBytes(rx) => drop(rx.recv_bytes().await),
            Act::RecvEnd(rx) => drop(rx.recv().await),
        }
    });
    report.write_all(&[0]).unwrap();
    // Lives on until it is killed.
    let _ = go.read_exact(&mut order);
}

/// What came of the other end.
type Verdict = Result<&'static str, String>;

/// What is done at the other end meanwhile.
type Here = Box<dyn FnOnce() -> Verdict + Send>;

/// Reads all that comes, which is at most one message of `len` bytes.
fn read(rx: &PipeReceiver<Blob>, len: usize, is_value: bool) -> Verdict {
    let mut n_messages = 0;
    loop {
        let received = match is_value {
            true => rx.blocking_recv().map(|Blob(bytes)| bytes),
            false => rx.blocking_recv_bytes().map(Vec::from),
        };
        match received {
            Ok(message) if message.len() == len && message.iter().all(|byte| *byte == 7) => {
                n_messages += 1;
            }
            Ok(_) => return Err("a wrong message".to_owned()),
            Err(RecvError::Closed) if n_messages == 0 => return Ok("closed"),
            Err(RecvError::Closed) if n_messages == 1 => return Ok("whole"),
            Err(RecvError::Torn) if n_messages == 0 => return Ok("torn"),
            Err(error) => return Err(format!("{n_messages} messages, and {error}")),
        }
    }
}

/// Reads an end, and asks at the other whether it is alive.
fn read_end(rx: &PipeReceiver<PipeSender<u8>>, other: &PipeReceiver<u8>) -> Verdict {
    let received = rx.blocking_recv();
    let verdict = match received {
        Ok(end) => {
            end.blocking_send(7).map_err(|error| error.to_string())?;
            match other.blocking_recv() {
                Ok(7) => Ok("whole"),
                other => Err(format!("the end that came gave {other:?}")),
            }
        }
        Err(RecvError::Closed) => Ok("closed"),
        Err(error) => Err(error.to_string()),
    };
    match other.blocking_recv() {
        Err(RecvError::Closed) => verdict,
        other => Err(format!("the end that was lost gave {other:?}")),
    }
}

/// Sends one message of `len` bytes after the other until nobody reads.
fn write(tx: &PipeSender<Blob>, len: usize, is_value: bool) -> Verdict {
    let message = vec![7; len];
    loop {
        let sent = match is_value {
            true => tx
                .blocking_send(Blob(message.clone()))
                .map_err(|error| error.failure),
            false => tx.blocking_send_bytes(&message),
        };
        match sent {
            Ok(()) => (),
            Err(SendFailure::Closed) => return Ok("closed"),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Sends ends until nobody reads; all of them are closed by then.
fn write_ends(tx: &PipeSender<PipeSender<u8>>) -> Verdict {
    let mut others = Vec::new();
    for _ in 0..50 {
        let (end, other) = pipe::one_way().map_err(|error| error.to_string())?;
        others.push(other);
        if let Err(error) = tx.blocking_send(end) {
            drop(error);
            break;
        }
    }
    while tx.blocking_send_bytes(&[0; SHORT]).is_ok() {}
    for other in others {
        let lost = other.blocking_recv();
        if !matches!(lost, Err(RecvError::Closed)) {
            return Err(format!("an end that was lost gave {lost:?}"));
        }
    }
    Ok("closed")
}

/// A line of the table.
struct Campaign {
    name: &'static str,
    /// The victim's part, and what is done here meanwhile.
    begin: fn() -> io::Result<(Act, Here)>,
}

const CAMPAIGNS: [Campaign; 10] = [
    Campaign {
        name: "send value",
        begin: || sending(SHORT, true),
    },
    Campaign {
        name: "send bytes",
        begin: || sending(SHORT, false),
    },
    Campaign {
        name: "send long value",
        begin: || sending(LONG, true),
    },
    Campaign {
        name: "send long bytes",
        begin: || sending(LONG, false),
    },
    Campaign {
        name: "send end",
        begin: || {
            let (tx, rx) = pipe::one_way()?;
            let (end, other) = pipe::one_way()?;
            Ok((
                Act::SendEnd(tx, end),
                Box::new(move || read_end(&rx, &other)),
            ))
        },
    },
    Campaign {
        name: "recv value",
        begin: || receiving(SHORT, true),
    },
    Campaign {
        name: "recv bytes",
        begin: || receiving(SHORT, false),
    },
    Campaign {
        name: "recv long value",
        begin: || receiving(LONG, true),
    },
    Campaign {
        name: "recv long bytes",
        begin: || receiving(LONG, false),
    },
    Campaign {
        name: "recv end",
        begin: || {
            let (tx, rx) = pipe::one_way()?;
            Ok((Act::RecvEnd(rx), Box::new(move || write_ends(&tx))))
        },
    },
];

fn sending(len: usize, is_value: bool) -> io::Result<(Act, Here)> {
    let (tx, rx) = pipe::one_way()?;
    let act = match is_value {
        true => Act::SendValue(tx, len),
        false => Act::SendBytes(tx, len),
    };
    Ok((act, Box::new(move || read(&rx, len, is_value))))
}

fn receiving(len: usize, is_value: bool) -> io::Result<(Act, Here)> {
    let (tx, rx) = pipe::one_way()?;
    let act = match is_value {
        true => Act::RecvValue(rx),
        false => Act::RecvBytes(rx),
    };
    Ok((act, Box::new(move || write(&tx, len, is_value))))
}

/// How thoroughly.
#[derive(Clone, Copy)]
struct Effort {
    /// Every so many instructions.
    stride: usize,
    /// Not further than so many behind a system call.
    steps: usize,
    /// Of one instruction, so many visits between two system calls.
    visits: u64,
    /// At most so long a campaign.
    time: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let wants = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if wants("--list") {
        return ExitCode::SUCCESS;
    }
    let number = |flag: &str| {
        let values = arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(flag));
        values.and_then(|value| value.parse().ok())
    };
    let (stride, steps, milliseconds) = match wants("--full") {
        true => (1, usize::MAX, 3_600_000),
        false => (37, 200, 500),
    };
    let milliseconds = number("--seconds=").map_or(milliseconds, |seconds| 1000 * seconds);
    let effort = Effort {
        stride: number("--stride=").unwrap_or(stride),
        steps,
        visits: number("--visits=").map_or(u64::MAX, |visits| visits as u64),
        time: Duration::from_millis(milliseconds as u64),
    };
    let only = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--only="));
    // The tracer and the traced take turns, and waking another core takes longer than a step.
    let mut first = CpuSet::new();
    if first.set(0).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &first);
    }
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    println!(
        "{:<16} {:>6} {:>7} {:>7} {:>8} {:>7} {:>7} {:>7} {:>8}",
        "operation", "calls", "points", "killed", "strayed", "closed", "torn", "whole", "seconds"
    );
    let begun = Instant::now();
    let mut n_killed = 0;
    let mut failed = false;
    for campaign in CAMPAIGNS
        .iter()
        .filter(|campaign| only.is_none_or(|only| only == campaign.name))
    {
        match run(campaign, effort, &runtime) {
            Ok(n) => n_killed += n,
            Err(error) => {
                println!("{:<16} {error}", campaign.name);
                failed = true;
            }
        }
    }
    println!(
        "{n_killed} victims in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn run(campaign: &Campaign, effort: Effort, runtime: &Runtime) -> Result<usize, String> {
    let begun = Instant::now();
    let has_time = || begun.elapsed() < effort.time;
    let mut verdicts = Vec::new();
    let mut points = Vec::new();
    let mut n_calls = 0;
    let mut is_over = false;
    while !is_over && has_time() {
        let mut found = Vec::new();
        let verdict = kill(campaign, runtime, |victim| {
            is_over = !victim.walk(n_calls, |point| {
                found.push(point);
                found.len() >= effort.steps || !has_time()
            });
        });
        verdicts.push(verdict.map_err(|error| format!("behind call {n_calls}: {error}"))?);
        points.extend(found.into_iter().filter(|point| point.nth <= effort.visits));
        n_calls += 1;
    }
    let n_points = points.len();
    let mut missed = Missed::default();
    for point in points.into_iter().step_by(effort.stride) {
        if !has_time() {
            is_over = false;
            break;
        }
        let verdict = kill(campaign, runtime, |victim| {
            if !victim.run_to(point) {
                missed.insert(point);
            }
        });
        verdicts.push(verdict.map_err(|error| format!("at {point:x?}: {error}"))?);
    }
    while has_time()
        && let Some(calls) = missed.next()
    {
        let verdict = kill(campaign, runtime, |victim| {
            victim.walk(calls, |point| missed.take(point));
        });
        verdicts.push(verdict.map_err(|error| format!("behind call {calls}: {error}"))?);
    }
    let count = |what| verdicts.iter().filter(|verdict| **verdict == what).count();
    println!(
        "{:<16} {:>6} {:>7} {:>7} {:>8} {:>7} {:>7} {:>7} {:>8.1}{}",
        campaign.name,
        n_calls,
        n_points,
        verdicts.len(),
        missed.len(),
        count("closed"),
        count("torn"),
        count("whole"),
        begun.elapsed().as_secs_f64(),
        if is_over { "" } else { " (out of time)" },
    );
    Ok(verdicts.len())
}

/// Has a victim go somewhere and kills it there; tells the verdict.
fn kill(campaign: &Campaign, runtime: &Runtime, go: impl FnOnce(&mut Victim)) -> Verdict {
    let (act, here) = (campaign.begin)().map_err(|error| error.to_string())?;
    let mut victim = Victim::start(runtime, act).map_err(|error| error.to_string())?;
    let (tell, told) = mpsc::channel();
    let judge = thread::spawn(move || _ = tell.send(here()));
    go(&mut victim);
    victim.kill();
    let verdict = told.recv_timeout(PATIENCE);
    let verdict = verdict.map_err(|_| "somebody waits for ever".to_owned())??;
    judge.join().map_err(|_| "a panic".to_owned())?;
    Ok(verdict)
}

/// A process that performs one act, instruction by instruction.
struct Victim {
    process: Process<()>,
    thread: Option<Traced>,
    report: PipeReader,
    _go: PipeWriter,
}

impl Victim {
    /// A victim that stands before the first instruction of its act.
    fn start(runtime: &Runtime, act: Act) -> io::Result<Self> {
        let (read_go, mut go) = io::pipe()?;
        let (mut report, write_report) = io::pipe()?;
        let argument = (act, Fd(read_go), Fd(write_report));
        let builder = Process::builder().start_method(StartMethod::FORK_SERVER);
        let process = runtime.block_on(builder.start(suffer, argument));
        let process = process.map_err(io::Error::other)?;
        let mut tid = [0; 4];
        report.read_exact(&mut tid)?;
        let thread = Traced::seize(process.pid(), i32::from_le_bytes(tid))?;
        go.write_all(&[0])?;
        // Behind the call that takes the order, in which it may have been interrupted or not.
        if !thread.pass_call(stands) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self {
            process,
            thread: Some(thread),
            report,
            _go: go,
        })
    }

    /// Goes on past so many system calls. False when the act is over before.
    fn pass(&self, calls: u64) -> bool {
        let passes = |thread: &Traced| thread.pass_call(stands) && !has_reported(&self.report);
        let mut thread = self.thread.iter();
        thread.any(|thread| (0..calls).all(|_| passes(thread)))
    }

    /// Goes through the instructions behind a system call until `ends` says so. False when the act is
    /// over before.
    fn walk(&self, calls: u64, ends: impl FnMut(Point) -> bool) -> bool {
        let passes = self.pass(calls);
        if passes && let Some(thread) = &self.thread {
            thread.points(calls).any(ends);
        }
        passes
    }

    /// Goes on to an instruction. False when it takes another way.
    fn run_to(&self, point: Point) -> bool {
        let goes = |thread: &Traced| thread.run_to(point);
        self.pass(point.calls) && self.thread.as_ref().is_some_and(goes)
    }

    fn kill(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.kill(self.process.pid());
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Comes back when the victim stands still, however long that takes. False when it has ended.
fn stands(victim: &Traced) -> bool {
    victim.has_stopped(0) == Some(true)
}

fn has_reported(report: &PipeReader) -> bool {
    let mut fds = [PollFd::new(report.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n_ready| n_ready > 0)
}
