//! `probe`: what this host lets this user do, tried out in namespaces that are gone afterwards.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use serde_json::{Value, json};

use super::mount::Job;
use super::options::MountOptions;
use super::terminal::{width_of, wrapped};
use super::trial::{Place, Stage, in_a_process};
use super::{Code, Failure, OrFail, Outcome, stats};
use crate::backend::Backend;
use crate::error::best_effort;
use crate::sys::mount;
use crate::sys::{file, namespace, process};

/// So many descriptors are enough for all that a mount keeps.
const ENOUGH_FILES: u64 = 16_384;
/// Whom Linux knows on each host, and who may do nothing: for a trial of what users may.
const NOBODY: u32 = 65_534;

/// Tries out what this host lets this user do: ways to mount, and what makes mounts faster.
///
/// Fails if no mount is possible.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Try the unions on the file system of this directory, where uppers are to be [default: in memory]
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
}

/// One thing that was tried.
struct Feature {
    name: &'static str,
    what: &'static str,
    /// Why not, and what may help.
    lack: Option<(String, &'static str)>,
}

pub fn run(args: &Args) -> Outcome<()> {
    let on = args.upper.as_deref();
    let fuse = tried(
        "fuse",
        "mounts of this program's daemon",
        union(on, |stage| daemon(stage, &["--passthrough=off"], || Ok(()))),
        "load the module fuse, and let users open /dev/fuse: chmod 666",
    );
    let fusermount = tried(
        "fusermount3",
        "mounts of users outside of namespaces",
        by_helper(false),
        "install the package fuse3, with its program set-uid root, and chmod 666 /dev/fuse",
    );
    let can_mount = fuse.lack.is_none() || fusermount.lack.is_none();
    let features = [
        tried(
            "overlay",
            "kernel overlayfs, for layers without .wh. files",
            union(on, |stage| stage.try_kernel(Backend::Overlay, &[], true)),
            "load the module overlay, and have uppers on a file system with xattrs; for users it takes Linux 5.11",
        ),
        tried(
            "aufs",
            "aufs, where the kernel has it",
            union(on, |stage| stage.try_kernel(Backend::Aufs, &[], true)),
            "it is no part of Linux; this program needs it for nothing",
        ),
        fuse,
        fusermount,
        tried(
            "allow_other",
            "mounts of users that others may enter",
            match process::is_initial_root() {
                // By mount(2).
                true => Ok(()),
                false => by_helper(true),
            },
            "add the line user_allow_other to /etc/fuse.conf",
        ),
        tried(
            "userns",
            "run and mount without root",
            in_a_process(|| {
                namespace::enter_user((process::user(), process::group()), (0, 0))
                    .or_fail(Code::Failure, "a user namespace")
            }),
            "allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone",
        ),
        tried(
            "run",
            "run: copies of mounts, made read-only",
            union(None, copies),
            "it takes Linux 5.12",
        ),
        tried(
            "passthrough",
            "data of changed files by the kernel alone",
            union(on, passthrough),
            "it takes root and Linux 6.9, and an upper on a file system with O_DIRECT",
        ),
        tried(
            "writeback",
            "writes collected in the page cache",
            union(on, |stage| {
                daemon(stage, &["--passthrough=off", "--writeback=on"], || Ok(()))
            }),
            "it takes what fuse takes",
        ),
        tried(
            "open files",
            "many directories kept at hand",
            open_files(),
            "raise the hard limit: ulimit -Hn, or LimitNOFILE= of a unit",
        ),
    ];
    let text = match args.json {
        true => format!("{:#}\n", features.iter().map(row).collect::<Value>()),
        false => wrapped(
            &features.iter().map(line).collect::<String>(),
            width_of(io::stdout()),
        ),
    };
    super::print(&text)?;
    match can_mount {
        true => Ok(()),
        false => Err(Failure::new(Code::Failure, "this user cannot mount here")),
    }
}

fn tried(
    name: &'static str,
    what: &'static str,
    result: Result<(), String>,
    remedy: &'static str,
) -> Feature {
    Feature {
        name,
        what,
        lack: result.err().map(|why| (why, remedy)),
    }
}

fn row(of: &Feature) -> Value {
    json!({
        "feature": of.name,
        "for": of.what,
        "usable": of.lack.is_none(),
        "reason": of.lack.as_ref().map(|(why, _)| why),
        "remedy": of.lack.as_ref().map(|(_, remedy)| remedy),
    })
}

fn line(of: &Feature) -> String {
    let usable = if of.lack.is_none() { "yes" } else { "no" };
    let mut text = format!("{:<12}  {usable:<3}  {}\n", of.name, of.what);
    if let Some((why, remedy)) = &of.lack {
        text.push_str(&format!("{:<19}{why}; {remedy}\n", ""));
    }
    text
}

/// Something that is done in namespaces of its own with directories of a trial, on that file system.
fn union(on: Option<&Path>, attempt: impl FnOnce(&Stage) -> Outcome<()>) -> Result<(), String> {
    let place = on.map_or_else(|| Ok(Place::memory()), Place::on)?;
    in_a_process(|| attempt(&place.enter()?))
}

/// A mount of the daemon with these options; what else is to be looked at as long as it is there.
fn daemon(stage: &Stage, options: &[&str], look: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let device = mount::open_device().or_fail(Code::Failure, "the device")?;
    let dirs = [
        ("--lower", "lower"),
        ("--upper", "upper"),
        ("--work", "work"),
    ];
    let dirs = dirs.map(|(option, dir)| [OsString::from(option), stage.at(dir).into()]);
    let options = options.iter().map(OsString::from);
    let words: Vec<OsString> = dirs.into_iter().flatten().chain(options).collect();
    let job = Job::on_device(&words, None, device)?;
    let device = job
        .device()
        .ok_or_else(|| Failure::new(Code::Failure, "no device"))?;
    mount::mount_device(device, &stage.at("mnt"), job.how()).or_fail(Code::Failure, "mount")?;
    let daemon = job.start(true)?;
    let used = stage.use_union().and_then(|()| look());
    // It is not to be at its directories any more when they are removed.
    best_effort("end the daemon", kill(daemon, Signal::SIGTERM));
    best_effort("wait for the daemon", waitpid(daemon, None));
    used
}

/// The kernel has written by itself if the daemon was not asked to.
fn passthrough(stage: &Stage) -> Outcome<()> {
    if !process::is_initial_root() {
        return Err(Failure::new(
            Code::Failure,
            "the kernel grants it to root only",
        ));
    }
    daemon(stage, &["--passthrough=upper"], || {
        let told = stats::ask(&stage.at("mnt"))?;
        let writes = told.pointer("/requests/write/count");
        match writes.and_then(Value::as_u64) {
            Some(0) => Ok(()),
            _ => Err(Failure::new(
                Code::Failure,
                "writes still come to the daemon",
            )),
        }
    })
}

fn copies(stage: &Stage) -> Outcome<()> {
    let copy =
        namespace::copy_of(&stage.at("lower")).or_fail(Code::Failure, "a copy of a mount")?;
    let copy = copy.as_fd();
    namespace::make_read_only(copy, true).or_fail(Code::Failure, "a read-only mount")?;
    let root =
        file::open_path(&stage.at("mnt"), libc::O_PATH).or_fail(Code::Failure, "a directory")?;
    namespace::attach(copy, root.as_fd()).or_fail(Code::Failure, "attach")
}

/// A mount by the set-uid helper. For root as nobody, in a mount namespace; a user can only mount where the user
/// is, so that mount is there for a moment.
fn by_helper(others: bool) -> Result<(), String> {
    let mut how = MountOptions::parse::<&str>(&[])
        .for_user(false, false)
        .map_err(|f| f.message)?;
    how.allow_other = others;
    if process::is_root() && !process::is_initial_root() {
        return Err("root of a user namespace mounts without it".to_owned());
    }
    if process::is_root() {
        return in_a_process(|| {
            let stage = Place::memory().enter()?;
            let mnt = stage.at("mnt");
            std::os::unix::fs::chown(&mnt, Some(NOBODY), Some(NOBODY))
                .or_fail(Code::Failure, mnt.display())?;
            process::become_user(NOBODY).or_fail(Code::Failure, "another user")?;
            let mounted = mount::mount_fusermount(&mnt, &how);
            mounted.map(drop).or_fail(Code::Failure, "mount")
        });
    }
    let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("cvmfs-union-trial.XXXXXX"));
    let dir = dir.map_err(|e| format!("a directory for a trial: {e}"))?;
    // Nobody serves it, so it ends with the descriptor.
    let mounted = mount::mount_fusermount(&dir, &how).map(drop);
    if mounted.is_ok() {
        best_effort("unmount", mount::umount_fusermount(&dir, true));
    }
    best_effort("remove the mountpoint", fs::remove_dir(&dir));
    mounted.map_err(|e| e.to_string())
}

fn open_files() -> Result<(), String> {
    match process::raise_open_files() {
        Ok(most) if most >= ENOUGH_FILES => Ok(()),
        Ok(most) => Err(format!(
            "the hard limit is {most}, {ENOUGH_FILES} are enough"
        )),
        Err(e) => Err(e.to_string()),
    }
}
