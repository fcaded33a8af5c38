//! `mount`: checks everything, then forks the daemon, which opens the union, mounts and serves; or has the kernel
//! make the union.
//!
//! The caller waits for the daemon's report, so that an error is told where the command was typed.
//! The fork comes before any thread.

mod ending;
mod kernel;
mod mountpoint;
mod opening;
mod ready;

use std::ffi::OsString;
use std::fs;
use std::iter;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::{Args as _, FromArgMatches};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use parking_lot::Mutex;

pub use self::ending::Guard;
use self::ending::{Ending, detach, end, let_go, stop};
use self::mountpoint::usable_mountpoint;
use self::ready::{Points, Told};
use super::layers::{self, Layer, Order};
use super::notify::Manager;
use super::options::{MountOptions, seconds};
use super::ownership::Ownership;
use super::points::{self, Kind};
use super::prefetch;
use super::terminal::say;
use super::upper::{Plan, Request};
use super::{Code, Failure, OrFail, Outcome, backend, log};
use crate::backend::Backend;
use crate::error::best_effort;
use crate::fuse::MAX_IO;
use crate::fuse::convert::FOREVER;
use crate::fuse::session::{self, Passthrough};
use crate::prefetch::session::Session;
use crate::sys::mount::{self, MountFlags};
use crate::sys::process::{self, Report, Reporter, Side};
use crate::sys::realpath::RealPaths;
use crate::union::api::Limits;
use crate::union::shown::Shown;
use crate::union::{Apart, refuse_overlap};

/// How long a daemon that was just unmounted may still hold its upper.
pub const UPPER_PATIENCE: Duration = Duration::from_secs(2);

/// Mounts the merged root of a thin image, or of a stack of directories.
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    override_usage = "cvmfs-union mount [OPTIONS] <IMAGE> <MOUNTPOINT>\n       \
                            cvmfs-union mount --lower DIR [--lower DIR]... [OPTIONS] <MOUNTPOINT>"
)]
pub struct Args {
    /// The image (not with --lower): a descriptor, a saved thin image, or
    /// cvmfs://<repository>/<registry>/<image>:<tag>; and the mountpoint, a directory or /dev/fd/N
    #[arg(required = true, num_args = 1..=2, value_names = ["IMAGE", "MOUNTPOINT"])]
    paths: Vec<PathBuf>,
    /// A plain directory of the stack, or a descriptor, topmost first; repeat it
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
    #[command(flatten)]
    ownership: Ownership,
    /// Which files the kernel reads and writes without the daemon, where it is allowed to: none, those of the upper,
    /// or also those of layers of more than 128 KiB that are opened to be read. auto: of layers in local file
    /// systems programs and libraries from 1 MiB on, and what has 64 MiB, or with --read-only none; with
    /// --writeback=on as off
    #[arg(long, value_name = "WHAT", default_value = "auto", value_parser = ["auto", "off", "upper", "all"])]
    passthrough: String,
    /// Collect writes in the page cache: fewer and larger ones reach the upper, at fsync or close at the
    /// latest, and so do their errors. Where the kernel writes without the daemon it means nothing
    #[arg(long, value_name = "WHEN", default_value = "off", value_parser = ["on", "off"])]
    writeback: String,
    /// How long the kernel goes by a name and by attributes before it asks for them again, in seconds, perhaps
    /// with a fraction; with 0 it keeps no listings and no data either [default: for ever]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Make mount points that the image lacks, separated by commas: absolute paths, or `default` for those
    /// that container programs use (/proc, /sys, /dev, /tmp, /etc/resolv.conf, the home, this directory...)
    #[arg(long, value_name = "LIST|default")]
    bind_points: Option<String>,
    /// When copied-up data reaches the disk
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = ["full", "auto", "volatile"])]
    durability: String,
    #[command(flatten)]
    backend: backend::Args,
    #[command(flatten)]
    prefetch: prefetch::Args,
    /// Say who makes the union and why, what is known of earlier runs of the image, and what is fetched ahead
    #[arg(short, long)]
    verbose: bool,
    /// Stay in the foreground, log to standard error
    #[arg(short, long)]
    foreground: bool,
    #[command(flatten)]
    log: log::Args,
    /// Mount options: ro, suid/nosuid, dev/nodev, exec/noexec, noatime, allow_other, ...
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
}

/// A mount that has been checked and not begun.
pub struct Job {
    layers: Vec<Layer>,
    shown: Shown,
    plan: Plan,
    /// The upper and the layers, if the upper is there before the mount.
    apart: Option<Apart>,
    chosen: backend::Chosen,
    prefetch: Option<prefetch::Plan>,
    how: MountFlags,
    mountpoint: PathBuf,
    /// Mounted already, by this program.
    device: Option<OwnedFd>,
    guard: Option<Guard>,
    /// Mount points to make.
    points: Vec<(PathBuf, Kind)>,
    args: Args,
}

pub fn run(args: Args) -> Outcome<()> {
    args.log.begin()?;
    let foreground = args.foreground;
    let job = Job::check(args)?;
    if job.chosen.backend != Backend::Fuse {
        return job.mount_by_kernel();
    }
    if foreground {
        return job.serve(None);
    }
    job.start(false).map(drop)
}

impl Job {
    /// Forks the daemon, and waits until the mount answers. `tied`: it ends with this process.
    pub fn start(self, tied: bool) -> Outcome<Pid> {
        let starter = process::id();
        // The child must not return into what its parent goes on with.
        match process::fork().or_fail(Code::Failure, "fork")? {
            Side::Parent(child) => {
                let pid = child.pid();
                match child.wait().or_fail(Code::Failure, "the daemon")? {
                    Report::Ready => Ok(pid),
                    Report::Failed { code, message } => Err(Failure { code, message }),
                }
            }
            Side::Child(reporter) => {
                let reporter = Arc::new(Mutex::new(Some(reporter)));
                let tied = match tied {
                    true => process::end_with(starter, Signal::SIGTERM),
                    false => Ok(()),
                };
                let outcome = tied
                    .or_fail(Code::Failure, "the daemon")
                    .and_then(|()| self.serve(Some(reporter.clone())));
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

    /// The mount that a command line of `mount` describes, on a device that is mounted by the time it is
    /// started. `prefetch` stands for its options about profiles.
    pub fn on_device(
        words: &[OsString],
        prefetch: Option<&prefetch::Args>,
        device: OwnedFd,
    ) -> Outcome<Job> {
        let mountpoint = OsString::from(format!("/dev/fd/{}", device.as_raw_fd()));
        // The kernel would mount a union of its own, and not this device.
        let own = ["mount", "--backend=fuse"].map(OsString::from);
        let words = own.iter().chain(words).chain(iter::once(&mountpoint));
        let parsed = Args::augment_args(clap::Command::new("mount"))
            .try_get_matches_from(words)
            .and_then(|matches| Args::from_arg_matches(&matches));
        let mut args = parsed.map_err(|e| Failure::new(Code::Usage, e.to_string()))?;
        if let Some(prefetch) = prefetch {
            args.prefetch = prefetch.clone();
        }
        let mut job = Job::check(args)?;
        job.device = Some(device);
        Ok(job)
    }

    /// Lets the daemon end a command too.
    pub fn set_guard(&mut self, guard: Guard) {
        self.guard = Some(guard);
    }

    /// How the kernel is to mount it.
    pub fn how(&self) -> &MountFlags {
        &self.how
    }

    /// The device that it will serve.
    pub fn device(&self) -> Option<BorrowedFd<'_>> {
        self.device.as_ref().map(AsFd::as_fd)
    }
}

impl Job {
    /// Refuses what can be refused before anything is made or started.
    fn check(args: Args) -> Outcome<Job> {
        let (descriptor, mountpoint) = match args.paths.as_slice() {
            [mountpoint] if !args.lower.is_empty() => (None, mountpoint),
            [descriptor, mountpoint] if args.lower.is_empty() => (Some(descriptor), mountpoint),
            _ => {
                let text = "give either IMAGE and MOUNTPOINT, or --lower DIR and MOUNTPOINT";
                return Err(Failure::new(Code::Usage, text));
            }
        };
        let shown = args.ownership.shown()?;
        let mut options = MountOptions::parse(&args.options);
        if args.read_only {
            options.set_read_only();
        }
        for unknown in &options.unknown {
            say(format_args!(
                "mount: warning: -o {unknown} is not known and ignored"
            ));
        }
        let mut how = options.for_user(process::is_root(), process::is_initial_root())?;
        how.source = descriptor.map(|path| fs::canonicalize(path).unwrap_or_else(|_| path.clone()));
        let mut paths = RealPaths::default();
        let (layers, beside) = match descriptor {
            Some(image) => {
                let found = layers::find(image, &args.cvmfs_root, args.layer_order)?;
                let beside = prefetch::beside(image, found.metadata.as_deref());
                (found.layers, Some(beside))
            }
            None => {
                let (root, order) = (&args.cvmfs_root, args.layer_order);
                let layers = layers::of_dirs(&args.lower, root, order, &mut paths)?;
                (layers, None)
            }
        };
        layers::find_all(&layers);
        layers::check_all(&layers, Layer::misplaced)?;
        let mountpoint = usable_mountpoint(mountpoint)?;
        let points = points::parse(args.bind_points.as_deref().unwrap_or_default())
            .or_fail(Code::Usage, "--bind-points")?;
        if !points.is_empty() && mount::passed_fd(&mountpoint).is_some() {
            let text = "--bind-points needs a mountpoint that is a directory";
            return Err(Failure::new(Code::Usage, text));
        }
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
            say(format_args!(
                "mount: changes are kept in {}",
                state.join("upper").display()
            ));
        }
        let specs: Vec<_> = layers.iter().map(Layer::spec).collect();
        let upper = plan.spec();
        let apart = upper
            .as_ref()
            .map(|upper| refuse_overlap(upper, &specs, &mut paths))
            .transpose()
            .or_fail(Code::Upper, "the upper")?;
        let chosen = args.backend.choose(&backend::Wish {
            layers: &layers,
            upper: upper.as_ref(),
            only_fuse: args.only_fuse(&options, &mountpoint),
            not_aufs: args.not_aufs(),
        })?;
        let prefetch = prefetch::Plan::choose(&args.prefetch, beside, &specs, &mountpoint)?;
        let prefetch = match chosen.backend {
            Backend::Fuse => prefetch,
            Backend::Overlay | Backend::Aufs => prefetch.and_then(prefetch::Plan::without_record),
        };
        if args.verbose {
            say(format_args!("mount: {}", chosen.told));
            say(format_args!(
                "mount: {}",
                prefetch::told(prefetch.as_ref(), chosen.backend)
            ));
        }
        Ok(Job {
            layers,
            shown,
            plan,
            apart,
            chosen,
            prefetch,
            how,
            mountpoint,
            device: None,
            guard: None,
            points,
            args,
        })
    }

    /// Everything after the fork; returns when the mount is gone.
    fn serve(mut self, reporter: Option<Arc<Mutex<Option<Reporter>>>>) -> Outcome<()> {
        let signals = process::block_termination().or_fail(Code::Failure, "signals")?;
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        nix::unistd::chdir("/").or_fail(Code::Failure, "/")?;

        let open_files = raise_open_files();
        let limits = Limits::of(open_files);
        let kept = 2 * limits.directories.get() as u64;
        let room = process::make_room_for_files(kept.min(open_files));
        best_effort("make room for open files", room);
        let prefetch = self.prefetch.take().map(|plan| plan.begin(open_files));
        let prefetch = Arc::new(prefetch);
        let learning = (*prefetch).as_ref().map(Session::learning);
        let upper = Arc::new(self.plan.prepare()?);
        if self.chosen.from_kernel {
            kernel::take_over(&upper, &self.about(&upper))?;
        }
        let union = match self.open_union(&upper, limits, learning) {
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
        let about = self.about(&upper);
        best_effort("note what is mounted", upper.record_mount(&about));
        union.cover(&self.mountpoint);
        // A daemon in the background is not the process that a service manager has started.
        let manager = match reporter {
            Some(_) => Manager::default(),
            None => Manager::of_environment(),
        };
        let told = Told {
            reporter,
            manager: manager.clone(),
            mountpoint: self.mountpoint.clone(),
            layers: self.layers.len(),
        };
        let own_device = self.device.is_some();
        let (fd, target) = self.mount()?;
        let ending = Ending {
            guard: self.guard.take(),
            manager: manager.clone(),
            target: target.clone(),
            upper: upper.clone(),
            union: Arc::downgrade(&union),
            prefetch: prefetch.clone(),
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
            about,
            clone_fd: target.is_some() || own_device,
            passthrough: match self.args.passthrough.as_str() {
                "off" => Passthrough::Off,
                "auto" if writeback => Passthrough::Off,
                "all" => Passthrough::All,
                "upper" => Passthrough::Upper,
                _ => Passthrough::Auto,
            },
            writeback,
            // With a descriptor that others have mounted it is what turns the checks of rights on.
            acls: !self.shown.no_acls || target.is_none(),
            timeout: self.args.timeout.unwrap_or(FOREVER),
            ..Default::default()
        };
        let points = Points {
            told,
            wanted: self.points,
            failure: Arc::default(),
        };
        let not_made = points.failure.clone();
        let outcome = session::serve_with(union, fd, options, || {
            if let Some(path) = &target {
                best_effort("read further ahead", mount::raise_readahead(path, MAX_IO));
            }
            match target.clone() {
                Some(path) if !points.wanted.is_empty() => points.make_in(path),
                _ => points.told.ready(),
            }
        });
        manager.stopping();
        stop(&prefetch);
        if outcome.is_err() {
            detach(target.as_deref());
        }
        upper.discard();
        let_go(&rest);
        end(&prefetch);
        if let Some(failure) = not_made.lock().take() {
            return Err(failure);
        }
        outcome.or_fail(Code::Failure, "serving the mount")
    }
}

/// How many files may be open: as many as this user may have.
fn raise_open_files() -> u64 {
    let most = process::raise_open_files();
    let open_files = most.as_ref().map_or(0, |n| *n);
    best_effort("raise the limit of open files", most);
    open_files
}
