//! Mounts that the kernel makes in place of the daemon, and uppers that change hands.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::MsFlags;

use super::ending::detach;
use super::mountpoint::recover;
use super::opening::is_taken;
use super::ready::make_points;
use super::{Args, Job, UPPER_PATIENCE, raise_open_files};
use crate::backend::{Backend, Stack, Writer, overlay};
use crate::cli::options::MountOptions;
use crate::cli::terminal::say;
use crate::cli::upper::Prepared;
use crate::cli::{Code, Failure, OrFail, Outcome, backend, noted, prefetch, trial, writer};
use crate::error::best_effort;
use crate::sys::process::Side;
use crate::sys::{file, mount, mounts, process};
use crate::union::api::{Limits, UpperSpec};

impl Args {
    /// An option that only the daemon can serve, as it was given.
    pub(super) fn only_fuse(&self, options: &MountOptions, mountpoint: &Path) -> Option<String> {
        let given = |name: &str, value: &str| format!("{name}={value}");
        let rules = [
            // Nobody would be there to throw it away.
            (self.ephemeral, "--ephemeral".to_owned()),
            (self.foreground, "--foreground".to_owned()),
            (self.owner != "keep", given("--owner", &self.owner)),
            (
                self.whiteouts == "wh",
                given("--whiteouts", &self.whiteouts),
            ),
            // overlayfs syncs what it copies up and no directory; its `volatile` refuses the upper for ever.
            (
                self.durability != "auto",
                given("--durability", &self.durability),
            ),
            (
                self.passthrough != "auto",
                given("--passthrough", &self.passthrough),
            ),
            (
                self.writeback != "off",
                given("--writeback", &self.writeback),
            ),
            (
                options
                    .flags
                    .intersects(MsFlags::MS_SYNCHRONOUS | MsFlags::MS_DIRSYNC),
                "-o sync".to_owned(),
            ),
            (
                mount::passed_fd(mountpoint).is_some(),
                format!("the mountpoint {}", mountpoint.display()),
            ),
        ];
        let rule = rules.into_iter().find(|(applies, _)| *applies);
        let other = self.ownership.given().or_else(|| self.prefetch.given());
        rule.map(|(_, option)| option)
            .or_else(|| other.map(str::to_owned))
    }

    /// One that aufs cannot serve, as it marks deletions by `.wh.` files and nothing else.
    pub(super) fn not_aufs(&self) -> Option<String> {
        let overlay = self.whiteouts == "overlay";
        let portable = self.portable_upper.then(|| "--portable-upper".to_owned());
        overlay
            .then(|| "--whiteouts=overlay".to_owned())
            .or(portable)
    }
}

impl Job {
    /// Mounts; nothing of this program stays.
    pub(super) fn mount_by_kernel(mut self) -> Outcome<()> {
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        if self.chosen.backend == Backend::Aufs {
            // The one style that it knows, and that its upper is read in.
            self.args.whiteouts = "wh".to_owned();
        }
        let upper = self.plan.prepare()?;
        let spec = upper.spec();
        if self.chosen.begins_upper {
            // What a new upper takes from the layers below, and whose its `.wh.` names are, is as with the daemon.
            drop(self.open_union(&upper, Limits::of(raise_open_files()), None)?);
        }
        let held = spec.as_ref().map(hold).transpose()?;
        if let Some(spec) = spec.as_ref().filter(|_| self.chosen.begins_upper) {
            // A daemon that came and went meanwhile may have written to it.
            let writer = writer::of(spec).or_fail(Code::Upper, spec.upper.display())?;
            if writer != Writer::Nobody {
                return Err(in_use(&spec.upper));
            }
        }
        upper.record_image()?;
        // Before anything is written to the upper: which marks those are has to be known.
        let about = self.about(&upper);
        let noted = upper.record_mount(&about);
        noted.or_fail(Code::Upper, "noting what is mounted in the work directory")?;
        recover(&self.mountpoint)?;
        let number = noted::number();
        let mut stack = Stack {
            lowers: self.layers.iter().map(|layer| layer.path.clone()).collect(),
            upper: upper.paths.clone(),
            user_marks: !process::is_initial_root(),
            portable: self.args.portable_upper,
            flags: self.how.flags,
            source: mounts::source_of(&number),
        };
        if self.chosen.backend == Backend::Overlay && overlay::wants_another(&stack) {
            stack.lowers.push(backend::empty_dir()?);
        }
        let (by, at) = (self.chosen.backend, self.mountpoint.display());
        trial::mount_stack(by, &stack, &self.mountpoint).map_err(|failure| Failure {
            message: format!("{at}: {by}: {}", failure.message),
            ..failure
        })?;
        if let Err(e) = noted::note(&number, &about, &self.mountpoint) {
            say(format_args!(
                "mount: warning: nothing is noted of this mount, for status, diff and explain: {e}"
            ));
        }
        make_points(&self.points, &self.mountpoint)
            .inspect_err(|_| detach(Some(&self.mountpoint)))?;
        // A process that fetches has all descriptors of this one.
        drop(held);
        if let Some(plan) = self.prefetch.take() {
            best_effort("fetch ahead", fetch_in_background(plan, &number));
        }
        Ok(())
    }
}

/// Fetches in a process of its own, which ends when that is done, or with the mount.
fn fetch_in_background(plan: prefetch::Plan, number: &str) -> io::Result<()> {
    let Side::Child(reporter) = process::fork()? else {
        return Ok(());
    };
    // Nobody waits for a report.
    drop(reporter);
    best_effort("let go of the terminal", process::silence_stdio());
    best_effort("leave the directory", nix::unistd::chdir("/"));
    plan.fetch_for_others(|| {
        let table = fs::read(mounts::TABLE).unwrap_or_default();
        let ours = mounts::ours_in(&table);
        ours.iter()
            .any(|mount| mount.number.as_deref() == Some(number))
    });
    leave()
}

#[expect(
    clippy::exit,
    reason = "the child must not return into what its parent goes on with, nor wait for readers"
)]
fn leave() -> ! {
    std::process::exit(0)
}

/// Holds an upper against other mounts of this program, until this one is made and noted. The kernel takes no
/// locks, and its overlayfs only warns of an upper that is mounted twice.
fn hold(upper: &UpperSpec) -> Outcome<Vec<OwnedFd>> {
    let begun = Instant::now();
    let lock = |dir: &Path| -> io::Result<OwnedFd> {
        let fd = file::open_path(dir, libc::O_RDONLY | libc::O_DIRECTORY)?;
        loop {
            match file::lock_exclusive(fd.as_fd()) {
                // A daemon that was just unmounted may hold it a little longer.
                Err(e)
                    if is_taken(e.raw_os_error().unwrap_or(0))
                        && begun.elapsed() < UPPER_PATIENCE =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                other => return other.map(|()| fd),
            }
        }
    };
    let mut held = Vec::new();
    for dir in [&upper.upper, &upper.work] {
        held.push(
            lock(dir).map_err(|e| match is_taken(e.raw_os_error().unwrap_or(0)) {
                true => in_use(&upper.upper),
                false => Failure::new(Code::Upper, format!("{}: {e}", dir.display())),
            })?,
        );
    }
    not_mounted(&upper.upper)?;
    Ok(held)
}

/// Refuses an upper that a union of the kernel has.
fn not_mounted(upper: &Path) -> Outcome<()> {
    match writer::is_mounted_by_kernel(upper).or_fail(Code::Failure, mounts::TABLE)? {
        true => Err(in_use(upper)),
        false => Ok(()),
    }
}

fn in_use(upper: &Path) -> Failure {
    let text = format!("the upper is in use by another mount: {}", upper.display());
    Failure::new(Code::Upper, text)
}

/// Prepares an upper of the kernel for the daemon, and notes that it is the daemon's from now on.
pub(super) fn take_over(upper: &Prepared, about: &serde_json::Value) -> Outcome<()> {
    let Some((dir, work)) = &upper.paths else {
        return Ok(());
    };
    not_mounted(dir)?;
    // overlayfs leaves it without rights, which only root can do without.
    match fs::set_permissions(work.join("work"), Permissions::from_mode(0o700)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => other.or_fail(Code::Upper, work.join("work").display())?,
    }
    let noted = upper.record_mount(about);
    noted.or_fail(Code::Upper, "noting what is mounted in the work directory")
}
