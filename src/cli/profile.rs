//! `profile`: what is known of the runs of an image: made, shown, put together, handed on, dropped.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::layers::{self, Layer, Order};
use super::prefetch::{Place, name_of, replay_told};
use super::{Code, Failure, OrFail, Outcome, print};
use crate::error::{best_effort, printable};
use crate::profile::store::{self, Store};
use crate::profile::{self, Profile, bytes_of};
use crate::sys::{mount, mounts, process};
use crate::text;
use crate::union::api::LowerSpec;

/// Works on profiles: what runs of an image open in its layers, which mounts fetch ahead.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Mounts an image for one run of a command, and adds what that opens to the image's profile
    Record {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        root: Root,
        /// The image, as of mount
        #[arg(value_name = "IMAGE")]
        image: PathBuf,
        /// The command and its arguments, in the image
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Shows the profile of an image, or one in a file
    Show {
        #[command(flatten)]
        of: Of,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Puts profiles together, each as one run, the first as the last
    Merge {
        /// Where the whole goes
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The profiles
        #[arg(required = true, value_name = "PROFILE")]
        profiles: Vec<PathBuf>,
    },
    /// Writes what is expected of the next run as a profile for others: beside an image, or on another host
    Export {
        #[command(flatten)]
        of: Of,
        /// Where it goes [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Forgets the runs of an image
    Drop {
        #[command(flatten)]
        of: Of,
        /// Those with all tags, and without one
        #[arg(long, conflicts_with = "job")]
        all: bool,
    },
}

/// How the layers of an image are found.
#[derive(Clone, Debug, clap::Args)]
struct Root {
    /// Where the repositories are mounted
    #[arg(long, value_name = "DIR", default_value = "/cvmfs")]
    cvmfs_root: PathBuf,
    /// The order in which the descriptor lists its layers
    #[arg(long, value_enum, default_value_t)]
    layer_order: Order,
}

/// A profile.
#[derive(Clone, Debug, clap::Args)]
struct Of {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    root: Root,
    /// The image, as of mount, or a file with a profile
    #[arg(value_name = "IMAGE|PROFILE")]
    what: PathBuf,
}

pub fn run(args: Args) -> Outcome<()> {
    match args.what {
        What::Record {
            place,
            root,
            image,
            command,
        } => record(&place, &root, &image, &command),
        What::Show { of, json } => {
            let (path, profile) = of.read()?;
            let text = match json {
                true => format!("{:#}\n", as_json(&profile)),
                false => table(&path, &profile),
            };
            print(&text)
        }
        What::Merge { output, profiles } => merge(&output, &profiles),
        What::Export { of, output } => {
            let (_, profile) = of.read()?;
            let profile = profile.exported();
            match output {
                None => print(&profile.to_text()),
                Some(path) => write(&path, &profile),
            }
        }
        What::Drop { of, all } => of.forget(all),
    }
}

impl Root {
    fn layers(&self, image: &Path) -> Outcome<Vec<LowerSpec>> {
        let found = layers::find(image, &self.cvmfs_root, self.layer_order)?;
        Ok(found.layers.iter().map(Layer::spec).collect())
    }
}

fn place_of(place: &Place, layers: &[LowerSpec]) -> Outcome<(Store, PathBuf)> {
    place.of(layers).ok_or_else(|| {
        let text = "there is no place for profiles: set HOME, or pass --profiles DIR";
        Failure::new(Code::Usage, text)
    })
}

impl Of {
    fn forget(&self, all: bool) -> Outcome<()> {
        let layers = self.root.layers(&self.what)?;
        let (store, path) = place_of(&self.place, &layers)?;
        let name = name_of(&layers);
        let paths = match all {
            true => store.all_of(&name).or_fail(Code::Failure, "profiles")?,
            false => vec![path],
        };
        let mut dropped = 0;
        for path in &paths {
            let gone = store.drop(path).or_fail(Code::Failure, printable(path))?;
            dropped += usize::from(gone);
        }
        if dropped == 0 {
            let text = format!("{}: no run is known", printable(&self.what));
            return Err(Failure::new(Code::Failure, text));
        }
        Ok(())
    }

    /// The profile, and where it was.
    fn read(&self) -> Outcome<(PathBuf, Profile)> {
        let shown = printable(&self.what);
        let path = match store::is_profile(&self.what) {
            Err(e) => return Err(e).or_fail(Code::Image, shown),
            Ok(true) => self.what.clone(),
            Ok(false) => place_of(&self.place, &self.root.layers(&self.what)?)?.1,
        };
        match store::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = format!("{shown}: no run is known: there is no {}", printable(&path));
                Err(Failure::new(Code::Failure, text))
            }
            other => {
                let profile = other.or_fail(Code::Image, printable(&path))?;
                Ok((path, profile))
            }
        }
    }
}

fn write(path: &Path, profile: &Profile) -> Outcome<()> {
    store::write(path, profile).or_fail(Code::Failure, printable(path))
}

fn merge(output: &Path, paths: &[PathBuf]) -> Outcome<()> {
    let mut whole: Option<Profile> = None;
    for path in paths {
        let profile = store::read(path).or_fail(Code::Image, printable(path))?;
        whole = Some(match whole {
            None => Profile::default().over(&profile),
            Some(whole) => whole.over(&profile),
        });
    }
    write(output, &whole.unwrap_or_default())
}

/// A directory to mount on, removed when it goes.
struct Mountpoint(PathBuf);

impl Mountpoint {
    fn make() -> Outcome<Mountpoint> {
        let template = std::env::temp_dir().join("cvmfs-union-profile.XXXXXX");
        let made = nix::unistd::mkdtemp(&template);
        made.map(Mountpoint)
            .or_fail(Code::Failure, template.display())
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        best_effort("remove the mountpoint", std::fs::remove_dir(&self.0));
    }
}

/// Runs the command in the image once, with a mount of its own.
fn record(place: &Place, root: &Root, image: &Path, command: &[OsString]) -> Outcome<()> {
    let layers = root.layers(image)?;
    let (_, path) = place_of(place, &layers)?;
    let before = store::read(&path).ok();
    let program = std::env::current_exe().or_fail(Code::Failure, "this program")?;
    let mountpoint = Mountpoint::make()?;
    let mut mount = Command::new(&program);
    mount
        .args(["mount", "--ephemeral", "--cvmfs-root"])
        .arg(&root.cvmfs_root);
    if root.layer_order == Order::TopFirst {
        mount.args(["--layer-order", "top-first"]);
    }
    if let Some(job) = &place.job {
        mount.arg("--job").arg(job.to_string());
    }
    if let Some(profiles) = &place.profiles {
        mount.arg("--profiles").arg(profiles);
    }
    mount.arg("--foreground").arg(image).arg(&mountpoint.0);
    // An interrupt ends the command, and not what is to go on after it. Commands start without this.
    process::block_termination().or_fail(Code::Failure, "signals")?;
    let mut daemon = started(mount.process_group(0), &mountpoint.0)?;
    let ran = succeeded(&mut in_root(&mountpoint.0, command), "the command");
    let mut umount = Command::new(&program);
    succeeded(
        umount.arg("umount").arg(&mountpoint.0),
        "unmounting the image",
    )?;
    // It writes the profile when its mount is gone.
    let ended = daemon.wait().or_fail(Code::Failure, "the mount")?;
    ran.and(checked(ended, "the mount"))?;
    match store::read(&path) {
        Ok(profile) if Some(&profile) != before.as_ref() => {
            let of_last = |file: &&profile::File| file.last == profile.runs;
            let files = profile.files.iter().filter(of_last).count();
            print(&format!("{files} files, in {}\n", printable(&path)))
        }
        _ => {
            let text = format!("{}: nothing was recorded", printable(&path));
            Err(Failure::new(Code::Failure, text))
        }
    }
}

/// Starts a mount in the foreground, and returns when it is there.
fn started(mount: &mut Command, mountpoint: &Path) -> Outcome<Child> {
    let mut daemon = mount.spawn().or_fail(Code::Failure, "mount")?;
    let is_there = || {
        let found = mounts::mounted_type(mountpoint).or_fail(Code::Failure, "/proc/self/mountinfo");
        found.map(|fstype| fstype.as_deref() == Some(mount::FSTYPE))
    };
    while !is_there()? {
        if let Some(ended) = daemon.try_wait().or_fail(Code::Failure, "mount")? {
            checked(ended, "mounting the image")?;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(daemon)
}

/// A command with this root; who is not root, in a user namespace.
fn in_root(root: &Path, command: &[OsString]) -> Command {
    let mut run = match process::is_root() {
        true => Command::new("chroot"),
        false => {
            let mut run = Command::new("unshare");
            run.args(["--user", "--map-root-user", "chroot"]);
            run
        }
    };
    // Users' paths lack the place of chroot(8) on some systems.
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    run.env("PATH", path).arg(root).args(command);
    run
}

/// Runs it to its end, which has to be a good one.
fn succeeded(command: &mut Command, what: &str) -> Outcome<()> {
    checked(command.status().or_fail(Code::Failure, what)?, what)
}

fn checked(ended: ExitStatus, what: &str) -> Outcome<()> {
    match ended.success() {
        true => Ok(()),
        false => Err(Failure::new(Code::Failure, format!("{what}: {ended}"))),
    }
}

fn table(path: &Path, profile: &Profile) -> String {
    let mut text = format!(
        "{}: {} runs, {} files, {} of them expected\n",
        printable(path),
        profile.runs,
        profile.files.len(),
        profile.expected().count()
    );
    if let Some(replay) = &profile.replay {
        text.push_str(&format!("last time {}\n", replay_told(replay)));
    }
    text.push_str(&format!(
        "{:>5} {:>12} {:>12}  FILE\n",
        "RUNS", "BYTES", "READ"
    ));
    for file in &profile.files {
        let layer = profile.layers.get(file.layer).map_or("", String::as_str);
        let short: String = layer.chars().take(12).collect();
        let path = String::from_utf8_lossy(&file.path);
        let mark = if profile.expects(file) {
            ""
        } else {
            " (not expected)"
        };
        text.push_str(&format!(
            "{:>5} {:>12} {:>12}  {}:/{}{mark}\n",
            file.history.count_ones(),
            file.size,
            read(file),
            printable(&short),
            printable(&*path),
        ));
    }
    text
}

/// How many bytes of a file runs have read, as far as that is known.
fn read(file: &profile::File) -> u64 {
    bytes_of(file.parts.pieces(), file.size)
}

fn as_json(profile: &Profile) -> Value {
    let files = profile.files.iter().map(|file| {
        json!({
            "layer": profile.layers.get(file.layer),
            "path": text::of_path(OsStr::from_bytes(&file.path)),
            "bytes": file.size,
            "read": read(file),
            "runs": file.history.count_ones(),
            "last_run": file.last,
            "expected": profile.expects(file),
        })
    });
    json!({
        "version": 1,
        "runs": profile.runs,
        "layers": profile.layers,
        "replay": profile.replay.map(|replay| json!({
            "files": replay.files,
            "bytes": replay.bytes,
            "took_ms": replay.millis,
            "used": replay.used,
            "saved_ms": replay.saved,
        })),
        "files": files.collect::<Vec<_>>(),
    })
}
