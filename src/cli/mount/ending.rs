//! How a daemon ends: with its mount, or by a signal.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use nix::unistd::Pid;

use crate::cli::notify::Manager;
use crate::cli::upper::Prepared;
use crate::error::best_effort;
use crate::prefetch::session::Session;
use crate::sys::children::MountNamespace;
use crate::sys::{mount, process};
use crate::union::Union;

/// How long a busy mount may keep the daemon after a signal.
const EXIT_PATIENCE: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(2);

/// What a daemon ends beside itself when the process that started it was killed.
pub struct Guard {
    starter: Pid,
    namespace: MountNamespace,
}

impl Guard {
    /// To be made by the process that starts the daemon, of the namespace where it runs a command.
    pub fn new(namespace: MountNamespace) -> Guard {
        Guard {
            starter: process::id(),
            namespace,
        }
    }

    fn end_orphans(&self) {
        let begun = Instant::now();
        while nix::unistd::getppid() != self.starter && begun.elapsed() < EXIT_PATIENCE {
            match self.namespace.kill_members() {
                Ok(0) => return,
                Ok(_) => thread::sleep(TICK),
                Err(e) => return tracing::warn!("ending what the command has left running: {e}"),
            }
        }
    }
}

/// What to do at the end that a signal asks for.
pub(super) struct Ending {
    pub(super) guard: Option<Guard>,
    pub(super) manager: Manager,
    pub(super) target: Option<PathBuf>,
    pub(super) upper: Arc<Prepared>,
    pub(super) union: Weak<Union>,
    pub(super) prefetch: Arc<Option<Session>>,
}

impl Ending {
    /// Unmounts at the first signal. A mount that stays busy, or that others have made, does not keep
    /// the daemon: it ends as in order as without.
    pub(super) fn on_signal(mut self, signals: &SigSet) {
        match signals.wait() {
            Ok(signal) => tracing::info!("{signal}: unmounting"),
            Err(e) => return tracing::warn!("waiting for signals: {e}"),
        }
        self.manager.stopping();
        // With it goes the last that holds the namespace, and so the mount, which is served meanwhile.
        if let Some(guard) = self.guard.take() {
            guard.end_orphans();
        }
        stop(&self.prefetch);
        if self.target.is_some() {
            detach(self.target.as_deref());
            thread::sleep(EXIT_PATIENCE);
            tracing::warn!("the mount is still in use; leaving it");
        }
        self.upper.discard();
        best_effort("disconnect", mount::drop_devices());
        let_go(&self.union);
        end(&self.prefetch);
        std::process::exit(0);
    }
}

/// Finishes what a union does when it is dropped, if requests that wait for a layer still hold it.
pub(super) fn let_go(union: &Weak<Union>) {
    if let Some(union) = union.upgrade() {
        best_effort("free the upper", union.let_go());
    }
}

pub(super) fn detach(target: Option<&Path>) {
    if let Some(path) = target {
        best_effort("unmount", mount::umount(path, true));
    }
}

/// Nothing more is fetched ahead.
pub(super) fn stop(prefetch: &Option<Session>) {
    if let Some(session) = prefetch {
        session.stop();
    }
}

/// The end of what is learned in a mount.
pub(super) fn end(prefetch: &Option<Session>) {
    if let Some(session) = prefetch {
        session.end();
    }
}
