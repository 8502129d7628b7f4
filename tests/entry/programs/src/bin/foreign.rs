//! Tries to start functions of a library that it loads.

use std::ffi::{CStr, CString};
use std::mem::transmute;

use programs::block_on;
use tokio_multiprocess::Process;

fn main() {
    let path = CString::new(std::env::args().nth(1).unwrap()).unwrap();
    // SAFETY: the path is a C string, and the library's constructors ask for nothing.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "the plugin does not load");
    let symbol = |name: &CStr| {
        // SAFETY: the library is loaded and stays so, and the name is a C string.
        let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
        assert!(!symbol.is_null(), "the plugin has no {name:?}");
        symbol
    };

    // SAFETY: the plugin was built by the same compiler with this signature.
    let its_function: fn() -> fn(u64) -> u64 = unsafe { transmute(symbol(c"plugins_function")) };
    let function = its_function();
    assert_eq!(function(3), 27);
    println!(
        "its function: {:?}",
        block_on(Process::start(function, 3)).unwrap_err()
    );

    // SAFETY: the plugin was built by the same compiler with this signature.
    let its_start: fn() -> String = unsafe { transmute(symbol(c"plugins_start")) };
    println!("its start: {}", its_start());

    block_on(programs::start_one());
    println!("our own function works");
}
