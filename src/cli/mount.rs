//! `mount`: checks everything, then forks the daemon, which opens the union, mounts and serves.
//!
//! The caller waits for the daemon's report, so that an error is told where the command was typed.
//! The fork comes before any thread.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;

use super::layers::{self, Layer, Order};
use super::options::MountOptions;
use super::upper::{Plan, Prepared, Request};
use super::{Code, Failure, OrFail, Outcome, umount};
use crate::error::best_effort;
use crate::fuse::MAX_IO;
use crate::fuse::session::{self, Passthrough};
use crate::sys::mount::{self, MountFlags};
use crate::sys::process::{self, Report, Reporter, Side};
use crate::union::api::{Durability, Limits, Owner, UnionConfig, Whiteouts};
use crate::union::{Union, refuse_overlap};

/// How long a daemon that was just unmounted may still hold its upper.
const UPPER_PATIENCE: Duration = Duration::from_secs(2);
/// How long a busy mount may keep the daemon after a signal.
const EXIT_PATIENCE: Duration = Duration::from_millis(300);

/// Mounts the merged root of a thin image, or of a stack of directories.
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    override_usage = "cvmfs-union mount [OPTIONS] <THIN_JSON> <MOUNTPOINT>\n       \
                            cvmfs-union mount --lower DIR [--lower DIR]... [OPTIONS] <MOUNTPOINT>"
)]
pub struct Args {
    /// The descriptor (not with --lower) and the mountpoint, a directory or /dev/fd/N
    #[arg(required = true, num_args = 1..=2, value_names = ["THIN_JSON", "MOUNTPOINT"])]
    paths: Vec<PathBuf>,
    /// A plain directory of the stack, topmost first; repeat it
    #[arg(long, value_name = "DIR")]
    lower: Vec<PathBuf>,
    /// Where the repositories are mounted
    #[arg(long, value_name = "DIR", default_value = "/cvmfs")]
    cvmfs_root: PathBuf,
    /// Where changes go [default: kept under a name made from the mountpoint, in /var/lib for root,
    /// in $XDG_STATE_HOME or ~/.local/state for users]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ephemeral", "read_only"])]
    upper: Option<PathBuf>,
    /// Scratch space on the upper's file system [default: <upper>.work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Keep changes in a directory under $TMPDIR that is removed at unmount
    #[arg(long, conflicts_with = "read_only")]
    ephemeral: bool,
    /// Allow no changes
    #[arg(long)]
    read_only: bool,
    /// The order in which the descriptor lists its layers
    #[arg(long, value_enum, default_value_t)]
    layer_order: Order,
    /// How deletions are marked in the upper
    #[arg(long, value_name = "STYLE", default_value = "auto", value_parser = ["auto", "overlay", "wh"])]
    whiteouts: String,
    /// Keep no redirects and no metadata-only copies in the upper
    #[arg(long)]
    portable_upper: bool,
    /// Whose the files of the layers are: as stored, or all 0:0
    #[arg(long, value_name = "WHOSE", default_value = "keep", value_parser = ["keep", "squash"])]
    owner: String,
    /// Which files the kernel reads and writes without the daemon, where it is allowed to: none, those of
    /// the upper, or with --read-only those of layers too. auto is as upper, or as off with --writeback=on
    #[arg(long, value_name = "WHAT", default_value = "auto", value_parser = ["auto", "off", "upper", "all"])]
    passthrough: String,
    /// Collect writes in the page cache: fewer and larger ones reach the upper, at fsync or close at the
    /// latest, and so do their errors. Where the kernel writes without the daemon it means nothing
    #[arg(long, value_name = "WHEN", default_value = "off", value_parser = ["on", "off"])]
    writeback: String,
    /// When copied-up data reaches the disk
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = ["full", "auto", "volatile"])]
    durability: String,
    /// Stay in the foreground, log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// What to log: off, error, warn, info, debug, trace; in the background until the mount is ready
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: LevelFilter,
    /// Mount options: ro, suid/nosuid, dev/nodev, exec/noexec, noatime, allow_other, ...
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
}

/// A mount that has been checked and not begun.
struct Job {
    layers: Vec<Layer>,
    plan: Plan,
    how: MountFlags,
    mountpoint: PathBuf,
    args: Args,
}

pub fn run(args: Args) -> Outcome<()> {
    tracing_subscriber::fmt()
        .with_max_level(args.log)
        .with_writer(io::stderr)
        .init();
    let foreground = args.foreground;
    let job = Job::check(args)?;
    if foreground {
        return job.serve(None);
    }
    #[expect(
        clippy::exit,
        reason = "the child must not return into what its parent goes on with"
    )]
    match process::fork().or_fail(Code::Failure, "fork")? {
        Side::Parent(child) => match child.wait().or_fail(Code::Failure, "the daemon")? {
            Report::Ready => Ok(()),
            Report::Failed { code, message } => Err(Failure { code, message }),
        },
        Side::Child(reporter) => {
            let reporter = Arc::new(Mutex::new(Some(reporter)));
            let outcome = job.serve(Some(reporter.clone()));
            let code = outcome.as_ref().err().map_or(0, |failure| failure.code);
            if let (Err(failure), Some(reporter)) = (outcome, reporter.lock().take()) {
                let report = Report::Failed {
                    code,
                    message: failure.message,
                };
                best_effort("report a failure", reporter.send(&report));
            }
            std::process::exit(code.into());
        }
    }
}

impl Job {
    /// Refuses what can be refused before anything is made or started.
    fn check(args: Args) -> Outcome<Job> {
        let (descriptor, mountpoint) = match args.paths.as_slice() {
            [mountpoint] if !args.lower.is_empty() => (None, mountpoint),
            [descriptor, mountpoint] if args.lower.is_empty() => (Some(descriptor), mountpoint),
            _ => {
                let text = "give either THIN_JSON and MOUNTPOINT, or --lower DIR and MOUNTPOINT";
                return Err(Failure::new(Code::Usage, text));
            }
        };
        let mut options = MountOptions::parse(&args.options);
        if args.read_only {
            options.set_read_only();
        }
        for unknown in &options.unknown {
            eprintln!("cvmfs-union: mount: warning: -o {unknown} is not known and ignored");
        }
        let how = options.for_user(process::is_root(), process::is_initial_root())?;
        let layers = match descriptor {
            Some(path) => layers::of_image(
                &layers::read_image(path)?,
                &args.cvmfs_root,
                args.layer_order,
            )?,
            None => layers::of_dirs(&args.lower)?,
        };
        layers::find_all(&layers);
        layers::check_all(&layers, Layer::misplaced)?;
        let mountpoint = usable_mountpoint(mountpoint)?;
        let plan = Plan::choose(Request {
            read_only: args.read_only
                || options.read_only() && args.upper.is_none() && !args.ephemeral,
            ephemeral: args.ephemeral,
            upper: args.upper.as_deref(),
            work: args.work.as_deref(),
            mountpoint: &mountpoint,
            image: layers
                .iter()
                .map(|layer| format!("{}\n", layer.identity))
                .collect(),
        })?;
        if let Plan::Kept { state, .. } = &plan {
            eprintln!(
                "cvmfs-union: mount: changes are kept in {}",
                state.join("upper").display()
            );
        }
        if let Some(upper) = plan.spec() {
            let lowers: Vec<_> = layers.iter().map(Layer::spec).collect();
            refuse_overlap(&upper, &lowers).or_fail(Code::Upper, "the upper")?;
        }
        Ok(Job {
            layers,
            plan,
            how,
            mountpoint,
            args,
        })
    }

    /// Everything after the fork; returns when the mount is gone.
    fn serve(self, reporter: Option<Arc<Mutex<Option<Reporter>>>>) -> Outcome<()> {
        let signals = process::block_termination().or_fail(Code::Failure, "signals")?;
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        nix::unistd::chdir("/").or_fail(Code::Failure, "/")?;

        let upper = Arc::new(self.plan.prepare()?);
        let union = match self.open_union(&upper) {
            Ok(union) => Arc::new(union),
            Err(failure) => {
                if failure.code == Code::Layer as u8 {
                    // All that are broken, and the likely causes.
                    layers::check_all(&self.layers, Layer::problem)?;
                }
                return Err(failure);
            }
        };
        upper.record_image()?;
        union.cover(&self.mountpoint);
        let (fd, target) = self.mount()?;
        let ending = Ending {
            target: target.clone(),
            upper: upper.clone(),
            union: Arc::downgrade(&union),
        };
        let rest = Arc::downgrade(&union);
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || ending.on_signal(&signals))
            .or_fail(Code::Failure, "thread")
            .inspect_err(|_| detach(target.as_deref()))?;

        // A passed descriptor may be of another user namespace, where the kernel refuses to clone it.
        let writeback = self.args.writeback == "on";
        let options = session::Options {
            clone_fd: target.is_some(),
            passthrough: match self.args.passthrough.as_str() {
                "off" => Passthrough::Off,
                "auto" if writeback => Passthrough::Off,
                "all" => Passthrough::All,
                _ => Passthrough::Upper,
            },
            writeback,
            ..Default::default()
        };
        let outcome = session::serve_with(union, fd, options, || {
            if let Some(path) = &target {
                best_effort("read further ahead", mount::raise_readahead(path, MAX_IO));
            }
            ready(reporter.as_deref());
        });
        if outcome.is_err() {
            detach(target.as_deref());
        }
        upper.discard();
        let_go(&rest);
        outcome.or_fail(Code::Failure, "serving the mount")
    }

    fn open_union(&self, upper: &Prepared) -> Outcome<Union> {
        let config = UnionConfig {
            lowers: self.layers.iter().map(Layer::spec).collect(),
            upper: upper.spec(),
            whiteouts: match self.args.whiteouts.as_str() {
                "overlay" => Whiteouts::Overlay,
                "wh" => Whiteouts::Wh,
                _ => Whiteouts::Auto,
            },
            portable_upper: self.args.portable_upper,
            owner: if self.args.owner == "squash" {
                Owner::Squash
            } else {
                Owner::Keep
            },
            durability: match self.args.durability.as_str() {
                "full" => Durability::Full,
                "volatile" => Durability::Volatile,
                _ => Durability::Auto,
            },
            limits: limits(),
        };
        let begun = Instant::now();
        loop {
            match Union::new(&config) {
                Err(e) if is_taken(e.errno()) && begun.elapsed() < UPPER_PATIENCE => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(e) if is_taken(e.errno()) => {
                    let text = format!("the upper is in use by another mount: {e}");
                    return Err(Failure::new(Code::Upper, text));
                }
                Err(e) => {
                    let code = if e.layer().is_some() {
                        Code::Layer
                    } else {
                        Code::Upper
                    };
                    return Err(e).or_fail(code, "opening the union");
                }
                Ok(union) => return Ok(union),
            }
        }
    }

    /// Mounts; the path is what to unmount later, None for a descriptor that others have mounted.
    fn mount(&self) -> Outcome<(OwnedFd, Option<PathBuf>)> {
        let shown = self.mountpoint.display();
        if let Some(fd) = mount::passed_fd(&self.mountpoint) {
            let fd = mount::take_passed_fd(fd).or_fail(Code::Mountpoint, shown)?;
            return Ok((fd, None));
        }
        recover(&self.mountpoint)?;
        let mounted = if process::is_root() {
            mount::mount_direct(&self.mountpoint, &self.how)
        } else {
            mount::mount_fusermount(&self.mountpoint, &self.how)
        };
        Ok((
            mounted.or_fail(Code::Mountpoint, shown)?,
            Some(self.mountpoint.clone()),
        ))
    }
}

/// As much as the most open files allow.
fn limits() -> Limits {
    let most = process::raise_open_files();
    let limits = most
        .as_ref()
        .map_or_else(|_| Limits::default(), |n| Limits::of(*n));
    best_effort("raise the limit of open files", most);
    limits
}

/// What to do at the end that a signal asks for.
struct Ending {
    target: Option<PathBuf>,
    upper: Arc<Prepared>,
    union: Weak<Union>,
}

impl Ending {
    /// Unmounts at the first signal. A mount that stays busy, or that others have made, does not keep
    /// the daemon: it ends as in order as without.
    fn on_signal(&self, signals: &SigSet) {
        match signals.wait() {
            Ok(signal) => tracing::info!("{signal}: unmounting"),
            Err(e) => return tracing::warn!("waiting for signals: {e}"),
        }
        if self.target.is_some() {
            detach(self.target.as_deref());
            thread::sleep(EXIT_PATIENCE);
            tracing::warn!("the mount is still in use; leaving it");
        }
        self.upper.discard();
        best_effort("disconnect", mount::drop_devices());
        let_go(&self.union);
        std::process::exit(0);
    }
}

/// Finishes what a union does when it is dropped, if requests that wait for a layer still hold it.
fn let_go(union: &Weak<Union>) {
    if let Some(union) = union.upgrade() {
        best_effort("free the upper", union.let_go());
    }
}

fn detach(target: Option<&Path>) {
    if let Some(path) = target {
        best_effort("unmount", mount::umount(path, true));
    }
}

/// Tells the caller that the mount answers, and lets go of its terminal.
fn ready(reporter: Option<&Mutex<Option<Reporter>>>) {
    let Some(reporter) = reporter.and_then(|slot| slot.lock().take()) else {
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

fn is_taken(errno: i32) -> bool {
    matches!(errno, libc::EBUSY | libc::EWOULDBLOCK)
}

/// The mountpoint's canonical path, if something can be mounted there.
fn usable_mountpoint(mountpoint: &Path) -> Outcome<PathBuf> {
    if mount::passed_fd(mountpoint).is_some() {
        return Ok(mountpoint.to_owned());
    }
    let shown = mountpoint.display();
    let path = umount::locate(mountpoint).or_fail(Code::Mountpoint, &shown)?;
    match fs::metadata(&path) {
        Err(e) if mount::is_disconnected(&e) => Ok(path),
        Err(e) => Err(e).or_fail(Code::Mountpoint, shown),
        Ok(meta) if !meta.is_dir() => Err(Failure::new(
            Code::Mountpoint,
            format!("{shown}: not a directory"),
        )),
        Ok(_) => Ok(path),
    }
}

/// Detaches our mount there if its daemon was killed; any other dead mount is the user's affair.
fn recover(mountpoint: &Path) -> Outcome<()> {
    let shown = mountpoint.display();
    match mount::mounted_type(mountpoint).or_fail(Code::Failure, "/proc/self/mountinfo")? {
        Some(fstype) if fstype == mount::FSTYPE => {
            if mount::is_dead(mountpoint) {
                tracing::info!("{shown}: detaching the mount of a daemon that is gone");
                let gone = mount::umount(mountpoint, true);
                gone.or_fail(Code::Mountpoint, format!("{shown}: detaching a dead mount"))?;
            }
            Ok(())
        }
        Some(fstype) if mount::is_dead(mountpoint) => {
            let text = format!("{shown}: a dead mount of type {fstype}; unmount it first");
            Err(Failure::new(Code::Mountpoint, text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_mountpoints_are_refused() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        fs::write(&file, b"")?;
        for path in [&file, &dir.path().join("absent")] {
            assert!(usable_mountpoint(path).is_err_and(|e| e.code == Code::Mountpoint as u8));
        }
        assert!(usable_mountpoint(dir.path()).is_ok());
        assert!(usable_mountpoint(Path::new("/dev/fd/9")).is_ok());
        Ok(())
    }
}
