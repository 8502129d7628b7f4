//! Puts constructors behind everything else in the program `constructors`, as a native library
//! that its user links would.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_cxx)");
    println!("cargo::rerun-if-changed=late.rs");
    println!("cargo::rerun-if-changed=late.cpp");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());

    let mut rustc = Command::new(env::var_os("RUSTC").unwrap());
    rustc.args([
        "--edition=2024",
        "--crate-type=lib",
        "--emit=obj",
        "-Cpanic=abort",
    ]);
    link(rustc.arg("late.rs"), out.join("late_rs.o"));

    if Command::new("g++").arg("--version").output().is_ok() {
        println!("cargo::rustc-cfg=has_cxx");
        link(
            Command::new("g++").args(["-c", "late.cpp"]),
            out.join("late_cpp.o"),
        );
    }
}

fn link(compiler: &mut Command, object: PathBuf) {
    assert!(compiler.arg("-o").arg(&object).status().unwrap().success());
    println!(
        "cargo::rustc-link-arg-bin=constructors={}",
        object.display()
    );
}
