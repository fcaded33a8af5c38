//! The POSIX test suite pjdfstest, on an empty and on a populated lower.

use std::fs;
use std::process::Command;

use crate::support::{Fixture, require_all, run, sys, text, tool};

/// Users that every Debian system has; `naptime` is above the granularity of file times.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.02

[dummy_auth]
entries = [["daemon", "daemon"], ["bin", "bin"]]
"#;

/// The mountpoint has to be short: the suite makes sockets under long names in it, and binds them by
/// their whole paths, which may have 107 bytes.
fn suite(fixture: &Fixture) {
    let config = fixture.scratch().join("pjdfstest.toml");
    let elsewhere = fixture.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let secondary = format!("[features]\nsecondary_fs = {elsewhere:?}");
    fs::write(&config, CONFIG.replace("[features]", &secondary)).unwrap();
    let output = run(Command::new(tool("pjdfstest").unwrap())
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(&fixture.mnt)
        .env("NO_COLOR", "1")
        .current_dir("/"));
    let out = text(&output.stdout);
    let summary = out
        .lines()
        .rfind(|line| line.starts_with("Summary"))
        .unwrap_or_default();
    eprintln!("{summary}");
    let failed: Vec<_> = out.lines().filter(|line| line.contains("FAILED")).collect();
    assert!(
        output.status.success() && summary.contains(": 0 failed"),
        "{summary}\n{}\n{out}\n{}",
        failed.join("\n"),
        text(&output.stderr)
    );
}

#[test]
fn empty_lower() {
    if !require_all(&["root", "fuse", "pjdfstest"]) {
        return;
    }
    let mut fixture = Fixture::new("pjd0");
    fixture.lower();
    fixture.mount();
    suite(&fixture);
}

#[test]
fn populated_lower() {
    if !require_all(&["root", "fuse", "pjdfstest"]) {
        return;
    }
    let mut fixture = Fixture::new("pjd3");
    for layer in 0..3 {
        let lower = fixture.lower();
        for i in 0..50 {
            let dir = lower.join(format!("dir{}", (i + layer) % 20));
            fs::create_dir_all(&dir).unwrap();
            sys::make(dir.join(format!("file{i}")), b"content").unwrap();
        }
        sys::make(lower.join(format!(".wh.dir{layer}")), b"").unwrap();
    }
    fixture.mount();
    suite(&fixture);
}
