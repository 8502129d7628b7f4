//! Limits, affinity and file mode mask: what a child inherits silently.
//!
//! See [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html) and
//! [sched_setaffinity(2)](https://man7.org/linux/man-pages/man2/sched_setaffinity.2.html).

use std::fs;
use std::io::{self, Read as _};
use std::mem;

use nix::errno::Errno;

/// Soft and hard limit of each resource, by the kernel's number.
pub(crate) type Limits = [(u64, u64); N_RESOURCES];

/// Resources that the kernel knows (`RLIM_NLIMITS`).
pub(crate) const N_RESOURCES: usize = 16;

/// All limits of this process.
pub(crate) fn limits() -> io::Result<Limits> {
    let mut limits = [(0, 0); N_RESOURCES];
    for (resource, limit) in limits.iter_mut().enumerate() {
        *limit = limit_of(resource)?;
    }
    Ok(limits)
}

fn limit_of(resource: usize) -> io::Result<(u64, u64)> {
    // SAFETY: `rlimit64` is plain data, for which zeros are a value.
    let mut now: libc::rlimit64 = unsafe { mem::zeroed() };
    // SAFETY: `now` is writable and lives until the call returns.
    let result = unsafe { libc::getrlimit64(resource as _, &raw mut now) };
    Errno::result(result)?;
    Ok((now.rlim_cur, now.rlim_max))
}

/// Sets one limit of this process.
pub(crate) fn set_limit(resource: usize, (soft, hard): (u64, u64)) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is readable and lives until the call returns.
    let result = unsafe { libc::setrlimit64(resource as _, &raw const limit) };
    Errno::result(result)?;
    Ok(())
}

/// The stack size that the process' limit asks for; 8 MiB where there is no limit.
pub(crate) fn stack_size() -> usize {
    const DEFAULT: usize = 8 << 20;
    let soft = limit_of(libc::RLIMIT_STACK as usize).map_or(u64::MAX, |(soft, _)| soft);
    match usize::try_from(soft) {
        Ok(soft) if soft <= 1 << 32 => soft.max(64 << 10),
        _ => DEFAULT,
    }
}

/// Bit mask of the CPUs that a process may use; 1,024 CPUs.
pub(crate) type CpuMask = [u64; 16];

/// The CPUs that the process' first thread may use.
pub(crate) fn affinity() -> io::Result<CpuMask> {
    affinity_of(nix::unistd::Pid::this().as_raw())
}

/// Binds this thread, and those it creates from now on, to the CPUs in `mask`.
pub(crate) fn set_affinity(mask: &CpuMask) -> io::Result<()> {
    // SAFETY: `mask` is readable for its whole size and lives until the call returns.
    let result = unsafe {
        libc::sched_setaffinity(0, size_of::<CpuMask>(), std::ptr::from_ref(mask).cast())
    };
    Errno::result(result)?;
    Ok(())
}

/// The process' file mode mask, read without changing it.
pub(crate) fn umask() -> io::Result<u32> {
    // One read of a page gets it all; std's way to read a file of unknown size takes ten.
    let mut page = [0; 4096];
    let len = fs::File::open("/proc/self/status")?.read(&mut page)?;
    let status = String::from_utf8_lossy(&page[..len]);
    let octal = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    octal
        .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
        .ok_or_else(|| io::Error::other("the kernel tells no umask"))
}

/// Sets the file mode mask.
pub(crate) fn set_umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}

/// The CPUs that the calling thread may use.
pub(crate) fn own_affinity() -> io::Result<CpuMask> {
    affinity_of(0)
}

fn affinity_of(thread: libc::pid_t) -> io::Result<CpuMask> {
    let mut mask: CpuMask = [0; 16];
    let place = (&raw mut mask).cast();
    // SAFETY: `mask` is writable for its whole size and lives until the call returns.
    let result = unsafe { libc::sched_getaffinity(thread, size_of::<CpuMask>(), place) };
    Errno::result(result)?;
    Ok(mask)
}
