//! The program as a child of the test, in the foreground: its log, its memory and how it ends.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};

use super::deadline::threads;
use super::{Fixture, Mounted, PROGRAM, System, sys, text, umount, wait_for_namespaces};

/// How long a program may take to mount, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon in the foreground. When it goes without [`Daemon::end`], it is detached.
pub struct Daemon {
    system: System,
    child: Option<Child>,
    mnt: PathBuf,
    log: PathBuf,
}

/// What is known of a program that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// The most memory it was seen with, in bytes.
    pub memory: u64,
    pub log: String,
}

impl Daemon {
    pub fn mount(f: &Fixture) -> Daemon {
        Self::of(f.mount_command().arg("--foreground").arg(&f.mnt), &f.mnt)
    }

    /// Runs a command that mounts in the foreground, until the mount is there.
    pub fn of(command: &mut Command, mnt: &Path) -> Daemon {
        Self::on(System::Ours, command, mnt)
    }

    /// The same for any union with a daemon.
    pub fn on(system: System, command: &mut Command, mnt: &Path) -> Daemon {
        let log = mnt.with_extension("log");
        let before = sys::stat(mnt).unwrap().st_dev;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut daemon = Daemon {
            system,
            child: Some(child),
            mnt: mnt.to_owned(),
            log,
        };
        let deadline = Instant::now() + PATIENCE;
        while sys::stat(mnt).map(|s| s.st_dev) == Ok(before) {
            let ended = daemon.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no mount ({ended:?}): {}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        text(&fs::read(&self.log).unwrap())
    }

    /// Its memory now, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib * 1024
    }

    /// Unmounts, and waits for its end, which is an orderly one.
    pub fn end(mut self) -> Ended {
        let peak = memory(self.pid(), "VmHWM:").unwrap();
        umount(self.system, &self.mnt).unwrap();
        // In a namespace that another test has made it goes on.
        wait_for_namespaces(&self.mnt);
        let mut ended = wait(self.child.take().unwrap(), &self.log);
        ended.memory = ended.memory.max(peak);
        assert!(ended.status.success(), "the daemon: {ended:?}");
        assert!(!ended.log.contains("panic"), "{}", ended.log);
        ended
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            eprintln!("the daemon said:\n{}", self.log());
            drop(Mounted(self.mnt.clone()));
            let ended = child.kill().and_then(|()| child.wait());
            eprintln!("the daemon was ended: {ended:?}");
        }
    }
}

/// Runs the program to its end, which has to come in time and with no more than so much memory.
pub fn run_bounded(args: &[&dyn AsRef<OsStr>], log: &Path, most: u64) -> Ended {
    let limit = move || Ok(setrlimit(Resource::RLIMIT_AS, most, most)?);
    let mut command = Command::new(PROGRAM);
    command
        .args(args.iter().map(|arg| arg.as_ref()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(log).unwrap());
    // SAFETY: only a system call is made between fork and exec.
    unsafe { command.pre_exec(limit) };
    wait(command.spawn().unwrap(), log)
}

/// A line of the status of a process, in bytes; None if it has ended.
fn memory(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    Some(kib * 1024)
}

fn wait(mut child: Child, log: &Path) -> Ended {
    let deadline = Instant::now() + PATIENCE;
    let mut peak = 0;
    loop {
        peak = memory(child.id(), "VmHWM:").unwrap_or(0).max(peak);
        if let Some(status) = child.try_wait().unwrap() {
            let log = text(&fs::read(log).unwrap());
            return Ended {
                status,
                memory: peak,
                log,
            };
        }
        if Instant::now() > deadline {
            let state = threads(child.id());
            let ended = child.kill().and_then(|()| child.wait());
            let log = text(&fs::read(log).unwrap());
            panic!("not ended in {PATIENCE:?} ({ended:?}): {log}\n{state}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
