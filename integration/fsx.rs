//! The file system exerciser fsx: random changes of one file, each read compared with a model.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Fixture, require_all, run, sys, text, tool};

const OPERATIONS: &str = "4000";
const SIZE: usize = 1 << 18;

/// Everything at once; the file begins empty, as fsx truncates it.
const FILE: &str = r#"
flen = 262144
[weights]
close_open = 5
invalidate = 2
fsync = 1
fdatasync = 1
posix_fallocate = 5
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 10
"#;

/// The file keeps its length, and fsx opens it without truncating it.
const BLOCKS: &str = r#"
blockmode = true
[weights]
truncate = 0
invalidate = 2
fsync = 1
punch_hole = 5
sendfile = 5
copy_file_range = 10
"#;

fn exercise(fixture: &mut Fixture, file: &str, config: &str, seed: u32) {
    let path = fixture.at(file);
    exercise_file(fixture.scratch(), &path, config, seed);
    let before = fs::read(&path).unwrap();
    fixture.remount();
    assert!(
        fs::read(&path).unwrap() == before,
        "{file} is another one after the remount"
    );
}

fn exercise_file(scratch: &Path, path: &Path, config: &str, seed: u32) {
    let toml = scratch.join("fsx.toml");
    fs::write(&toml, config).unwrap();
    let seed = seed.to_string();
    let output = run(Command::new(tool("fsx").unwrap())
        .args(["-N", OPERATIONS, "-S", &seed, "-f"])
        .arg(&toml)
        .arg("-P")
        .arg(scratch)
        .arg(path));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "fsx -S {seed}: {}\n{said}",
        output.status
    );
}

/// A lower with a file of random-looking content, mounted.
fn fixture(name: &str) -> Option<Fixture> {
    fixture_with(name, &[])
}

fn fixture_with(name: &str, options: &[&str]) -> Option<Fixture> {
    if !require_all(&["root", "fuse", "fsx"]) {
        return None;
    }
    let mut fixture = Fixture::new(name);
    fixture.options = options.iter().map(ToString::to_string).collect();
    let content: Vec<u8> = (0..SIZE).map(|i| ((i * i) >> 7) as u8).collect();
    sys::make(fixture.lower().join("file"), &content).unwrap();
    fixture.mount();
    Some(fixture)
}

#[test]
fn born_in_the_upper() {
    let Some(mut fixture) = fixture("fsx-born") else {
        return;
    };
    for seed in [1, 2] {
        exercise(&mut fixture, "new", FILE, seed);
    }
}

#[test]
fn truncated_from_a_lower() {
    let Some(mut fixture) = fixture("fsx-truncated") else {
        return;
    };
    exercise(&mut fixture, "file", FILE, 3);
}

#[test]
fn copied_up_from_a_lower() {
    let Some(mut fixture) = fixture("fsx-copied") else {
        return;
    };
    // The mode first: the data then stays below until fsx opens the file.
    sys::chmod(fixture.at("file"), 0o600).unwrap();
    exercise(&mut fixture, "file", BLOCKS, 4);
}

/// Data that pass through the daemon, as they come and collected by the kernel.
#[test]
fn each_way_of_data() {
    for writeback in ["--writeback=off", "--writeback=on"] {
        let options = ["--passthrough=off", writeback];
        let Some(mut fixture) = fixture_with("fsx-ways", &options) else {
            return;
        };
        exercise(&mut fixture, "new", FILE, 5);
        sys::chmod(fixture.at("file"), 0o600).unwrap();
        exercise(&mut fixture, "file", BLOCKS, 6);
    }
}
