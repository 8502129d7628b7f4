//! All campaigns, and which of them find which broken rule.

use crate::campaign::{After, Blow, Campaign};
use crate::cast::Act;

const QUIET: Campaign = Campaign {
    name: "",
    victim: Act::Lock,
    blow: Blow::Kill,
    before: &[],
    arrive: &[],
    wake: &[],
    after: After::Nothing,
};

/// One operation by itself; then others look whether all is well.
const fn alone(name: &'static str, victim: Act) -> Campaign {
    Campaign {
        name,
        victim,
        arrive: &[(0, Act::Lock), (1, Act::Semaphore), (0, Act::RLock)],
        ..QUIET
    }
}

/// Two others want the same.
const fn beside(
    name: &'static str,
    victim: Act,
    blow: Blow,
    arrive: &'static [(usize, Act)],
) -> Campaign {
    Campaign {
        name,
        victim,
        blow,
        arrive,
        ..QUIET
    }
}

const LOCKS: &[(usize, Act)] = &[(0, Act::Lock), (1, Act::Lock)];
const RLOCKS: &[(usize, Act)] = &[(0, Act::RLock), (1, Act::RLock)];
const PERMITS: &[(usize, Act)] = &[(0, Act::Semaphore), (1, Act::Semaphore)];

/// The victim waits for what one has, and the other comes after it.
const fn in_queue(name: &'static str, victim: Act, blow: Blow) -> Campaign {
    let (before, arrive, wake): (&[_], &[_], &[_]) = match victim {
        Act::Semaphore => (
            &[(0, Act::TakePermit)],
            &[(1, Act::Semaphore)],
            &[(0, Act::GivePermit)],
        ),
        Act::RLock => (
            &[(0, Act::TakeRLock)],
            &[(1, Act::RLock)],
            &[(0, Act::GiveRLock)],
        ),
        _ => (
            &[(0, Act::TakeLock)],
            &[(1, Act::Lock)],
            &[(0, Act::GiveLock)],
        ),
    };
    Campaign {
        name,
        victim,
        blow,
        before,
        arrive,
        wake,
        ..QUIET
    }
}

/// The same, but it gives up.
const fn gives_up(name: &'static str, victim: Act, blow: Blow) -> Campaign {
    let (before, arrive): (&[_], &[_]) = match victim {
        Act::CancelSemaphore => (
            &[(0, Act::TakePermit)],
            &[(1, Act::Semaphore), (0, Act::GivePermit)],
        ),
        _ => (&[(0, Act::TakeLock)], &[(1, Act::Lock), (0, Act::GiveLock)]),
    };
    Campaign {
        name,
        victim,
        blow,
        before,
        arrive,
        ..QUIET
    }
}

/// Everything that is done to a victim.
pub(crate) const CAMPAIGNS: &[Campaign] = &[
    alone("lock: kill", Act::Lock),
    alone("try_lock: kill", Act::TryLock),
    alone("rlock: kill", Act::RLock),
    alone("semaphore: kill", Act::Semaphore),
    alone("event set: kill", Act::Set),
    alone("notify: kill", Act::Notify),
    beside("lock: 2 arrive, kill", Act::Lock, Blow::ArriveKill, LOCKS),
    beside("lock: 2 arrive, preempt", Act::Lock, Blow::Preempt, LOCKS),
    beside("lock: stop, 2 arrive", Act::Lock, Blow::Stop, LOCKS),
    beside(
        "lock: 2 arrive x kill",
        Act::Lock,
        Blow::ArriveGoOnKill,
        LOCKS,
    ),
    beside(
        "lock: 2 arrive x stop",
        Act::Lock,
        Blow::ArriveGoOnStop,
        LOCKS,
    ),
    beside(
        "rlock: 2 arrive, kill",
        Act::RLock,
        Blow::ArriveKill,
        RLOCKS,
    ),
    beside(
        "rlock: 2 arrive, preempt",
        Act::RLock,
        Blow::Preempt,
        RLOCKS,
    ),
    beside(
        "semaphore: 2 arrive, kill",
        Act::Semaphore,
        Blow::ArriveKill,
        PERMITS,
    ),
    beside(
        "semaphore: 2 arrive, preempt",
        Act::Semaphore,
        Blow::Preempt,
        PERMITS,
    ),
    beside(
        "semaphore: stop, 2 arrive",
        Act::Semaphore,
        Blow::Stop,
        PERMITS,
    ),
    beside(
        "semaphore: 2 arrive x kill",
        Act::Semaphore,
        Blow::ArriveGoOnKill,
        PERMITS,
    ),
    Campaign {
        name: "lock: 1 takes it, preempt",
        victim: Act::Lock,
        blow: Blow::Preempt,
        arrive: &[(0, Act::TakeLock)],
        wake: &[(0, Act::GiveLock)],
        ..QUIET
    },
    Campaign {
        name: "lock, taken: given back, preempt",
        victim: Act::Lock,
        blow: Blow::Preempt,
        before: &[(0, Act::TakeLock)],
        arrive: &[(0, Act::GiveLock)],
        ..QUIET
    },
    in_queue("lock, taken: kill, 1 arrives", Act::Lock, Blow::Kill),
    in_queue("lock, taken: 1 arrives, kill", Act::Lock, Blow::ArriveKill),
    in_queue("lock, taken: 1 arrives, preempt", Act::Lock, Blow::Preempt),
    in_queue(
        "lock, taken: 1 arrives x kill",
        Act::Lock,
        Blow::ArriveGoOnKill,
    ),
    in_queue(
        "rlock, taken: 1 arrives, kill",
        Act::RLock,
        Blow::ArriveKill,
    ),
    in_queue(
        "semaphore, taken: 1 arrives, kill",
        Act::Semaphore,
        Blow::ArriveKill,
    ),
    in_queue("semaphore, taken: preempt", Act::Semaphore, Blow::Preempt),
    gives_up("lock, given up: preempt", Act::CancelLock, Blow::Preempt),
    gives_up("lock, given up: kill", Act::CancelLock, Blow::ArriveKill),
    gives_up(
        "semaphore, given up: preempt",
        Act::CancelSemaphore,
        Blow::Preempt,
    ),
    gives_up(
        "semaphore, given up: kill",
        Act::CancelSemaphore,
        Blow::ArriveKill,
    ),
    Campaign {
        name: "semaphore, given up behind 1: preempt",
        victim: Act::CancelSemaphore,
        blow: Blow::Preempt,
        before: &[(0, Act::TakePermit), (1, Act::Semaphore)],
        arrive: &[(0, Act::GivePermit)],
        ..QUIET
    },
    beside(
        "event wait: set twice, preempt",
        Act::Await,
        Blow::Preempt,
        &[(0, Act::Set), (1, Act::Set)],
    ),
    Campaign {
        name: "event wait: 1 waits, kill",
        victim: Act::Await,
        blow: Blow::ArriveKill,
        arrive: &[(1, Act::Await)],
        wake: &[(0, Act::Set)],
        ..QUIET
    },
    Campaign {
        name: "event wait, given up: preempt",
        victim: Act::CancelAwait,
        blow: Blow::Preempt,
        before: &[(1, Act::Await)],
        wake: &[(0, Act::Set)],
        ..QUIET
    },
    Campaign {
        name: "event set: 2 wait, kill",
        victim: Act::Set,
        before: &[(0, Act::Await), (1, Act::Await)],
        after: After::Set,
        ..QUIET
    },
    Campaign {
        name: "event set: 2 wait, preempt",
        victim: Act::Set,
        blow: Blow::Preempt,
        before: &[(0, Act::Await), (1, Act::Await)],
        ..QUIET
    },
    Campaign {
        name: "notify: 2 wait, kill",
        victim: Act::Notify,
        before: &[(0, Act::Wait), (1, Act::Wait)],
        after: After::NotifyAll,
        ..QUIET
    },
    Campaign {
        name: "notify: 2 wait, preempt",
        victim: Act::Notify,
        blow: Blow::Preempt,
        before: &[(0, Act::Wait), (1, Act::Wait)],
        after: After::NotifyAll,
        ..QUIET
    },
    Campaign {
        name: "wait: 1 waits, notified, kill",
        victim: Act::Wait,
        wake: &[(1, Act::Wait), (0, Act::Notify)],
        after: After::PassedOn,
        ..QUIET
    },
    Campaign {
        name: "wait: notified, preempt",
        victim: Act::Wait,
        blow: Blow::Preempt,
        wake: &[(0, Act::Notify)],
        after: After::NotifyAll,
        ..QUIET
    },
    Campaign {
        name: "wait, given up: notified, preempt",
        victim: Act::CancelWait,
        blow: Blow::Preempt,
        arrive: &[(1, Act::Wait), (0, Act::Notify)],
        after: After::PassedOn,
        ..QUIET
    },
    Campaign {
        name: "barrier: 1 waits, kill",
        victim: Act::Barrier,
        before: &[(0, Act::Barrier)],
        arrive: &[(1, Act::Lock)],
        after: After::Meet,
        ..QUIET
    },
    Campaign {
        name: "barrier: 1 waits, preempt",
        victim: Act::Barrier,
        blow: Blow::Preempt,
        before: &[(0, Act::Barrier)],
        after: After::Meet,
        ..QUIET
    },
    Campaign {
        name: "barrier: kill, 1 comes",
        victim: Act::Barrier,
        wake: &[(0, Act::Barrier)],
        after: After::Meet,
        ..QUIET
    },
    Campaign {
        name: "barrier, given up: preempt",
        victim: Act::CancelBarrier,
        blow: Blow::Preempt,
        wake: &[(0, Act::Barrier)],
        after: After::Broken,
        ..QUIET
    },
];

/// Rules whose breach shows in a campaign, for some only while no waiter's patience ends, as time
/// mends them otherwise. The search in the library breaks the others, those of the broker's own steps,
/// which run in this process and are not taken one by one here, and two of the event's waiters, which
/// threads keep in any case, since they compare the word when they go to sleep.
pub(crate) const RULES: &[(&str, bool, &str)] = &[
    ("GivePokes", true, "lock: 2 arrive, preempt"),
    ("GiveIsOneStep", true, "lock: 2 arrive, preempt"),
    ("TakeIsOneStep", false, "lock: 1 takes it, preempt"),
    ("QueueShows", true, "lock: 2 arrive, preempt"),
    ("QueueShows", true, "semaphore: 2 arrive, preempt"),
    ("DeathServes", true, "lock: 2 arrive x kill"),
    ("DeathFrees", false, "lock: kill"),
    ("GiveRespectsDue", false, "lock: 2 arrive x stop"),
    ("TimeServes", false, "lock: 2 arrive x stop"),
    ("TimeCloses", false, "lock: 2 arrive x stop"),
    ("ParkLooksAgain", true, "lock, taken: given back, preempt"),
    ("GiveWakesSleeper", true, "lock, taken: 1 arrives, preempt"),
    (
        "CancelGivesBack",
        true,
        "semaphore, given up behind 1: preempt",
    ),
    ("VigilSleepIsOneStep", false, "wait: notified, preempt"),
    ("VigilPassesOn", false, "wait, given up: notified, preempt"),
    ("VigilDeathPassesOn", false, "wait: 1 waits, notified, kill"),
    ("EventSetRings", false, "event set: 2 wait, preempt"),
    ("EventSetBeforeRing", false, "event set: 2 wait, preempt"),
    ("EventDeathRings", false, "event set: 2 wait, kill"),
    ("BarrierDeathBreaks", false, "barrier: kill, 1 comes"),
    ("BarrierCancelBreaks", false, "barrier, given up: preempt"),
];
