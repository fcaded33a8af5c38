//! What is not as it should be in an upper and its work directory, and how it is mended.
//!
//! Whoever mounts such an upper reads it all the same, as far as FORMAT says; other unions may not. The
//! locks of a mount are held meanwhile. Nothing that a user made is removed.

mod deletions;
mod lacks;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use self::deletions::{Deletion, Style};
use super::View;
use crate::error::{Context, Error, Result};
use crate::layer::dialect;
use crate::layer::overrides::Overrides;
use crate::sys::{file, meta, name, process, xattr};
use crate::union::api::Ino;
use crate::union::hardlinks::is_left_over;
use crate::union::marks::{self, Mark, Marks, Space};
use crate::union::place::At;
use crate::union::upper::{ABILITIES, Stored, VOLATILE, is_plain, meaning};
use crate::union::work::{self, Probe};

/// What was found at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where: a path in the upper that begins with `/`, or one in the work directory that does not.
    pub path: Vec<u8>,
    /// What is wrong there.
    pub what: String,
    /// What has become of it.
    pub state: State,
}

/// Whether a finding is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can be mended, if that is asked for.
    Mendable,
    /// It is gone.
    Mended,
    /// Only a person can tell what is right.
    Left,
}

/// Looks for all that is wrong, and mends what can be mended if `repair`. Where a work directory is given it is
/// looked at too; without, deletions are not brought into one form. With a `view` of the same upper what its
/// objects need of the layers is looked for.
///
/// # Errors
///
/// EWOULDBLOCK: the upper is mounted. EPERM: it is to be repaired, and another user has mounted it, for whom
/// the marks of this one would be none. Else the directory that cannot be read or changed.
pub fn check(
    upper: &Path,
    work: Option<&Path>,
    view: Option<&View>,
    repair: bool,
) -> Result<Vec<Finding>> {
    let open = |path: &Path, what| {
        let fd = file::open_path(path, libc::O_RDONLY | libc::O_DIRECTORY).op(what);
        fd.and_then(|fd| file::lock_exclusive(fd.as_fd()).op("lock").map(|()| fd))
            .map_err(|e: Error| e.at(path))
    };
    let root = Arc::new(open(upper, "open upper")?);
    let work = work
        .map(|work| open(work, "open work directory").map(|fd| (fd, work)))
        .transpose()?;
    if repair {
        let (of, path) = match &work {
            Some((fd, path)) => (fd.as_fd(), *path),
            None => (root.as_fd(), upper),
        };
        is_ours(of).map_err(|e| e.at(path))?;
    }
    let top = At::of(root.clone());
    let told = Space::on(&top)?;
    let mut check = Check {
        root: root.clone(),
        repair,
        view,
        findings: Vec::new(),
        wh_is_mark: !is_plain(&marks::read(&top)?),
        space: told.unwrap_or_else(Space::of_user),
        told,
        index: None,
        temp: None,
        numbers: HashMap::new(),
        wrong: Vec::new(),
        seen: [false; 2],
    };
    let mut able = None;
    if let Some((base, _)) = &work {
        able = check.work(base)?;
    }
    check.tree(&root)?;
    check.dialects(able)?;
    Ok(check.findings)
}

/// Whether this user is the one who has mounted the upper of a work directory, or whose an upper is.
fn is_ours(of: BorrowedFd<'_>) -> Result<()> {
    // The directory may have been given to the mount; its note is always of the one who mounts.
    let owner = match meta::fstatat(of, ABILITIES) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => meta::fstatat(of, b""),
        other => other,
    };
    let owner = owner.op("stat")?.st_uid;
    if owner == process::user() {
        return Ok(());
    }
    let why = "repair what another user has mounted, who alone can do it";
    Err(Error::new(libc::EPERM, why))
}

struct Check<'a> {
    root: Arc<OwnedFd>,
    repair: bool,
    view: Option<&'a View>,
    findings: Vec<Finding>,
    wh_is_mark: bool,
    space: Space,
    /// The namespace of the marks on the upper's root, if it has any.
    told: Option<Space>,
    index: Option<Arc<OwnedFd>>,
    /// Where temporaries are made.
    temp: Option<Arc<OwnedFd>>,
    /// Who has a number: the inode and its path.
    numbers: HashMap<Ino, (u64, Vec<u8>)>,
    /// The marks for deletions, to be brought into one form if there are two.
    wrong: Vec<(Style, Deletion)>,
    /// Which styles there are: overlay, and `.wh.`.
    seen: [bool; 2],
}

impl Check<'_> {
    fn found(&mut self, path: &[u8], what: &str, mended: bool) {
        let state = if mended {
            State::Mended
        } else {
            State::Mendable
        };
        self.tell(path, what, state);
    }

    fn tell(&mut self, path: &[u8], what: impl Into<String>, state: State) {
        self.findings.push(Finding {
            path: path.to_vec(),
            what: what.into(),
            state,
        });
    }

    /// Temporaries, notes and the index. What the file system can hold, if that is known.
    fn work(&mut self, base: &OwnedFd) -> Result<Option<Probe>> {
        let sub = |name: &[u8]| -> Result<Option<Arc<OwnedFd>>> {
            match file::openat(base.as_fd(), name, libc::O_RDONLY | libc::O_DIRECTORY, 0) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
                other => other.op("open work directory").map(|fd| Some(Arc::new(fd))),
            }
        };
        // Perhaps it is something else altogether.
        let Some(index) = sub(b"index")? else {
            let what = "missing, so the work directory is left alone; mount the upper with it once";
            self.tell(b"index", what, State::Left);
            return Ok(None);
        };
        let volatile = meta::fstatat(base.as_fd(), VOLATILE).is_ok();
        if volatile {
            let what = "the upper was not synced at the end of its last mount: data may be missing; discard it";
            self.tell(VOLATILE, what, State::Left);
        }
        if let Some(work) = sub(b"work")? {
            for name in work::names(work.as_fd())? {
                let path = [b"work/", &*name].concat();
                self.found(&path, "left over by a mount that was cut off", self.repair);
            }
        }
        let mut noted = [0; 64];
        let abilities = file::openat(base.as_fd(), ABILITIES, libc::O_RDONLY, 0);
        let read = abilities.and_then(|fd| file::pread(fd.as_fd(), &mut noted, 0));
        let mut probe = noted.get(..read.unwrap_or(0)).and_then(Probe::from_text);
        if self.repair {
            let fresh = Arc::new(work::fresh(base, b"work")?);
            // What the last mount has found is what its marks are like.
            if probe.is_none() {
                let found = work::probe(&fresh)?;
                let space = self.told.unwrap_or(found.space);
                probe = Some(Probe { space, ..found });
            }
            self.temp = Some(fresh);
        }
        if let Some(probe) = &probe {
            self.space = probe.space;
        }
        self.index(&index)?;
        self.index = Some(index);
        Ok(probe)
    }

    /// Entries without an object, or that are none.
    fn index(&mut self, index: &Arc<OwnedFd>) -> Result<()> {
        for name in work::names(index.as_fd())? {
            let path = [b"index/", &*name].concat();
            let number = std::str::from_utf8(&name)
                .ok()
                .filter(|text| text.len() == 16);
            let number = number.and_then(|text| Ino::from_str_radix(text, 16).ok());
            let at = At {
                dir: index.clone(),
                name,
            };
            let marks = match marks::read(&at) {
                Ok(marks) => marks,
                Err(_) => {
                    self.tell(&path, "its marks cannot be read", State::Left);
                    continue;
                }
            };
            if number.is_none() {
                self.tell(&path, "no number: not of this program", State::Left);
            } else if is_left_over(&at, || Ok(marks.nlink))? {
                if self.repair {
                    name::unlinkat(at.fd(), &at.name).op("sweep index")?;
                }
                self.found(
                    &path,
                    "an entry of the index whose file has no other name",
                    self.repair,
                );
            } else if marks.ino.is_some() && marks.ino != number {
                self.tell(
                    &path,
                    "an entry of the index under the number of another file",
                    State::Left,
                );
            }
        }
        Ok(())
    }

    /// All directories of the upper.
    fn tree(&mut self, root: &Arc<OwnedFd>) -> Result<()> {
        let mut left = vec![(At::of(root.clone()), Vec::new())];
        while let Some((at, dir)) = left.pop() {
            let open = Arc::new(at.open(libc::O_RDONLY | libc::O_DIRECTORY)?);
            for stored in work::names(open.as_fd())? {
                let child = At {
                    dir: open.clone(),
                    name: stored.clone(),
                };
                let path = [&*dir, b"/", &*stored].concat();
                let stat = child.stat()?;
                let kind = stat.st_mode & libc::S_IFMT;
                match meaning(&stored, self.wh_is_mark) {
                    Stored::Whiteout(name) => {
                        let name = Some(name.to_vec());
                        self.deletion(Style::Wh, &dir, &path, name);
                    }
                    Stored::Opaque => self.deletion(Style::Wh, &dir, &path, None),
                    Stored::Other => self.bookkeeping(&child, &path, kind)?,
                    Stored::Name(_) if kind == libc::S_IFCHR && stat.st_rdev == 0 => {
                        self.deletion(Style::Overlay, &dir, &path, Some(stored));
                    }
                    Stored::Name(_) => {
                        self.object(&child, &path, &stat)?;
                        if kind == libc::S_IFDIR {
                            left.push((child, path));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// A name with which another union keeps its books.
    fn bookkeeping(&mut self, at: &At, path: &[u8], kind: u32) -> Result<()> {
        let what = "bookkeeping of another union";
        let empty = match kind {
            libc::S_IFDIR => {
                work::names(at.open(libc::O_RDONLY | libc::O_DIRECTORY)?.as_fd())?.is_empty()
            }
            _ => at.stat()?.st_size == 0,
        };
        if !empty {
            self.tell(path, format!("{what}, with something in it"), State::Left);
            return Ok(());
        }
        if self.repair {
            match kind {
                libc::S_IFDIR => name::rmdirat(at.fd(), &at.name).op("remove")?,
                _ => name::unlinkat(at.fd(), &at.name).op("remove")?,
            }
        }
        self.found(path, what, self.repair);
        Ok(())
    }

    /// The marks of an object.
    fn object(&mut self, at: &At, path: &[u8], stat: &meta::Stat) -> Result<()> {
        let marks = match marks::read(at) {
            Ok(marks) => marks,
            Err(e) => {
                self.tell(path, format!("its marks cannot be read: {e}"), State::Left);
                return Ok(());
            }
        };
        self.foreign(at, path)?;
        self.number(at, path, stat, &marks)?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR && marks.opaque {
            self.deletion(Style::Overlay, path, path, None);
        }
        if let Some(view) = self.view
            && let Some(what) = view.lacks(path, &marks)?
        {
            self.tell(path, what, State::Left);
        }
        Ok(())
    }

    /// Marks of other unions, or in the namespace that is not used here.
    fn foreign(&mut self, at: &At, path: &[u8]) -> Result<()> {
        let keys = match xattr::list(at.fd(), &at.name) {
            Err(e) if marks::unsupported(&e) => return Ok(()),
            other => other.op("list xattrs")?,
        };
        let Some(ours) = self.space.prefix() else {
            return Ok(());
        };
        for key in keys.split(|b| *b == 0).filter(|key| !key.is_empty()) {
            // What keeps owners and modes is read as it is.
            let known = Overrides::is_key(key) || marks::unescape(key).is_some();
            if known || !dialect::is_union_xattr(key) {
                continue;
            }
            let tail = key.splitn(2, |b| *b == b'.').nth(1).unwrap_or_default();
            let tail = match tail {
                b"fuseoverlayfs.opaque" => b"overlay.opaque",
                _ if key.starts_with(ours.as_bytes()) => continue,
                tail => tail,
            };
            let what = format!("a mark of another union, {}", String::from_utf8_lossy(key));
            if self.repair {
                let c =
                    |key: &[u8]| CString::new(key).map_err(|_| Error::new(libc::EINVAL, "mark"));
                let from = c(key)?;
                let to = c(&[ours.as_bytes(), tail].concat())?;
                let value = xattr::get(at.fd(), &at.name, &from).op("read mark")?;
                // One of ours is there already, and counts.
                match xattr::set(at.fd(), &at.name, &to, &value, libc::XATTR_CREATE) {
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                    other => other.op("write mark")?,
                }
                xattr::remove(at.fd(), &at.name, &from).op("remove mark")?;
            }
            self.found(path, &what, self.repair);
        }
        Ok(())
    }

    /// Numbers that two objects have, and files with several names that the index does not know.
    fn number(&mut self, at: &At, path: &[u8], stat: &meta::Stat, marks: &Marks) -> Result<()> {
        let Some(ino) = marks.ino else {
            return Ok(());
        };
        // Without the index nobody can tell: another work directory may have it.
        if let (Some(_), Some(index)) = (marks.nlink, &self.index) {
            let entry = At {
                dir: index.clone(),
                name: format!("{ino:016x}").into_bytes(),
            };
            let known = entry.stat_if_there()?;
            if known.is_none_or(|of| of.st_ino != stat.st_ino) {
                if self.repair {
                    self.space.clear(at, Mark::Nlink)?;
                    self.space.clear(at, Mark::Ino)?;
                }
                let what = "a file of several names that the index does not know; it becomes one of its own";
                self.found(path, what, self.repair);
                return Ok(());
            }
        }
        let holder = self.numbers.get(&ino);
        if let Some((_, first)) = holder.filter(|(other, _)| *other != stat.st_ino) {
            let first = String::from_utf8_lossy(first).into_owned();
            if self.repair {
                self.space.clear(at, Mark::Ino)?;
            }
            let what = format!("the inode number of {first}");
            self.found(path, &what, self.repair);
        } else {
            self.numbers.insert(ino, (stat.st_ino, path.to_vec()));
        }
        Ok(())
    }
}
