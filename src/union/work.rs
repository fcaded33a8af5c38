//! The work directory: temporaries that become upper objects by one rename, and what they leave.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::api::Kind;
use super::copy_up::restore_times;
use super::marks::{self, Mark, Space};
use super::place::At;
use super::upper::{Style, Upper};
use crate::error::{Context, Result, best_effort};
use crate::layer::dialect;
use crate::sys::{dirent, file, meta, name, xattr};

/// The longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// A name in the work directory. What stands there is removed unless it was moved away.
#[derive(Debug)]
pub struct Temp<'a> {
    upper: &'a Upper,
    pub name: Vec<u8>,
    moved: bool,
}

impl<'a> Temp<'a> {
    pub fn new(upper: &'a Upper) -> Temp<'a> {
        Temp { upper, name: upper.temp_name(), moved: false }
    }

    pub fn place(&self) -> At {
        At { dir: self.upper.work.clone(), name: self.name.clone() }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.upper.work_fd()
    }

    /// The temporary stands elsewhere now.
    pub fn gone(mut self) {
        self.moved = true;
    }

    /// Moves the temporary to its place.
    pub fn publish(self, to: &At, flags: u32) -> Result<()> {
        name::renameat(self.fd(), &self.name, to.fd(), &to.name, flags).op("publish")?;
        if flags & libc::RENAME_EXCHANGE == 0 {
            self.gone();
        }
        Ok(())
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if !self.moved {
            best_effort("remove temporary", remove(self.upper.work_fd(), &self.name));
        }
    }
}

impl Upper {
    /// A whiteout in the work directory.
    pub fn prepare_whiteout(&self) -> Result<Temp<'_>> {
        let temp = Temp::new(self);
        name::mknodat(temp.fd(), &temp.name, libc::S_IFCHR, 0).op("make whiteout")?;
        Ok(temp)
    }

    /// Marks a directory as opaque.
    pub fn make_opaque(&self, dir: &At) -> Result<()> {
        match self.style {
            Style::Overlay => self.space.set(dir, Mark::Opaque, b"y"),
            Style::Wh => {
                let fd = dir.open(libc::O_PATH | libc::O_DIRECTORY)?;
                let times = dir.stat()?;
                let flags = libc::O_CREAT | libc::O_WRONLY;
                file::openat(fd.as_fd(), dialect::WH_OPAQUE, flags, 0o444).op("make opaque")?;
                restore_times(dir, &times)
            }
        }
    }

    /// The `.wh.` marker that hides a name of this directory in the lowers.
    pub fn write_wh(&self, dir: BorrowedFd<'_>, hidden: &[u8]) -> Result<()> {
        let marker = dialect::marker_for(hidden);
        file::openat(dir, &marker, libc::O_CREAT | libc::O_WRONLY, 0o444)
            .op("make whiteout")
            .map(drop)
    }

    /// Removes the `.wh.` marker of a name, if there is one.
    pub fn clear_wh(&self, dir: BorrowedFd<'_>, hidden: &[u8]) -> Result<()> {
        if hidden.len() + dialect::WH.len() > NAME_MAX {
            return Ok(());
        }
        match name::unlinkat(dir, &dialect::marker_for(hidden)) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.op("remove whiteout"),
        }
    }

    /// A file that stands for a device which cannot be stored as one, or would be a whiteout.
    pub fn write_special(&self, at: &At, kind: Kind, rdev: u64) -> Result<()> {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
        file::openat(at.fd(), &at.name, flags, 0o600).op("make device")?;
        self.space.set(at, Mark::Special, &marks::special_value(kind, rdev))
    }
}

/// What the upper's file system can hold.
#[derive(Debug)]
pub struct Probe {
    pub whiteout: bool,
    pub devices: bool,
    pub space: Space,
}

/// Tries it out in the work directory.
pub fn probe(work: &OwnedFd) -> Result<Probe> {
    let dir = work.as_fd();
    file::openat(dir, b"probe", libc::O_CREAT | libc::O_WRONLY, 0o600)
        .op("write to work directory")?;
    let mut space = Space::None;
    // In the unions' own part of the namespaces: a file system may refuse just that one.
    for (key, found) in
        [(c"user.overlay.probe", Space::User), (c"trusted.overlay.probe", Space::Trusted)]
    {
        if xattr::set(dir, b"probe", key, b"y", 0).is_ok() {
            space = found;
        }
    }
    // A whiteout has to change places with what it hides.
    let whiteout = name::mknodat(dir, b"whiteout", libc::S_IFCHR, 0).is_ok()
        && name::renameat(dir, b"whiteout", dir, b"probe", libc::RENAME_EXCHANGE).is_ok();
    let devices = name::mknodat(dir, b"device", libc::S_IFCHR, libc::makedev(1, 3)).is_ok();
    clean(dir)?;
    Ok(Probe { whiteout, devices, space })
}

/// The directory, made if it is missing and emptied if it is not.
pub fn fresh(base: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let fd = kept(base, name)?;
    clean(fd.as_fd())?;
    Ok(fd)
}

/// The directory, made if it is missing.
pub fn kept(base: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    match name::mkdirat(base.as_fd(), name, 0o700) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
        other => other.op("make work directory")?,
    }
    file::openat(base.as_fd(), name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
        .op("open work directory")
}

/// Removes everything in a directory.
pub fn clean(dir: BorrowedFd<'_>) -> Result<()> {
    let open = file::openat(dir, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0).op("open")?;
    let mut names: Vec<Vec<u8>> = Vec::new();
    dirent::read_dir(open.as_fd(), |name, _, _| names.push(name.to_vec())).op("read directory")?;
    for name in names {
        remove(dir, &name)?;
    }
    Ok(())
}

/// Removes a name and all below it.
pub fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let is = |e: &std::io::Error, code| e.raw_os_error() == Some(code);
    match name::unlinkat(dir, name) {
        Ok(()) => return Ok(()),
        Err(e) if is(&e, libc::ENOENT) => return Ok(()),
        Err(e) if is(&e, libc::EISDIR) || is(&e, libc::EPERM) => {}
        Err(e) => return Err(e).op("remove"),
    }
    match name::rmdirat(dir, name) {
        Ok(()) => return Ok(()),
        Err(e) if is(&e, libc::ENOTEMPTY) || is(&e, libc::EEXIST) => {}
        Err(e) => return Err(e).op("remove directory"),
    }
    // An unprivileged owner may have taken away its own rights.
    best_effort("chmod", meta::fchmodat(dir, name, 0o700));
    let below =
        file::openat(dir, name, libc::O_RDONLY | libc::O_DIRECTORY, 0).op("open directory")?;
    clean(below.as_fd())?;
    name::rmdirat(dir, name).op("remove directory")
}
