//! A traced thread that runs at full speed where nothing is to be seen: through the C library, and
//! up to the system call that is looked for.

#![expect(
    unsafe_code,
    reason = "ptrace, of which nothing safe exists for one thread"
)]

use std::io;
use std::ptr;

use crate::trace::{Traced, request};

/// Where a walk has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// Before an instruction of the program.
    OwnCode,
    /// Before a system call.
    Call,
    /// The thread has ended.
    Ended,
}

impl Traced {
    /// Goes on past the next system call, however long that takes. False when the thread has ended.
    pub(crate) fn pass_call(&self) -> bool {
        // Stops at the entry and at the exit.
        (0..2).all(|_| {
            request(libc::PTRACE_SYSCALL, self.tid).is_ok() && self.has_stopped(0) == Some(true)
        })
    }

    /// Goes on to the next instruction of the program or to the next system call. What the C library
    /// does in between is done at full speed.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn walk(&self) -> Walk {
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
    pub(crate) fn walk(&self) -> Walk {
        match request(libc::PTRACE_SINGLESTEP, self.tid).is_ok()
            && self.has_stopped(0) == Some(true)
        {
            true => Walk::OwnCode,
            false => Walk::Ended,
        }
    }

    /// Where the next instruction stands in the program.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn place(&self) -> u64 {
        self.registers().map_or(0, |registers| registers.rip)
    }

    /// Every instruction stands at the same place, and is told by how many come before it.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn place(&self) -> u64 {
        0
    }

    /// Goes on at full speed to where the instruction at `place` comes for the `nth` time, unless a
    /// system call comes before.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn run_to(&self, place: u64, nth: u64) -> Walk {
        if self.break_at(Some(place)).is_err() {
            return Walk::Ended;
        }
        for _ in 0..nth {
            let went = request(libc::PTRACE_SYSCALL, self.tid).is_ok()
                && self.has_stopped(0) == Some(true);
            if !went {
                return Walk::Ended;
            }
            if self.place() != place {
                return Walk::Call;
            }
        }
        Walk::OwnCode
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn run_to(&self, _place: u64, nth: u64) -> Walk {
        let mut walks = (0..nth).map(|_| self.walk());
        walks
            .find(|walk| *walk != Walk::OwnCode)
            .unwrap_or(Walk::OwnCode)
    }

    /// Has the processor stop the thread before the instruction at `place`, or nowhere.
    #[cfg(target_arch = "x86_64")]
    fn break_at(&self, place: Option<u64>) -> io::Result<()> {
        let registers = std::mem::offset_of!(libc::user, u_debugreg);
        let place_of = |i: usize| ptr::without_provenance_mut::<libc::c_void>(registers + 8 * i);
        let values = match place {
            // The first is a place of an instruction, and in use.
            Some(place) => [(0, place), (7, 1)],
            None => [(7, 0), (0, 0)],
        };
        for (i, value) in values {
            let value = ptr::without_provenance_mut::<libc::c_void>(value as usize);
            // SAFETY: the request takes two numbers.
            let done = unsafe { libc::ptrace(libc::PTRACE_POKEUSER, self.tid, place_of(i), value) };
            if done == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
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
