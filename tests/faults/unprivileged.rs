//! The same for an ordinary user: `user.` marks, no chown, rights lifted for a moment.

use std::env;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::{is_root, temp_dir};

const NOBODY: u32 = 65534;

/// For root: a user's own test runs are as here.
#[test]
fn the_same_without_privileges() {
    let one_in = super::one_in_for_others().to_string();
    play_as_nobody(&[(super::ONE_IN, &one_in)]);
}

/// The retry opened the read-only marker for writing: EACCES.
#[test]
fn a_whiteout_file_that_a_crash_has_left_is_found_again() {
    let scenario = "unlink of the upper, over a layer";
    play_as_nobody(&[
        ("CVMFS_UNION_SCENARIO", scenario),
        ("CVMFS_UNION_FAULTS", "all"),
    ]);
}

fn play_as_nobody(settings: &[(&str, &str)]) {
    if !is_root() {
        return;
    }
    // Where everybody may run a program and make files.
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("tests");
    // Not by this process: a child that another test forks meanwhile has it open for writing, and it does not start.
    let copied = Command::new("cp")
        .arg(env::current_exe().unwrap())
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    let place = temp_dir();
    std::os::unix::fs::chown(place.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut program = Command::new(&program);
    program
        .args([
            "faults::calls",
            "faults::crashes",
            "faults::opening",
            "--nocapture",
        ])
        .env("CVMFS_UNION_TEST_DIR", place.path())
        .envs(settings.iter().copied())
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY);
    let ran = program.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let counts = said
        .lines()
        .filter(|l| l.contains("injected") || l.contains("crash points"));
    for line in counts {
        println!("without privileges: {}", line.trim_start_matches("test "));
    }
    let cried = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{}\n{said}{cried}", ran.status);
}
