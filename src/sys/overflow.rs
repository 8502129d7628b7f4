//! Saying so when a stack overflows, as std does for threads of a program that began at `main`.
//!
//! A child is taken over before std has installed its handler. The thread that runs the user's code
//! gets one of ours: a fault inside the guard of its stack prints the thread's name and aborts; any
//! other fault is let through to the default action.

use std::cell::Cell;
use std::io;
use std::mem;
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;

use nix::errno::Errno;

thread_local! {
    /// Addresses whose use means that this thread's stack is full.
    static GUARD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// What the handler prints, made beforehand: it may not allocate.
static MESSAGE: OnceLock<String> = OnceLock::new();

/// Installs the handler, and an alternate stack for the calling thread, called `name`.
pub(crate) fn report_in_this_thread(name: &str) -> io::Result<()> {
    MESSAGE.get_or_init(|| {
        format!("\nthread '{name}' has overflowed its stack\nfatal runtime error: stack overflow\n")
    });
    let guard = guard_of_this_thread()?;
    GUARD.set((guard.start, guard.end));
    use_alternate_stack()?;
    install(libc::SIGSEGV)?;
    install(libc::SIGBUS)
}

/// Does what is done first in a process and slow then.
pub(crate) fn look_at_this_stack() -> io::Result<()> {
    guard_of_this_thread().map(drop)
}

fn guard_of_this_thread() -> io::Result<Range<usize>> {
    // SAFETY: `pthread_attr_t` is plain data, which the next call fills.
    let mut attributes: libc::pthread_attr_t = unsafe { mem::zeroed() };
    // SAFETY: takes nothing.
    let own = unsafe { libc::pthread_self() };
    // SAFETY: `own` is this thread, which runs; `attributes` is writable.
    check(unsafe { libc::pthread_getattr_np(own, &raw mut attributes) })?;
    let mut start = ptr::null_mut();
    let mut len = 0;
    // SAFETY: `attributes` was filled, and the places for the answer are writable.
    check(unsafe {
        libc::pthread_attr_getstack(&raw const attributes, &raw mut start, &raw mut len)
    })?;
    let mut guard_len = 0;
    // SAFETY: as above.
    check(unsafe { libc::pthread_attr_getguardsize(&raw const attributes, &raw mut guard_len) })?;
    // SAFETY: `attributes` was filled and is not used again.
    check(unsafe { libc::pthread_attr_destroy(&raw mut attributes) })?;
    let start = start.addr();
    // One page on the stack's own side: older C libraries count the guard into the stack.
    Ok(start.saturating_sub(guard_len.max(4096))..start + 4096)
}

fn use_alternate_stack() -> io::Result<()> {
    let len = libc::SIGSTKSZ.max(16 << 10);
    // Lives as long as the process: the thread may fault until its very end. Not filled, as pages
    // that nobody touches cost nothing.
    let memory: &'static mut Vec<u8> = Box::leak(Box::new(Vec::with_capacity(len)));
    let stack = libc::stack_t {
        ss_sp: memory.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: len,
    };
    // SAFETY: the memory is used for nothing else and never freed.
    Errno::result(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) })?;
    Ok(())
}

fn install(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: `sigaction` is plain data, for which zeros are a value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `on_fault` does only what a handler may, and has the signature that SA_SIGINFO asks for.
    Errno::result(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })?;
    Ok(())
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a filled structure that lives until the handler returns.
    let info = unsafe { &*info };
    // SAFETY: for these signals the kernel fills in the address.
    let address = unsafe { info.si_addr() }.addr();
    let (start, end) = GUARD.get();
    if (start..end).contains(&address) {
        if let Some(message) = MESSAGE.get() {
            // SAFETY: writes bytes that live; a failure changes nothing.
            unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
        }
        // SAFETY: takes nothing; ends the process.
        unsafe { libc::abort() }
    }
    // Not ours: the faulting instruction runs again, under the default action.
    // SAFETY: restores what was there before any handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(code))
    }
}
