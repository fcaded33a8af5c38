//! What is done when a mount answers: mount points are made, and the caller is told.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::ending::detach;
use crate::cli::notify::Manager;
use crate::cli::points::{self, Kind};
use crate::cli::{Code, Failure, OrFail, Outcome};
use crate::error::best_effort;
use crate::sys::file;
use crate::sys::process::{self, Report, Reporter};

/// The mount points to make as soon as the mount answers.
pub(super) struct Points {
    pub(super) told: Told,
    pub(super) wanted: Vec<(PathBuf, Kind)>,
    /// Why that failed.
    pub(super) failure: Arc<Mutex<Option<Failure>>>,
}

impl Points {
    /// Makes them and then tells the caller, on a thread of its own: this one is to serve the mount. If one
    /// cannot be made the mount ends.
    pub(super) fn make_in(self, mountpoint: PathBuf) {
        let failure = self.failure.clone();
        let shown = mountpoint.clone();
        let make = move || match make_points(&self.wanted, &mountpoint) {
            Ok(()) => self.told.ready(),
            Err(why) => {
                *self.failure.lock() = Some(why);
                detach(Some(&mountpoint));
            }
        };
        let thread = thread::Builder::new().name("points".to_owned()).spawn(make);
        if let Err(e) = thread {
            *failure.lock() = Some(Failure::new(Code::Failure, format!("thread: {e}")));
            detach(Some(&shown));
        }
    }
}

/// Makes mount points in what answers already.
pub(super) fn make_points(wanted: &[(PathBuf, Kind)], mountpoint: &Path) -> Outcome<()> {
    let root = file::open_path(mountpoint, libc::O_PATH | libc::O_DIRECTORY)
        .or_fail(Code::Mountpoint, mountpoint.display())?;
    for (path, kind) in wanted {
        points::make(root.as_fd(), path, *kind)
            .or_fail(Code::Upper, format!("--bind-points: {}", path.display()))?;
    }
    Ok(())
}

/// Who is told that the mount answers.
#[derive(Clone)]
pub(super) struct Told {
    /// The caller; none in the foreground.
    pub(super) reporter: Option<Arc<Mutex<Option<Reporter>>>>,
    pub(super) manager: Manager,
    pub(super) mountpoint: PathBuf,
    pub(super) layers: usize,
}

impl Told {
    /// Tells them, and lets go of the caller's terminal.
    pub(super) fn ready(&self) {
        self.manager.ready(&self.mountpoint, self.layers);
        let reporter = self.reporter.as_ref().and_then(|slot| slot.lock().take());
        let Some(reporter) = reporter else {
            return;
        };
        best_effort("let go of the terminal", process::silence_stdio());
        if reporter.send(&Report::Ready).is_err() {
            // The caller was interrupted: nobody knows of this mount, so it ends as by a signal.
            best_effort(
                "end",
                nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGTERM),
            );
        }
    }
}
