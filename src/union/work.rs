//! The work directory: temporaries that become upper objects by one rename, and what they leave.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::api::Kind;
use super::copy_meta::restore_times;
use super::marks::{self, Mark, Marks, Space};
use super::place::At;
use super::upper::{Style, Upper};
use crate::error::{Context, Error, Result, best_effort};
use crate::layer::dialect;
use crate::sys::{dirent, file, meta, name, xattr};

pub const DEFAULT_ACL: &std::ffi::CStr = c"system.posix_acl_default";

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
        Temp {
            upper,
            name: upper.temp_name(),
            moved: false,
        }
    }

    pub fn place(&self) -> At {
        At {
            dir: self.upper.work.clone(),
            name: self.name.clone(),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.upper.work_fd()
    }

    /// The temporary stands elsewhere now.
    pub fn gone(mut self) {
        self.moved = true;
    }

    /// Moves the temporary to its place. After an exchange it is what stood there.
    pub fn publish(&mut self, to: &At, flags: u32) -> Result<()> {
        name::renameat(self.fd(), &self.name, to.fd(), &to.name, flags).op("publish")?;
        self.moved = flags & libc::RENAME_EXCHANGE == 0;
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
    /// Opens an object. The kernel has granted it to the caller, so the modes that hold back a daemon
    /// without privileges are lifted for the moment.
    pub fn open_at(&self, at: &At, flags: i32) -> Result<OwnedFd> {
        self.with_rights(&[at], || at.open(flags))
    }

    /// Reads the marks of an object.
    pub fn marks(&self, at: &At) -> Result<Marks> {
        self.with_rights(&[at], || marks::read(at))
    }

    /// Writes a mark. Where there is no place for it EOPNOTSUPP.
    pub fn set_mark(&self, at: &At, mark: Mark, value: &[u8]) -> Result<()> {
        self.with_rights(&[at], || self.space.set(at, mark, value))
    }

    /// Removes a mark.
    pub fn clear_mark(&self, at: &At, mark: Mark) -> Result<()> {
        self.with_rights(&[at], || self.space.clear(at, mark))
    }

    /// Does it once more with the owner's rights on these objects, if it failed for want of them.
    pub fn with_rights<T>(&self, on: &[&At], attempt: impl FnMut() -> Result<T>) -> Result<T> {
        with_rights(self.privileged(), on, attempt)
    }

    /// A whiteout in the work directory.
    pub fn prepare_whiteout(&self) -> Result<Temp<'_>> {
        let temp = Temp::new(self);
        name::mknodat(temp.fd(), &temp.name, libc::S_IFCHR, 0).op("make whiteout")?;
        Ok(temp)
    }

    /// Marks a directory as opaque.
    pub fn make_opaque(&self, dir: &At) -> Result<()> {
        match self.style {
            Style::Overlay => self.set_mark(dir, Mark::Opaque, b"y"),
            Style::Wh => {
                let fd = dir.open(libc::O_PATH | libc::O_DIRECTORY)?;
                let times = dir.stat()?;
                let flags = libc::O_CREAT;
                file::openat(fd.as_fd(), dialect::WH_OPAQUE, flags, 0o444).op("make opaque")?;
                restore_times(dir, &times)
            }
        }
    }

    /// The `.wh.` marker that hides a name of this directory in the lowers.
    pub fn write_wh(&self, dir: BorrowedFd<'_>, hidden: &[u8]) -> Result<()> {
        let marker = dialect::marker_for(hidden);
        file::openat(dir, &marker, libc::O_CREAT, 0o444)
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
        self.set_mark(at, Mark::Special, &marks::special_value(kind, rdev))
    }
}

fn with_rights<T>(
    privileged: bool,
    on: &[&At],
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let first = attempt();
    match &first {
        Err(e) if e.errno() == libc::EACCES && !privileged => {}
        _ => return first,
    }
    let mut lifted: Vec<(OwnedFd, u32)> = Vec::new();
    for at in on {
        let fd = at.open(libc::O_PATH)?;
        let stat = meta::fstatat(fd.as_fd(), b"").op("stat upper")?;
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let mode = stat.st_mode & 0o7777;
        let rights = if is_dir { 0o700 } else { 0o600 };
        if mode & rights != rights && meta::fchmodat(fd.as_fd(), b"", mode | rights).is_ok() {
            lifted.push((fd, mode));
        }
    }
    let second = attempt();
    for (fd, mode) in lifted {
        best_effort("put the mode back", meta::fchmodat(fd.as_fd(), b"", mode));
    }
    second
}

/// How what is made in the work directory comes to be.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub uid: u32,
    pub gid: u32,
    /// The bits of a mode that it lacks.
    pub masked: u32,
}

/// What the upper's file system can hold.
#[derive(Debug)]
pub struct Probe {
    pub whiteout: bool,
    pub devices: bool,
    pub space: Space,
    /// None: not found out.
    pub made: Option<Made>,
}

impl Probe {
    /// As words, for a note.
    pub fn to_text(&self) -> String {
        let space = match self.space {
            Space::Trusted => "trusted",
            Space::User => "user",
            Space::None => "none",
        };
        let word = |has, word| if has { word } else { "-" };
        let (whiteout, devices) = (
            word(self.whiteout, "whiteouts"),
            word(self.devices, "devices"),
        );
        format!("{space} {whiteout} {devices}\n")
    }

    /// The reverse; None for anything else.
    pub fn from_text(text: &[u8]) -> Option<Probe> {
        let mut words = std::str::from_utf8(text).ok()?.split_whitespace();
        let space = match words.next()? {
            "trusted" => Space::Trusted,
            "user" => Space::User,
            "none" => Space::None,
            _ => return None,
        };
        let whiteout = words.next()? == "whiteouts";
        Some(Probe {
            whiteout,
            devices: words.next()? == "devices",
            space,
            made: None,
        })
    }
}

/// Tries it out in the work directory. A full disk says nothing of what the file system can do.
pub fn probe(work: &OwnedFd) -> Result<Probe> {
    let found = try_out(work.as_fd());
    // What was made before a failure may take the last room there is.
    clean(work.as_fd())?;
    found
}

fn try_out(dir: BorrowedFd<'_>) -> Result<Probe> {
    file::openat(dir, b"probe", libc::O_CREAT | libc::O_WRONLY, 0o777)
        .op("write to work directory")?;
    let made = made(dir)?;
    let mut space = Space::None;
    // In the unions' own part of the namespaces: a file system may refuse just that one.
    for (key, found) in [
        (c"user.overlay.probe", Space::User),
        (c"trusted.overlay.probe", Space::Trusted),
    ] {
        if can(xattr::set(dir, b"probe", key, b"y", 0))? {
            space = found;
        }
    }
    // A whiteout has to change places with what it hides.
    let whiteout = can(name::mknodat(dir, b"whiteout", libc::S_IFCHR, 0))?
        && can(name::renameat(
            dir,
            b"whiteout",
            dir,
            b"probe",
            libc::RENAME_EXCHANGE,
        ))?;
    let devices = can(name::mknodat(
        dir,
        b"device",
        libc::S_IFCHR,
        libc::makedev(1, 3),
    ))?;
    Ok(Probe {
        whiteout,
        devices,
        space,
        made,
    })
}

/// Looks at the probe, which was made with all rights.
fn made(dir: BorrowedFd<'_>) -> Result<Option<Made>> {
    let around = meta::fstatat(dir, b"").op("stat work directory")?;
    let probe = meta::fstatat(dir, b"probe").op("stat probe")?;
    // A directory made in a set-gid one is set-gid too.
    let plain = around.st_mode & libc::S_ISGID == 0;
    Ok(plain.then_some(Made {
        uid: probe.st_uid,
        gid: probe.st_gid,
        masked: 0o777 & !probe.st_mode,
    }))
}

/// Whether it worked; an error that says nothing about abilities is passed on.
fn can(result: std::io::Result<()>) -> Result<bool> {
    match result {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOSPC | libc::EDQUOT | libc::EIO | libc::EINTR | libc::ENOMEM)
            ) =>
        {
            Err(e).op("write to work directory")
        }
        other => Ok(other.is_ok()),
    }
}

/// The directory of temporaries, made if it is missing and emptied if it is not.
pub fn fresh(base: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let fd = Arc::new(kept(base, name)?);
    let privileged = nix::unistd::geteuid().is_root();
    for name in names(fd.as_fd())? {
        let at = At {
            dir: fd.clone(),
            name,
        };
        let stat = at.stat()?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR && stat.st_nlink > 1 {
            with_rights(privileged, &[&at], || marks::discount(&at))?;
        }
        remove(at.fd(), &at.name)?;
    }
    Arc::try_unwrap(fd).map_err(|_| Error::new(libc::EIO, "work directory in use"))
}

/// The directory, made if it is missing. It lends nothing to what is made in it.
pub fn kept(base: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    match name::mkdirat(base.as_fd(), name, 0o700) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
        other => other.op("make work directory")?,
    }
    let fd = file::openat(base.as_fd(), name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
        .op("open work directory")?;
    // Asked first: on a full disk even the removal of nothing may fail.
    if xattr::get(fd.as_fd(), b"", DEFAULT_ACL).is_ok() {
        match xattr::remove(fd.as_fd(), b"", DEFAULT_ACL) {
            // Somebody else's may stay as it is.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            other => other.op("clear work directory")?,
        }
    }
    Ok(fd)
}

/// Removes everything in a directory.
pub fn clean(dir: BorrowedFd<'_>) -> Result<()> {
    for name in names(dir)? {
        remove(dir, &name)?;
    }
    Ok(())
}

/// The names in a directory.
pub fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let open = file::openat(dir, b".", libc::O_RDONLY | libc::O_DIRECTORY, 0).op("open")?;
    let mut names = Vec::new();
    dirent::read_dir(open.as_fd(), |name, _, _| names.push(name.to_vec())).op("read directory")?;
    Ok(names)
}

/// Removes a name and all below it. What is in the way is first moved up, next to the name, so that a
/// tree of any depth takes two descriptors and no more of the stack.
pub fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    // Others may be at it in the same directory, and must not choose the same names.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut left = vec![name.to_vec()];
    while let Some(name) = left.pop() {
        if remove_one(dir, &name)? {
            continue;
        }
        let below = open_to_empty(dir, &name)?;
        for child in names(below.as_fd())? {
            if remove_one(below.as_fd(), &child)? {
                continue;
            }
            best_effort("chmod", meta::fchmodat(below.as_fd(), &child, 0o700));
            let free = loop {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let free = format!("#up{number}").into_bytes();
                if absent(dir, &free)? {
                    break free;
                }
            };
            name::renameat(below.as_fd(), &child, dir, &free, 0).op("move up")?;
            left.push(free);
        }
        name::rmdirat(dir, &name).op("remove directory")?;
    }
    Ok(())
}

/// Opens a directory that is to go. An unprivileged owner may have taken away its own rights.
fn open_to_empty(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    best_effort("chmod", meta::fchmodat(dir, name, 0o700));
    file::openat(dir, name, libc::O_RDONLY | libc::O_DIRECTORY, 0).op("open directory")
}

fn absent(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    match meta::fstatat(dir, name) {
        Ok(_) => Ok(false),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(true),
        Err(e) => Err(e).op("stat"),
    }
}

/// Removes what is no directory, or an empty one. False: there is something in it.
fn remove_one(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    let is = |e: &std::io::Error, code| e.raw_os_error() == Some(code);
    // Which of the two a directory gets differs between systems.
    let refused = match name::unlinkat(dir, name) {
        Ok(()) => return Ok(true),
        Err(e) if is(&e, libc::ENOENT) => return Ok(true),
        Err(e) if is(&e, libc::EISDIR) || is(&e, libc::EPERM) => e,
        Err(e) => return Err(e).op("remove"),
    };
    match name::rmdirat(dir, name) {
        Ok(()) => Ok(true),
        Err(e) if is(&e, libc::ENOTDIR) => Err(refused).op("remove"),
        Err(e) if is(&e, libc::ENOTEMPTY) || is(&e, libc::EEXIST) => Ok(false),
        Err(e) => Err(e).op("remove directory"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Bug: two removals chose the same names for what they moved up, and the later one failed.
    #[test]
    fn removals_beside_each_other_end() -> std::io::Result<()> {
        const THREADS: usize = 4;
        let dir = tempfile::tempdir()?;
        for thread in 0..THREADS {
            let deep = format!("{thread}{}", "/d".repeat(300));
            std::fs::create_dir_all(dir.path().join(deep))?;
        }
        let fd = OwnedFd::from(std::fs::File::open(dir.path())?);
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (fd, start) = (fd.as_fd(), &start);
                scope.spawn(move || {
                    start.wait();
                    let removed = remove(fd, thread.to_string().as_bytes());
                    assert!(removed.is_ok(), "{removed:?}");
                });
            }
        });
        assert!(names(fd.as_fd()).is_ok_and(|left| left.is_empty()));
        Ok(())
    }
}
