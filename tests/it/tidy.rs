//! The few rules of the source tree that the compiler does not keep.
//!
//! Each test reads the files as text and fails with the place of every offence. Comments and
//! docs are cut off first where a rule speaks of code: a page may link to whatever it likes.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, bottom to top. A file may use what stands before its own layer in this list.
const LAYERS: [&str; 13] = [
    "error",
    "sys",
    "wire",
    "fd",
    "supervisor",
    "broker",
    "process",
    "sync",
    "shared",
    "pipe",
    "queue",
    "pool",
    "cluster",
];

/// The one file that knows the codec, so that changing it changes one file.
const CODEC: &str = "src/wire/codec.rs";

/// Where unsafe code and raw system calls live: a kernel object a file, and the one file that
/// turns a place in the image back into a function.
const UNSAFE: [&str; 2] = ["src/sys/", "src/process/function.rs"];

#[test]
fn a_layer_uses_only_the_layers_below_it() {
    let mut offences = Vec::new();
    for file in sources("src") {
        let Some(own) = layer_of(&file.path) else {
            continue;
        };
        for (line, code) in file.code() {
            for used in layers_named(code) {
                if used > own {
                    offences.push(format!(
                        "{}:{line}: `{}` uses `{}`, which stands above it",
                        file.path, LAYERS[own], LAYERS[used],
                    ));
                }
            }
        }
    }
    assert_none(offences);
}

/// A re-export at the crate's root hides which layer a name is from, so only users go that way.
#[test]
fn a_file_names_what_it_uses_where_it_lives() {
    let mut offences = Vec::new();
    for file in sources("src") {
        if layer_of(&file.path).is_none() {
            continue;
        }
        for (line, code) in file.code() {
            let from_root = code.split("crate::").skip(1);
            let mut first_letters = from_root.filter_map(|rest| rest.chars().next());
            if first_letters.any(|letter| letter.is_uppercase() || letter == '*') {
                offences.push(format!("{}:{line}: {}", file.path, code.trim()));
            }
        }
    }
    assert_none(offences);
}

#[test]
fn every_source_file_belongs_to_a_layer() {
    let outside = |file: &Source| layer_of(&file.path).is_none();
    let strays = sources("src").into_iter().filter(outside);
    let strays = strays.map(|file| file.path);
    assert_eq!(
        strays.collect::<Vec<_>>(),
        ["src/docs/mod.rs", "src/lib.rs"]
    );
}

#[test]
fn every_file_says_first_what_it_is() {
    let silent = |file: &Source| !file.text.starts_with("//! ");
    let files = ["src", "tests", "examples", "benches"].into_iter();
    let offences = files.flat_map(sources).filter(silent);
    assert_none(offences.map(|file| file.path).collect());
}

#[test]
fn every_example_says_how_to_run_it() {
    for file in sources("examples") {
        let name = Path::new(&file.path).file_stem().unwrap().to_str().unwrap();
        let head = file.text.lines().take(4).collect::<Vec<_>>().join("\n");
        let command = format!("--example {name}");
        assert!(head.contains(&command), "{}: `{command}`", file.path);
    }
}

#[test]
fn every_public_async_function_tells_its_cancel_safety() {
    let mut offences = Vec::new();
    for file in sources("src") {
        let lines = file.text.lines().collect::<Vec<_>>();
        for (idx, line) in lines.iter().enumerate() {
            let signature = line.trim_start();
            let is_async = signature.starts_with("pub async fn")
                || signature.starts_with("pub unsafe async fn")
                || signature.starts_with("pub async unsafe fn");
            if is_async && !docs_above(&lines[..idx]).contains("# Cancel safety") {
                offences.push(format!("{}:{}: {signature}", file.path, idx + 1));
            }
        }
    }
    assert_none(offences);
}

#[test]
fn the_codec_is_named_in_one_file() {
    let names_it = |file: &&Source| file.code().any(|(_, code)| code.contains("bincode"));
    let sources = sources("src");
    let files = sources.iter().filter(names_it).map(|file| &file.path);
    assert_eq!(files.collect::<Vec<_>>(), [CODEC]);
}

#[test]
fn unsafe_code_and_system_calls_stay_where_they_live() {
    let mut offences = Vec::new();
    for file in sources("src") {
        if UNSAFE.iter().any(|home| file.path.starts_with(home)) {
            continue;
        }
        for (line, code) in file.code() {
            // A public `unsafe fn` only states a contract; its body may do nothing unsafe itself.
            let words = ["unsafe {", "unsafe impl", "unsafe extern", "unsafe("];
            let mut names = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            let calls = names.any(|name| name == "libc" || name == "nix");
            if calls || words.iter().any(|word| code.contains(word)) {
                offences.push(format!("{}:{line}: {}", file.path, code.trim()));
            }
        }
    }
    assert_none(offences);
}

#[test]
fn this_version_stands_in_the_changelog() {
    let changelog = read("CHANGELOG.md");
    let version = concat!("## ", env!("CARGO_PKG_VERSION"));
    let has = |heading: &str| changelog.lines().any(|line| line.starts_with(heading));
    assert!(has("## Unreleased"), "CHANGELOG.md has no `## Unreleased`");
    assert!(has(version), "CHANGELOG.md has no `{version}`");
}

#[test]
fn the_readme_tells_the_minimum_rust_version() {
    let version = concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"));
    assert!(
        read("README.md").contains(version),
        "README.md lacks `{version}`"
    );
}

#[test]
fn ci_runs_the_readmes_test_command() {
    let readme = read("README.md");
    let mut commands = readme.lines().filter(|line| line.starts_with("cargo "));
    let test = commands.find(|command| command.starts_with("cargo test"));
    let step = format!("step {}", test.expect("README.md names a test command"));
    assert!(
        read(".ci/run").lines().any(|line| line == step),
        ".ci/run lacks `{step}`",
    );
}

/// One file of the crate: where it is, relative to the root, and what stands in it.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines, numbered, without what stands behind `//`: good enough for our own files, where
    /// no string holds two slashes before something that these rules look for.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let cut = |line| str::split(line, "//").next().unwrap_or_default();
        (1..).zip(self.text.lines().map(cut))
    }
}

/// All Rust files under a folder of the crate, in a fixed order. Folders that are crates of their
/// own are left out.
fn sources(folder: &str) -> Vec<Source> {
    let mut folders = vec![root().join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() || folder.join("Cargo.toml").exists() {
            continue;
        }
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root()).unwrap().to_str().unwrap();
                let text = fs::read_to_string(&path).unwrap();
                sources.push(Source {
                    path: relative.to_owned(),
                    text,
                });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn layer_of(path: &str) -> Option<usize> {
    let inside = path.strip_prefix("src/")?;
    let name = inside.split(['/', '.']).next()?;
    LAYERS.iter().position(|layer| *layer == name)
}

/// The layers that a line of code names by `crate::layer` or in `use crate::{layer, ..}`.
fn layers_named(code: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let names = match rest.strip_prefix('{') {
            Some(group) => group.split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for name in names {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            let name = &name[..end.unwrap_or(name.len())];
            found.extend(LAYERS.iter().position(|layer| *layer == name));
        }
    }
    found
}

/// The doc comment that ends right above, over attributes.
fn docs_above(lines: &[&str]) -> String {
    let lines = lines.iter().rev().map(|line| line.trim_start());
    let of_the_item = |line: &&str| line.starts_with("///") || line.starts_with("#[");
    lines.take_while(of_the_item).collect::<Vec<_>>().join("\n")
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn assert_none(offences: Vec<String>) {
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}
