//! `run`: a command in an image, in namespaces of its own, so that nothing of it is left behind.
//!
//! Three processes. The one that was called enters a user namespace, unless it is root, waits, passes
//! signals on, and ends with the command's status. The command's process has a mount namespace in which
//! it mounts the union and makes that its root. The daemon stays where it was, and is asked to end when
//! the command has, and all that it has started. They end with the first, however that ends: if it is killed,
//! the kernel ends the command, and the daemon what is left.

mod inside;
mod wait;

use std::ffi::OsString;
use std::io::{self, PipeReader, Write};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use self::inside::Inside;
use self::wait::Family;
use super::layers::Order;
use super::mount::{Guard, Job};
use super::terminal::say;
use super::{Code, Failure, OrFail, Outcome, log, prefetch};
use crate::error::best_effort;
use crate::sys::children::MountNamespace;
use crate::sys::process::{self, Report, Side};
use crate::sys::{mount, namespace};

/// Runs a command in an image, as the caller and without root, and ends with its status.
///
/// The root file system is the image's; /proc, /sys, /dev, /tmp, /etc/resolv.conf, the home and the working
/// directory are those of the host. Without --ephemeral or --upper the image cannot be changed.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub struct Args {
    /// A descriptor, a saved thin image, or cvmfs://<repository>/<registry>/<image>:<tag>
    image: PathBuf,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
    /// Show a directory or file of the host too, at DST or where it is on the host; repeat it
    #[arg(long, value_name = "SRC[:DST[:ro]]")]
    bind: Vec<String>,
    /// Set a variable of the environment, which is otherwise the caller's; repeat it
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The directory to begin in [default: the caller's if it is there, else the home, else /]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Run as root of a user namespace, which is the caller outside
    #[arg(long)]
    root: bool,
    /// Allow changes, and throw them away at the end
    #[arg(long, conflicts_with = "upper")]
    ephemeral: bool,
    /// Keep changes in this directory, as `mount --upper` does
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// Scratch space on the upper's file system [default: <upper>.work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Whose the files of the layers are: as stored, or all root's, who is the caller where there is a user
    /// namespace [default: squash there, else keep]
    #[arg(long, value_name = "WHOSE", value_parser = ["keep", "squash"])]
    owner: Option<String>,
    /// Where the repositories are mounted
    #[arg(long, value_name = "DIR", default_value = "/cvmfs")]
    cvmfs_root: PathBuf,
    /// The order in which the descriptor lists its layers
    #[arg(long, value_enum, default_value_t)]
    layer_order: Order,
    #[command(flatten)]
    prefetch: prefetch::Args,
    #[command(flatten)]
    log: log::Args,
}

/// Runs it; the status to end with.
pub fn run(args: Args) -> Outcome<u8> {
    args.log.begin()?;
    let inside = Inside::plan(&args)?;
    let mapped = enter()?;
    let device = mount::open_device().or_fail(Code::Mountpoint, "the image")?;
    let job = Job::on_device(&args.words(), Some(&args.prefetch), device)?;

    let (wait_for_go, mut go) = io::pipe().or_fail(Code::Failure, "pipe")?;
    let runner = process::id();
    let adopts = wait::adopt();
    match process::fork_within().or_fail(Code::Failure, "fork")? {
        Side::Child(reporter) => {
            drop(go);
            let ready = |report| reporter.send(&report);
            become_command(inside, job, ready, wait_for_go, (runner, mapped))
        }
        Side::Parent(child) => {
            drop(wait_for_go);
            let command = child.pid();
            let begun = match child.wait().or_fail(Code::Failure, "the command")? {
                Report::Ready => begin(job, command, adopts),
                Report::Failed { code, message } => Err(Failure { code, message }),
            };
            let (daemon, namespace) = begun.inspect_err(|_| {
                best_effort("end the command", kill(command, Signal::SIGKILL));
                best_effort("wait for it", waitpid(command, None));
            })?;
            let mut family = Family::new(command, daemon, namespace);
            let signals = wait::block().or_fail(Code::Failure, "signals")?;
            best_effort("begin", go.write_all(b"."));
            drop(go);
            let status = family.wait_for_command(&signals);
            family.end();
            status.or_fail(Code::Failure, "waiting for the command")
        }
    }
}

/// Starts the daemon, which ends what is in the mount namespace of the command when this process cannot. The
/// namespace too, if this process will look for it there.
fn begin(mut job: Job, command: Pid, adopts: bool) -> Outcome<(Pid, Option<MountNamespace>)> {
    let namespace = || MountNamespace::of(command).or_fail(Code::Failure, "the mount namespace");
    job.set_guard(Guard::new(namespace()?));
    let daemon = job.start(true)?;
    Ok((daemon, (!adopts).then(namespace).transpose()?))
}

/// Enters a user namespace where mounting takes one: the user who was, if so.
fn enter() -> Outcome<Option<(u32, u32)>> {
    let caller = (process::user(), process::group());
    if process::is_root() && namespace::can_mount() {
        return Ok(None);
    }
    namespace::enter_user(caller, (0, 0)).map_err(|e| {
        let text = format!(
            "a user namespace: {e}; they may be switched off here, see the sysctl settings \
             user.max_user_namespaces and kernel.unprivileged_userns_clone"
        );
        Failure::new(Code::Failure, text)
    })?;
    Ok(Some(caller))
}

/// The rest of the command's process, which does not come back.
fn become_command(
    inside: Inside,
    job: Job,
    ready: impl FnOnce(Report) -> io::Result<()>,
    wait_for_go: PipeReader,
    (runner, mapped): (Pid, Option<(u32, u32)>),
) -> Outcome<u8> {
    let failed = |failure: Failure| Report::Failed {
        code: failure.code,
        message: failure.message,
    };
    let mounted = process::end_with(runner, Signal::SIGKILL)
        .or_fail(Code::Failure, "the command")
        .and_then(|()| inside.mount(&job, mapped.is_none()));
    let mounted = match mounted {
        Ok(mounted) => mounted,
        Err(failure) => {
            best_effort("report a failure", ready(failed(failure)));
            end(1)
        }
    };
    // While somebody has the device, whoever waits for the daemon does so even when that has died.
    drop(job);
    if ready(Report::Ready).is_err() || !is_told_to_go(wait_for_go) {
        end(1)
    }
    let failure = mounted.become_command(runner, mapped);
    say(format_args!("run: {}", failure.message));
    end(failure.code)
}

/// Waits for the one byte; false if nobody is left to send it.
fn is_told_to_go(mut from: PipeReader) -> bool {
    let mut byte = [0];
    io::Read::read_exact(&mut from, &mut byte).is_ok()
}

#[expect(
    clippy::exit,
    reason = "the child must not return into what its parent goes on with"
)]
fn end(code: u8) -> ! {
    std::process::exit(code.into())
}

impl Args {
    /// The words of the `mount` that it takes.
    fn words(&self) -> Vec<OsString> {
        // Whom a user namespace does not know can own nothing that is changed in it.
        let usual = match process::is_initial_root() {
            true => "keep",
            false => "squash",
        };
        let owner = self.owner.as_deref().unwrap_or(usual);
        let order = match self.layer_order {
            Order::BottomFirst => "bottom-first",
            Order::TopFirst => "top-first",
        };
        let mut words: Vec<OsString> = ["--owner", owner, "--layer-order", order]
            .map(OsString::from)
            .into();
        let mut option = |name: &str, value: &PathBuf| {
            words.push(name.into());
            words.push(value.into());
        };
        option("--cvmfs-root", &self.cvmfs_root);
        if let Some(upper) = &self.upper {
            option("--upper", upper);
        }
        if let Some(work) = &self.work {
            option("--work", work);
        }
        if self.upper.is_none() {
            words.push("--ephemeral".into());
        }
        words.push("--".into());
        words.push(self.image.clone().into());
        words
    }
}
