//! The program's main image: what lies in its executable segments, and which file it is.
//!
//! See [dl_iterate_phdr(3)](https://man7.org/linux/man-pages/man3/dl_iterate_phdr.3.html), whose
//! first object is the main program, also in static executables.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

/// Tells whether `address` lies in an executable segment of the main image.
pub(crate) fn is_code(address: usize) -> bool {
    any_segment(&|segment| segment.executable && segment.contains(address))
}

/// Tells whether `address` lies in the main image.
pub(crate) fn contains(address: usize) -> bool {
    any_segment(&|segment| segment.contains(address))
}

struct Segment {
    start: usize,
    len: usize,
    executable: bool,
}

impl Segment {
    fn contains(&self, address: usize) -> bool {
        address
            .checked_sub(self.start)
            .is_some_and(|offset| offset < self.len)
    }
}

type Predicate<'a> = &'a dyn Fn(&Segment) -> bool;

struct Query<'a> {
    predicate: Predicate<'a>,
    found: bool,
}

fn any_segment(predicate: Predicate<'_>) -> bool {
    let mut query = Query {
        predicate,
        found: false,
    };
    // SAFETY: `look` is called before this call returns, with `query` as its data, which lives.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut query).cast()) };
    query.found
}

/// Looks at the first object and ends the walk.
unsafe extern "C" fn look(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    query: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: `any_segment` passes a `Query` that outlives the walk and is used by nobody else.
    let query = unsafe { &mut *query.cast::<Query<'_>>() };
    // SAFETY: the C library passes a filled structure that lives until this function returns.
    let info = unsafe { &*info };
    for i in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: there are `dlpi_phnum` headers from `dlpi_phdr` on.
        let header = unsafe { info.dlpi_phdr.add(i) };
        // SAFETY: as above; the headers are mapped and never written.
        let header = unsafe { &*header };
        if header.p_type == libc::PT_LOAD {
            let segment = Segment {
                start: (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize),
                len: header.p_memsz as usize,
                executable: header.p_flags & libc::PF_X != 0,
            };
            query.found |= (query.predicate)(&segment);
        }
    }
    1
}

/// Which file the program runs from, as the kernel sees it: the same after an upgrade in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageId {
    device: u64,
    inode: u64,
    size: u64,
}

impl ImageId {
    /// The identity of this process' image.
    pub(crate) fn current() -> io::Result<Self> {
        static CURRENT: OnceLock<ImageId> = OnceLock::new();
        if let Some(id) = CURRENT.get() {
            return Ok(*id);
        }
        let file = std::fs::metadata(EXECUTABLE)?;
        let id = Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.len(),
        };
        Ok(*CURRENT.get_or_init(|| id))
    }

    /// For the wire.
    pub(crate) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.device.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.inode.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }
}

/// The running program, whatever has happened to its name since.
pub(crate) const EXECUTABLE: &str = "/proc/self/exe";

/// Tells whether the program was started with more rights than its caller has (`AT_SECURE`).
pub(crate) fn runs_with_raised_rights() -> bool {
    // SAFETY: takes a number and reads what the kernel left for this process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_of_the_program_is_code_and_data_or_the_c_library_are_not() {
        static DATA: u8 = 0;
        let own: fn() = a_function_of_the_program_is_code_and_data_or_the_c_library_are_not;
        let foreign: unsafe extern "C" fn() -> libc::pid_t = libc::getpid;

        assert!(is_code(own as usize));
        assert!(!is_code(&raw const DATA as usize));
        assert!(contains(&raw const DATA as usize));
        assert!(cfg!(target_feature = "crt-static") || !contains(foreign as usize));
    }
}
