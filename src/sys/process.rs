//! What a daemon needs of its process: a fork that reports back, signals, limits, the user it is.
//!
//! [`fork`] must be called while the process has one thread. The parent waits for one report: `ok`,
//! or an exit code and a message. A child that dies without a report is a failure with its cause.

#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{self, ForkResult, Pid};

/// The two processes after [`fork`].
pub enum Side {
    /// The process that called, to wait for the daemon.
    Parent(Child),
    /// The daemon, to report once.
    Child(Reporter),
}

/// The parent's view of the daemon that starts.
pub struct Child {
    pid: Pid,
    pipe: PipeReader,
}

/// The daemon's line to its waiting parent.
pub struct Reporter(PipeWriter);

/// What the daemon said.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// The mount can be used.
    Ready,
    /// No mount is served.
    Failed {
        /// The exit code for the parent; 1 if the daemon died without a word.
        code: u8,
        /// For people, without the program's name.
        message: String,
    },
}

/// Forks; the child is in a session of its own.
pub fn fork() -> io::Result<Side> {
    let side = fork_within()?;
    if let Side::Child(_) = side {
        unistd::setsid()?;
    }
    Ok(side)
}

/// Forks; the child is in the session and process group of its parent.
pub fn fork_within() -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: the process has one thread (the caller's duty, stated above), so that no lock can be
    // held by another thread at the time of the fork and the child may go on as usual.
    match unsafe { unistd::fork() }? {
        ForkResult::Parent { child } => {
            drop(writer);
            Ok(Side::Parent(Child {
                pid: child,
                pipe: reader,
            }))
        }
        ForkResult::Child => {
            drop(reader);
            Ok(Side::Child(Reporter(writer)))
        }
    }
}

impl Child {
    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the report, or for the death of the daemon.
    pub fn wait(mut self) -> io::Result<Report> {
        let mut text = Vec::new();
        self.pipe.read_to_end(&mut text)?;
        if let Some(report) = decode(&String::from_utf8_lossy(&text)) {
            return Ok(report);
        }
        let cause = match waitpid(self.pid, None)? {
            WaitStatus::Exited(_, code) => format!("the daemon exited with code {code}"),
            WaitStatus::Signaled(_, signal, _) => format!("the daemon was killed by {signal}"),
            other => format!("the daemon is gone: {other:?}"),
        };
        Ok(Report::Failed {
            code: 1,
            message: format!("{cause} before the mount was ready"),
        })
    }
}

impl Reporter {
    /// Sends the one report; an error means that nobody waits any more.
    pub fn send(mut self, report: &Report) -> io::Result<()> {
        self.0.write_all(encode(report).as_bytes())
    }
}

fn encode(report: &Report) -> String {
    match report {
        Report::Ready => "ok\n".to_owned(),
        Report::Failed { code, message } => format!("{code} {message}\n"),
    }
}

fn decode(text: &str) -> Option<Report> {
    let text = text.strip_suffix('\n')?;
    if text == "ok" {
        return Some(Report::Ready);
    }
    let (code, message) = text.split_once(' ')?;
    Some(Report::Failed {
        code: code.parse().ok()?,
        message: message.to_owned(),
    })
}

/// Lets go of the caller's terminal and pipes.
pub fn silence_stdio() -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    unistd::dup2_stderr(&null)?;
    Ok(())
}

/// This process.
pub fn id() -> Pid {
    Pid::this()
}

/// Lets a signal come when the parent has ended, at once if it has already.
pub fn end_with(parent: Pid, signal: Signal) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(signal)?;
    if unistd::getppid() != parent {
        nix::sys::signal::raise(signal)?;
    }
    Ok(())
}

/// The signals that ask the daemon to end, blocked in this thread and in those it will start.
pub fn block_termination() -> io::Result<SigSet> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.add(Signal::SIGHUP);
    set.thread_block()?;
    Ok(set)
}

/// Raises the limit of open files as far as it goes.
pub fn raise_open_files() -> io::Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// Makes room in the kernel's table for so many open files. Where several threads use the table the kernel waits for milliseconds each time
/// that it makes a larger one (fs/file.c: `expand_fdtable`); so this is to be called while there is one.
pub fn make_room_for_files(open_files: u64) -> io::Result<()> {
    let (some, _) = io::pipe()?;
    let highest = i32::try_from(open_files.saturating_sub(1)).unwrap_or(i32::MAX);
    let fd = fcntl(&some, FcntlArg::F_DUPFD_CLOEXEC(highest))?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// How often the calling thread has given up the processor because it had to wait.
pub fn waits_of_thread() -> u64 {
    let used = getrusage(UsageWho::RUSAGE_THREAD);
    used.map_or(0, |used| {
        u64::try_from(used.voluntary_context_switches()).unwrap_or(0)
    })
}

/// The effective user.
pub fn user() -> u32 {
    unistd::geteuid().as_raw()
}

/// The effective group.
pub fn group() -> u32 {
    unistd::getegid().as_raw()
}

/// Becomes this user for good, in the group of the same number and no other.
pub fn become_user(id: u32) -> io::Result<()> {
    let (user, group) = (unistd::Uid::from_raw(id), unistd::Gid::from_raw(id));
    unistd::setgroups(&[])?;
    unistd::setresgid(group, group, group)?;
    Ok(unistd::setresuid(user, user, user)?)
}

/// Allocations from `mapped` bytes on become mappings of their own, for ever: left alone, glibc raises
/// that limit when one is freed. At most `heaps` heaps serve the threads.
pub fn limit_heap(mapped: i32, heaps: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: only the settings of the allocator are changed.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, mapped);
        libc::mallopt(libc::M_TRIM_THRESHOLD, mapped);
        libc::mallopt(libc::M_ARENA_MAX, heaps);
    }
    #[cfg(not(target_env = "gnu"))]
    let _unused = (mapped, heaps);
}

/// Gives the pages of the heap that hold nothing back to the system.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether the effective user is 0, here or in a user namespace.
pub fn is_root() -> bool {
    unistd::geteuid().is_root()
}

/// Whether the user is root of the machine, not only of a user namespace.
pub fn is_initial_root() -> bool {
    is_root() && is_initial()
}

/// Whether all users have here the numbers that they have on the machine.
pub fn is_initial() -> bool {
    users_map().is_ok_and(|map| is_identity_map(&map))
}

/// The number of the effective user where the user namespace was made; the same as [`user`] outside of one.
pub fn user_outside() -> u32 {
    let map = users_map().unwrap_or_default();
    outside(&map, user()).unwrap_or_else(user)
}

fn users_map() -> io::Result<String> {
    fs::read_to_string("/proc/self/uid_map")
}

fn is_identity_map(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// By a map of user_namespaces(7): a line is the first number inside, that outside, and how many they are.
fn outside(map: &str, user: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let (inside, outside): (u32, u32) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let count: u32 = numbers.next()?.ok()?;
        let at = user.checked_sub(inside).filter(|at| *at < count)?;
        outside.checked_add(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_by_a_map() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        for (inside, expected) in [
            (0, Some(1000)),
            (1, Some(100_000)),
            (65_536, Some(165_535)),
            (65_537, None),
        ] {
            assert_eq!(outside(map, inside), expected, "{inside}");
        }
        assert_eq!(outside("0 0 4294967295", 7), Some(7));
    }

    #[test]
    fn reports_survive_the_pipe() {
        for report in [
            Report::Ready,
            Report::Failed {
                code: 4,
                message: "two\nlines of it".to_owned(),
            },
            Report::Failed {
                code: 1,
                message: String::new(),
            },
        ] {
            assert_eq!(decode(&encode(&report)), Some(report));
        }
        assert_eq!(decode(""), None);
        assert_eq!(decode("ok"), None);
    }

    #[test]
    fn only_the_whole_range_is_the_initial_namespace() {
        assert!(is_identity_map("         0          0 4294967295\n"));
        assert!(!is_identity_map("         0       1000          1\n"));
    }
}
