//! Waiting for the command: signals go on to it, stops are shared, and its end is ours and that of all that it
//! has started.
//!
//! The command is in the process group of this process, as a shell and a terminal expect. What a process
//! sends to the whole group therefore reaches the command twice: nothing tells it from what is sent to one.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::error::best_effort;
use crate::sys::children::{self, MountNamespace, News};

/// How long what is killed may take to end before the mount does.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(1);

/// What is passed on.
const PASSED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// From now on these signals are read.
pub fn block() -> io::Result<SignalFd> {
    let mut set: SigSet = PASSED.into_iter().collect();
    set.add(Signal::SIGCHLD);
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?)
}

/// The processes that end before this one does.
pub struct Family {
    command: Pid,
    /// Until its end has been seen: its number can be another's then.
    daemon: Option<Pid>,
    /// Where the command runs; None if all that it leaves becomes a child of this process.
    namespace: Option<MountNamespace>,
}

/// Makes this process the parent of what the command will leave, unless it has children of its caller's already:
/// what those leave could not be told from that.
pub fn adopt() -> bool {
    match children::children() {
        Ok(callers) => callers.is_empty() && children::adopt_orphans().is_ok(),
        Err(e) => {
            tracing::debug!("reading which children there are: {e}");
            false
        }
    }
}

impl Family {
    pub fn new(command: Pid, daemon: Pid, namespace: Option<MountNamespace>) -> Family {
        Family {
            command,
            daemon: Some(daemon),
            namespace,
        }
    }

    /// Waits for the end of the command: its status, or 128 and the number of the signal that ended it.
    pub fn wait_for_command(&mut self, signals: &SignalFd) -> io::Result<u8> {
        loop {
            // What has happened before the signals were read, too.
            while let Some((pid, news)) = self.news()? {
                match news {
                    _ if pid != self.command => {}
                    News::Exited(code) => return Ok(code),
                    News::Killed(signal) => {
                        return Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX));
                    }
                    // A shell that has the terminal waits for this process, not for the command.
                    News::Stopped if io::stdin().is_terminal() => {
                        raise(Signal::SIGSTOP)?;
                        kill(self.command, Signal::SIGCONT)?;
                    }
                    News::Stopped => {}
                }
            }
            let signal = match signals.read_signal() {
                // After a stop.
                Err(Errno::EINTR) | Ok(None) => continue,
                Err(e) => return Err(e.into()),
                Ok(Some(signal)) => signal,
            };
            let number = i32::try_from(signal.ssi_signo).ok();
            let Some(number) = number.and_then(|number| Signal::try_from(number).ok()) else {
                continue;
            };
            // What a terminal sends has reached the command already; a clock is this process' own.
            let from_kernel = signal.ssi_code > 0 && number != Signal::SIGALRM;
            let from_command = i32::try_from(signal.ssi_pid) == Ok(self.command.as_raw());
            if number != Signal::SIGCHLD && !from_kernel && !from_command {
                kill(self.command, number)?;
            }
        }
    }

    /// Ends what the command has left, then the daemon, then what only the end of the mount could end: a
    /// process that waits in it for a layer.
    pub fn end(mut self) {
        let all = self.end_left();
        best_effort("end the daemon", self.end_daemon());
        if !all && !self.end_left() {
            tracing::warn!("a process that the command has started does not end, though killed");
        }
    }

    /// Waits for the end of the daemon, which may have much to throw away; but not for a thread of it that waits
    /// for a layer, when that is all that is left of it.
    fn end_daemon(&mut self) -> io::Result<()> {
        if let Some(daemon) = self.daemon {
            kill(daemon, Signal::SIGTERM)?;
        }
        let mut ending = None;
        loop {
            while self.news()?.is_some() {}
            let Some(daemon) = self.daemon else {
                return Ok(());
            };
            if children::is_ending(daemon)
                && ending.get_or_insert_with(Instant::now).elapsed() > PATIENCE
            {
                tracing::warn!(
                    "a thread of the daemon still waits for a layer, and ends after that"
                );
                return Ok(());
            }
            thread::sleep(TICK);
        }
    }

    /// Kills what the command has left, and waits for the end of it; whether there was one in time.
    fn end_left(&mut self) -> bool {
        let begun = Instant::now();
        loop {
            match self.kill_left() {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => {
                    tracing::warn!("ending what the command has left running: {e}");
                    return true;
                }
            }
            if begun.elapsed() > PATIENCE {
                return false;
            }
            thread::sleep(TICK);
        }
    }

    /// Kills what is there, of a family tree the eldest: its children come to this process with that. How
    /// many there were.
    fn kill_left(&mut self) -> io::Result<usize> {
        if let Some(namespace) = &self.namespace {
            return namespace.kill_members();
        }
        while self.news()?.is_some() {}
        let mut left = children::children()?;
        left.retain(|pid| Some(*pid) != self.daemon);
        for pid in &left {
            best_effort("end a process", kill(*pid, Signal::SIGKILL));
        }
        Ok(left.len())
    }

    /// What has happened to a child; None if nothing has.
    fn news(&mut self) -> io::Result<Option<(Pid, News)>> {
        let news = children::news()?;
        if let Some((pid, News::Exited(_) | News::Killed(_))) = news {
            self.daemon.take_if(|daemon| *daemon == pid);
        }
        Ok(news)
    }
}
