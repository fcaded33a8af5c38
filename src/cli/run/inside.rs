//! What the command's process does before it is the command: mounts, binds, a new root.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

use super::Args;
use crate::cli::mount::Job;
use crate::cli::points::{self, Kind};
use crate::cli::{Code, Failure, OrFail, Outcome};
use crate::sys::{file, meta, mount, namespace, process};

/// What is not the image's. A file or directory that the host lacks is left out.
const HOST: [&str; 5] = ["/proc", "/sys", "/dev", "/tmp", "/etc/resolv.conf"];
/// What the home and the working directory must not cover, nor be in.
const IMAGES: [&str; 9] = [
    "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/sys", "/dev",
];
/// What they must not cover.
const SHARED: [&str; 7] = ["/", "/var", "/opt", "/run", "/mnt", "/srv", "/home"];
/// Where programs are that every image has.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Directories of which the host has one; only the command's process sees what is mounted there.
const STAGES: [&str; 4] = ["/tmp", "/mnt", "/run", "/var"];
const CALL: &str = "the call of the command";

/// A directory or file of the host in the image.
struct Bind {
    from: PathBuf,
    to: PathBuf,
    read_only: bool,
}

/// What has been asked for.
pub struct Inside {
    binds: Vec<Bind>,
    read_only: bool,
    root: bool,
    workdir: Option<PathBuf>,
    command: Command,
    name: OsString,
}

/// The same, and the image is mounted.
pub struct Mounted {
    inside: Inside,
    root: PathBuf,
    /// The sources of the binds, in their order.
    sources: Vec<OwnedFd>,
}

impl Inside {
    /// Checks what can be checked before anything is done.
    pub fn plan(args: &Args) -> Outcome<Inside> {
        let mut binds = of_host();
        for text in &args.bind {
            binds.push(parse_bind(text)?);
        }
        let (name, arguments) = args
            .command
            .split_first()
            .ok_or_else(|| Failure::new(Code::Usage, "no command"))?;
        let mut command = Command::new(name);
        command.args(arguments).env("PATH", search_path());
        for text in &args.env {
            let (name, value) = text
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| {
                    Failure::new(Code::Usage, format!("--env {text}: not NAME=VALUE"))
                })?;
            command.env(name, value);
        }
        Ok(Inside {
            binds,
            read_only: !args.ephemeral && args.upper.is_none(),
            root: args.root,
            workdir: args.workdir.clone(),
            command,
            name: name.clone(),
        })
    }

    /// Mounts the image, which nobody serves yet, where only this process sees it.
    /// `others`: other users may look into it, as root can let them.
    pub fn mount(self, job: &Job, others: bool) -> Outcome<Mounted> {
        namespace::enter_mounts().or_fail(Code::Failure, "a mount namespace")?;
        // Before the stage covers one of them.
        let sources = self.binds.iter().map(|bind| {
            let copy = namespace::copy_of(&bind.from);
            copy.or_fail(Code::Usage, format!("showing {}", bind.from.display()))
        });
        let sources = sources.collect::<Outcome<_>>()?;
        let stage = STAGES.iter().map(Path::new).find(|stage| stage.is_dir());
        let stage = stage.unwrap_or(Path::new("/"));
        let root = stage.join("root");
        namespace::mount_tmpfs(stage)
            .and_then(|()| std::fs::create_dir(&root))
            .or_fail(Code::Failure, stage.display())?;
        let device = job
            .device()
            .ok_or_else(|| Failure::new(Code::Failure, "no device"))?;
        let mut how = job.how().clone();
        how.allow_other &= others;
        mount::mount_device(device, &root, &how).or_fail(Code::Mountpoint, "the image")?;
        Ok(Mounted {
            inside: self,
            root,
            sources,
        })
    }
}

impl Mounted {
    /// Becomes the command, once the image is served; a failure if that fails.
    pub fn become_command(mut self, runner: Pid, mapped: Option<(u32, u32)>) -> Failure {
        if let Err(failure) = self.enter(runner, mapped) {
            return failure;
        }
        let e = self.inside.command.exec();
        let code = match e.kind() {
            io::ErrorKind::NotFound => 127,
            _ => 126,
        };
        let name = self.inside.name.display();
        Failure {
            code,
            message: format!("{name}: {e}"),
        }
    }

    fn enter(&mut self, runner: Pid, mapped: Option<(u32, u32)>) -> Outcome<()> {
        let begin = self.begin_in();
        let callers = umask(Mode::empty());
        self.bind_all()?;
        umask(callers);
        namespace::pivot(&self.root).or_fail(Code::Failure, "the new root")?;
        let begun = match &self.inside.workdir {
            Some(dir) => env::set_current_dir(dir)
                .or_fail(Code::Usage, format!("--workdir {}", dir.display()))
                .map(|()| dir),
            None => begin
                .iter()
                .find(|dir| env::set_current_dir(dir).is_ok())
                .ok_or_else(|| Failure::new(Code::Failure, "no directory to begin in")),
        };
        self.inside.command.env("PWD", begun?);
        if let (Some(caller), false) = (mapped, self.inside.root) {
            namespace::enter_user((0, 0), caller).or_fail(Code::Failure, "the user")?;
        }
        // A change of users takes it away.
        process::end_with(runner, Signal::SIGKILL).or_fail(Code::Failure, CALL)
    }

    /// The directories to begin in, the first that is there.
    fn begin_in(&self) -> Vec<PathBuf> {
        let begin = [env::current_dir().ok(), env::home_dir(), Some("/".into())];
        begin.into_iter().flatten().collect()
    }

    fn bind_all(&self) -> Outcome<()> {
        let root = file::open_path(&self.root, libc::O_PATH | libc::O_DIRECTORY)
            .or_fail(Code::Mountpoint, "the image")?;
        for (bind, source) in self.inside.binds.iter().zip(&self.sources) {
            let failed = || format!("binding {} to {}", bind.from.display(), bind.to.display());
            let stat = meta::fstatat(source.as_fd(), b"").or_fail(Code::Failure, failed())?;
            let kind = Kind::from(stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
            if bind.read_only {
                let made = namespace::make_read_only(source.as_fd(), true);
                made.or_fail(Code::Failure, failed())?;
            }
            let to = points::make(root.as_fd(), &bind.to, kind)
                .or_fail(Code::Failure, format!("mount point {}", bind.to.display()))?;
            let attached = namespace::attach(source.as_fd(), to.as_fd());
            attached.or_fail(Code::Failure, failed())?;
        }
        if self.inside.read_only {
            namespace::make_read_only(root.as_fd(), false).or_fail(Code::Failure, "the image")?;
        }
        Ok(())
    }
}

/// What the command sees of the host without being told.
fn of_host() -> Vec<Bind> {
    let mut binds: Vec<Bind> = Vec::new();
    let fixed = HOST.iter().map(PathBuf::from);
    let own = [env::home_dir(), env::current_dir().ok()];
    let own = own.into_iter().flatten().filter(|dir| is_callers(dir));
    for path in fixed.chain(own) {
        let covered = binds.iter().any(|bind| path.starts_with(&bind.to));
        if path.exists() && !covered {
            binds.push(Bind {
                from: path.clone(),
                to: path,
                read_only: false,
            });
        }
    }
    binds
}

/// Whether a directory of the caller can be shown without covering what the image has.
fn is_callers(dir: &Path) -> bool {
    let shared = SHARED.iter().any(|own| dir == Path::new(own));
    // A path with `..` may be any of them.
    let plain = dir.components().all(|part| part != Component::ParentDir);
    dir.is_absolute() && plain && !shared && !IMAGES.iter().any(|own| dir.starts_with(own))
}

/// `SRC`, `SRC:DST` or `SRC:DST:ro`.
fn parse_bind(text: &str) -> Outcome<Bind> {
    let refuse = |why: &str| Failure::new(Code::Usage, format!("--bind {text}: {why}"));
    let mut words = text.split(':');
    let from = PathBuf::from(words.next().unwrap_or_default());
    let to = words.next().map_or_else(|| from.clone(), PathBuf::from);
    let read_only = match words.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(refuse("the last word is ro or rw")),
    };
    if words.next().is_some() {
        return Err(refuse("SRC:DST:ro has no more words"));
    }
    let from = std::path::absolute(from).map_err(|e| refuse(&e.to_string()))?;
    from.metadata().map_err(|e| refuse(&e.to_string()))?;
    if !to.is_absolute() || to == Path::new("/") {
        return Err(refuse("DST is not an absolute path below /"));
    }
    Ok(Bind {
        from,
        to,
        read_only,
    })
}

/// The caller's PATH, and what an image has that the caller's does not name.
fn search_path() -> OsString {
    let callers = env::var_os("PATH").unwrap_or_default();
    let callers: Vec<PathBuf> = env::split_paths(&callers).collect();
    let more = env::split_paths(PATH).filter(|dir| !callers.contains(dir));
    let all = callers
        .iter()
        .cloned()
        .chain(more)
        .filter(|dir| !dir.as_os_str().is_empty());
    env::join_paths(all).unwrap_or_else(|_| PATH.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_directories_cover_nothing_of_the_image() {
        for dir in [
            "/", "/usr", "/usr/", "/bin", "/etc/x", "/home", "/mnt", "/srv",
        ] {
            assert!(!is_callers(Path::new(dir)), "{dir}");
        }
        for dir in ["relative", "/home/../usr"] {
            assert!(!is_callers(Path::new(dir)), "{dir}");
        }
        for dir in ["/home/user", "/root", "/mnt/data", "/usrs", "/var/work"] {
            assert!(is_callers(Path::new(dir)), "{dir}");
        }
    }
}
