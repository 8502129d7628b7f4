//! Every instruction of every operation: killed there, preempted there, stopped there.
//!
//! A victim performs one operation on real shared objects while this process, which looks after
//! them, single-steps it. At each instruction of the program's own code it is killed, or others
//! arrive, or both; then everybody else must go on with nobody's help. A protocol heals itself
//! whenever somebody sends something, so what is checked is progress when all the rest wait.
//!
//! `cargo test --test kill` takes a sample; `cargo test --release --test kill -- --full` takes every
//! instruction (`--only=lock` those of one operation) and prints the table. A build with `RUSTFLAGS="--cfg mutants"` and `-- --mutants`
//! breaks one rule of the protocols after the other, and each of them must be found.

mod cast;
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
    /// The victim is killed while nobody else is there.
    Kill,
    /// Two others arrive and wait, then the victim is killed.
    ArriveKill,
    /// Two others arrive; the victim goes on so many instructions, and is killed.
    ArriveGoOnKill(u64),
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

const CAMPAIGNS: [Campaign; 18] = [
    alone("lock", Act::Lock),
    alone("try_lock", Act::TryLock),
    alone("semaphore", Act::Semaphore),
    alone("event set", Act::Set),
    alone("notify", Act::Notify),
    contended("lock", Act::Lock, Blow::ArriveKill, Act::Lock),
    contended("lock", Act::Lock, Blow::Preempt, Act::Lock),
    contended("lock", Act::Lock, Blow::Stop, Act::Lock),
    contended("lock", Act::Lock, Blow::ArriveGoOnKill(1), Act::Lock),
    contended(
        "semaphore",
        Act::Semaphore,
        Blow::ArriveKill,
        Act::Semaphore,
    ),
    contended("semaphore", Act::Semaphore, Blow::Preempt, Act::Semaphore),
    contended("semaphore", Act::Semaphore, Blow::Stop, Act::Semaphore),
    waited_for("event set", Act::Set, Blow::Kill, [Act::Await, Act::Await]),
    waited_for(
        "event set",
        Act::Set,
        Blow::Preempt,
        [Act::Await, Act::Await],
    ),
    waited_for("notify", Act::Notify, Blow::Kill, [Act::Wait, Act::Wait]),
    waited_for("notify", Act::Notify, Blow::Preempt, [Act::Wait, Act::Wait]),
    waited_for(
        "barrier",
        Act::Barrier,
        Blow::Kill,
        [Act::Barrier, Act::Lock],
    ),
    waited_for(
        "barrier",
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
            time: Duration::from_secs(20),
        }
    } else {
        Effort {
            stride: 97,
            time: Duration::from_secs(2),
        }
    };
    println!(
        "{:<12} {:<20} {:>7} {:>6} {:>7} {:>7} {:>8}",
        "operation", "at each instruction", "points", "stuck", "faults", "leaked", "seconds"
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
                println!("{:<12} {:?}: {error}", campaign.name, campaign.blow);
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
    let mut at = 0;
    // The pairs of arrival and kill: all offsets for one arrival, then the next arrival.
    let mut offset = 1;
    while start.elapsed() < effort.time && stuck.len() < 3 {
        let blow = match campaign.blow {
            Blow::ArriveGoOnKill(_) => Blow::ArriveGoOnKill(offset),
            blow => blow,
        };
        match point(campaign, blow, at, &runtime, &stage, &mut others)? {
            Outcome::Fine => points += 1,
            Outcome::Stuck(what) => {
                points += 1;
                stuck.push(format!("{what} at instruction {at}+{offset}"));
                // Whoever is stuck stays so: the next point begins with others.
                others.iter().for_each(Helper::kill);
                break;
            }
            Outcome::Over if matches!(blow, Blow::ArriveGoOnKill(_)) && offset > 1 => {
                offset = 1;
                at += 7 * effort.stride;
                continue;
            }
            Outcome::Over => break,
        }
        match blow {
            Blow::ArriveGoOnKill(_) => offset += 7 * effort.stride,
            _ => at += effort.stride,
        }
    }
    others.iter().for_each(Helper::kill);
    let leaked = leaked(&runtime, &stage);
    let faults = stage.faults();
    let blow = match campaign.blow {
        Blow::Kill if campaign.early => "kill, 2 wait".to_owned(),
        Blow::ArriveGoOnKill(_) => "2 arrive x kill".to_owned(),
        Blow::ArriveKill => "2 arrive, kill".to_owned(),
        Blow::Preempt if campaign.early => "preempt, 2 wait".to_owned(),
        Blow::Preempt => "2 arrive, preempt".to_owned(),
        Blow::Stop => "2 arrive, stop".to_owned(),
        Blow::Kill => "kill".to_owned(),
    };
    println!(
        "{:<12} {:<20} {:>7} {:>6} {:>7} {:>7} {:>8.1}",
        campaign.name,
        blow,
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
    if campaign.early {
        stage.event.clear();
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
    } else if blow == Blow::Stop {
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
            let up = within(runtime, Duration::from_millis(20), stage.event.wait());
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
            // The other party is through, or the victim never came: then this one takes its place.
            if !others[0].finishes(Duration::from_millis(20)) {
                let mine = within(runtime, PATIENCE, stage.barrier.wait());
                if mine.is_err() {
                    return Ok(Some("a party"));
                }
                if !others[0].finishes(PATIENCE) {
                    return Ok(Some("the other party"));
                }
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
    let Ok(program) = env::current_exe() else {
        return ExitCode::FAILURE;
    };
    let mut survivors = Vec::new();
    for rule in RULES {
        let start = Instant::now();
        let ran = Command::new(&program)
            .arg("--mutant")
            .env("TOKIO_MULTIPROCESS_BREAKS", rule)
            .output();
        let killed = ran.is_ok_and(|output| !output.status.success());
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{rule:<26} {:<8} {seconds:>6.1} s",
            if killed { "found" } else { "MISSED" }
        );
        if !killed {
            survivors.push(rule);
        }
    }
    if survivors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The rules whose breach shows in these campaigns; the search in the library finds all of them.
const RULES: [&str; 14] = [
    "GivePokes",
    "GiveRespectsDue",
    "GiveIsOneStep",
    "TakeIsOneStep",
    "QueueShows",
    "NameBeforeAnswer",
    "DeathFrees",
    "DeathUnlinks",
    "DeathServes",
    "DeathMarksAtOnce",
    "TimeServes",
    "BarrierDeathBreaks",
    "EventSetRings",
    "EventDeathRings",
];
