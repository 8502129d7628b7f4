//! Locks, semaphores, conditions and barriers without a library: a futex by hand, and those of libc
//! in shared memory. Of two processes, one is forked off the other.

use std::cell::UnsafeCell;
use std::hint::{black_box, spin_loop};
use std::mem::{MaybeUninit, size_of, zeroed};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Instant;

use super::kernel::{fork, reap};
use crate::harness::per_op_ns;

/// How often an operation that costs nanoseconds is done.
pub(crate) const MANY: usize = 2_000_000;
/// Rounds of two processes that contend for a lock.
pub(crate) const CONTENDED: usize = 200_000;
/// Pauses inside the lock, and as many outside: somewhat more than a microsecond.
pub(crate) const PAUSES: usize = 100;
/// Round trips of two processes that hand over to each other.
pub(crate) const HAND_OVERS: usize = 10_000;
/// Tasks that wait at one time.
pub(crate) const CROWD: usize = 1_000;
/// Rounds of a barrier.
pub(crate) const MEETINGS: usize = 2_000;

/// Some work that nobody else can do meanwhile.
pub(crate) fn pause() {
    (0..PAUSES).for_each(|_| spin_loop());
}

/// Confines this process, and those that it starts, to one processor.
pub(crate) fn to_one_core() {
    // SAFETY: zeros are a set without processors.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: 0 is a number within the set.
    unsafe { libc::CPU_SET(0, &mut set) };
    // SAFETY: the set is as long as is said.
    let done = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    assert_eq!(done, 0, "sched_setaffinity");
}

/// A futex by hand: 0 free, 1 taken, 2 taken and waited for.
pub(crate) struct Mutex(AtomicU32);

impl Mutex {
    fn lock(&self, spins: usize) {
        if self.0.compare_exchange(0, 1, Acquire, Relaxed).is_ok() {
            return;
        }
        for _ in 0..spins {
            spin_loop();
            if self.0.load(Relaxed) == 0 && self.0.compare_exchange(0, 1, Acquire, Relaxed).is_ok()
            {
                return;
            }
        }
        while self.0.swap(2, Acquire) != 0 {
            futex(&self.0, libc::FUTEX_WAIT, 2);
        }
    }

    fn unlock(&self) {
        if self.0.swap(0, Release) == 2 {
            futex(&self.0, libc::FUTEX_WAKE, 1);
        }
    }
}

fn futex(word: &AtomicU32, what: libc::c_int, value: u32) {
    let timeout = ptr::null::<libc::timespec>();
    // SAFETY: the word is alive, and the other arguments are numbers or nothing.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), what, value, timeout) };
}

/// What the processes share.
struct Shared {
    ready: AtomicU32,
    counter: AtomicU64,
    mutex: Mutex,
    pthread: UnsafeCell<libc::pthread_mutex_t>,
    condition: UnsafeCell<libc::pthread_cond_t>,
    barrier: UnsafeCell<libc::pthread_barrier_t>,
    semaphores: [UnsafeCell<libc::sem_t>; 2],
}

fn shared(parties: u32, permits: u32) -> &'static Shared {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: asks for fresh memory at an address of the kernel's choice.
    let memory = unsafe { libc::mmap(ptr::null_mut(), size_of::<Shared>(), access, flags, -1, 0) };
    assert_ne!(memory, libc::MAP_FAILED, "mmap");
    // SAFETY: as long as is needed, aligned to a page, never unmapped, and zeros are a value.
    let shared = unsafe { &*memory.cast::<Shared>() };
    let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
    let mut condition = MaybeUninit::<libc::pthread_condattr_t>::uninit();
    let mut barrier = MaybeUninit::<libc::pthread_barrierattr_t>::uninit();
    let yes = libc::PTHREAD_PROCESS_SHARED;
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) };
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_mutexattr_setpshared(attributes.as_mut_ptr(), yes) };
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_mutex_init(shared.pthread.get(), attributes.as_ptr()) };
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_condattr_init(condition.as_mut_ptr()) };
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_condattr_setpshared(condition.as_mut_ptr(), yes) };
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_cond_init(shared.condition.get(), condition.as_ptr()) };
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_barrierattr_init(barrier.as_mut_ptr()) };
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_barrierattr_setpshared(barrier.as_mut_ptr(), yes) };
    // SAFETY: all places are alive, attributes are set up first, and nobody uses the object yet.
    unsafe { libc::pthread_barrier_init(shared.barrier.get(), barrier.as_ptr(), parties) };
    for semaphore in &shared.semaphores {
        // SAFETY: as above.
        unsafe { libc::sem_init(semaphore.get(), 1, permits) };
    }
    shared
}

impl Shared {
    /// Runs `body` in so many processes at a time, and tells the nanoseconds until all are through.
    fn run(&self, n: u32, body: impl Fn(u32)) -> std::time::Duration {
        let arrive = || {
            self.ready.fetch_add(1, AcqRel);
            while self.ready.load(Acquire) < n {
                std::thread::yield_now();
            }
        };
        let others: Vec<_> = (1..n)
            .map(|role| {
                fork(|| {
                    arrive();
                    body(role);
                })
            })
            .collect();
        arrive();
        let started = Instant::now();
        body(0);
        others.into_iter().for_each(reap);
        started.elapsed()
    }

    fn count(&self) {
        pause();
        self.counter.store(self.counter.load(Relaxed) + 1, Relaxed);
    }
}

fn uncontended(one: impl Fn()) -> f64 {
    (0..MANY / 10).for_each(|_| one());
    let started = Instant::now();
    (0..MANY).for_each(|_| one());
    per_op_ns(started.elapsed(), MANY)
}

/// Nanoseconds to take a free futex and give it back.
pub(crate) fn futex_alone() -> f64 {
    let shared = shared(1, 1);
    uncontended(|| {
        shared.mutex.lock(0);
        shared.mutex.unlock();
    })
}

/// The same of libc's mutex.
pub(crate) fn pthread_alone() -> f64 {
    let mutex = shared(1, 1).pthread.get();
    uncontended(|| {
        // SAFETY: the mutex is set up and never destroyed.
        unsafe { libc::pthread_mutex_lock(mutex) };
        // SAFETY: as above, and it is ours.
        unsafe { libc::pthread_mutex_unlock(mutex) };
    })
}

/// The same of libc's semaphore.
pub(crate) fn sem_alone() -> f64 {
    let semaphore = shared(1, 1).semaphores[0].get();
    uncontended(|| {
        // SAFETY: the semaphore is set up and never destroyed.
        unsafe { libc::sem_wait(semaphore) };
        // SAFETY: as above.
        unsafe { libc::sem_post(semaphore) };
    })
}

/// The same of the mutex for threads that Rust programs use.
pub(crate) fn parking_lot_alone() -> f64 {
    let mutex = parking_lot::Mutex::new(0_u64);
    uncontended(|| *black_box(&mutex).lock() += 1)
}

/// The same of tokio's mutex, awaited.
pub(crate) fn tokio_alone() -> f64 {
    crate::harness::runtime().block_on(async {
        let mutex = tokio::sync::Mutex::new(0_u64);
        let started = Instant::now();
        for _ in 0..MANY {
            *black_box(&mutex).lock().await += 1;
        }
        per_op_ns(started.elapsed(), MANY)
    })
}

/// Nanoseconds a turn when a crowd of tasks queues up for tokio's mutex.
pub(crate) fn tokio_by_tasks() -> f64 {
    crate::harness::runtime().block_on(async {
        let mutex = Arc::new(tokio::sync::Mutex::new(()));
        let mut tasks = tokio::task::JoinSet::new();
        let started = Instant::now();
        for _ in 0..CROWD {
            let mutex = Arc::clone(&mutex);
            tasks.spawn(async move {
                let guard = mutex.lock().await;
                tokio::task::yield_now().await;
                drop(guard);
            });
        }
        tasks.join_all().await;
        per_op_ns(started.elapsed(), CROWD)
    })
}

/// Nanoseconds to load a flag.
pub(crate) fn load() -> f64 {
    let shared = shared(1, 1);
    uncontended(|| {
        black_box(black_box(&shared.counter).load(Acquire));
    })
}

/// Nanoseconds to add to an atomic number.
pub(crate) fn add() -> f64 {
    let shared = shared(1, 1);
    uncontended(|| {
        shared.counter.fetch_add(1, AcqRel);
    })
}

/// Nanoseconds to add to a number under a futex.
pub(crate) fn add_under_futex() -> f64 {
    let shared = shared(1, 1);
    uncontended(|| {
        shared.mutex.lock(0);
        shared
            .counter
            .store(shared.counter.load(Relaxed) + 1, Relaxed);
        shared.mutex.unlock();
    })
}

fn contended(n: u32, take: impl Fn(&Shared), give: impl Fn(&Shared)) -> f64 {
    let shared = shared(n, 1);
    let each = CONTENDED / n as usize;
    let elapsed = shared.run(n, |_| {
        for _ in 0..each {
            take(shared);
            shared.count();
            give(shared);
            pause();
        }
    });
    assert_eq!(shared.counter.load(Acquire), u64::from(n) * each as u64);
    per_op_ns(elapsed, each * n as usize)
}

/// Nanoseconds a round of so many processes at a futex that they spin at before they sleep.
pub(crate) fn futex_contended(n: u32) -> f64 {
    contended(
        n,
        |shared| shared.mutex.lock(100),
        |shared| shared.mutex.unlock(),
    )
}

/// The same at libc's semaphore.
pub(crate) fn sem_contended(n: u32) -> f64 {
    contended(
        n,
        |shared| {
            // SAFETY: it is set up and never destroyed, and ours when it is given back.
            let _ = unsafe { libc::sem_wait(shared.semaphores[0].get()) };
        },
        |shared| {
            // SAFETY: it is set up and never destroyed, and ours when it is given back.
            let _ = unsafe { libc::sem_post(shared.semaphores[0].get()) };
        },
    )
}

/// The same at libc's mutex.
pub(crate) fn pthread_contended(n: u32) -> f64 {
    contended(
        n,
        |shared| {
            // SAFETY: it is set up and never destroyed, and ours when it is given back.
            let _ = unsafe { libc::pthread_mutex_lock(shared.pthread.get()) };
        },
        |shared| {
            // SAFETY: it is set up and never destroyed, and ours when it is given back.
            let _ = unsafe { libc::pthread_mutex_unlock(shared.pthread.get()) };
        },
    )
}

/// Microseconds there and back by two semaphores.
pub(crate) fn sem_round_trip() -> f64 {
    let shared = shared(2, 0);
    let elapsed = shared.run(2, |role| {
        let mine = shared.semaphores[role as usize].get();
        let other = shared.semaphores[1 - role as usize].get();
        for _ in 0..HAND_OVERS {
            if role == 0 {
                // SAFETY: the semaphore is set up and never destroyed.
                unsafe { libc::sem_post(other) };
            }
            // SAFETY: as above.
            unsafe { libc::sem_wait(mine) };
            if role == 1 {
                // SAFETY: as above.
                unsafe { libc::sem_post(other) };
            }
        }
    });
    per_op_ns(elapsed, HAND_OVERS) / 1e3
}

/// Microseconds there and back by a condition.
pub(crate) fn condition_round_trip() -> f64 {
    let shared = shared(2, 0);
    let (mutex, condition) = (shared.pthread.get(), shared.condition.get());
    let elapsed = shared.run(2, |role| {
        for _ in 0..HAND_OVERS {
            // SAFETY: the mutex is set up and never destroyed.
            unsafe { libc::pthread_mutex_lock(mutex) };
            while shared.counter.load(Relaxed) % 2 != u64::from(role) {
                // SAFETY: both are set up and never destroyed, and the mutex is ours.
                unsafe { libc::pthread_cond_wait(condition, mutex) };
            }
            shared
                .counter
                .store(shared.counter.load(Relaxed) + 1, Relaxed);
            // SAFETY: the condition is set up and never destroyed.
            unsafe { libc::pthread_cond_signal(condition) };
            // SAFETY: the mutex is ours.
            unsafe { libc::pthread_mutex_unlock(mutex) };
        }
    });
    per_op_ns(elapsed, HAND_OVERS) / 1e3
}

/// Microseconds for so many processes to meet.
pub(crate) fn barrier(n: u32) -> f64 {
    let shared = shared(n, 0);
    let elapsed = shared.run(n, |_| {
        for _ in 0..MEETINGS {
            // SAFETY: the barrier is set up and never destroyed.
            unsafe { libc::pthread_barrier_wait(shared.barrier.get()) };
        }
    });
    per_op_ns(elapsed, MEETINGS) / 1e3
}

/// The same, with all processes on one processor.
pub(crate) fn on_one_core(measure: impl FnOnce() -> f64) -> f64 {
    to_one_core();
    measure()
}
