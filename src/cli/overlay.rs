//! `overlay`, and the program under other names: the interface of fuse-overlayfs and of helpers of mount(8).
//!
//! What is asked for in their words is turned into arguments of `mount`, so that there is one place
//! where a mount is checked and made. With `lowerdir=` it is what container engines expect of
//! fuse-overlayfs; with a SOURCE instead it is `mount` for the fstab.

mod words;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args as _, CommandFactory, FromArgMatches, Parser};

use super::terminal::say;
use super::{Code, Failure, Outcome, mount};
use crate::sys::process;
use words::{Word, split, unescape};

const OPTIONS: &str =
    "Options in LIST, with backslashes before commas and colons that are not separators:
  lowerdir=A:B     directories or descriptors (thin.json), topmost first; lowerdir+=C adds one
  upperdir=DIR     where changes go; without it, and without ephemeral, nothing can be changed
  workdir=DIR      scratch space on the same file system [default: <upperdir>.work]
  timeout=SECONDS  how long the kernel goes by names and attributes [default: for ever]
  volatile, fsync=0    nothing is synced; after a crash the upper is refused
  redirect_dir=on, metacopy=on    allow both in the upper; without, other unions can take it over
  allow_suid, allow_dev    as suid and dev, which mount(8) does not pass on
  ro, nosuid, nodev, noexec, noatime, allow_other ...    as those of `cvmfs-union mount -o`
Every long option of `cvmfs-union mount` is one too: cvmfs_root=DIR, ephemeral, log=debug ...
backend is fuse if it is not given.
Others are named and ignored.";

/// Mounts as fuse-overlayfs does: -o lowerdir=A:B,upperdir=U,workdir=W MOUNTPOINT.
///
/// The program does the same when it is called `fuse-overlayfs` or, by mount(8), `mount.cvmfs-union`.
#[derive(Debug, clap::Args)]
#[command(version, after_help = OPTIONS)]
pub struct Args {
    /// A descriptor, or with lowerdir= any word, as mount(8) gives one; and the mountpoint
    #[arg(required = true, num_args = 1..=2, value_names = ["SOURCE", "MOUNTPOINT"])]
    paths: Vec<PathBuf>,
    /// Options, separated by commas; repeat it
    #[arg(short, value_name = "LIST")]
    options: Vec<OsString>,
    /// Stay in the foreground; of `mount.cvmfs-union`: only check
    #[arg(short = 'f')]
    foreground: bool,
    /// Log all, in the foreground
    #[arg(short, long)]
    debug: bool,
    /// What mount(8) and libfuse may add, and what means nothing here
    #[arg(short = 's', short_aliases = ['n', 'v', 'w'], hide = true, action = clap::ArgAction::Count)]
    other: u8,
    /// The type that mount(8) was given
    #[arg(short = 't', hide = true)]
    fstype: Option<OsString>,
}

/// A name that this program is also called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// `fuse-overlayfs`.
    FuseOverlayfs,
    /// `mount.cvmfs-union`, which mount(8) runs.
    MountHelper,
}

impl Personality {
    /// By the last component of the name, as it was called.
    pub fn of(called: &OsStr) -> Option<Personality> {
        match Path::new(called).file_name()?.as_bytes() {
            b"fuse-overlayfs" => Some(Personality::FuseOverlayfs),
            b"mount.cvmfs-union" => Some(Personality::MountHelper),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Personality::FuseOverlayfs => "fuse-overlayfs",
            Personality::MountHelper => "mount.cvmfs-union",
        }
    }

    /// Reads this program's arguments as that program would, and does what it does.
    pub fn run(self) -> Outcome<()> {
        // `--version` says whose it is.
        let command = clap::Command::new(self.name()).display_name(crate::sys::mount::NAME);
        let command = Args::augment_args(command);
        let matches = command.get_matches();
        let mut args = Args::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
        let fake = self == Personality::MountHelper && std::mem::take(&mut args.foreground);
        if fake {
            return translate(&args).map(drop);
        }
        run(&args)
    }
}

pub fn run(args: &Args) -> Outcome<()> {
    let Translated { arguments, unknown } = translate(args)?;
    for word in unknown {
        let word = word.display();
        say(format_args!(
            "overlay: warning: -o {word} is not known and ignored"
        ));
    }
    let command = Mount::try_parse_from(arguments);
    mount::run(command.map_err(usage)?.args)
}

/// `mount`, to be parsed by itself.
#[derive(Debug, Parser)]
struct Mount {
    #[command(flatten)]
    args: mount::Args,
}

/// The words of clap without the usage of a command that nobody typed.
fn usage(e: clap::Error) -> Failure {
    let text = e.to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    Failure::new(Code::Usage, first)
}

/// What the options mean.
#[derive(Debug)]
struct Translated {
    /// Those of `mount`, with a first word for its name.
    arguments: Vec<OsString>,
    unknown: Vec<OsString>,
}

fn translate(args: &Args) -> Outcome<Translated> {
    let mut wanted = Wanted::default();
    for word in words::of(&args.options) {
        wanted.take(&word)?;
    }
    let as_root = process::is_root();
    let (source, mountpoint) = match args.paths.as_slice() {
        [mountpoint] => (None, mountpoint),
        [source, mountpoint] => (Some(source), mountpoint),
        _ => return Err(Failure::new(Code::Usage, "give one mountpoint")),
    };
    let mut arguments = vec![OsString::from("mount")];
    let mut add = |name: &str, value: &OsStr| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        arguments.push(argument);
    };
    for lower in &wanted.lowers {
        add("lower", lower);
    }
    if let Some(upper) = &wanted.upper {
        add("upper", upper);
    }
    if let Some(work) = &wanted.work {
        add("work", work);
    }
    if args.debug {
        add("log", OsStr::new("debug"));
    }
    let writable = wanted.upper.is_some() || wanted.has("--ephemeral");
    if !writable && !wanted.has("--read-only") {
        arguments.push("--read-only".into());
    }
    if args.foreground || args.debug {
        arguments.push("--foreground".into());
    }
    if wanted.lowers.is_empty() {
        if source.is_none() {
            let text = "no lowerdir= in the options, and no descriptor before the mountpoint";
            return Err(Failure::new(Code::Usage, text));
        }
    } else {
        // As fuse-overlayfs, which programs in containers rely on.
        if as_root {
            arguments.extend(["-o".into(), "suid".into()]);
        }
        if writable && !wanted.own_marks && !wanted.has("--portable-upper") {
            arguments.push("--portable-upper".into());
        }
    }
    // Container engines call for a mount of FUSE, and mount(8) knows what is mounted by its source, which the
    // kernel's union does not show.
    if !wanted.gives("--backend=") {
        arguments.push("--backend=fuse".into());
    }
    arguments.append(&mut wanted.arguments);
    arguments.push("--".into());
    if wanted.lowers.is_empty() {
        arguments.extend(source.map(Into::into));
    }
    arguments.push(mountpoint.into());
    Ok(Translated {
        arguments,
        unknown: wanted.unknown,
    })
}

#[derive(Debug, Default)]
struct Wanted {
    lowers: Vec<OsString>,
    upper: Option<OsString>,
    work: Option<OsString>,
    /// Redirects and metadata copies may be written.
    own_marks: bool,
    arguments: Vec<OsString>,
    unknown: Vec<OsString>,
}

impl Wanted {
    fn has(&self, argument: &str) -> bool {
        self.arguments.iter().any(|a| a == argument)
    }

    /// Whether there is an option that begins so.
    fn gives(&self, beginning: &str) -> bool {
        let mut arguments = self.arguments.iter();
        arguments.any(|a| a.as_bytes().starts_with(beginning.as_bytes()))
    }

    fn take(&mut self, word: &Word) -> Outcome<()> {
        let refuse = |why: &str| {
            let text = format!("-o {}: {why}", word.text().display());
            Err(Failure::new(Code::Usage, text))
        };
        if word.is_half_quoted() {
            return refuse("the label has no second quote");
        }
        let value = word.value.as_deref();
        match (word.name.to_str().unwrap_or_default(), value) {
            ("lowerdir", Some(list)) => self.lowers = lowers(list)?,
            ("lowerdir+", Some(dir)) => self.lowers.push(unescape(dir)),
            ("upperdir", Some(dir)) => self.upper = Some(unescape(dir)),
            ("workdir", Some(dir)) => self.work = Some(unescape(dir)),
            ("lowerdir" | "lowerdir+" | "upperdir" | "workdir", None) => {
                let text = format!("-o {} wants a directory", word.name.display());
                return Err(Failure::new(Code::Usage, text));
            }
            ("volatile", None) => self.arguments.push("--durability=volatile".into()),
            ("fsync", Some(value)) if value == "0" => {
                self.arguments.push("--durability=volatile".into());
            }
            // mount(8) keeps `suid` and `dev` to itself, as they are its defaults. They are not ours: who
            // writes a repository would be root here.
            ("allow_suid", None) => self.arguments.extend(["-o".into(), "suid".into()]),
            ("allow_dev", None) => self.arguments.extend(["-o".into(), "dev".into()]),
            ("redirect_dir" | "metacopy", Some(value)) => self.own_marks |= value == "on",
            ("writeback", Some(value)) if value == "1" || value == "0" => {
                let how = if value == "1" { "on" } else { "off" };
                self.arguments.push(format!("--writeback={how}").into());
            }
            (name, _) if MEANINGLESS.contains(&name) => {}
            (name, value) => match long_option(name) {
                Some(true) => {
                    let mut argument = OsString::from(format!("--{}=", name.replace('_', "-")));
                    argument.push(unescape(value.unwrap_or_default()));
                    self.arguments.push(argument);
                }
                Some(false) if value.is_some() => return refuse("it takes no value"),
                Some(false) => {
                    self.arguments
                        .push(format!("--{}", name.replace('_', "-")).into());
                }
                None => self.mount_option(word),
            },
        }
        Ok(())
    }

    /// One of those that all mounts have, or nobody's.
    fn mount_option(&mut self, word: &Word) {
        let text = word.text();
        let privileged = matches!(text.as_bytes(), b"suid" | b"dev");
        if !super::options::is_known(&text) {
            self.unknown.push(text);
        } else if !privileged || process::is_initial_root() || text == "suid" && process::is_root()
        {
            // mount.fuse asks for suid and dev on its own where they cannot be had.
            self.arguments.extend(["-o".into(), text]);
        }
    }
}

/// Options of overlayfs, of fuse-overlayfs and of libfuse that need nothing done here.
const MEANINGLESS: &[&str] = &[
    "index",
    "xino",
    "nfs_export",
    "userxattr",
    "uuid",
    "fast_ino",
    "fast_ino_check",
    "threaded",
    "fsync",
    "big_writes",
    "kernel_cache",
    "splice_read",
    "splice_write",
    "splice_move",
    "max_write",
    "fsname",
    "subtype",
    "blkdev",
    "context",
    "allow_root",
];

/// The directories between colons that are no part of their names.
fn lowers(list: &OsStr) -> Outcome<Vec<OsString>> {
    let parts: Vec<_> = split(list, b':').collect();
    if parts.iter().any(|part| part.is_empty()) {
        let text = format!("lowerdir={}: a directory without a name", list.display());
        return Err(Failure::new(Code::Usage, text));
    }
    Ok(parts.into_iter().map(unescape).collect())
}

/// Whether `mount` has an option of that name, with `_` for `-`; if so, whether it takes a value.
fn long_option(name: &str) -> Option<bool> {
    let own = ["lower", "upper", "work", "foreground", "help", "version"];
    let name = name.replace('_', "-");
    if own.contains(&name.as_str()) {
        return None;
    }
    let command = Mount::command();
    let found = command
        .get_arguments()
        .find(|a| a.get_long() == Some(&name))?;
    Some(found.get_action().takes_values())
}
