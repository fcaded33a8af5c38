//! Trials of what this host lets this user do, in processes and namespaces that are gone afterwards.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sys::wait::waitpid;

use super::{Code, Failure, OrFail, Outcome, upper};
use crate::backend::{Backend, Stack, aufs, overlay};
use crate::error::best_effort;
use crate::sys::process::{self, Report, Side};
use crate::sys::{mount, namespace};

/// A directory that every host has; only a trial sees what is mounted there.
const COVERED: &str = "/tmp";
const CONTENT: &[u8] = b"of the trial";
/// All that a trial uses is in a directory of this name, which no image has.
const OWN: &str = "cvmfs-union.trial";

/// Does it in a process of its own, so that what it enters and mounts is gone afterwards.
pub fn in_a_process(attempt: impl FnOnce() -> Outcome<()>) -> Result<(), String> {
    match process::fork_within().map_err(|e| format!("fork: {e}"))? {
        Side::Child(reporter) => {
            let report = match attempt() {
                Ok(()) => Report::Ready,
                Err(Failure { code, message }) => Report::Failed { code, message },
            };
            best_effort("report", reporter.send(&report));
            end()
        }
        Side::Parent(child) => {
            let pid = child.pid();
            let report = child.wait().map_err(|e| e.to_string())?;
            best_effort("wait for a trial", waitpid(pid, None));
            match report {
                Report::Ready => Ok(()),
                Report::Failed { message, .. } => Err(message),
            }
        }
    }
}

#[expect(
    clippy::exit,
    reason = "the child must not return into what its parent goes on with"
)]
fn end() -> ! {
    std::process::exit(0)
}

/// Where the directories of a trial are: on the file system that it is about, or in memory.
pub struct Place(Option<PathBuf>);

impl Place {
    /// In memory.
    pub fn memory() -> Place {
        Place(None)
    }

    /// On the file system of this directory, in a new one that goes away with the value.
    pub fn on(dir: &Path) -> Result<Place, String> {
        let template = dir.join("cvmfs-union-trial.XXXXXX");
        let made = nix::unistd::mkdtemp(&template);
        let made =
            made.map_err(|e| format!("a directory for a trial in {}: {e}", dir.display()))?;
        Ok(Place(Some(made)))
    }

    /// Enters namespaces by the means of this user, and makes the directories. For a process of its own.
    pub fn enter(&self) -> Outcome<Stage> {
        if !process::is_root() || !namespace::can_mount() {
            let caller = (process::user(), process::group());
            namespace::enter_user(caller, (0, 0)).or_fail(Code::Failure, "a user namespace")?;
        }
        namespace::enter_mounts().or_fail(Code::Failure, "a mount namespace")?;
        let dir = match &self.0 {
            Some(dir) => dir.clone(),
            None => {
                namespace::mount_tmpfs(Path::new(COVERED)).or_fail(Code::Failure, "a tmpfs")?;
                COVERED.into()
            }
        };
        let stage = Stage(dir);
        for dir in ["lower", "upper", "work", "mnt"] {
            fs::create_dir(stage.at(dir)).or_fail(Code::Failure, "a directory")?;
        }
        let own = stage.at("lower").join(OWN);
        fs::create_dir(&own)
            .and_then(|()| fs::write(own.join("below"), CONTENT))
            .or_fail(Code::Failure, "a file")?;
        Ok(stage)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            best_effort("remove what a trial made", upper::remove_tree(dir));
        }
    }
}

/// The directories of a trial, in namespaces of its own.
pub struct Stage(PathBuf);

impl Stage {
    /// One of `lower`, `upper`, `work` and `mnt`, or what is in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Mounts with a backend of the kernel, `below` under a layer of the trial's own, uses that, and unmounts.
    pub fn try_kernel(&self, backend: Backend, below: &[PathBuf], writable: bool) -> Outcome<()> {
        let own = [self.at("lower")];
        let stack = Stack {
            lowers: own.iter().chain(below).cloned().collect(),
            upper: writable.then(|| (self.at("upper"), self.at("work"))),
            user_marks: !process::is_initial_root(),
            portable: false,
            flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            source: mount::NAME.to_owned(),
        };
        let mnt = self.at("mnt");
        mount_stack(backend, &stack, &mnt)?;
        match writable {
            true => self.use_union()?,
            false => {
                self.found(fs::read(mnt.join(OWN).join("below")).map(|read| read == CONTENT))?
            }
        }
        mount::umount_direct(&mnt, false).or_fail(Code::Failure, "unmounting")
    }

    /// Changes what is below, and makes something new.
    pub fn use_union(&self) -> Outcome<()> {
        let own = self.at("mnt").join(OWN);
        let [below, moved, new] = ["below", "moved", "new"].map(|name| own.join(name));
        let used = || -> io::Result<bool> {
            fs::write(&new, CONTENT)?;
            fs::rename(&below, &moved)?;
            Ok(!below.exists() && fs::read(&moved)? == CONTENT && fs::read(&new)? == CONTENT)
        };
        self.found(used())
    }

    fn found(&self, used: io::Result<bool>) -> Outcome<()> {
        match used.or_fail(Code::Failure, "use of the mount")? {
            true => Ok(()),
            false => Err(Failure::new(
                Code::Failure,
                "the mount does not show what was written",
            )),
        }
    }
}

/// Mounts a stack with a backend of the kernel.
pub fn mount_stack(backend: Backend, stack: &Stack, mountpoint: &Path) -> Outcome<()> {
    let mounted = match backend {
        Backend::Overlay => overlay::mount(stack, mountpoint),
        Backend::Aufs => aufs::mount(stack, mountpoint),
        Backend::Fuse => Err("no union of the kernel".to_owned()),
    };
    mounted.map_err(|why| Failure::new(Code::Mountpoint, why))
}
