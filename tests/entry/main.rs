//! Whether a child finds its way in, however the program was built and whatever became of its file.
//!
//! The small programs in `programs/` are built by the cargo that runs these tests, without network:
//! they use nothing that the crate's own lock file does not name. They share one target directory,
//! and build scripts and macros are built once, since the flags of a [`Build`] are for the target
//! only. Tests may be threads or processes, so a lock on a file lets one build at a time.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::runtime::Builder;

/// How the programs are compiled.
#[derive(Clone, Copy)]
struct Build {
    name: &'static str,
    features: &'static str,
    rustflags: &'static str,
    /// Settings of cargo's profile.
    profile: &'static [&'static str],
}

const DEBUG: Build = Build {
    name: "debug",
    features: "auto-init",
    rustflags: "",
    profile: &[],
};

/// What inlines and folds functions as far as it goes.
const FAT_LTO: Build = Build {
    name: "fat-lto",
    profile: &[
        "opt-level=3",
        "lto='fat'",
        "codegen-units=1",
        "debug-assertions=false",
    ],
    ..DEBUG
};

const STATIC: Build = Build {
    name: "static",
    rustflags: "-Ctarget-feature=+crt-static",
    ..DEBUG
};

const NON_PIE: Build = Build {
    name: "non-pie",
    rustflags: "-Crelocation-model=static",
    ..DEBUG
};

const WITHOUT_HOOK: Build = Build {
    name: "without-hook",
    features: "",
    ..DEBUG
};

#[test]
fn every_kind_of_function_starts_in_a_debug_build() {
    assert_says(&run(&DEBUG.program("kinds"), &[]), "all kinds work");
}

#[test]
fn every_kind_of_function_starts_in_a_release_build_with_fat_lto() {
    assert_says(&run(&FAT_LTO.program("kinds"), &[]), "all kinds work");
}

#[test]
fn every_kind_of_function_starts_in_a_static_program() {
    assert_says(&run(&STATIC.program("kinds"), &[]), "all kinds work");
}

#[test]
fn every_kind_of_function_starts_in_a_program_that_cannot_be_moved() {
    assert_says(&run(&NON_PIE.program("kinds"), &[]), "all kinds work");
}

#[test]
fn without_the_hook_init_is_enough() {
    assert_says(&run(&WITHOUT_HOOK.program("kinds"), &[]), "all kinds work");
}

#[test]
fn init_beside_the_hook_does_no_harm() {
    assert_says(&run(&DEBUG.program("tokio_main"), &[]), "both came back");
}

#[test]
fn with_neither_hook_nor_init_a_start_fails_and_executes_nothing() {
    let output = run(&WITHOUT_HOOK.program("no_entry"), &[]);
    let expected = "main runs\nNotInitialized\nNotInitialized\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn a_function_of_another_image_is_refused() {
    let plugin = DEBUG.build("--example", "plugin", "examples/libplugin.so");
    let output = run(&DEBUG.program("foreign"), &[plugin.as_os_str()]);
    assert_says(&output, "its function: ForeignFunction");
    assert_says(&output, "its start: ForeignFunction");
    assert_says(&output, "our own function works");
}

#[test]
fn constructors_behind_ours_have_run_before_user_code() {
    let output = run(&DEBUG.program("constructors"), &[]);
    assert_says(&output, "each has run once");
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

/// Where a library starts threads before `main`, the default method falls back and says so once.
#[test]
fn a_program_that_cannot_be_copied_spawns_unless_told_to_fork() {
    let output = run(&DEBUG.program("threaded"), &[]);
    // Not the thread's name, which it gives to itself when it gets to run.
    assert_says(&output, "1 warning\nForkServerHasThreads { threads: [");
}

#[test]
fn a_program_whose_file_was_deleted_starts_children() {
    let program = another_name(&DEBUG.program("replaced"), "deleted");
    assert_says(&run(&program, &[]), "its children are what it was");
    assert!(!program.exists());
}

#[test]
fn a_program_whose_file_was_replaced_starts_children_of_what_it_was() {
    let program = another_name(&DEBUG.program("replaced"), "upgraded");
    let other = another_name(&DEBUG.program("tokio_main"), "upgrade");
    let output = run(&program, &[other.as_os_str()]);
    assert_says(&output, "its children are what it was");
    assert!(program.exists() && !other.exists());
}

/// Whoever may start a set-uid program chooses its environment and its fds, so neither may make it
/// run a place of his choice.
#[test]
fn a_set_uid_program_is_not_taken_over() {
    let program = DEBUG.program("marked");
    let output = run(&program, &[OsStr::new("tell")]);
    let output = String::from_utf8(output.stdout).unwrap();
    let markers = output
        .lines()
        .filter_map(|line| line.strip_prefix("marker "));
    let markers = markers.filter_map(|marker| marker.split_once('='));
    let markers = markers.collect::<Vec<_>>();
    assert!(!markers.is_empty(), "a child has no marker: {output}");
    // What a parent of ours would do. The other end of the socket is closed, so that a child
    // that waits for its orders ends.
    let pretend = |program: &Path| {
        let (_, socket) = UnixStream::pair().unwrap();
        let mut command = Command::new(program);
        command
            .envs(markers.iter().copied())
            .stdin(OwnedFd::from(socket));
        output_of(command)
    };

    // Without the bit it works, or the test would prove nothing.
    assert_eq!(String::from_utf8_lossy(&pretend(&program).stdout), "");

    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can make a program that is another user's");
        return;
    }
    // Copied by another process: a file that this one still had open for writing, in a child that
    // another test starts at this moment, could not be executed.
    let set_uid = program.with_file_name("set-uid");
    let copied = Command::new("cp").arg(&program).arg(&set_uid).status();
    assert!(copied.unwrap().success());
    let nobody = 65534;
    chown(&set_uid, Some(nobody), None).unwrap();
    fs::set_permissions(&set_uid, Permissions::from_mode(0o4755)).unwrap();
    assert_says(&pretend(&set_uid), "main runs");
    fs::remove_file(set_uid).unwrap();
}

#[test]
fn it_works_under_cargo_test_in_doctests_and_under_criterion() {
    let output = DEBUG.cargo("test", &[]);
    for test in [
        "a_unit_test_starts_a_process ... ok",
        "an_integration_test_starts_a_process ... ok",
        "src/lib.rs - (line 3) ... ok",
        "Testing start and join",
    ] {
        assert_says(&output, test);
    }
}

#[test]
fn it_works_under_nextest() {
    let nextest = Command::new(env!("CARGO"))
        .args(["nextest", "--version"])
        .output();
    if !nextest.is_ok_and(|output| output.status.success()) {
        println!("skipped: cargo has no nextest here");
        return;
    }
    DEBUG.cargo("nextest", &["run", "--lib", "--test", "starts"]);
}

impl Build {
    /// A program, built and ready to run.
    fn program(self, name: &str) -> PathBuf {
        self.build("--bin", name, name)
    }

    /// Builds one target, and gives it a name that no other build will use.
    fn build(self, kind: &str, target: &str, file: &str) -> PathBuf {
        let lock = one_at_a_time();
        self.run_cargo("build", &[kind, target]);
        let built = target_folder().join(host()).join("debug").join(file);
        let own = folder().join(self.name).join(target);
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        // A link, since a copy's file could be busy. Moved, since a program may be running that
        // bears the name already.
        let linked = own.with_extension("new");
        drop(fs::remove_file(&linked));
        fs::hard_link(built, &linked).unwrap();
        fs::rename(&linked, &own).unwrap();
        drop(fs::remove_file(linked)); // Still there if both were the same file.
        drop(lock);
        own
    }

    fn cargo(self, command: &str, arguments: &[&str]) -> Output {
        let _lock = one_at_a_time();
        self.run_cargo(command, arguments)
    }

    fn run_cargo(self, command: &str, arguments: &[&str]) -> Output {
        let manifest = unfold_programs();
        let mut cargo = Command::new(env!("CARGO"));
        for inherited in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "RUSTC_WRAPPER",
        ] {
            cargo.env_remove(inherited);
        }
        cargo.arg(command).args(arguments).arg("--offline");
        cargo.arg("--manifest-path").arg(manifest);
        cargo.arg("--target-dir").arg(target_folder());
        // Named, so that the flags are not for build scripts and macros.
        cargo.args(["--target", host(), "--features", self.features]);
        for setting in self.profile {
            cargo.args(["--config", &format!("profile.dev.{setting}")]);
        }
        cargo.env("RUSTFLAGS", self.rustflags);
        let output = output_of(cargo);
        assert!(
            output.status.success(),
            "cargo {command} for {}: {}",
            self.name,
            text(&output)
        );
        output
    }
}

/// Lays the programs out in the target directory, beside a copy of the crate's lock file, so that
/// building them writes nothing into the sources.
fn unfold_programs() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = folder().join("programs");
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let sources = root.join("tests/entry/programs").join(&folder);
        fs::create_dir_all(programs.join(&folder)).unwrap();
        for entry in fs::read_dir(sources).unwrap() {
            let entry = entry.unwrap();
            let name = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(name);
            } else if name != Path::new("Cargo.lock") {
                write_if_new(
                    &programs.join(&name),
                    &fs::read_to_string(entry.path()).unwrap(),
                );
            }
        }
    }
    let manifest = programs.join("Cargo.toml");
    let text = fs::read_to_string(root.join("tests/entry/programs/Cargo.toml")).unwrap();
    let text = text.replace("\"../../..\"", &format!("{root:?}"));
    write_if_new(&manifest, &text);
    // Cargo drops from it what the programs do not need.
    fs::copy(root.join("Cargo.lock"), programs.join("Cargo.lock")).unwrap();
    manifest
}

fn one_at_a_time() -> Flock<File> {
    fs::create_dir_all(folder()).unwrap();
    let file = File::create(folder().join("lock")).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).unwrap()
}

fn write_if_new(path: &Path, text: &str) {
    // Unchanged files keep their age, so that cargo has nothing to do.
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::write(path, text).unwrap();
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("entry")
}

fn target_folder() -> PathBuf {
    folder().join("target")
}

/// The target that this toolchain builds for unless told otherwise.
fn host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc).arg("-vV").output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let mut lines = output.lines();
        let host = lines.find_map(|line| line.strip_prefix("host: "));
        host.unwrap().to_owned()
    })
}

/// A second name for a program, which a test may do with as it likes.
fn another_name(program: &Path, name: &str) -> PathBuf {
    let other = program.with_file_name(name);
    drop(fs::remove_file(&other));
    fs::hard_link(program, &other).unwrap();
    other
}

fn run(program: &Path, arguments: &[&OsStr]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = output_of(command);
    assert!(output.status.success(), "{program:?}: {}", text(&output));
    output
}

/// Runs a command to its end, which must come before the longest build could take.
fn output_of(command: Command) -> Output {
    let name = command.get_program().to_owned();
    let mut command = tokio::process::Command::from(command);
    let in_time = async {
        let output = command.kill_on_drop(true).output();
        tokio::time::timeout(Duration::from_secs(900), output).await
    };
    let runtime = Builder::new_current_thread().enable_all().build();
    match runtime.unwrap().block_on(in_time) {
        Ok(output) => output.unwrap(),
        Err(_) => panic!("{name:?} does not end"),
    }
}

fn text(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    format!("{}\n{stdout}{stderr}", output.status)
}

#[track_caller]
fn assert_says(output: &Output, expected: &str) {
    assert!(
        text(output).contains(expected),
        "no `{expected}`: {}",
        text(output)
    );
}
