//! Taking a process over before its `main`.
//!
//! The linker collects pointers in `.init_array`, and the C library calls them in order before
//! `main`. Ours runs when it is its turn; those that the linker placed behind it, C++ statics for
//! example, are called by us when the process turns out to be a child, since it never comes back.
//! See the [generic ABI](https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.dynamic.html#init_fini).

use std::ptr;

/// Registers a function to be called before `main`.
#[cfg(feature = "auto-init")]
macro_rules! before_main {
    ($name:ident, $function:path) => {
        #[used]
        #[expect(
            unsafe_code,
            reason = "the section's duty, one pointer to an init function, is met"
        )]
        #[unsafe(link_section = ".init_array")]
        static $name: extern "C" fn() = $function;
    };
}
#[cfg(feature = "auto-init")]
pub(crate) use before_main;

core::arch::global_asm!(
    // Weak, so that a shared library, where the linker has no such place, links all the same.
    ".weak __init_array_end",
    ".hidden __init_array_end",
    ".pushsection .data.rel.ro.tokio_multiprocess,\"aw\",@progbits",
    ".balign 8",
    ".globl __tokio_multiprocess_0_1_init_array_end",
    ".hidden __tokio_multiprocess_0_1_init_array_end",
    "__tokio_multiprocess_0_1_init_array_end:",
    ".8byte __init_array_end",
    ".popsection",
);

unsafe extern "C" {
    /// Where the program's init functions end; null in a shared library.
    #[link_name = "__tokio_multiprocess_0_1_init_array_end"]
    static INIT_ARRAY_END: *const Option<InitFunction>;
}

type InitFunction =
    extern "C" fn(libc::c_int, *const *const libc::c_char, *const *const libc::c_char);

/// Calls the init functions that the linker placed behind `own`.
pub(crate) fn run_later_init_functions(own: &'static extern "C" fn()) {
    // SAFETY: the symbol is defined above, and never written.
    let end = unsafe { INIT_ARRAY_END };
    if end.is_null() {
        return;
    }
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    // The C library passes argc, argv and environ. The arguments are kept alive for good, as those
    // functions may keep them.
    let arguments: Vec<_> = std::env::args_os()
        .map(|argument| std::ffi::CString::new(argument.into_encoded_bytes()).unwrap_or_default())
        .map(|argument| argument.into_raw().cast_const())
        .chain([ptr::null()])
        .collect();
    let arguments: &'static [_] = arguments.leak();
    let count = libc::c_int::try_from(arguments.len() - 1).unwrap_or(libc::c_int::MAX);
    let mut next = ptr::from_ref(own)
        .cast::<Option<InitFunction>>()
        .wrapping_add(1);
    while next < end {
        // SAFETY: the linker fills the section between `own` and `end` with such pointers or nulls.
        let function = unsafe { next.read() };
        // SAFETY: the C library's own variable.
        let environment = unsafe { environ };
        if let Some(function) = function {
            function(count, arguments.as_ptr(), environment);
        }
        next = next.wrapping_add(1);
    }
}
