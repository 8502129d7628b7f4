//! Every instruction of a queue's `put` and `get`: killed there, preempted there, stopped there.
//!
//! A victim performs one operation while this process, which looks after the queue, single-steps it.
//! At each instruction of the program's own code it is killed, or others come and do their part while
//! it stands still, or both. Where the victim sleeps, somebody gives it what it waits for, and the
//! steps go on. After each blow, and before anybody moves again, nobody may wait for an item that is
//! there, or for room that is there: a queue heals itself with the next put or get, so what is
//! checked is progress when all rest. Then the queue is emptied: every item has been got once, and
//! whole, but for the one that a killed getter had.
//!
//! `cargo test --test kill_queue` takes a sample; `cargo test --release --test kill_queue -- --full`
//! takes every instruction (`--only=put` those of one operation) and prints the table. A build with
//! `RUSTFLAGS="--cfg mutants"` and `-- --mutants` breaks one rule of the queue after the other, and
//! each of those that are listed must be found.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_multiprocess::fd::Fd;
use tokio_multiprocess::{AsyncQueue, Process};

use crate::trace::{Step, Traced};

#[expect(dead_code, reason = "it is shared, and others need more of it")]
#[path = "kill/trace.rs"]
mod trace;

/// How long something may take that must come.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of an item that lies in a slot, and of one that lies in blocks.
const SMALL: usize = 16;
const LARGE: usize = 10_000;

/// How far the second pass over the instructions begins behind the first.
const PASS: u64 = 83;

/// How much the queue's memory may have grown in the end.
const GROWTH_MAX: u64 = 128 << 10;

/// A number, and bytes that must follow from it. They are encoded at once, not one by one, which
/// would be all that is seen.
#[derive(Debug)]
struct Item {
    number: u64,
    len: usize,
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = vec![self.number as u8; self.len];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Item;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Item, E> {
                let torn = || E::custom("a torn item");
                let (number, rest) = bytes.split_first_chunk().ok_or_else(torn)?;
                let number = u64::from_le_bytes(*number);
                let whole = vec![number as u8; rest.len()] == rest;
                let len = bytes.len();
                whole.then_some(Item { number, len }).ok_or_else(torn)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// What somebody does when told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Act {
    /// Put a small item, and a large one.
    Put,
    PutLarge,
    /// The same in a runtime.
    PutAsync,
    /// Get an item, and report it as done.
    Get,
    GetAsync,
    /// Lease an item, and be done with it.
    Lease,
}

impl Act {
    const ALL: [Self; 6] = [
        Self::Put,
        Self::PutLarge,
        Self::PutAsync,
        Self::Get,
        Self::GetAsync,
        Self::Lease,
    ];

    fn puts(self) -> bool {
        matches!(self, Self::Put | Self::PutLarge | Self::PutAsync)
    }

    /// The number of the item that was put or got.
    fn perform(self, queue: &AsyncQueue<Item>, runtime: &Runtime, number: u64) -> u64 {
        let small = Item { number, len: SMALL };
        let got = match self {
            Self::Put => queue.blocking_put(small).map(|()| number).ok(),
            Self::PutLarge => {
                let large = Item { number, len: LARGE };
                queue.blocking_put(large).map(|()| number).ok()
            }
            Self::PutAsync => {
                let put = runtime.block_on(queue.put(small));
                put.map(|()| number).ok()
            }
            Self::Get => queue.blocking_get().map(|item| item.number).ok(),
            Self::GetAsync => runtime.block_on(queue.get()).map(|item| item.number).ok(),
            Self::Lease => {
                let lease = runtime.block_on(queue.get_leased()).ok();
                lease.map(|lease| lease.done().number)
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
    /// Items in the queue at first.
    filled: usize,
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
    /// So often, each time at others.
    n_passes: u64,
    /// At most so long a campaign.
    time: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let wants = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if wants("--list") {
        return ExitCode::SUCCESS;
    }
    if wants("--mutants") {
        return mutants();
    }
    if let Err(error) = stay_on_one_cpu() {
        println!("cannot stay on one processor: {error}");
        return ExitCode::FAILURE;
    }
    let value = |flag: &str| {
        let values = arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(flag));
        values.map(str::to_owned)
    };
    let number = |flag: &str| value(flag).and_then(|value| value.parse().ok());
    let (stride, milliseconds) = match (wants("--full"), wants("--mutant")) {
        (true, _) => (1, 600_000),
        // A prime, so that the passes come to all of them.
        (_, true) => (211, 6_000),
        // Without optimisation an operation has ten times as many.
        _ if cfg!(debug_assertions) => (4001, 400),
        _ => (487, 600),
    };
    let effort = Effort {
        stride: number("--stride=").unwrap_or(stride),
        n_passes: if wants("--mutant") { 211 } else { 1 },
        time: Duration::from_millis(number("--milliseconds=").unwrap_or(milliseconds)),
    };
    let only = value("--only=");
    println!(
        "{:<16} {:<20} {:>7} {:>6} {:>6} {:>9} {:>8}",
        "operation", "at each instruction", "points", "in", "lost", "grown", "seconds"
    );
    let mut failed = false;
    for campaign in CAMPAIGNS {
        if only.as_ref().is_some_and(|only| campaign.name() != *only) {
            continue;
        }
        if let Err(error) = run(campaign, effort) {
            println!("{:<16} {:<20} {error}", campaign.name(), campaign.blow());
            failed = true;
        }
        if failed && wants("--mutant") {
            break;
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Has this process and its children share a processor: then nobody spins, which would only be more
/// of the same instructions, and a step costs no more than a switch to the victim and back.
fn stay_on_one_cpu() -> nix::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
}

/// What is said of a point that went wrong.
type Fault = String;

fn run(campaign: &Campaign, effort: Effort) -> Result<(), Fault> {
    let begun = Instant::now();
    let mut stage = Stage::new(campaign).map_err(|error| error.to_string())?;
    let grown_before = memory_of_queues();
    let (mut points, mut n_in, mut n_lost) = (0, 0, 0);
    let mut is_over = false;
    // First those at the stride, then others between them, so that little time sees a bit of all.
    for pass in 0..effort.n_passes {
        let mut at = pass * PASS % effort.stride;
        is_over = false;
        while !is_over && begun.elapsed() < effort.time {
            let point = stage
                .point(campaign, at)
                .map_err(|fault| format!("at instruction {at}: {fault}"))?;
            is_over = point.is_over;
            points += 1;
            n_in += usize::from(point.is_in);
            n_lost += usize::from(point.is_lost);
            at += effort.stride;
        }
    }
    let grown = memory_of_queues().saturating_sub(grown_before);
    println!(
        "{:<16} {:<20} {points:>7} {n_in:>6} {n_lost:>6} {:>5} KiB {:>8.1}{}",
        campaign.name(),
        campaign.blow(),
        grown >> 10,
        begun.elapsed().as_secs_f64(),
        if is_over { "" } else { " (a part)" },
    );
    if grown > GROWTH_MAX {
        return Err(format!("leaks: {grown} bytes"));
    }
    Ok(())
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

/// What came of a point that went well.
struct Point {
    /// The operation has no so many instructions.
    is_over: bool,
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

    fn point(&mut self, campaign: &Campaign, at: u64) -> Result<Point, Fault> {
        let mut books = Books::default();
        for _ in 0..campaign.filled {
            let number = self.number();
            let item = Item { number, len: SMALL };
            self.queue.try_put(item).map_err(|_| "no room at first")?;
            books.put(number);
        }
        let n_early = campaign.early.len();
        let n_rest = n_early + campaign.arrive.len();
        self.tell(0..n_early, campaign.early, &mut books)?;
        let number = self.number();
        let mut victim = Victim::start(&self.runtime, &self.queue, campaign.victim, number)
            .map_err(|error| error.to_string())?;
        let mut reliefs: Vec<(Act, u64, bool)> = Vec::new();
        let mut since = Instant::now();
        let is_over = {
            let reliever = &mut self.others[n_rest];
            let (reliefs, next) = (&mut reliefs, &mut self.next);
            !victim.advance(at, || {
                let Some(act) = campaign.relief else {
                    return false;
                };
                if let Some((_, number, is_done)) = reliefs.last_mut()
                    && !*is_done
                    && let Some(done) = reliever.finished()
                {
                    (*number, *is_done) = (done, true);
                }
                // Those who were there before the victim get it first.
                let is_ready = reliefs.last().is_none_or(|(_, _, is_done)| *is_done);
                if is_ready && reliefs.len() <= n_early {
                    *next += 1;
                    reliefs.push((act, *next, false));
                    since = Instant::now();
                    return reliever.tell(act, *next).is_ok();
                }
                since.elapsed() < Duration::from_millis(20)
            })
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
        books.judge(campaign, number, finished, is_over)
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
                    books.got(item.number);
                    self.queue.task_done().map_err(|error| error.to_string())?;
                }
            } else if self.queue.is_empty() {
                let number = self.number();
                if self.queue.try_put(Item { number, len: SMALL }).is_ok() {
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
                books.got(item.number);
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
        is_over: bool,
    ) -> Result<Point, Fault> {
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
        Ok(Point {
            is_over,
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

/// A player that performs one act, instruction by instruction.
struct Victim {
    player: Player,
    thread: Option<Traced>,
}

impl Victim {
    /// A victim that stands before the first instruction of its act.
    fn start(
        runtime: &Runtime,
        queue: &AsyncQueue<Item>,
        act: Act,
        number: u64,
    ) -> io::Result<Self> {
        let mut player = Player::start(runtime, queue)?;
        let thread = Traced::seize(player.process.pid(), player.tid)?;
        player.tell(act, number)?;
        Ok(Self {
            player,
            thread: Some(thread),
        })
    }

    /// Goes on by `n` instructions of our own code. False when the act is over before.
    fn advance(&mut self, n: u64, mut asleep: impl FnMut() -> bool) -> bool {
        let Some(thread) = &self.thread else {
            return false;
        };
        let mut left = n;
        while left > 0 {
            match thread.step_over() {
                Step::Done if thread.is_in_own_code() => left -= 1,
                Step::Done => {
                    if can_read(&self.player.reports) {
                        return false;
                    }
                }
                Step::Sleeps => {
                    if can_read(&self.player.reports) || !asleep() {
                        return false;
                    }
                }
                Step::Ended => return false,
            }
        }
        !can_read(&self.player.reports)
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

fn can_read(pipe: &PipeReader) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n_ready| n_ready > 0)
}

/// Breaks every rule, one after the other, and sees the campaigns fail.
fn mutants() -> ExitCode {
    let Ok(program) = env::current_exe() else {
        return ExitCode::FAILURE;
    };
    let mut n_missed = 0;
    for rule in RULES {
        let begun = Instant::now();
        let ran = Command::new(&program)
            .arg("--mutant")
            .env("TOKIO_MULTIPROCESS_BREAKS", rule)
            .output();
        let found = ran.as_ref().is_ok_and(|output| !output.status.success());
        let last = ran.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let last = last.unwrap_or_default();
        let seconds = begun.elapsed().as_secs_f64();
        let (verdict, how) = match found {
            true => ("found", last.lines().last().unwrap_or_default()),
            false => ("MISSED", ""),
        };
        println!("{rule:<24} {verdict:<8} {seconds:>6.1} s  {how}");
        n_missed += usize::from(!found);
    }
    if n_missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Rules whose breach shows in these campaigns. The search in the library finds the others.
const RULES: [&str; 6] = [
    "QueueFullMovesHead",
    "QueueWakesAfterLink",
    "QueueWaiterLooksAgain",
    "QueueDeathReturns",
    "QueueDeathFrees",
    "QueueDeathServes",
];
