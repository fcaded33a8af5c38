//! The process behind a mount, and its death.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill as kill_with};
use nix::unistd::Pid;

use super::sys::{self, Errno};
use super::{Fixture, run, text};

/// How long what must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// The process that serves a mountpoint.
pub fn of(mnt: &Path) -> i32 {
    with_argument(mnt)
}

/// The process of ours that mounts, or serves what is mounted, with this path among its arguments.
pub fn with_argument(path: &Path) -> i32 {
    for entry in fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let line = text(&fs::read(entry.path().join("cmdline")).unwrap_or_default());
        let args: Vec<_> = line.split('\0').collect();
        if args.contains(&"mount") && args.iter().any(|arg| Path::new(arg) == path) {
            return pid;
        }
    }
    panic!("no process serves {}", path.display());
}

/// What the kernel has counted of the daemon's reading and writing, by a word of `/proc/PID/io`. Each
/// answer of its is one write.
pub fn io(mnt: &Path, word: &str) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", of(mnt))).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap().trim_matches([':', ' ']).parse().unwrap()
}

pub fn signal(pid: i32, signal: i32) {
    let signal = Signal::try_from(signal).unwrap();
    assert_eq!(kill_with(Pid::from_raw(pid), signal), Ok(()), "{signal}");
}

/// Waits until it is so.
pub fn wait(otherwise: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{otherwise}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process has come to a stop, each of its threads.
pub fn is_stopped(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    })
}

/// Waits for the end of a process that is not our child.
pub fn wait_for_end(pid: i32) {
    wait("the daemon does not end", || {
        kill_with(Pid::from_raw(pid), None).is_err()
    });
}

/// Kills the daemon of a mount, and waits until the mount is dead.
pub fn kill(mnt: &Path) {
    kill_process(of(mnt), mnt);
}

/// The same, without looking for it: it dies at once.
pub fn kill_process(pid: i32, mnt: &Path) {
    signal(pid, libc::SIGKILL);
    wait("the mount outlives its daemon", || {
        sys::lstat(mnt).err() == Some(Errno::ENOTCONN)
    });
}

/// Starts the program with the descriptor inherited, and lets go of it here.
pub fn serve(fixture: &Fixture, device: OwnedFd) -> Output {
    let fd = device.as_raw_fd();
    let mut command = fixture.mount_command();
    command.arg(format!("/dev/fd/{fd}"));
    // In the child only, so that no other test's child inherits the descriptor too.
    let inherit = move || {
        fcntl(&device, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: only a system call is made between fork and exec.
    unsafe { command.pre_exec(inherit) };
    run(&mut command)
}
