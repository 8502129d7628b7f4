//! Every instruction of a queue's `put` and `get`: killed there, preempted there, stopped there.
//!
//! A victim performs one operation while this process, which looks after the queue, traces it. At
//! each instruction of the program's own code it is killed, or others come and do their part while it
//! stands still, or both. Where the victim sleeps, somebody gives it what it waits for, and it goes
//! on. After each blow, and before anybody moves again, nobody may wait for an item that is there, or
//! for room that is there: a queue heals itself with the next put or get, so what is checked is
//! progress when all rest. Then the queue is emptied: every item has been got once, and whole, but
//! for the one that a killed getter had.
//!
//! For each system call of the operation a few victims are taken through all instructions behind it,
//! up to the next call. Each of these instructions is then a point to which another victim is brought:
//! it runs at full speed to the same call and on to the same instruction, which the processor watches.
//! A victim that takes another way suffers the blow at its next call, and another one is sent. Points
//! that were missed so are looked for in the end by victims that walk as those who found them, each of
//! which suffers the blow at the first that it comes to; one to which none comes is counted as strayed.
//!
//! `cargo test --test kill_queue` takes a sample; `cargo test --release --test kill_queue -- --full`
//! takes every visit of every instruction and prints the table; `--only=put` (the operation),
//! `--stride=`, `--seconds=` (of each line) and `--visits=` (of each instruction between two system
//! calls) take fewer. A build with `RUSTFLAGS="--cfg mutants"` and `-- --mutants` breaks one rule of
//! the queue after the other, and each of those that are listed must be found.

use std::collections::{BTreeMap, HashSet};
use std::env;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::{AsyncQueue, Process};

use crate::route::Route;
use crate::trace::{Step, Traced};
use crate::walk::{Missed, Point};

#[path = "kill/route.rs"]
mod route;

#[expect(dead_code, reason = "it is shared, and others need more of it")]
#[path = "kill/trace.rs"]
mod trace;

#[path = "kill/walk.rs"]
mod walk;

/// How long something may take that must come.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the broker looks after somebody who has begun to wait, and some more.
const PATROLS: Duration = Duration::from_millis(40);

/// Bytes of an item that lies in a slot, and of one that lies in blocks.
const SMALL: usize = 16;
const LARGE: usize = 10_000;

/// So many victims are sent to a point at full speed, and in the end so many use one queue.
const N_TRIES: usize = 8;

/// Bytes of an item that takes all blocks that a queue has at first.
const ALL_BLOCKS: usize = (32 << 12) - 64;

/// How much the queue's memory may have grown in the end. What the last ones had may not be free yet.
const GROWTH_MAX: u64 = 32 << 10;

/// A number, bytes that must follow from it, and perhaps a pipe that says it again.
#[derive(Debug, Serialize, Deserialize)]
struct Item {
    bytes: Bytes,
    fd: Option<Fd<PipeReader>>,
}

impl Item {
    fn new(number: u64, len: usize) -> Self {
        let bytes = Bytes { number, len };
        Self { bytes, fd: None }
    }

    fn with_fd(number: u64) -> Self {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let written = writer.write_all(&number.to_le_bytes());
        written.expect("room in a pipe");
        let fd = Some(Fd(reader));
        Self {
            fd,
            ..Self::new(number, SMALL)
        }
    }

    /// The number, if the pipe says the same.
    fn number(self) -> u64 {
        let number = self.bytes.number;
        if let Some(Fd(mut pipe)) = self.fd {
            let mut said = Vec::new();
            pipe.read_to_end(&mut said).expect("a pipe");
            assert_eq!(said, number.to_le_bytes(), "it is another item's pipe");
        }
        number
    }
}

/// They are encoded at once, not one by one, which would be all that is seen.
#[derive(Debug)]
struct Bytes {
    number: u64,
    len: usize,
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = vec![self.number as u8; self.len];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                let torn = || E::custom("a torn item");
                let (number, rest) = bytes.split_first_chunk().ok_or_else(torn)?;
                let number = u64::from_le_bytes(*number);
                let whole = vec![number as u8; rest.len()] == rest;
                let len = bytes.len();
                whole.then_some(Bytes { number, len }).ok_or_else(torn)
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// What somebody does when told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Act {
    /// Put a small item, a large one, and one with a descriptor.
    Put,
    PutLarge,
    PutFd,
    /// The same in a runtime.
    PutAsync,
    /// Get an item, and report it as done.
    Get,
    GetAsync,
    /// Lease an item, and be done with it.
    Lease,
}

impl Act {
    const ALL: [Self; 7] = [
        Self::Put,
        Self::PutLarge,
        Self::PutFd,
        Self::PutAsync,
        Self::Get,
        Self::GetAsync,
        Self::Lease,
    ];

    fn puts(self) -> bool {
        matches!(
            self,
            Self::Put | Self::PutLarge | Self::PutFd | Self::PutAsync
        )
    }

    /// The number of the item that was put or got.
    fn perform(self, queue: &AsyncQueue<Item>, runtime: &Runtime, number: u64) -> u64 {
        let small = Item::new(number, SMALL);
        let got = match self {
            Self::Put => queue.blocking_put(small).map(|()| number).ok(),
            Self::PutLarge => {
                let large = Item::new(number, LARGE);
                queue.blocking_put(large).map(|()| number).ok()
            }
            Self::PutFd => {
                let item = Item::with_fd(number);
                queue.blocking_put(item).map(|()| number).ok()
            }
            Self::PutAsync => {
                let put = runtime.block_on(queue.put(small));
                put.map(|()| number).ok()
            }
            Self::Get => queue.blocking_get().map(Item::number).ok(),
            Self::GetAsync => runtime.block_on(queue.get()).map(Item::number).ok(),
            Self::Lease => {
                let lease = runtime.block_on(queue.get_leased()).ok();
                lease.map(|lease| lease.done().number())
            }
        };
        if matches!(self, Self::Get | Self::GetAsync) {
            queue.task_done().expect("it has got one");
        }
        got.expect("the queue is open, and every item whole")
    }
}

/// What happens at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The victim is killed; then the others come.
    Kill,
    /// The others come, then the victim is killed.
    ArriveKill,
    /// The others come; then the victim goes on, and lives.
    Preempt,
    /// The others come while the victim stands still for good.
    Stop,
}

/// A line of the table.
#[derive(Clone, Copy)]
struct Campaign {
    victim: Act,
    blow: Blow,
    /// The most items in the queue; 0 is no limit.
    limit: usize,
    /// Items in the queue at first, and whether they have descriptors.
    filled: usize,
    filled_with_fds: bool,
    /// Who waits from the beginning, and who comes at the blow.
    early: &'static [Act],
    arrive: &'static [Act],
    /// What wakes a victim that sleeps.
    relief: Option<Act>,
}

const fn campaign(victim: Act, blow: Blow) -> Campaign {
    Campaign {
        victim,
        blow,
        limit: 0,
        filled: 0,
        filled_with_fds: false,
        early: &[],
        arrive: &[],
        relief: None,
    }
}

const CAMPAIGNS: &[Campaign] = &[
    Campaign {
        early: &[Act::Get, Act::Get],
        ..campaign(Act::Put, Blow::Kill)
    },
    Campaign {
        early: &[Act::Get, Act::Get],
        ..campaign(Act::PutLarge, Blow::Kill)
    },
    Campaign {
        arrive: &[Act::Put, Act::Get],
        limit: 2,
        ..campaign(Act::Put, Blow::ArriveKill)
    },
    Campaign {
        early: &[Act::Get, Act::Get],
        arrive: &[Act::Put],
        ..campaign(Act::Put, Blow::Preempt)
    },
    Campaign {
        early: &[Act::Get, Act::Get],
        arrive: &[Act::Put],
        ..campaign(Act::Put, Blow::Stop)
    },
    // Nobody comes who could tell in its place.
    Campaign {
        early: &[Act::Get],
        ..campaign(Act::Put, Blow::Stop)
    },
    Campaign {
        early: &[Act::Get, Act::Get],
        ..campaign(Act::PutFd, Blow::Kill)
    },
    // For room: somebody else waits for it as well.
    Campaign {
        limit: 1,
        filled: 1,
        early: &[Act::Put],
        relief: Some(Act::Get),
        ..campaign(Act::Put, Blow::Kill)
    },
    Campaign {
        limit: 1,
        filled: 1,
        early: &[Act::Put],
        arrive: &[Act::Get],
        relief: Some(Act::Get),
        ..campaign(Act::Put, Blow::Preempt)
    },
    Campaign {
        limit: 1,
        filled: 1,
        early: &[Act::Put],
        relief: Some(Act::Get),
        ..campaign(Act::PutAsync, Blow::Kill)
    },
    // For items.
    Campaign {
        filled: 1,
        early: &[],
        arrive: &[Act::Get],
        ..campaign(Act::Get, Blow::Kill)
    },
    Campaign {
        early: &[Act::Get],
        relief: Some(Act::PutLarge),
        ..campaign(Act::Get, Blow::Kill)
    },
    Campaign {
        early: &[Act::Get],
        arrive: &[Act::Put],
        relief: Some(Act::Put),
        ..campaign(Act::Get, Blow::Preempt)
    },
    Campaign {
        early: &[Act::Get],
        relief: Some(Act::Put),
        ..campaign(Act::GetAsync, Blow::Kill)
    },
    Campaign {
        limit: 1,
        filled: 1,
        arrive: &[Act::Put],
        ..campaign(Act::Get, Blow::Stop)
    },
    Campaign {
        limit: 1,
        filled: 1,
        early: &[Act::Put, Act::Put],
        ..campaign(Act::Get, Blow::Kill)
    },
    Campaign {
        limit: 1,
        filled: 1,
        early: &[Act::Put],
        ..campaign(Act::Get, Blow::Stop)
    },
    Campaign {
        filled: 2,
        filled_with_fds: true,
        early: &[],
        arrive: &[Act::Get],
        ..campaign(Act::Get, Blow::Kill)
    },
    Campaign {
        filled: 1,
        arrive: &[Act::Lease],
        ..campaign(Act::Lease, Blow::Kill)
    },
    Campaign {
        early: &[Act::Lease],
        relief: Some(Act::Put),
        ..campaign(Act::Lease, Blow::Kill)
    },
];

impl Campaign {
    fn has_leases(&self) -> bool {
        self.victim == Act::Lease
    }

    fn name(&self) -> String {
        let victim = format!("{:?}", self.victim);
        let waits = if self.relief.is_some() { ", waits" } else { "" };
        format!("{}{waits}", victim.to_lowercase())
    }

    fn blow(&self) -> String {
        let blow = format!("{:?}", self.blow).to_lowercase();
        let early = match self.early {
            [] => String::new(),
            [act, ..] => format!(", {} {act:?}", self.early.len()).to_lowercase(),
        };
        format!("{blow}{early}")
    }
}

/// How thoroughly.
#[derive(Clone, Copy)]
struct Effort {
    /// Every so many instructions.
    stride: u64,
    /// Of one instruction, so many visits between two system calls.
    visits: u64,
    /// So many victims show what lies behind a system call.
    n_walks: usize,
    /// At most so long a campaign.
    time: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let wants = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if wants("--list") {
        return ExitCode::SUCCESS;
    }
    let value = |flag: &str| {
        arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(flag))
    };
    let number = |flag: &str| value(flag).and_then(|value| value.parse().ok());
    let (stride, n_walks, milliseconds) = match () {
        () if wants("--full") => (1, 4, 3_600_000),
        () if wants("--mutant") => (1, 1, 6_000),
        () => (16, 1, 1_600),
    };
    let effort = Effort {
        stride: number("--stride=").unwrap_or(stride).max(1),
        visits: number("--visits=").unwrap_or(u64::MAX),
        n_walks,
        time: Duration::from_millis(number("--seconds=").map_or(milliseconds, |n| 1000 * n)),
    };
    let is_fine = match number("--line=") {
        _ if wants("--mutants") => mutants(),
        _ if wants("--mutant") => CAMPAIGNS.iter().all(|campaign| run(campaign, effort)),
        Some(line) => run(&CAMPAIGNS[line as usize], effort),
        None => campaigns(&arguments, value("--only=")),
    };
    if is_fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints the table, each line of which is the work of another process. False if something is wrong.
fn campaigns(arguments: &[String], only: Option<&str>) -> bool {
    println!(
        "{:<16} {:<20} {:>5} {:>7} {:>7} {:>8} {:>6} {:>6} {:>9} {:>7} {:>8}",
        "operation",
        "at each instruction",
        "calls",
        "points",
        "runs",
        "strayed",
        "in",
        "lost",
        "grown",
        "faults",
        "seconds"
    );
    let begun = Instant::now();
    let lines =
        (0..CAMPAIGNS.len()).filter(|line| only.is_none_or(|only| CAMPAIGNS[*line].name() == only));
    let runs = lines.map(|line| {
        let mut run = this_program();
        run.args(arguments).arg(format!("--line={line}"));
        run.stderr(Stdio::inherit());
        run
    });
    let mut is_fine = true;
    side_by_side(runs.collect(), |_, output| {
        is_fine &= output.status.success();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        _ = io::stdout().flush();
    });
    println!("all in {:.0} s", begun.elapsed().as_secs_f64());
    is_fine
}

fn this_program() -> Command {
    Command::new(env::current_exe().expect("it runs"))
}

/// Runs one of them on each processor at a time, and hands over what they print, in their order.
///
/// A run and its children share a processor: then nobody spins, which would only be more of the same
/// instructions, and going on costs no more than a switch to the victim and back.
fn side_by_side(runs: Vec<Command>, mut report: impl FnMut(usize, Output)) {
    let runs = Mutex::new(runs.into_iter().enumerate());
    let (tell, told) = mpsc::channel();
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("a set of processors");
    thread::scope(|scope| {
        for cpu in (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)) {
            let (tell, runs) = (tell.clone(), &runs);
            scope.spawn(move || {
                let mut cpus = CpuSet::new();
                cpus.set(cpu).expect("a processor");
                sched_setaffinity(Pid::from_raw(0), &cpus).expect("to be allowed there");
                let next = || runs.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some((place, mut run)) = next() {
                    let output = run.output().expect("this program");
                    if tell.send((place, output)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        let mut early = BTreeMap::new();
        let mut next = 0;
        for (place, output) in told {
            early.insert(place, output);
            while let Some(output) = early.remove(&next) {
                report(next, output);
                next += 1;
            }
        }
    });
}

/// What is said of a point that went wrong.
type Fault = String;

/// A campaign under way.
struct Tour<'a> {
    campaign: &'a Campaign,
    effort: Effort,
    begun: Instant,
    /// System calls of the operation.
    n_calls: u64,
    /// Instructions behind them.
    n_points: usize,
    /// Victims.
    n_runs: usize,
    /// Points that no victim came to.
    n_strayed: usize,
    n_in: usize,
    n_lost: usize,
    /// Bytes that are never free again.
    grown: u64,
    /// All was visited that the stride asks for.
    is_complete: bool,
}

/// Visits all points and prints the line. False if something is wrong.
fn run(campaign: &Campaign, effort: Effort) -> bool {
    // Not without the process that prints the table.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let mut tour = Tour {
        campaign,
        effort,
        begun: Instant::now(),
        n_calls: 0,
        n_points: 0,
        n_runs: 0,
        n_strayed: 0,
        n_in: 0,
        n_lost: 0,
        grown: 0,
        is_complete: true,
    };
    let fault = tour.go().err();
    println!(
        "{:<16} {:<20} {:>5} {:>7} {:>7} {:>8} {:>6} {:>6} {:>5} KiB {:>7} {:>8.1}{}",
        campaign.name(),
        campaign.blow(),
        tour.n_calls,
        tour.n_points,
        tour.n_runs,
        tour.n_strayed,
        tour.n_in,
        tour.n_lost,
        tour.grown >> 10,
        usize::from(fault.is_some()),
        tour.begun.elapsed().as_secs_f64(),
        if tour.is_complete { "" } else { " (a part)" },
    );
    if let Some(fault) = &fault {
        println!("{:<16} {:<20} {fault}", campaign.name(), campaign.blow());
    }
    fault.is_none()
}

impl Tour<'_> {
    fn go(&mut self) -> Result<(), Fault> {
        let mut stage = self.stage()?;
        let grown_before = memory_of_queues();
        let n_pipes_before = n_pipes();
        let points = self.explore(&mut stage)?;
        let mut missed = self.visit(&mut stage, points)?;
        stage.touch_all()?;
        self.grown = memory_of_queues().saturating_sub(grown_before);
        if self.grown > GROWTH_MAX {
            return Err(format!("leaks: {} bytes", self.grown));
        }
        let begun = Instant::now();
        // The last victims' go when their deaths are known.
        while n_pipes() > n_pipes_before {
            if begun.elapsed() > PATIENCE {
                return Err(format!("leaks: {} descriptors", n_pipes() - n_pipes_before));
            }
            thread::yield_now();
        }
        let found = self.seek(&mut stage, &mut missed);
        self.n_strayed = missed.len();
        found
    }

    /// A queue that is new, and others who use it.
    fn stage(&self) -> Result<Stage, Fault> {
        let stage = Stage::new(self.campaign);
        let mut stage = stage.map_err(|error| error.to_string())?;
        stage.touch_all()?;
        Ok(stage)
    }

    /// Notes how a victim fared; tells how far it came.
    fn count(&mut self, outcome: &Outcome) -> Went {
        self.n_runs += 1;
        self.n_in += usize::from(outcome.is_in);
        self.n_lost += usize::from(outcome.is_lost);
        outcome.went
    }

    fn has_time(&mut self) -> bool {
        let has_time = self.begun.elapsed() < self.effort.time;
        self.is_complete &= has_time;
        has_time
    }

    /// Finds out in half of the time which instructions there are.
    fn explore(&mut self, stage: &mut Stage) -> Result<Vec<Point>, Fault> {
        let (begun, effort) = (self.begun, self.effort);
        let mut n_expected = 1_u32;
        let outcome = stage.point(self.campaign, |victim, asleep| {
            while victim.pass(1, asleep)? == Went::There {
                n_expected += 1;
            }
            Ok(Went::Over)
        });
        self.count(&outcome.map_err(|fault| format!("at the end: {fault}"))?);
        let mut points = Vec::new();
        let mut known = HashSet::new();
        let mut is_over = false;
        while !is_over {
            let calls = self.n_calls;
            // What lies behind one call leaves time for what lies behind the next.
            let left = (effort.time / 2).saturating_sub(begun.elapsed());
            let n_left = n_expected.saturating_sub(calls as u32).max(1);
            let until = begun.elapsed() + left / n_left;
            let goes_on = || begun.elapsed() < until;
            is_over = true;
            for _ in 0..effort.n_walks {
                let mut found = Vec::new();
                let outcome = stage.point(self.campaign, |victim, asleep| {
                    victim.walk(calls, asleep, |point| {
                        found.push(point);
                        !goes_on()
                    })
                });
                let outcome = outcome.map_err(|fault| format!("behind call {calls}: {fault}"))?;
                is_over &= self.count(&outcome) == Went::Over;
                found.retain(|point| point.nth <= effort.visits && known.insert(*point));
                points.append(&mut found);
            }
            self.n_calls += u64::from(!is_over);
            self.is_complete &= goes_on();
        }
        self.n_points = points.len();
        Ok(points)
    }

    /// Brings a victim to each of the points; tells to which none came.
    fn visit(&mut self, stage: &mut Stage, points: Vec<Point>) -> Result<Missed, Fault> {
        let mut missed = Missed::default();
        let mut route = Route::new(self.effort.stride);
        route.ends_before(points.len() as u64);
        for at in route {
            if !self.has_time() {
                break;
            }
            let point = points[at as usize];
            let mut came = false;
            for _ in 0..N_TRIES {
                let outcome =
                    stage.point(self.campaign, |victim, asleep| victim.run_to(point, asleep));
                let outcome = outcome.map_err(|fault| format!("at {point:x?}: {fault}"))?;
                came = self.count(&outcome) == Went::There;
                if came {
                    break;
                }
            }
            if !came {
                missed.insert(point);
            }
        }
        Ok(missed)
    }

    /// Has victims walk where points were missed. There are other ways in a queue that is new than in one
    /// that somebody has used, and for a victim that patrols overtake.
    fn seek(&mut self, stage: &mut Stage, missed: &mut Missed) -> Result<(), Fault> {
        let mut n_walks = 0;
        while let Some(calls) = missed.next()
            && self.has_time()
        {
            let n_stages = n_walks / N_TRIES;
            // Slow ones take very long.
            let (is_used, is_slow) = (n_stages % 2 == 1, n_stages % 8 >= 6);
            if n_walks == n_stages * N_TRIES {
                *stage = self.stage()?;
                if is_used {
                    let outcome = stage.point(self.campaign, |victim, asleep| {
                        victim.pass(u64::MAX, asleep)
                    });
                    self.count(&outcome.map_err(|fault| format!("at the end: {fault}"))?);
                }
            }
            n_walks += 1;
            let mut at = None;
            let outcome = stage.point(self.campaign, |victim, asleep| {
                victim.walk(calls, asleep, |point| {
                    at = Some(point);
                    if is_slow {
                        thread::sleep(PATROLS / 1000);
                    }
                    missed.take(point)
                })
            });
            self.count(&outcome.map_err(|fault| format!("at {at:x?}: {fault}"))?);
        }
        Ok(())
    }
}

/// Bytes that the queues of this process take.
fn memory_of_queues() -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(fds) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let mut sizes = BTreeMap::new();
    for fd in fds.flatten() {
        let is_queue = fs::read_link(fd.path())
            .is_ok_and(|target| target.to_string_lossy().contains("mp-queue"));
        if is_queue && let Ok(file) = fs::metadata(fd.path()) {
            sizes.insert(file.ino(), file.blocks() * 512);
        }
    }
    sizes.values().sum()
}

/// Pipes of this process: those of items that are still kept are among them.
fn n_pipes() -> usize {
    let Ok(fds) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let targets = fds.flatten().map(|fd| fs::read_link(fd.path()));
    let is_pipe = |target: &PathBuf| target.to_string_lossy().starts_with("pipe:");
    targets.flatten().filter(is_pipe).count()
}

/// How far a victim has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    /// To where it should.
    There,
    /// Another way, and it stands at its next system call.
    Astray,
    /// To the end of its act.
    Over,
}

/// What came of a victim that did nobody harm.
struct Outcome {
    went: Went,
    /// The victim's item was in the queue.
    is_in: bool,
    /// The item that a killed getter had is lost with it.
    is_lost: bool,
}

/// The queue and who uses it.
struct Stage {
    runtime: Runtime,
    queue: AsyncQueue<Item>,
    /// Early ones first, then those who arrive, then the one who relieves.
    others: Vec<Player>,
    next: u64,
}

impl Stage {
    fn new(campaign: &Campaign) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut builder = AsyncQueue::builder();
        if let Ok(limit) = campaign.limit.try_into() {
            builder = builder.capacity(limit);
        }
        if campaign.has_leases() {
            builder = builder.leases();
        }
        let queue = builder.build()?;
        let n_others = campaign.early.len() + campaign.arrive.len() + 1;
        let others = (0..n_others).map(|_| Player::start(&runtime, &queue));
        let others = others.collect::<io::Result<_>>()?;
        Ok(Self {
            runtime,
            queue,
            others,
            next: 1,
        })
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Uses all blocks, so that memory grows from then on only by those that are never free again.
    fn touch_all(&mut self) -> Result<(), Fault> {
        let mut books = Books::default();
        let number = self.number();
        let len = ALL_BLOCKS;
        let put = self.queue.try_put(Item::new(number, len));
        put.map_err(|_| "no room for an item that takes all blocks")?;
        self.empty(&mut books)
    }

    /// Has a victim go somewhere, deals it the blow there, and sees everybody else go on. While the
    /// victim sleeps, `go` asks its second argument whether to wait for it.
    fn point(
        &mut self,
        campaign: &Campaign,
        go: impl FnOnce(&Victim, &mut dyn FnMut() -> bool) -> Result<Went, Fault>,
    ) -> Result<Outcome, Fault> {
        let mut books = Books::default();
        for _ in 0..campaign.filled {
            let number = self.number();
            let item = match campaign.filled_with_fds {
                true => Item::with_fd(number),
                false => Item::new(number, SMALL),
            };
            self.queue.try_put(item).map_err(|_| "no room at first")?;
            books.put(number);
        }
        let n_early = campaign.early.len();
        let n_rest = n_early + campaign.arrive.len();
        self.tell(0..n_early, campaign.early, &mut books)?;
        if campaign.blow == Blow::Stop && campaign.arrive.is_empty() {
            // The broker looks at the queue after somebody begins to wait. What it does for the victim's
            // sake shows only when that is over.
            thread::sleep(PATROLS);
        }
        let number = self.number();
        let mut victim = Victim::start(&self.runtime, &self.queue, campaign.victim, number)
            .map_err(|error| error.to_string())?;
        let mut reliefs: Vec<(Act, u64, bool)> = Vec::new();
        let mut since = None;
        let went = {
            let reliever = &mut self.others[n_rest];
            let (reliefs, next) = (&mut reliefs, &mut self.next);
            go(&victim, &mut || {
                let since = since.get_or_insert_with(Instant::now);
                if let Some((_, number, is_done)) = reliefs.last_mut()
                    && !*is_done
                    && let Some(done) = reliever.finished()
                {
                    (*number, *is_done) = (done, true);
                }
                // Those who were there before the victim get it first.
                let is_ready = reliefs.last().is_none_or(|(_, _, is_done)| *is_done);
                if let Some(act) = campaign.relief
                    && is_ready
                    && reliefs.len() <= n_early
                {
                    *next += 1;
                    reliefs.push((act, *next, false));
                    *since = Instant::now();
                    return reliever.tell(act, *next).is_ok();
                }
                since.elapsed() < PATIENCE
            })?
        };
        for (act, number, is_done) in reliefs {
            match is_done {
                true => books.finished(act, number),
                false => books.expect(n_rest, Some((act, number))),
            }
        }
        let arrivals = n_early..n_rest;
        match campaign.blow {
            Blow::Kill => {
                victim.kill();
                self.tell(arrivals, campaign.arrive, &mut books)?;
            }
            Blow::ArriveKill => {
                self.tell(arrivals, campaign.arrive, &mut books)?;
                victim.kill();
            }
            Blow::Preempt => {
                self.tell(arrivals, campaign.arrive, &mut books)?;
                victim.let_go();
            }
            Blow::Stop => self.tell(arrivals, campaign.arrive, &mut books)?,
        }
        let victim_has = match campaign.blow {
            Blow::Preempt => Has::Finishes,
            Blow::Stop => Has::Stands,
            _ => Has::Ended,
        };
        self.rest(campaign, &mut victim, victim_has, &mut books)?;
        if victim_has == Has::Stands {
            victim.kill();
            self.rest(campaign, &mut victim, Has::Ended, &mut books)?;
        }
        self.relieve(campaign, &mut victim, victim_has, &mut books)?;
        self.empty(&mut books)?;
        let finished = victim.player.n_finished > 0;
        books.judge(campaign, number, finished, went)
    }

    /// Has some of the others begin, one after the other.
    fn tell(
        &mut self,
        who: std::ops::Range<usize>,
        acts: &[Act],
        books: &mut Books,
    ) -> Result<(), Fault> {
        for (i, act) in who.zip(acts) {
            let number = self.number();
            let told = self.others[i].tell(*act, number);
            told.map_err(|error| error.to_string())?;
            books.expect(i, Some((*act, number)));
            self.others[i].settle();
        }
        Ok(())
    }

    /// Comes back when nobody waits for what is there, and everything of a dead victim is swept.
    fn rest(
        &mut self,
        campaign: &Campaign,
        victim: &mut Victim,
        has: Has,
        books: &mut Books,
    ) -> Result<(), Fault> {
        let begun = Instant::now();
        loop {
            self.collect(books);
            if has == Has::Finishes
                && let Some(number) = victim.player.finished()
            {
                books.finished(campaign.victim, number);
            }
            let mut waiting = books.waiting();
            if has == Has::Finishes && victim.player.n_finished == 0 {
                waiting.push(campaign.victim);
            }
            let len = self.queue.len();
            let for_items = waiting.iter().any(|act| !act.puts());
            let for_room = waiting.iter().any(|act| act.puts());
            let has_room = campaign.limit == 0 || len < campaign.limit;
            let moves = for_items && len > 0 || for_room && has_room;
            // What a dead getter was reading comes back to whoever waits; until then it is not done.
            let may_come_back =
                has == Has::Ended && !campaign.victim.puts() && for_items && !self.is_done();
            if !moves && !may_come_back {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let what = if for_items { "an item" } else { "room" };
                return Err(format!(
                    "somebody waits for {what} that is there ({len} are)"
                ));
            }
            thread::yield_now();
        }
    }

    /// Whether all items have been got and reported as done.
    fn is_done(&self) -> bool {
        self.runtime
            .block_on(async { timeout(Duration::from_millis(1), self.queue.join()).await })
            .is_ok()
    }

    fn collect(&mut self, books: &mut Books) {
        for i in books.unfinished() {
            if let Some(number) = self.others[i].finished() {
                let act = books.acts[&i].0;
                books.finished(act, number);
                books.acts.remove(&i);
            }
        }
    }

    /// Gives everybody who still waits what it waits for.
    fn relieve(
        &mut self,
        campaign: &Campaign,
        victim: &mut Victim,
        has: Has,
        books: &mut Books,
    ) -> Result<(), Fault> {
        let begun = Instant::now();
        loop {
            self.collect(books);
            if has == Has::Finishes
                && let Some(number) = victim.player.finished()
            {
                books.finished(campaign.victim, number);
            }
            let mut waiting = books.waiting();
            if has == Has::Finishes && victim.player.n_finished == 0 {
                waiting.push(campaign.victim);
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err("somebody does not wake up".to_owned());
            }
            if waiting.iter().any(|act| act.puts()) {
                if let Ok(item) = self.queue.try_get() {
                    books.got(item.number());
                    self.queue.task_done().map_err(|error| error.to_string())?;
                }
            } else if self.queue.is_empty() {
                let number = self.number();
                if self.queue.try_put(Item::new(number, SMALL)).is_ok() {
                    books.put(number);
                }
            }
            self.rest(campaign, victim, has, books)?;
        }
    }

    /// Gets what is left, until everything is done with.
    fn empty(&mut self, books: &mut Books) -> Result<(), Fault> {
        let begun = Instant::now();
        loop {
            while let Ok(item) = self.queue.try_get() {
                books.got(item.number());
                self.queue.task_done().map_err(|error| error.to_string())?;
            }
            if self.is_done() && self.queue.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!(
                    "the queue is never done, with {}",
                    self.queue.len()
                ));
            }
        }
    }
}

/// What becomes of the victim.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Has {
    Ended,
    Stands,
    Finishes,
}

/// Which items have been put and got, and who is busy with what.
#[derive(Default)]
struct Books {
    put: Vec<u64>,
    got: Vec<u64>,
    acts: BTreeMap<usize, (Act, u64)>,
}

impl Books {
    fn put(&mut self, number: u64) {
        self.put.push(number);
    }

    fn got(&mut self, number: u64) {
        self.got.push(number);
    }

    fn expect(&mut self, who: usize, what: Option<(Act, u64)>) {
        if let Some(what) = what {
            self.acts.insert(who, what);
        }
    }

    fn finished(&mut self, act: Act, number: u64) {
        match act.puts() {
            true => self.put(number),
            false => self.got(number),
        }
    }

    fn unfinished(&self) -> Vec<usize> {
        self.acts.keys().copied().collect()
    }

    fn waiting(&self) -> Vec<Act> {
        self.acts.values().map(|(act, _)| *act).collect()
    }

    /// Every item was got once, but for the one that a killed getter had.
    fn judge(
        mut self,
        campaign: &Campaign,
        number: u64,
        finished: bool,
        went: Went,
    ) -> Result<Outcome, Fault> {
        let is_in = campaign.victim.puts() && self.got.contains(&number);
        if is_in && !finished {
            self.put(number);
        }
        self.put.sort_unstable();
        self.got.sort_unstable();
        let n_got = self.got.len();
        self.got.dedup();
        if self.got.len() < n_got {
            return Err("an item came twice".to_owned());
        }
        let lost: Vec<_> = self
            .put
            .iter()
            .filter(|number| !self.got.contains(number))
            .collect();
        let may_lose = usize::from(!campaign.victim.puts() && !finished);
        if lost.len() > may_lose || self.got.iter().any(|number| !self.put.contains(number)) {
            return Err(format!("put {:?}, got {:?}", self.put, self.got));
        }
        Ok(Outcome {
            went,
            is_in,
            is_lost: !lost.is_empty(),
        })
    }
}

type PlayerArgument = (AsyncQueue<Item>, Fd<PipeReader>, Fd<PipeWriter>);

fn play((queue, Fd(mut orders), Fd(mut reports)): PlayerArgument) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let tid = i64::from(trace::own_tid());
    reports.write_all(&tid.to_le_bytes()).unwrap();
    let mut order = [0; 9];
    while orders.read_exact(&mut order).is_ok() {
        let [act, number @ ..] = order;
        let number = u64::from_le_bytes(number);
        let number = Act::ALL[usize::from(act)].perform(&queue, &runtime, number);
        if reports.write_all(&number.to_le_bytes()).is_err() {
            return;
        }
    }
}

/// A process that does what it is told.
struct Player {
    process: Process<()>,
    tid: i32,
    orders: PipeWriter,
    reports: PipeReader,
    n_finished: usize,
}

impl Player {
    fn start(runtime: &Runtime, queue: &AsyncQueue<Item>) -> io::Result<Self> {
        let (read_orders, orders) = io::pipe()?;
        let (mut reports, write_reports) = io::pipe()?;
        let argument = (queue.clone(), Fd(read_orders), Fd(write_reports));
        let process = runtime.block_on(Process::start(play, argument));
        let process = process.map_err(io::Error::other)?;
        let mut tid = [0; 8];
        reports.read_exact(&mut tid)?;
        Ok(Self {
            process,
            tid: i64::from_le_bytes(tid) as i32,
            orders,
            reports,
            n_finished: 0,
        })
    }

    fn tell(&mut self, act: Act, number: u64) -> io::Result<()> {
        let place = Act::ALL.iter().position(|known| *known == act);
        let mut order = vec![place.unwrap_or_default() as u8];
        order.extend(number.to_le_bytes());
        self.orders.write_all(&order)
    }

    /// The number of the item, if it has done what it was told.
    fn finished(&mut self) -> Option<u64> {
        if !can_read(&self.reports) {
            return None;
        }
        let mut number = [0; 8];
        self.reports.read_exact(&mut number).ok()?;
        self.n_finished += 1;
        Some(u64::from_le_bytes(number))
    }

    /// Comes back when it sleeps in the middle of what it was told, or has done it.
    fn settle(&self) {
        let begun = Instant::now();
        let stat = format!("/proc/{}/task/{}/stat", self.process.pid(), self.tid);
        while begun.elapsed() < Duration::from_millis(50) && !can_read(&self.reports) {
            if fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S ")) {
                return;
            }
            thread::yield_now();
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

/// A player that performs one act, and stands still where it is looked at.
struct Victim {
    player: Player,
    thread: Option<Traced>,
}

impl Victim {
    /// A victim that stands behind the call that takes its order.
    fn start(
        runtime: &Runtime,
        queue: &AsyncQueue<Item>,
        act: Act,
        number: u64,
    ) -> io::Result<Self> {
        let mut player = Player::start(runtime, queue)?;
        let thread = Traced::seize(player.process.pid(), player.tid)?;
        player.tell(act, number)?;
        // It may have been interrupted in that call, or before it.
        if !thread.pass_call(|thread| thread.has_stopped(0) == Some(true)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self {
            player,
            thread: Some(thread),
        })
    }

    /// Goes on past so many system calls. When it sleeps there, `asleep` tells whether to wait for it.
    fn pass(&self, calls: u64, asleep: &mut dyn FnMut() -> bool) -> Result<Went, Fault> {
        let Some(thread) = &self.thread else {
            return Ok(Went::Over);
        };
        for _ in 0..calls {
            if !thread.pass_call(|thread| stands(thread, asleep)) {
                return Err("the victim sleeps for ever, or has ended".to_owned());
            }
            if can_read(&self.player.reports) {
                return Ok(Went::Over);
            }
        }
        Ok(Went::There)
    }

    /// Goes through the instructions behind a system call until `ends` says so.
    fn walk(
        &self,
        calls: u64,
        asleep: &mut dyn FnMut() -> bool,
        ends: impl FnMut(Point) -> bool,
    ) -> Result<Went, Fault> {
        self.go(calls, asleep, |thread| thread.points(calls).any(ends))
    }

    /// Goes on to an instruction, at full speed.
    fn run_to(&self, point: Point, asleep: &mut dyn FnMut() -> bool) -> Result<Went, Fault> {
        self.go(point.calls, asleep, |thread| thread.run_to(point))
    }

    fn go(
        &self,
        calls: u64,
        asleep: &mut dyn FnMut() -> bool,
        comes: impl FnOnce(&Traced) -> bool,
    ) -> Result<Went, Fault> {
        let went = self.pass(calls, asleep)?;
        match (went, &self.thread) {
            (Went::There, Some(thread)) if !comes(thread) => Ok(Went::Astray),
            _ => Ok(went),
        }
    }

    /// Lets it run on; it stays alive after its act.
    fn let_go(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.let_go();
        }
    }

    fn kill(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.kill(self.player.process.pid());
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Comes back when the victim stands still. False when it has ended, or sleeps and `asleep` gives it up.
fn stands(victim: &Traced, asleep: &mut dyn FnMut() -> bool) -> bool {
    loop {
        match victim.wait() {
            Step::Sleeps if asleep() => (),
            step => return step == Step::Done,
        }
    }
}

fn can_read(pipe: &PipeReader) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n_ready| n_ready > 0)
}

/// Breaks every rule, and sees the campaigns fail. False if they do not.
fn mutants() -> bool {
    let runs = RULES.map(|rule| {
        let mut run = this_program();
        run.arg("--mutant").env("TOKIO_MULTIPROCESS_BREAKS", rule);
        run
    });
    let mut n_missed = 0;
    let begun = Instant::now();
    side_by_side(runs.into(), |place, output| {
        let found = !output.status.success();
        let printed = String::from_utf8_lossy(&output.stdout);
        let (verdict, how) = match found {
            true => ("found", printed.lines().last().unwrap_or_default()),
            false => ("MISSED", ""),
        };
        println!("{:<24} {verdict:<8} {how}", RULES[place]);
        n_missed += usize::from(!found);
    });
    println!("all in {:.0} s", begun.elapsed().as_secs_f64());
    n_missed == 0
}

/// Rules whose breach shows in these campaigns. The search in the library finds the others; some of
/// those do no harm here, as the broker's patrols make them good.
const RULES: [&str; 4] = [
    "QueueWaiterLooksAgain",
    "QueueDeathReturns",
    "QueueDeathFrees",
    "QueueAnnounces",
];
