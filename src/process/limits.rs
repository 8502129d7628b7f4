//! Bounds on what a child may use.

/// Bounds on what one process may use, enforced by the kernel.
///
/// A bound holds for the process itself; what it starts inherits it. Without a bound the child has
/// this process' limits. See [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html).
///
/// # Examples
///
/// ```
/// use tokio_multiprocess::Limits;
///
/// let limits = Limits::new().address_space(1 << 30).open_files(256).no_new_privileges();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Limits {
    values: Vec<(u8, u64, u64)>,
    no_new_privileges: bool,
}

impl Limits {
    /// No bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of address space: an allocation beyond them fails, which aborts a Rust program.
    #[must_use]
    pub fn address_space(self, bytes: u64) -> Self {
        self.with(Resource::AddressSpace, bytes, bytes)
    }

    /// Seconds of CPU time, after which the process is ended by `SIGXCPU`, and a second later by
    /// `SIGKILL`.
    #[must_use]
    pub fn cpu_seconds(self, seconds: u64) -> Self {
        self.with(Resource::Cpu, seconds, seconds.saturating_add(1))
    }

    /// Open file descriptors.
    #[must_use]
    pub fn open_files(self, n_files: u64) -> Self {
        self.with(Resource::OpenFiles, n_files, n_files)
    }

    /// Bytes that the process may write to one file.
    #[must_use]
    pub fn file_size(self, bytes: u64) -> Self {
        self.with(Resource::FileSize, bytes, bytes)
    }

    /// Bytes of a core dump. With 0 a crash is noticed sooner, as no core is written.
    #[must_use]
    pub fn core_size(self, bytes: u64) -> Self {
        self.with(Resource::Core, bytes, bytes)
    }

    /// Bytes of stack for the thread that runs the function; 8 MiB is usual.
    #[must_use]
    pub fn stack_size(self, bytes: u64) -> Self {
        self.with(Resource::Stack, bytes, bytes)
    }

    /// Programs that the process runs gain no rights by set-uid or file capabilities.
    #[must_use]
    pub fn no_new_privileges(mut self) -> Self {
        self.no_new_privileges = true;
        self
    }

    fn with(mut self, resource: Resource, soft: u64, hard: u64) -> Self {
        let resource = resource as u8;
        self.values.retain(|(set, _, _)| *set != resource);
        self.values.push((resource, soft, hard));
        self
    }

    pub(super) fn values(&self) -> impl Iterator<Item = (u8, u64, u64)> {
        self.values.iter().copied()
    }

    pub(super) fn forbids_new_privileges(&self) -> bool {
        self.no_new_privileges
    }
}

/// The kernel's numbers, the same on x86-64 and aarch64.
#[derive(Clone, Copy)]
enum Resource {
    Cpu = 0,
    FileSize = 1,
    Stack = 3,
    Core = 4,
    OpenFiles = 7,
    AddressSpace = 9,
}
