//! A part of a test in a process of its own: what may hang is given up, and cleaned up after.

use std::any::Any;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Scratch, text};

const INPUT: &str = "CVMFS_UNION_TEST_INPUT";
const ANSWER: &str = "CVMFS_UNION_TEST_ANSWER";
const POLL: Duration = Duration::from_millis(10);
/// For what was killed to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How it went.
#[derive(Debug)]
pub enum Ended {
    /// With this answer.
    Answered(String),
    TimedOut,
    /// Without an answer; what it wrote.
    Died(String),
}

/// Runs `test` of this program, an ignored one, in a process. It finds the words by [`input`], and
/// answers by [`answer`]. `wrapper` is a command before the program, or nothing.
///
/// Whatever the process leaves of mounts and daemons in its scratch directory is removed.
pub fn in_a_process(test: &str, words: &[&str], wrapper: &[&str], limit: Duration) -> Ended {
    let scratch = Scratch::new("process");
    let (answer, output) = (scratch.path().join("answer"), scratch.path().join("output"));
    let file = fs::File::create(&output).unwrap();
    let program = std::env::current_exe().unwrap();
    let mut line: Vec<&std::ffi::OsStr> = wrapper.iter().map(std::ffi::OsStr::new).collect();
    line.push(program.as_os_str());
    let mut child = Command::new(line[0])
        .args(&line[1..])
        .args([
            test,
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(INPUT, words.join("\n"))
        .env(ANSWER, &answer)
        .env("CVMFS_UNION_TEST_DIR", scratch.path())
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("{line:?}: {e}"));
    let timed_out = !ends_within(&mut child, limit);
    clean_up(&mut child, scratch.path());
    if timed_out {
        return Ended::TimedOut;
    }
    match fs::read_to_string(&answer) {
        Ok(answer) => Ended::Answered(answer),
        Err(_) => Ended::Died(text(&fs::read(&output).unwrap_or_default())),
    }
}

/// What the process is to do; None if this is the test program that was started by hand.
pub fn input() -> Option<Vec<String>> {
    let words = std::env::var(INPUT).ok()?;
    Some(words.split('\n').map(str::to_owned).collect())
}

/// Tells what came of it.
pub fn answer(text: &str) {
    fs::write(std::env::var_os(ANSWER).unwrap(), text).unwrap();
}

/// The text of a panic, on one line.
pub fn message(cause: &(dyn Any + Send)) -> String {
    let text = cause
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("it panicked");
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    lines.join("; ")
}

fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Cuts off what is mounted below a directory, so that nobody waits for it; then ends the process
/// and the daemons whose arguments name the directory, which is no other test's.
fn clean_up(child: &mut Child, dir: &Path) {
    for mnt in mounts_below(dir) {
        // Aborts the connection of a FUSE mount; others answer that they do not know it.
        let _forced = umount2(&mnt, MntFlags::MNT_FORCE);
        let _detached = umount2(&mnt, MntFlags::MNT_DETACH);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = processes_of(dir);
        let running = child.try_wait().unwrap().is_none();
        if running {
            let _gone = child.kill();
        }
        for pid in &found {
            let _gone = kill(*pid, Signal::SIGKILL);
        }
        if found.is_empty() && !running {
            return;
        }
        if Instant::now() > deadline {
            eprintln!("still running: {found:?}");
            return;
        }
        std::thread::sleep(POLL);
    }
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<_> = paths
        .map(PathBuf::from)
        .filter(|mnt| mnt.starts_with(dir))
        .collect();
    found.reverse();
    found
}

/// Processes with the directory among their arguments.
fn processes_of(dir: &Path) -> Vec<Pid> {
    let wanted = dir.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if let Some(pid) = pid
            && text(&arguments).contains(wanted)
        {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}
