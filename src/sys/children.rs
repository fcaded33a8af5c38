//! Processes that a command has started, found and killed when it is over.
//!
//! Two ways: by parenthood, which a process leaves only with its life where orphans are adopted; and by the
//! mount namespace, which needs no parent, and which a process can leave.
#![allow(unsafe_code)]

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::check;

/// Lets this process be the parent of its descendants whose own parents end.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// The children of the calling thread, which must be the only one of its process.
pub fn children() -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string("/proc/thread-self/children")?;
    let pids = text.split_whitespace().map(str::parse);
    let pids: Result<Vec<i32>, _> = pids.collect();
    let pids = pids.map_err(io::Error::other)?;
    Ok(pids.into_iter().map(Pid::from_raw).collect())
}

/// What has happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It has ended with this status.
    Exited(u8),
    /// It has ended by this signal, perhaps one without a name.
    Killed(i32),
    /// It goes on later, if somebody lets it.
    Stopped,
}

/// The next that has happened to a child; None if nothing has.
pub fn news() -> io::Result<Option<(Pid, News)>> {
    let mut status = 0;
    // SAFETY: the status is writable.
    let pid = check(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::WUNTRACED) });
    let pid = match pid {
        Ok(0) => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
        other => Pid::from_raw(other?),
    };
    let news = if libc::WIFEXITED(status) {
        News::Exited(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    } else if libc::WIFSIGNALED(status) {
        News::Killed(libc::WTERMSIG(status))
    } else {
        News::Stopped
    };
    Ok(Some((pid, news)))
}

/// A mount namespace, which lives and keeps its number as long as this value.
pub struct MountNamespace(File);

impl MountNamespace {
    /// That of a process, at this moment.
    pub fn of(process: Pid) -> io::Result<MountNamespace> {
        File::open(format!("/proc/{process}/ns/mnt")).map(MountNamespace)
    }

    /// Kills the processes in it that this one may look at; how many they were. One that is forked meanwhile
    /// can be missed.
    pub fn kill_members(&self) -> io::Result<usize> {
        let own = self.0.metadata()?;
        let is_own = |found: Metadata| (found.dev(), found.ino()) == (own.dev(), own.ino());
        let mut killed = 0;
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            // What is open stands for this process, and never for another of the same number.
            let Ok(process) = File::open(entry.path()) else {
                continue;
            };
            let namespace = format!("/proc/self/fd/{}/ns/mnt", process.as_raw_fd());
            let inside = fs::metadata(namespace).is_ok_and(is_own);
            if inside && send(process.as_fd(), Signal::SIGKILL).is_ok() {
                killed += 1;
            }
        }
        Ok(killed)
    }
}

/// Whether a process is on its way out, and would be gone but for threads that the kernel keeps.
pub fn is_ending(process: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status"));
    status.is_ok_and(|status| tells_an_end(&status))
}

/// Reads `/proc/PID/status`: the first thread has ended, or been told to.
fn tells_an_end(status: &str) -> bool {
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.map(str::trim_start)
    };
    let pending = value("SigPnd:").and_then(|signals| u64::from_str_radix(signals, 16).ok());
    let told = pending.is_some_and(|signals| signals & (1 << (Signal::SIGKILL as u32 - 1)) != 0);
    told || value("State:").is_some_and(|state| state.starts_with(['Z', 'X']))
}

/// Sends a signal to the process of a directory of `/proc`. Linux 5.1.
fn send(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the call takes no further information.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal as i32,
            ptr::null::<libc::siginfo_t>(),
            0,
        ) as i32
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_an_end() {
        for (status, is_one) in [
            (
                "Name:\ta\nState:\tS (sleeping)\nSigPnd:\t0000000000000000\n",
                false,
            ),
            (
                "Name:\ta\nState:\tD (disk sleep)\nSigPnd:\t0000000000000100\n",
                true,
            ),
            (
                "Name:\ta\nState:\tS (sleeping)\nSigPnd:\t0000000000004000\n",
                false,
            ),
            (
                "Name:\tZ\nState:\tZ (zombie)\nSigPnd:\t0000000000000000\n",
                true,
            ),
            ("", false),
        ] {
            assert_eq!(tells_an_end(status), is_one, "{status}");
        }
    }
}
