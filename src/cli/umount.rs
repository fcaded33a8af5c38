//! `umount`: takes a mount down, or says who keeps it busy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Code, Failure, OrFail, Outcome, noted};
use crate::sys::{mount, mounts};

/// The longest list of users that is still read.
const MAX_USERS: usize = 10;
/// How long a mount may be held by who lets go of it again.
const PATIENCE: Duration = Duration::from_millis(500);

/// Unmounts a union.
#[derive(Debug, clap::Args)]
pub struct Args {
    mountpoint: PathBuf,
}

pub fn run(args: &Args) -> Outcome<()> {
    let shown = args.mountpoint.display();
    let mountpoint = locate(&args.mountpoint).or_fail(Code::Mountpoint, &shown)?;
    let ours = mounts::ours_at(&mountpoint).or_fail(Code::Failure, mounts::TABLE)?;
    let Some(found) = ours else {
        let text = match mounts::mounted_type(&mountpoint).or_fail(Code::Failure, mounts::TABLE)? {
            None => format!("{shown}: not a mountpoint"),
            Some(fstype) => format!("{shown}: a mount of type {fstype}, not of {}", mount::NAME),
        };
        return Err(Failure::new(Code::Mountpoint, text));
    };
    unmount(&mountpoint).map_err(|why| Failure {
        message: format!("{shown}: {}", why.message),
        ..why
    })?;
    if found.is_by_kernel() {
        noted::forget();
    }
    Ok(())
}

/// Who asks a mount what it is, as `status` does, holds it for a moment.
fn unmount(mountpoint: &Path) -> Outcome<()> {
    let begun = Instant::now();
    loop {
        let Err(e) = mount::umount(mountpoint, false) else {
            return Ok(());
        };
        if e.kind() != io::ErrorKind::ResourceBusy {
            return Err(Failure::new(Code::Failure, e.to_string()));
        }
        if begun.elapsed() > PATIENCE {
            let users = users_of(mountpoint, std::process::id());
            let text = format!("busy{}", describe(&users));
            return Err(Failure::new(Code::Busy, text));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The mountpoint's canonical path, also when no daemon answers behind it.
pub fn locate(mountpoint: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(mountpoint) {
        Err(e) if mount::is_disconnected(&e) => {
            let path = std::path::absolute(mountpoint)?;
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Err(e),
            }
        }
        other => other,
    }
}

struct User {
    pid: u32,
    command: String,
    uses: PathBuf,
}

fn describe(users: &[User]) -> String {
    if users.is_empty() {
        return ", and no process that this user may look at holds it; a mount inside it or in \
                another namespace may"
            .to_owned();
    }
    let mut text = String::from("; in use by");
    for user in users {
        text.push_str(&format!(
            "\n  {} ({}): {}",
            user.pid,
            user.command,
            user.uses.display()
        ));
    }
    if users.len() == MAX_USERS {
        text.push_str("\n  and perhaps more");
    }
    text
}

/// The processes that hold something in the mount; only links are read, so the daemon is not asked.
fn users_of(mountpoint: &Path, except: u32) -> Vec<User> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry
                .file_name()
                .to_str()?
                .parse()
                .ok()
                .filter(|&pid| pid != except)?;
            let uses = use_in(&entry.path(), mountpoint)?;
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            Some(User {
                pid,
                command: command.trim().to_owned(),
                uses,
            })
        })
        .take(MAX_USERS)
        .collect()
}

fn use_in(process: &Path, mountpoint: &Path) -> Option<PathBuf> {
    let fixed = ["cwd", "root", "exe"].map(|name| process.join(name));
    let fds = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    fixed
        .into_iter()
        .chain(fds)
        .filter_map(|link| fs::read_link(link).ok())
        .find(|target| target.starts_with(mountpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_open_file_is_found() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = fs::canonicalize(dir.path())?;
        let file = fs::File::create(path.join("held"))?;
        let users = users_of(&path, 0);
        assert!(users.iter().any(|user| user.pid == std::process::id()));
        assert!(describe(&users).contains("held"));
        drop(file);
        Ok(())
    }
}
