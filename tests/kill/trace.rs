//! One thread of another process, taken instruction by instruction, see
//! [ptrace(2)](https://man7.org/linux/man-pages/man2/ptrace.2.html).

#![expect(
    unsafe_code,
    reason = "ptrace and waitpid, of which nothing safe exists for one thread"
)]

use std::cell::Cell;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

/// A thread that stands still between two instructions.
pub(crate) struct Traced {
    pub(crate) tid: i32,
    /// What the kernel says about the thread.
    stat: String,
    /// The process' memory, and where in it what it shares lies.
    memory: File,
    shared: Vec<u64>,
    /// System calls that it has made.
    n_calls: Cell<u64>,
    /// It sleeps in a system call, where it was going on by one instruction.
    sleeps: Cell<bool>,
    /// Where it is to stop.
    breakpoint: Cell<Option<u64>>,
    /// Where the program's own code lies in that process.
    code: Vec<Range<u64>>,
}

/// The bytes of a system call.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It stands before the next instruction.
    Done,
    /// It sleeps in the kernel until somebody wakes it.
    Sleeps,
    /// The thread has ended.
    Ended,
}

/// How long a step may take, or a sleep, before it counts as a wait for somebody.
const WAKEFUL: Duration = Duration::from_millis(1);

impl Traced {
    /// Stops a thread and takes it over.
    pub(crate) fn seize(pid: u32, tid: i32) -> io::Result<Self> {
        let (code, shared) = places(pid)?;
        request(libc::PTRACE_SEIZE, tid)?;
        request(libc::PTRACE_INTERRUPT, tid)?;
        let this = Self {
            tid,
            stat: format!("/proc/{pid}/task/{tid}/stat"),
            memory: File::open(format!("/proc/{pid}/mem"))?,
            shared,
            n_calls: Cell::new(0),
            sleeps: Cell::new(false),
            breakpoint: Cell::new(None),
            code,
        };
        match this.has_stopped(0) {
            Some(true) => Ok(this),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }

    /// Goes on by one instruction. A step into sleep goes on by itself when the sleep is over: the
    /// next call waits for that.
    pub(crate) fn step(&self) -> Step {
        if !self.sleeps.get() {
            self.count_call();
            if request(libc::PTRACE_SINGLESTEP, self.tid).is_err() {
                return Step::Ended;
            }
        }
        self.wait()
    }

    /// Waits until it stands still again, or sleeps in the kernel.
    pub(crate) fn wait(&self) -> Step {
        self.sleeps.set(false);
        let start = Instant::now();
        let mut asleep_since = None;
        loop {
            match self.has_stopped(libc::WNOHANG) {
                Some(true) => return Step::Done,
                Some(false) => return Step::Ended,
                None => thread::yield_now(),
            }
            if start.elapsed() < WAKEFUL {
                continue;
            }
            // Not the sleep of a moment, in which it waits for a page or for a lock in the kernel.
            let sleeps = fs::read_to_string(&self.stat).is_ok_and(|stat| stat.contains(") S "));
            let since = *asleep_since.get_or_insert_with(Instant::now);
            if !sleeps {
                asleep_since = None;
            } else if since.elapsed() > WAKEFUL {
                self.sleeps.set(true);
                return Step::Sleeps;
            }
        }
    }

    /// A number that changes with what other processes can see of this one: the first pages of shared
    /// memory, and how many system calls it has made. Asked after each step, or it misses calls.
    pub(crate) fn trail(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut page = [0; 4096];
        for place in &self.shared {
            if self.memory.read_exact_at(&mut page, *place).is_ok() {
                page.hash(&mut hasher);
            }
        }
        self.n_calls.get().hash(&mut hasher);
        hasher.finish()
    }

    /// Notes whether the next instruction is a system call.
    fn count_call(&self) {
        let mut next = [0; 2];
        if let Ok(place) = self.instruction()
            && self.memory.read_exact_at(&mut next, place).is_ok()
            && next == SYSCALL
        {
            self.n_calls.set(self.n_calls.get() + 1);
        }
    }

    /// Whether the next instruction is one of the program, not of the C library or the kernel's page.
    pub(crate) fn is_in_own_code(&self) -> bool {
        self.instruction().is_ok_and(|place| self.is_own(place))
    }

    /// Whether the program's own code lies there.
    pub(crate) fn is_own(&self, place: u64) -> bool {
        self.code.iter().any(|code| code.contains(&place))
    }

    /// Lets the thread run.
    pub(crate) fn let_go(self) {
        if self.sleeps.get() {
            // Only who stands still can be let go. Its system call begins anew.
            let _ = request(libc::PTRACE_INTERRUPT, self.tid);
            let _ = self.has_stopped(0);
        }
        let _ = self.break_at(None);
        let _ = request(libc::PTRACE_DETACH, self.tid);
    }

    /// Kills the whole process and takes the thread's end, without which the process would not end.
    pub(crate) fn kill(self, pid: u32) {
        // SAFETY: takes two numbers; the process is a child that nobody has reaped, as it runs.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        while self.has_stopped(0) == Some(true) {}
    }

    /// Has the processor stop the thread, and no other one of the process, before the instruction at
    /// `place`, or nowhere.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn break_at(&self, place: Option<u64>) -> io::Result<()> {
        if self.breakpoint.replace(place) == place {
            return Ok(());
        }
        let registers = std::mem::offset_of!(libc::user, u_debugreg);
        let place_of = |i: usize| ptr::without_provenance_mut::<libc::c_void>(registers + 8 * i);
        let values: &[_] = match place {
            // The first is a place of an instruction, and in use.
            Some(place) => &[(0, place), (7, 1)],
            None => &[(7, 0)],
        };
        for (i, value) in values {
            let value = ptr::without_provenance_mut::<libc::c_void>(*value as usize);
            // SAFETY: sets a debug register of the other thread.
            let done =
                unsafe { libc::ptrace(libc::PTRACE_POKEUSER, self.tid, place_of(*i), value) };
            if done == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn break_at(&self, place: Option<u64>) -> io::Result<()> {
        self.breakpoint.set(place);
        Ok(())
    }

    #[cfg(target_arch = "x86_64")]
    fn instruction(&self) -> io::Result<u64> {
        self.registers().map(|registers| registers.rip)
    }

    /// What the thread's registers hold.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn registers(&self) -> io::Result<libc::user_regs_struct> {
        // SAFETY: plain numbers, for which zeros are a value.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let place = (&raw mut registers).cast::<libc::c_void>();
        // SAFETY: the kernel writes one `user_regs_struct` to `place`.
        let done =
            unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.tid, ptr::null_mut::<()>(), place) };
        if done == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(registers)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn instruction(&self) -> io::Result<u64> {
        // Every step counts.
        Ok(self.code.first().map_or(0, |code| code.start))
    }

    /// Whether it stands still; false when it has ended, and nothing when it runs and `options` say
    /// not to wait.
    pub(crate) fn has_stopped(&self, options: i32) -> Option<bool> {
        let mut status = 0;
        // SAFETY: the kernel writes one number to `status`.
        let done = unsafe { libc::waitpid(self.tid, &raw mut status, options | libc::__WALL) };
        match done {
            0 => None,
            done => Some(done == self.tid && libc::WIFSTOPPED(status)),
        }
    }
}

/// Has the calling process outlive a trap that comes when it is not traced any more: one that is let go
/// while it sleeps in the middle of a step meets one when it wakes.
pub(crate) fn outlive_traps() {
    extern "C" fn go_on(_: libc::c_int) {}
    // SAFETY: the handler does nothing, which is safe at any moment.
    unsafe { libc::signal(libc::SIGTRAP, go_on as *const () as libc::sighandler_t) };
}

/// The calling thread's number.
pub(crate) fn own_tid() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Asks for something that takes no further argument.
pub(crate) fn request(what: libc::c_uint, tid: i32) -> io::Result<()> {
    let nothing = ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests neither read nor write through the two last arguments.
    let done = unsafe { libc::ptrace(what, tid, nothing, nothing) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The executable mappings of the program's file in process `pid`, and the beginnings of those that
/// it shares by the library.
fn places(pid: u32) -> io::Result<(Vec<Range<u64>>, Vec<u64>)> {
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    let program = program.to_string_lossy().into_owned();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let number = |text: &str| u64::from_str_radix(text, 16).map_err(io::Error::other);
    let (mut code, mut shared) = (Vec::new(), Vec::new());
    for line in maps.lines() {
        if line.contains("/memfd:mp-")
            && let Some((start, _)) = line.split_once('-')
        {
            shared.push(number(start)?);
        }
        if !line.ends_with(&program) {
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(places), Some(access)) = (words.next(), words.next()) else {
            continue;
        };
        if let (Some((start, end)), true) = (places.split_once('-'), access.contains('x')) {
            code.push(number(start)?..number(end)?);
        }
    }
    Ok((code, shared))
}
