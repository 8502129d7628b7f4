//! Asks in a child for what the constructors made that stand behind the crate's own.

use tokio_multiprocess::{Process, StartMethod};

unsafe extern "C" {
    safe fn late_rs() -> u64;
    #[cfg(has_cxx)]
    safe fn late_cpp() -> u64;
}

fn made((): ()) -> (u64, u64) {
    #[cfg(not(has_cxx))]
    let late_cpp = || 43;
    (late_rs(), late_cpp())
}

fn main() {
    for method in [StartMethod::SPAWN, StartMethod::FORK_SERVER] {
        programs::block_on(async {
            let builder = Process::builder().start_method(method);
            let child = builder.start(made, ()).await.unwrap();
            assert_eq!(child.join().await.unwrap(), (42, 43));
        });
    }
    println!(
        "each has run once, {}",
        if cfg!(has_cxx) {
            "C++ too"
        } else {
            "no C++ here"
        }
    );
}
