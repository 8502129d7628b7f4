//! What befalls the victim at each instruction, and what everybody else must do then.

use std::io;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::cast::{Act, Advance, Helper, PATIENCE, PERMITS, Stage, Victim};
use crate::route::Route;

/// What happens at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// The victim is killed, then others arrive.
    Kill,
    /// Others arrive, then the victim is killed.
    ArriveKill,
    /// Others arrive, the victim goes on, and is killed at each later instruction.
    ArriveGoOnKill,
    /// Others arrive, the victim goes on, and stands still for good at each later instruction.
    ArriveGoOnStop,
    /// Others arrive, then the victim goes on and lives.
    Preempt,
    /// The victim stands still for good, and others arrive.
    Stop,
}

/// How those go on who wait for what the victim may not have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// They need nothing.
    Nothing,
    /// This process raises the flag, unless it is up.
    Set,
    /// This process notifies all.
    NotifyAll,
    /// They need nothing if they had begun to wait before the notification that the victim got, and
    /// the victim has not made use of it.
    PassedOn,
    /// This process meets them.
    Meet,
    /// They find the barrier broken.
    Broken,
}

/// One of the two helpers, and what it does.
type Order = (usize, Act);

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Campaign {
    pub(crate) name: &'static str,
    pub(crate) victim: Act,
    pub(crate) blow: Blow,
    /// Before the victim begins.
    pub(crate) before: &'static [Order],
    /// When others arrive.
    pub(crate) arrive: &'static [Order],
    /// When the victim sleeps, so that it can go on; in the end if it never does.
    pub(crate) wake: &'static [Order],
    pub(crate) after: After,
}

/// How thoroughly.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Every so many instructions.
    pub(crate) stride: u64,
    /// At most so long a campaign.
    pub(crate) time: Duration,
}

/// What came of a campaign.
#[derive(Default)]
pub(crate) struct Figures {
    /// Instructions, or pairs of instructions, that were visited.
    pub(crate) points: u64,
    /// Victims that it took: pairs between which nobody else can see a difference share one.
    pub(crate) runs: u64,
    pub(crate) stuck: Vec<String>,
    pub(crate) faults: u64,
    pub(crate) leaked: usize,
    pub(crate) time: Duration,
    /// Every instruction was visited that the stride asks for.
    pub(crate) is_complete: bool,
}

impl Figures {
    pub(crate) fn is_fine(&self) -> bool {
        self.stuck.is_empty() && self.faults == 0 && self.leaked == 0 && self.points > 0
    }
}

/// Where in its act the victim is hit.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// So many instructions from its beginning.
    at: u64,
    /// When others can see so many changes after that; nothing for the end of the act.
    changes: Option<u64>,
}

/// How a victim fared.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    /// Its act was over before.
    over: bool,
    /// What it did between the two instructions.
    instructions: u64,
    changes: u64,
    stuck: Option<&'static str>,
}

struct Theatre<'a> {
    campaign: &'a Campaign,
    runtime: Runtime,
    stage: Stage,
    others: [Helper; 2],
    /// The notification came when the other waiter had begun to wait.
    is_witnessed: bool,
}

/// Visits every instruction that `effort` asks for.
pub(crate) fn run(campaign: &Campaign, effort: Effort) -> io::Result<Figures> {
    let start = Instant::now();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let stage = Stage::new()?;
    let others = [
        Helper::start(&runtime, &stage)?,
        Helper::start(&runtime, &stage)?,
    ];
    let mut theatre = Theatre {
        campaign,
        runtime,
        stage,
        others,
        is_witnessed: false,
    };
    let mut figures = Figures {
        is_complete: true,
        ..Figures::default()
    };
    let in_pairs = matches!(campaign.blow, Blow::ArriveGoOnKill | Blow::ArriveGoOnStop);
    let mut route = Route::new(effort.stride);
    while let Some(at) = route.next() {
        // On a busy machine the time may be over when all have come up: one point is visited always.
        if start.elapsed() >= effort.time && figures.points > 0 {
            figures.is_complete = false;
            break;
        }
        let end = Place { at, changes: None };
        let fate = theatre.point(end, &mut figures)?;
        if fate.over {
            route.ends_before(at);
            continue;
        }
        let changes = if in_pairs { fate.changes } else { 0 };
        let mut done = 0;
        while done < changes && start.elapsed() < effort.time && figures.stuck.is_empty() {
            let changes = Some(done);
            theatre.point(Place { at, changes }, &mut figures)?;
            done += 1;
        }
        // What lies between two changes counts only when all of them were visited.
        figures.points += match done == changes {
            true if in_pairs => fate.instructions,
            _ => done + 1,
        };
        // Whoever is stuck stays so.
        if !figures.stuck.is_empty() {
            break;
        }
    }
    theatre.others.iter().for_each(Helper::kill);
    figures.leaked = theatre.leaked();
    figures.faults = theatre.stage.faults();
    figures.time = start.elapsed();
    Ok(figures)
}

impl Theatre<'_> {
    fn point(&mut self, place: Place, figures: &mut Figures) -> io::Result<Fate> {
        let fate = self.play(place)?;
        figures.runs += 1;
        if let Some(what) = fate.stuck {
            let Place { at, changes } = place;
            let then = changes.map_or_else(String::new, |n| format!(" and {n} changes after"));
            figures
                .stuck
                .push(format!("{what} at instruction {at}{then}"));
            figures.points += 1;
        }
        Ok(fate)
    }

    fn play(&mut self, place: Place) -> io::Result<Fate> {
        let campaign = self.campaign;
        self.is_witnessed = false;
        self.stage.event.clear();
        self.give(campaign.before)?;
        let mut victim = Victim::start(&self.runtime, &self.stage, campaign.victim)?;
        let mut fate = Fate::default();
        let mut is_woken = false;
        self.advance(&mut victim, &mut is_woken, place.at, &mut fate)?;
        match campaign.blow {
            Blow::Kill => {
                let slept = victim.sleeps();
                victim.kill();
                // A party that came and died has broken the barrier.
                if slept && campaign.after == After::Meet && !self.breaks() {
                    fate.stuck = Some("a barrier that a dead party makes full");
                }
                self.give(campaign.arrive)?;
            }
            Blow::ArriveKill => {
                self.give(campaign.arrive)?;
                victim.kill();
            }
            Blow::ArriveGoOnKill => {
                self.give(campaign.arrive)?;
                self.go_on(&mut victim, &mut is_woken, place.changes, &mut fate)?;
                victim.kill();
            }
            Blow::ArriveGoOnStop => {
                self.give(campaign.arrive)?;
                self.go_on(&mut victim, &mut is_woken, place.changes, &mut fate)?;
            }
            Blow::Preempt => {
                self.give(campaign.arrive)?;
                victim.let_go();
            }
            Blow::Stop => self.give(campaign.arrive)?,
        }
        if !is_woken {
            if campaign.blow == Blow::Preempt {
                victim.settle(campaign.victim);
            }
            self.give(campaign.wake)?;
        }
        if matches!(campaign.blow, Blow::Stop | Blow::ArriveGoOnStop) {
            fate.stuck = fate.stuck.or_else(|| self.wait_for_nothing());
            victim.kill();
        }
        // One that was let go comes to its end as well, before it is looked at what the others need.
        if campaign.blow == Blow::Preempt
            && campaign.after != After::Meet
            && !victim.finishes(PATIENCE)
        {
            println!("    {}", victim.whereabouts());
            fate.stuck = Some("the victim that was let go");
        }
        fate.stuck = fate.stuck.or_else(|| self.relieve());
        Ok(fate)
    }

    /// Has helpers do something, one after the other.
    fn give(&mut self, orders: &[Order]) -> io::Result<()> {
        for &(who, act) in orders {
            if act == Act::Notify {
                // The other one stands in the queue if it does not wait for the lock.
                self.is_witnessed = !self.stage.lock.is_locked();
            }
            self.others[who].tell(act)?;
        }
        Ok(())
    }

    /// Takes the victim so many instructions on, and has it woken when it sleeps.
    fn advance(
        &mut self,
        victim: &mut Victim,
        is_woken: &mut bool,
        n: u64,
        fate: &mut Fate,
    ) -> io::Result<()> {
        let mut left = n;
        let start = Instant::now();
        loop {
            match victim.advance(&mut left) {
                Advance::There => return Ok(()),
                Advance::Over => {
                    fate.over = true;
                    return Ok(());
                }
                Advance::Sleeps if self.campaign.wake.is_empty() => {
                    // Nobody is meant to wake it before the others come.
                    fate.over = true;
                    return Ok(());
                }
                Advance::Sleeps if !*is_woken => {
                    *is_woken = true;
                    self.give(self.campaign.wake)?;
                }
                Advance::Sleeps if start.elapsed() < PATIENCE => (),
                Advance::Sleeps => {
                    fate.stuck = Some("the victim, which nobody wakes,");
                    return Ok(());
                }
            }
        }
    }

    /// Takes the victim on until others can see so many changes, or to the end of its act.
    fn go_on(
        &mut self,
        victim: &mut Victim,
        is_woken: &mut bool,
        changes: Option<u64>,
        fate: &mut Fate,
    ) -> io::Result<()> {
        if fate.over {
            return Ok(());
        }
        let mut trail = victim.trail();
        while changes.is_none_or(|changes| fate.changes < changes) && fate.stuck.is_none() {
            let mut end = Fate::default();
            self.advance(victim, is_woken, 1, &mut end)?;
            fate.stuck = end.stuck;
            if end.over {
                break;
            }
            fate.instructions += 1;
            let now = victim.trail();
            fate.changes += u64::from(now != trail);
            trail = now;
        }
        Ok(())
    }

    fn within<F: Future>(&self, patience: Duration, what: F) -> Result<F::Output, Elapsed> {
        self.runtime
            .block_on(async { timeout(patience, what).await })
    }

    fn others_go_on(&mut self) -> Option<&'static str> {
        let all = self.others.iter_mut().all(|one| one.finishes(PATIENCE));
        (!all).then_some("a waiter")
    }

    fn breaks(&self) -> bool {
        let start = Instant::now();
        while !self.stage.barrier.is_broken() {
            if start.elapsed() > PATIENCE {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Beside a stopped victim a waiter may wait, but only for what the victim has.
    fn wait_for_nothing(&mut self) -> Option<&'static str> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.stage.is_taken() {
                // Both wait for the victim, or are busy with their round; looked at twice, since a
                // round takes the lock as well.
                std::thread::sleep(Duration::from_millis(2));
                if self.stage.is_taken() {
                    return None;
                }
            }
            if self
                .others
                .iter_mut()
                .all(|other| other.finishes(Duration::ZERO))
            {
                return None;
            }
            std::thread::yield_now();
        }
        Some("a waiter beside a stopped process, though all is free,")
    }

    /// Those who wait go on, with the help that they may need.
    fn relieve(&mut self) -> Option<&'static str> {
        match self.campaign.after {
            After::Nothing => self.others_go_on(),
            After::Set => {
                // Once the victim is dead or through, the flag tells.
                let up = self.within(Duration::from_millis(20), self.stage.event.wait());
                if up.is_err() {
                    self.stage.event.set();
                }
                self.others_go_on()
            }
            After::PassedOn if self.is_witnessed && !self.stage.was_woken() => self.others_go_on(),
            After::NotifyAll | After::PassedOn => {
                // More than once, as they may be on their way into the queue.
                let start = Instant::now();
                loop {
                    let lock = self.within(PATIENCE, self.stage.lock.lock());
                    let Ok(Ok(guard)) = lock else {
                        return Some("the lock");
                    };
                    if guard.recovered() {
                        self.stage.recover();
                    }
                    self.stage.condition.notify_all();
                    drop(guard);
                    if self.others_finish(Duration::from_millis(20)) {
                        return None;
                    }
                    if start.elapsed() > PATIENCE {
                        return Some("a waiter");
                    }
                }
            }
            After::Meet => {
                // The other party is through, or the victim never came: then this one takes its
                // place, for a moment, as the other may just be on its way out.
                let start = Instant::now();
                while !self.others_finish(Duration::from_millis(5)) {
                    if start.elapsed() > PATIENCE {
                        return Some("the other party");
                    }
                    let _ = self.within(Duration::from_millis(20), self.stage.barrier.wait());
                }
                self.mend()
            }
            After::Broken => {
                let left = (!self.breaks()).then_some("a party that left and breaks nothing");
                left.or_else(|| self.others_go_on()).or_else(|| self.mend())
            }
        }
    }

    fn others_finish(&mut self, within: Duration) -> bool {
        self.others.iter_mut().all(|other| other.finishes(within))
    }

    /// Makes the barrier whole and empty for the next victim.
    fn mend(&self) -> Option<&'static str> {
        self.stage.barrier.abort();
        if !self.breaks() {
            return Some("an abort");
        }
        self.stage.barrier.reset();
        let start = Instant::now();
        while self.stage.barrier.is_broken() {
            if start.elapsed() > PATIENCE {
                return Some("a reset");
            }
            std::thread::yield_now();
        }
        None
    }

    /// What somebody has who is dead: it must come back.
    fn leaked(&self) -> usize {
        let stage = &self.stage;
        let all = async {
            let mut permits = Vec::new();
            for _ in 0..PERMITS {
                permits.push(stage.semaphore.acquire().await);
            }
            drop(stage.rlock.lock().await);
            stage.lock.lock().await
        };
        match self.within(PATIENCE, all) {
            Ok(_) => 0,
            Err(_) => 1 + PERMITS - stage.semaphore.available_permits(),
        }
    }
}
