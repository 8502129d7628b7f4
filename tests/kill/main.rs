//! Every instruction of every operation: killed there, preempted there, stopped there.
//!
//! A victim performs one operation on real shared objects while this process, which looks after
//! them, single-steps it. At each instruction of the program's own code it is killed, or others
//! arrive, or both; then everybody else must go on with nobody's help. A protocol heals itself
//! whenever somebody sends something, so what is checked is progress when all the rest wait.
//!
//! `cargo test --test kill` takes a sample; `cargo test --release --test kill -- --full` takes every
//! instruction (`--only=NAME` those of one line) and prints the table. A build with `RUSTFLAGS="--cfg mutants"` and `-- --mutants`
//! breaks one rule of the protocols after the other, and each of them must be found.

mod cast;
#[expect(dead_code, reason = "it is shared, and others need more of it")]
mod trace;

use std::env;
use std::io;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::cast::{Act, Helper, PATIENCE, PERMITS, Stage, Victim};

/// What happens at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The victim is killed while nobody else is there, or only those who came before.
    Kill,
    /// Two others arrive and wait, then the victim is killed.
    ArriveKill,
    /// Two others arrive; the victim goes on so many instructions, and is killed.
    ArriveGoOnKill(u64),
    /// Two others arrive; the victim goes on so many instructions, and stands still for good.
    ArriveGoOnStop(u64),
    /// Two others arrive, then the victim goes on and lives.
    Preempt,
    /// The victim stands still for good; two others arrive.
    Stop,
}

/// A line of the table.
struct Campaign {
    name: &'static str,
    victim: Act,
    blow: Blow,
    /// What the two others do; they arrive before the victim begins if `early`.
    others: [Act; 2],
    early: bool,
}

const CAMPAIGNS: [Campaign; 21] = [
    alone("lock: kill", Act::Lock),
    alone("try_lock: kill", Act::TryLock),
    alone("semaphore: kill", Act::Semaphore),
    alone("event set: kill", Act::Set),
    alone("notify: kill", Act::Notify),
    contended(
        "lock: 2 arrive, kill",
        Act::Lock,
        Blow::ArriveKill,
        Act::Lock,
    ),
    contended(
        "lock: 2 arrive, preempt",
        Act::Lock,
        Blow::Preempt,
        Act::Lock,
    ),
    contended("lock: stop, 2 arrive", Act::Lock, Blow::Stop, Act::Lock),
    contended(
        "lock: 2 arrive x kill",
        Act::Lock,
        Blow::ArriveGoOnKill(1),
        Act::Lock,
    ),
    contended(
        "lock: 2 arrive x stop",
        Act::Lock,
        Blow::ArriveGoOnStop(1),
        Act::Lock,
    ),
    contended(
        "semaphore: 2 arrive, kill",
        Act::Semaphore,
        Blow::ArriveKill,
        Act::Semaphore,
    ),
    contended(
        "semaphore: 2 arrive, preempt",
        Act::Semaphore,
        Blow::Preempt,
        Act::Semaphore,
    ),
    contended(
        "semaphore: stop, 2 arrive",
        Act::Semaphore,
        Blow::Stop,
        Act::Semaphore,
    ),
    contended(
        "event wait: set twice, preempt",
        Act::Await,
        Blow::Preempt,
        Act::Set,
    ),
    contended(
        "event wait: kill, set twice",
        Act::Await,
        Blow::Kill,
        Act::Set,
    ),
    waited_for(
        "event set: 2 wait, kill",
        Act::Set,
        Blow::Kill,
        [Act::Await, Act::Await],
    ),
    waited_for(
        "event set: 2 wait, preempt",
        Act::Set,
        Blow::Preempt,
        [Act::Await, Act::Await],
    ),
    waited_for(
        "notify: 2 wait, kill",
        Act::Notify,
        Blow::Kill,
        [Act::Wait, Act::Wait],
    ),
    waited_for(
        "notify: 2 wait, preempt",
        Act::Notify,
        Blow::Preempt,
        [Act::Wait, Act::Wait],
    ),
    waited_for(
        "barrier: 1 waits, kill",
        Act::Barrier,
        Blow::Kill,
        [Act::Barrier, Act::Lock],
    ),
    waited_for(
        "barrier: 1 waits, preempt",
        Act::Barrier,
        Blow::Preempt,
        [Act::Barrier, Act::Lock],
    ),
];

const fn alone(name: &'static str, victim: Act) -> Campaign {
    Campaign {
        name,
        victim,
        blow: Blow::Kill,
        others: [Act::Lock, Act::Semaphore],
        early: false,
    }
}

const fn contended(name: &'static str, victim: Act, blow: Blow, other: Act) -> Campaign {
    Campaign {
        name,
        victim,
        blow,
        others: [other, other],
        early: false,
    }
}

const fn waited_for(name: &'static str, victim: Act, blow: Blow, others: [Act; 2]) -> Campaign {
    Campaign {
        name,
        victim,
        blow,
        others,
        early: true,
    }
}

/// How thoroughly.
#[derive(Clone, Copy)]
struct Effort {
    /// Every so many instructions.
    stride: u64,
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
    let effort = if wants("--full") {
        Effort {
            stride: 1,
            time: Duration::from_secs(600),
        }
    } else if wants("--mutant") {
        Effort {
            stride: 1,
            time: Duration::from_secs(60),
        }
    } else {
        Effort {
            stride: 97,
            time: Duration::from_secs(2),
        }
    };
    println!(
        "{:<32} {:>7} {:>6} {:>7} {:>7} {:>8}",
        "at each instruction of", "points", "stuck", "faults", "leaked", "seconds"
    );
    let mut failed = false;
    let only = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--only="));
    for campaign in CAMPAIGNS
        .iter()
        .filter(|campaign| only.is_none_or(|only| campaign.name == only))
    {
        match run(campaign, effort) {
            Ok(fine) => failed |= !fine,
            Err(error) => {
                println!("{:<32} {error}", campaign.name);
                failed = true;
            }
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

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Waits for something that has to come.
fn within<F: Future>(runtime: &Runtime, patience: Duration, what: F) -> Result<F::Output, Elapsed> {
    runtime.block_on(async { timeout(patience, what).await })
}

fn run(campaign: &Campaign, effort: Effort) -> io::Result<bool> {
    let start = Instant::now();
    let runtime = runtime()?;
    let stage = Stage::new()?;
    let mut others = [
        Helper::start(&runtime, &stage)?,
        Helper::start(&runtime, &stage)?,
    ];
    let (mut points, mut stuck) = (0, Vec::new());
    let mut route = Route::new(effort, is_pair(campaign.blow));
    while let Some((at, offset)) = route.next()
        && start.elapsed() < effort.time
    {
        let blow = match campaign.blow {
            Blow::ArriveGoOnKill(_) => Blow::ArriveGoOnKill(offset),
            Blow::ArriveGoOnStop(_) => Blow::ArriveGoOnStop(offset),
            blow => blow,
        };
        match point(campaign, blow, at, &runtime, &stage, &mut others)? {
            Outcome::Fine => points += 1,
            Outcome::Stuck(what) => {
                points += 1;
                stuck.push(format!("{what} at instruction {at}+{offset}"));
                // Whoever is stuck stays so.
                break;
            }
            Outcome::Over => route.over(),
        }
    }
    others.iter().for_each(Helper::kill);
    let leaked = leaked(&runtime, &stage);
    let faults = stage.faults();
    println!(
        "{:<32} {:>7} {:>6} {:>7} {:>7} {:>8.1}",
        campaign.name,
        points,
        stuck.len(),
        faults,
        leaked,
        start.elapsed().as_secs_f64(),
    );
    for stuck in &stuck {
        println!("    stuck: {stuck}");
    }
    Ok(stuck.is_empty() && faults == 0 && leaked == 0 && points > 0)
}

/// In which order the instructions are visited: in coarse steps first and finer and finer ones then,
/// so that a campaign whose time ends has seen a bit of everything. Pairs are not all visited: every
/// seventh arrival with every seventh kill.
struct Route {
    step: u64,
    finest: u64,
    in_pairs: bool,
    at: u64,
    offset: u64,
    /// What was visited last, and where nothing lies any more.
    last: u64,
    end: u64,
    done: bool,
}

impl Route {
    fn new(effort: Effort, in_pairs: bool) -> Self {
        let finest = effort.stride * if in_pairs { 7 } else { 1 };
        let step = finest * 64;
        Self {
            step,
            finest,
            in_pairs,
            at: 0,
            offset: 1,
            last: 0,
            end: u64::MAX,
            done: false,
        }
    }

    /// The next instruction, and how far to go on from there in a campaign of pairs.
    fn next(&mut self) -> Option<(u64, u64)> {
        if self.done {
            return None;
        }
        let here = (self.at, self.offset);
        self.last = self.at + if self.in_pairs { self.offset } else { 0 };
        if self.in_pairs {
            self.offset += self.step;
            if self.at + self.offset >= self.end {
                self.offset = 1;
                self.advance();
            }
        } else {
            self.advance();
        }
        Some(here)
    }

    fn advance(&mut self) {
        // Every other one was visited by the coarser steps before.
        let coarsest = self.step == self.finest * 64;
        self.at += if coarsest || self.in_pairs {
            self.step
        } else {
            2 * self.step
        };
        while self.at + u64::from(self.in_pairs) >= self.end && !self.done {
            self.done = self.step == self.finest;
            self.step /= 2;
            self.at = if self.in_pairs { 0 } else { self.step };
        }
    }

    /// The operation has ended before the instruction that was asked for last.
    fn over(&mut self) {
        // The coarsest steps find about where, and the finer ones stay before it.
        self.end = self.end.min(self.last);
        if self.at + if self.in_pairs { self.offset } else { 0 } >= self.end {
            self.offset = 1;
            self.advance();
        }
    }
}

fn is_pair(blow: Blow) -> bool {
    matches!(blow, Blow::ArriveGoOnKill(_) | Blow::ArriveGoOnStop(_))
}

enum Outcome {
    /// Everybody else went on.
    Fine,
    /// Somebody did not.
    Stuck(&'static str),
    /// The operation has no so many instructions.
    Over,
}

fn point(
    campaign: &Campaign,
    blow: Blow,
    at: u64,
    runtime: &Runtime,
    stage: &Stage,
    others: &mut [Helper; 2],
) -> io::Result<Outcome> {
    stage.event.clear();
    if campaign.early {
        for (other, act) in others.iter_mut().zip(campaign.others) {
            other.tell(act)?;
            other.settle();
        }
    }
    let mut victim = Victim::start(runtime, stage, campaign.victim)?;
    let mut over = !victim.advance(at);
    match blow {
        Blow::Kill => victim.kill(),
        Blow::ArriveKill => {
            arrive(campaign, others)?;
            victim.kill();
        }
        Blow::ArriveGoOnKill(n) => {
            arrive(campaign, others)?;
            over |= !victim.advance(n);
            victim.kill();
        }
        Blow::ArriveGoOnStop(n) => {
            arrive(campaign, others)?;
            over |= !victim.advance(n);
        }
        Blow::Preempt => {
            if !campaign.early {
                arrive(campaign, others)?;
            }
            victim.let_go();
        }
        Blow::Stop => arrive(campaign, others)?,
    }
    if !campaign.early && blow == Blow::Kill {
        arrive(campaign, others)?;
    }
    let stuck = if campaign.early {
        relieve(campaign, runtime, stage, others)?
    } else if matches!(blow, Blow::Stop | Blow::ArriveGoOnStop(_)) {
        let stuck = waits_for_nothing(stage, others);
        victim.kill();
        stuck.or_else(|| {
            others
                .iter_mut()
                .any(|other| !other.finishes(PATIENCE))
                .then_some("a waiter")
        })
    } else {
        others
            .iter_mut()
            .any(|other| !other.finishes(PATIENCE))
            .then_some("a waiter")
    };
    // One that was let go comes to its end as well.
    let stuck = stuck.or_else(|| {
        let unhurt = blow == Blow::Preempt && campaign.victim != Act::Barrier;
        (unhurt && !victim.finishes(PATIENCE)).then_some("the victim that was let go")
    });
    Ok(match stuck {
        Some(what) => Outcome::Stuck(what),
        None if over => Outcome::Over,
        None => Outcome::Fine,
    })
}

fn arrive(campaign: &Campaign, others: &mut [Helper; 2]) -> io::Result<()> {
    for (other, act) in others.iter_mut().zip(campaign.others) {
        other.tell(act)?;
    }
    for other in &*others {
        other.settle();
    }
    Ok(())
}

/// Beside a stopped victim a waiter may wait, but only for what the victim has.
fn waits_for_nothing(stage: &Stage, others: &mut [Helper; 2]) -> Option<&'static str> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let taken = stage.lock.is_locked() || stage.semaphore.available_permits() < PERMITS;
        if taken {
            // Both wait for the victim, or are busy with their round; looked at twice, since a round
            // takes the lock as well.
            std::thread::sleep(Duration::from_millis(2));
            let taken = stage.lock.is_locked() || stage.semaphore.available_permits() < PERMITS;
            if taken {
                return None;
            }
        }
        if others.iter().all(Helper::has_finished) {
            return None;
        }
        std::thread::yield_now();
    }
    Some("a waiter beside a stopped process, though all is free")
}

/// Those who waited before the victim began go on if the victim did its act, and otherwise when this
/// process does it.
fn relieve(
    campaign: &Campaign,
    runtime: &Runtime,
    stage: &Stage,
    others: &mut [Helper; 2],
) -> io::Result<Option<&'static str>> {
    let others_go_on = |others: &mut [Helper; 2]| {
        others
            .iter_mut()
            .any(|other| !other.finishes(PATIENCE))
            .then_some("a waiter")
    };
    match campaign.victim {
        Act::Set => {
            // Once the victim is dead or through, the flag tells.
            let up = within(runtime, Duration::from_millis(50), stage.event.wait());
            if up.is_err() {
                stage.event.set();
            }
            Ok(others_go_on(others))
        }
        Act::Notify => {
            let lock = within(runtime, PATIENCE, stage.lock.lock());
            let Ok(Ok(guard)) = lock else {
                return Ok(Some("the lock"));
            };
            if guard.recovered() {
                stage.recover();
            }
            stage.condition.notify_all();
            drop(guard);
            Ok(others_go_on(others))
        }
        _ => {
            if !others[1].finishes(PATIENCE) {
                return Ok(Some("the lock beside the barrier"));
            }
            // The other party is through, or the victim never came: then this one takes its place,
            // for a moment, as the other may just be on its way out.
            let start = Instant::now();
            while !others[0].finishes(Duration::from_millis(20)) {
                if start.elapsed() > PATIENCE {
                    return Ok(Some("the other party"));
                }
                let _ = within(runtime, Duration::from_millis(50), stage.barrier.wait());
            }
            stage.barrier.reset();
            Ok(None)
        }
    }
}

/// What somebody has who is dead: it must come back.
fn leaked(runtime: &Runtime, stage: &Stage) -> usize {
    let all = async {
        let mut permits = Vec::new();
        for _ in 0..PERMITS {
            permits.push(stage.semaphore.acquire().await);
        }
        stage.lock.lock().await
    };
    match within(runtime, PATIENCE, all) {
        Ok(_) => 0,
        Err(_) => 1 + PERMITS - stage.semaphore.available_permits(),
    }
}

/// Breaks every rule, one after the other, and sees the campaigns fail.
fn mutants() -> ExitCode {
    if !cfg!(mutants) {
        println!("only a build with RUSTFLAGS=\"--cfg mutants\" can break rules");
        return ExitCode::FAILURE;
    }
    let Ok(program) = env::current_exe() else {
        return ExitCode::FAILURE;
    };
    let mut n_missed = 0;
    for (rule, patient, campaign) in RULES {
        let start = Instant::now();
        let mut command = Command::new(&program);
        command.arg("--mutant").arg(format!("--only={campaign}"));
        command.env("TOKIO_MULTIPROCESS_BREAKS", rule);
        if patient {
            command.env("TOKIO_MULTIPROCESS_PATIENT", "1");
        }
        let found = command
            .output()
            .is_ok_and(|output| !output.status.success());
        n_missed += usize::from(!found);
        let verdict = if found { "found" } else { "MISSED" };
        let seconds = start.elapsed().as_secs_f64();
        println!("{rule:<20} by {campaign:<32} {verdict:<6} {seconds:>6.1} s");
    }
    if n_missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Rules whose breach shows in a campaign, for some only while no waiter's patience ends, as time
/// mends them otherwise. The search in the library breaks all rules, also those of the broker's own
/// steps, which run in this process and are not taken one by one here.
const RULES: [(&str, bool, &str); 14] = [
    ("GivePokes", true, "lock: 2 arrive, preempt"),
    ("GiveIsOneStep", true, "lock: 2 arrive, preempt"),
    ("QueueShows", true, "lock: 2 arrive, preempt"),
    ("QueueShows", true, "semaphore: 2 arrive, preempt"),
    ("DeathServes", true, "lock: 2 arrive x kill"),
    ("DeathFrees", false, "lock: kill"),
    ("GiveRespectsDue", false, "lock: 2 arrive x stop"),
    ("TimeServes", false, "lock: 2 arrive x stop"),
    ("TimeCloses", false, "lock: 2 arrive x stop"),
    ("EventSetRings", false, "event set: 2 wait, preempt"),
    ("EventSetBeforeRing", false, "event set: 2 wait, preempt"),
    ("EventSleeperShows", false, "event set: 2 wait, preempt"),
    ("EventLooksAgain", false, "event wait: set twice, preempt"),
    ("EventDeathRings", false, "event set: 2 wait, kill"),
];
