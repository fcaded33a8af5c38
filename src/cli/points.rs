//! Mount points in a root file system that may lack them, made without leaving it.

use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;

use crate::sys::{file, meta, name, namespace};

/// What container programs mount in a root file system, with what stands there if the host does not tell.
const USUAL: [(&str, Kind); 11] = [
    ("/proc", Kind::Dir),
    ("/sys", Kind::Dir),
    ("/dev", Kind::Dir),
    ("/tmp", Kind::Dir),
    ("/var/tmp", Kind::Dir),
    ("/etc/resolv.conf", Kind::File),
    ("/etc/hosts", Kind::File),
    ("/etc/passwd", Kind::File),
    ("/etc/group", Kind::File),
    ("/etc/localtime", Kind::File),
    ("/etc/nsswitch.conf", Kind::File),
];
/// So many symlinks that lead nowhere are followed on the way to one mount point.
const MAX_LINKS: usize = 16;

/// So often a path is tried on a busy host.
const MAX_TRIES: usize = 100_000;

/// What can be mounted at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Dir,
    /// A file, or anything else that is no directory.
    File,
}

impl From<bool> for Kind {
    fn from(is_dir: bool) -> Kind {
        if is_dir { Kind::Dir } else { Kind::File }
    }
}

/// The points that a list names, separated by commas; `default` is what container programs use, with the
/// home and the directory of who asks. An error names what is no absolute path.
pub fn parse(list: &str) -> Result<Vec<(PathBuf, Kind)>, String> {
    let mut points = Vec::new();
    for word in list.split(',').filter(|word| !word.is_empty()) {
        if word == "default" {
            let usual = USUAL
                .iter()
                .map(|(path, kind)| (PathBuf::from(path), *kind));
            points.extend(usual);
            let own = [env::home_dir(), env::current_dir().ok()];
            let own = own.into_iter().flatten().filter(|dir| dir.is_absolute());
            points.extend(own.map(|dir| (dir, Kind::Dir)));
            continue;
        }
        let path = Path::new(word);
        if !path.is_absolute() {
            return Err(format!("{word} is no absolute path, nor `default`"));
        }
        let on_host = std::fs::metadata(path).map(|found| found.is_dir().into());
        let kind = on_host.unwrap_or_else(|_| known(path));
        points.push((path.to_owned(), kind));
    }
    Ok(points)
}

fn known(path: &Path) -> Kind {
    let usual = USUAL.iter().find(|(usual, _)| Path::new(usual) == path);
    usual.map_or(Kind::Dir, |(_, kind)| *kind)
}

/// Opens what is there. The kernel gives up with EAGAIN on a path with `..` while anything is renamed or
/// mounted, wherever on the host.
fn open(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match namespace::open_below(root, path, flags) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && tries < MAX_TRIES => tries += 1,
            other => return other,
        }
        thread::yield_now();
    }
}

/// Opens a mount point by its path in the root, as `O_PATH`. What is missing is made: directories with mode
/// 0755, an empty file with 0644. The caller's umask is to be 0. Nothing is made in what is mounted below the
/// root, which is somebody else's.
pub fn make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let device = |fd: BorrowedFd<'_>| meta::fstatat(fd, b"").map(|stat| stat.st_dev);
    let own = device(root)?;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match open(root, &path, libc::O_PATH) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (Some(parent), Some(last)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let dir = match open(root, parent, libc::O_PATH | libc::O_DIRECTORY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => make(root, parent, Kind::Dir)?,
            other => other?,
        };
        if device(dir.as_fd())? != own {
            let missing = path.display();
            let why = format!("{missing} is missing in what is mounted there; make it first");
            return Err(io::Error::other(why));
        }
        let name = last.as_bytes();
        let made = match kind {
            Kind::Dir => name::mkdirat(dir.as_fd(), name, 0o755),
            Kind::File => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
                file::openat(dir.as_fd(), name, flags, 0o644).map(drop)
            }
        };
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        // A symlink that leads nowhere: what it names is to be made.
        match name::readlinkat(dir.as_fd(), name) {
            Ok(target) => {
                let target = std::ffi::OsString::from(std::ffi::OsStr::from_bytes(&target));
                path = parent.join(target);
            }
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn points_are_made_within_the_root() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc"))?;
        symlink("/run/tmp", root.join("tmp"))?;
        symlink("../run/resolve/stub", root.join("etc/resolv.conf"))?;
        symlink("../../../outside", root.join("etc/out"))?;
        symlink("loop", root.join("loop"))?;
        let fd = file::open_path(&root, libc::O_PATH)?;
        let make = |path: &str, kind| make(fd.as_fd(), Path::new(path), kind);
        for _ in 0..2 {
            make("/proc", Kind::Dir)?;
            make("/tmp", Kind::Dir)?;
            make("/etc/resolv.conf", Kind::File)?;
            make("/etc/out/deep/er", Kind::Dir)?;
        }
        assert!(root.join("proc").is_dir() && root.join("run/tmp").is_dir());
        assert!(root.join("run/resolve/stub").is_file());
        assert!(root.join("outside/deep/er").is_dir());
        assert!(!dir.path().join("outside").exists());
        assert!(make("/loop", Kind::Dir).is_err());
        assert!(make("/run/resolve/stub/below", Kind::Dir).is_err());
        Ok(())
    }

    #[test]
    fn lists() {
        let points = parse("/data,default,/etc/hosts").unwrap_or_default();
        let has = |path: &str, kind| points.contains(&(PathBuf::from(path), kind));
        assert!(has("/data", Kind::Dir) && has("/proc", Kind::Dir));
        assert!(has("/etc/hosts", Kind::File) && has("/etc/passwd", Kind::File));
        assert!(parse("data").is_err());
    }
}
