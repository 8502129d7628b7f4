//! A traced thread that runs at full speed where nothing is to be seen: through the C library, and
//! up to the system call that is looked for.

#![expect(
    unsafe_code,
    reason = "ptrace, of which nothing safe exists for one thread"
)]

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::iter;
use std::ptr;

use crate::trace::{Traced, request};

/// An instruction of the program, as a thread comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Point {
    /// How many system calls come before it.
    pub(crate) calls: u64,
    pub(crate) place: u64,
    /// How many times it has come since the last of them, with this one.
    pub(crate) nth: u64,
}

/// Points that no victim came to. Victims that walk as those who found them come there sooner or later,
/// each of which counts where it comes first.
#[derive(Default)]
pub(crate) struct Missed {
    points: BTreeSet<Point>,
    /// Behind so many system calls, so many have walked in vain.
    vain: HashMap<u64, usize>,
}

impl Missed {
    /// Who is among several first makes the difference, and some ways are taken by few.
    const N_VAIN_MAX: usize = 400;

    pub(crate) fn insert(&mut self, point: Point) {
        self.points.insert(point);
    }

    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }

    /// Behind how many system calls the next one is to walk; nothing when that were in vain.
    pub(crate) fn next(&mut self) -> Option<u64> {
        let mut calls = self.points.iter().map(|point| point.calls);
        calls.find(|calls| {
            let n_vain = self.vain.entry(*calls).or_default();
            *n_vain += 1;
            *n_vain <= Self::N_VAIN_MAX
        })
    }

    /// Whether it is one of them, which it is no longer then.
    pub(crate) fn take(&mut self, point: Point) -> bool {
        let is_one = self.points.remove(&point);
        if is_one {
            self.vain.remove(&point.calls);
        }
        is_one
    }
}

/// Where a walk has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    /// Before an instruction of the program.
    OwnCode,
    /// Before a system call.
    Call,
    /// The thread has ended.
    Ended,
}

impl Traced {
    /// Goes on past the next system call; `waits` comes back when the thread stands still again, and
    /// may give up. False when it has, or when the thread has ended.
    pub(crate) fn pass_call(&self, mut waits: impl FnMut(&Self) -> bool) -> bool {
        // Stops at the entry and at the exit.
        (0..2).all(|_| request(libc::PTRACE_SYSCALL, self.tid).is_ok() && waits(self))
    }

    /// Goes through the instructions behind the system call at which the thread stands, up to the next
    /// one, which are those behind so many `calls`. It stands before the one that came last.
    pub(crate) fn points(&self, calls: u64) -> impl Iterator<Item = Point> {
        let mut times = HashMap::new();
        iter::from_fn(move || {
            if self.walk() != Walk::OwnCode {
                return None;
            }
            let place = self.place();
            let nth: &mut u64 = times.entry(place).or_default();
            *nth += 1;
            Some(Point {
                calls,
                place,
                nth: *nth,
            })
        })
    }

    /// Goes on to the next instruction of the program or to the next system call. What the C library
    /// does in between is done at full speed.
    #[cfg(target_arch = "x86_64")]
    fn walk(&self) -> Walk {
        /// `syscall`, little-endian.
        const CALL: u64 = 0x050f;
        loop {
            let Ok(registers) = self.registers() else {
                return Walk::Ended;
            };
            let is_call = |word: io::Result<u64>| word.is_ok_and(|word| word & 0xffff == CALL);
            if !self.is_own(registers.rip) && is_call(self.word_at(registers.rip)) {
                return Walk::Call;
            }
            if request(libc::PTRACE_SINGLESTEP, self.tid).is_err()
                || self.has_stopped(0) != Some(true)
            {
                return Walk::Ended;
            }
            let Ok(now) = self.registers() else {
                return Walk::Ended;
            };
            if self.is_own(now.rip) {
                return Walk::OwnCode;
            }
            // If that was a call, the place to which it will return is on top of the stack.
            let Ok(back) = self.word_at(now.rsp) else {
                continue;
            };
            let has_called = now.rsp == registers.rsp - 8 && back.wrapping_sub(registers.rip) < 16;
            let has_left = self.is_own(registers.rip) && self.is_own(back);
            if !(has_called || has_left) || self.break_at(Some(back)).is_err() {
                continue;
            }
            let went = request(libc::PTRACE_SYSCALL, self.tid).is_ok()
                && self.has_stopped(0) == Some(true);
            if !went || self.break_at(None).is_err() {
                return Walk::Ended;
            }
            if self.place() != back {
                return Walk::Call;
            }
            if self.is_own(back) {
                return Walk::OwnCode;
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn walk(&self) -> Walk {
        match request(libc::PTRACE_SINGLESTEP, self.tid).is_ok()
            && self.has_stopped(0) == Some(true)
        {
            true => Walk::OwnCode,
            false => Walk::Ended,
        }
    }

    /// Where the next instruction stands in the program.
    #[cfg(target_arch = "x86_64")]
    fn place(&self) -> u64 {
        self.registers().map_or(0, |registers| registers.rip)
    }

    /// Every instruction stands at the same place, and is told by how many come before it.
    #[cfg(not(target_arch = "x86_64"))]
    fn place(&self) -> u64 {
        0
    }

    /// Goes on at full speed to an instruction behind the system call at which the thread stands. False
    /// when it takes another way, and then it stands at the next system call.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn run_to(&self, point: Point) -> bool {
        self.break_at(Some(point.place)).is_ok()
            && (0..point.nth).all(|_| {
                request(libc::PTRACE_SYSCALL, self.tid).is_ok()
                    && self.has_stopped(0) == Some(true)
                    && self.place() == point.place
            })
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn run_to(&self, point: Point) -> bool {
        self.points(point.calls).any(|here| here == point)
    }

    /// What stands in the thread's memory.
    #[cfg(target_arch = "x86_64")]
    fn word_at(&self, place: u64) -> io::Result<u64> {
        let nothing = ptr::null_mut::<libc::c_void>();
        let place = ptr::without_provenance_mut::<libc::c_void>(place as usize);
        nix::errno::Errno::clear();
        // SAFETY: the request reads the other process' memory, and fails where there is none.
        let word = unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, self.tid, place, nothing) };
        match io::Error::last_os_error() {
            error if word == -1 && error.raw_os_error() != Some(0) => Err(error),
            _ => Ok(word.cast_unsigned()),
        }
    }
}
