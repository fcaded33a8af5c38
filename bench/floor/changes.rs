//! Changes of the floor's tree: each in memory, and by one system call in the directory of changes.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo as Node, TimeOrNow};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, ftruncate, linkat, symlinkat, unlinkat};

use super::{Dir, Floor, Object, State};

/// What SETATTR asks for.
pub struct Change {
    pub mode: Option<u32>,
    pub owner: (Option<u32>, Option<u32>),
    pub size: Option<u64>,
    pub times: (Option<TimeOrNow>, Option<TimeOrNow>),
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

fn time(wanted: TimeOrNow) -> SystemTime {
    match wanted {
        TimeOrNow::Now => SystemTime::now(),
        TimeOrNow::SpecificTime(time) => time,
    }
}

fn spec(wanted: Option<TimeOrNow>) -> TimeSpec {
    match wanted {
        None => TimeSpec::UTIME_OMIT,
        Some(wanted) => {
            let since = time(wanted).duration_since(SystemTime::UNIX_EPOCH);
            TimeSpec::from_duration(since.unwrap_or_default())
        }
    }
}

impl State {
    /// The directory among the changes, made with those above it when it is first wanted.
    fn dir(&mut self, number: usize) -> io::Result<Arc<OwnedFd>> {
        let object = self.objects.get(number).ok_or_else(stale)?;
        let dir = object.dir.as_ref().ok_or_else(stale)?;
        if let Some(fd) = &dir.changes {
            return Ok(fd.clone());
        }
        let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = if number == super::ROOT {
            openat(AT_FDCWD, &self.changes, how, Mode::empty())?
        } else {
            let (parent, name, made) = (object.parent, object.name.clone(), object.path.is_none());
            let parent = self.dir(parent)?;
            if !made {
                mkdirat(&parent, &*name, Mode::from_bits_retain(0o755))?;
            }
            openat(&parent, &*name, how, Mode::empty())?
        };
        let fd = Arc::new(fd);
        if let Some(dir) = &mut self.objects[number].dir {
            dir.changes = Some(fd.clone());
        }
        Ok(fd)
    }

    fn enter(
        &mut self,
        parent: Node,
        name: &OsStr,
        kind: FileType,
        mode: u32,
        owner: (u32, u32),
    ) -> io::Result<FileAttr> {
        let (number, now) = (self.objects.len(), SystemTime::now());
        let attr = FileAttr {
            ino: Node(number as u64),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: owner.0,
            gid: owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        self.objects.push(Object {
            attr,
            parent: parent.0 as usize,
            name: name.to_owned(),
            path: None,
            dir: (kind == FileType::Directory).then(Dir::default),
        });
        self.names(parent)?.put(name, number);
        Ok(attr)
    }

    fn names(&mut self, dir: Node) -> io::Result<&mut Dir> {
        let object = self.objects.get_mut(dir.0 as usize);
        object.and_then(|o| o.dir.as_mut()).ok_or_else(stale)
    }

    /// Whether the object stands among the changes.
    fn is_made(&self, number: usize) -> bool {
        self.objects[number].path.is_none()
    }

    pub fn target(&self, ino: Node) -> io::Result<PathBuf> {
        let object = self.object(ino).ok_or_else(stale)?;
        if let Some(path) = &object.path {
            return fs::read_link(path);
        }
        let parent = self.objects[object.parent].dir.as_ref();
        let parent = parent.and_then(|dir| dir.changes.as_ref());
        let target = readlinkat(parent.ok_or_else(stale)?, &*object.name)?;
        Ok(target.into())
    }

    fn keep(&mut self, file: fs::File) -> u64 {
        self.last += 1;
        self.open.insert(self.last, Arc::new(file));
        self.last
    }
}

impl Floor {
    pub fn make_dir(
        &self,
        parent: Node,
        name: &OsStr,
        mode: u32,
        owner: (u32, u32),
    ) -> io::Result<FileAttr> {
        let mut state = self.state.write();
        let dir = state.dir(parent.0 as usize)?;
        mkdirat(&dir, name, Mode::from_bits_retain(mode))?;
        state.enter(parent, name, FileType::Directory, mode, owner)
    }

    pub fn make_link(
        &self,
        parent: Node,
        name: &OsStr,
        target: &OsStr,
        owner: (u32, u32),
    ) -> io::Result<FileAttr> {
        let mut state = self.state.write();
        let dir = state.dir(parent.0 as usize)?;
        symlinkat(target, &dir, name)?;
        state.enter(parent, name, FileType::Symlink, 0o777, owner)
    }

    pub fn make_file(
        &self,
        parent: Node,
        name: &OsStr,
        mode: u32,
        owner: (u32, u32),
    ) -> io::Result<(FileAttr, u64)> {
        let mut state = self.state.write();
        let dir = state.dir(parent.0 as usize)?;
        let how = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let file = openat(&dir, name, how, Mode::from_bits_retain(mode & 0o7777))?;
        let attr = state.enter(parent, name, FileType::RegularFile, mode, owner)?;
        Ok((attr, state.keep(file.into())))
    }

    pub fn open_file(&self, ino: Node, flags: i32) -> io::Result<u64> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let (parent, name, from) = {
            let state = self.state.read();
            let object = state.object(ino).ok_or_else(stale)?;
            if object.path.is_some() && !writes {
                return Ok(0);
            }
            (object.parent, object.name.clone(), object.path.clone())
        };
        let mut state = self.state.write();
        let dir = state.dir(parent)?;
        let how = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let file = match from {
            None => fs::File::from(openat(&dir, &*name, how, Mode::empty())?),
            Some(from) => {
                let mode = Mode::from_bits_retain(0o644);
                let to = openat(&dir, &*name, how | OFlag::O_CREAT, mode)?;
                let mut to = fs::File::from(to);
                io::copy(&mut fs::File::open(from)?, &mut to)?;
                state.objects[ino.0 as usize].path = None;
                to
            }
        };
        Ok(state.keep(file))
    }

    pub fn write_file(&self, ino: Node, fh: u64, offset: u64, data: &[u8]) -> io::Result<usize> {
        let file = self.state.read().open.get(&fh).cloned();
        let count = file.ok_or_else(stale)?.write_at(data, offset)?;
        let mut state = self.state.write();
        if let Some(object) = state.objects.get_mut(ino.0 as usize) {
            let attr = &mut object.attr;
            attr.size = attr.size.max(offset + count as u64);
            attr.blocks = attr.size.div_ceil(4096) * 8;
            attr.mtime = SystemTime::now();
        }
        Ok(count)
    }

    pub fn sync_dir(&self, ino: Node) -> io::Result<()> {
        let dir = self.state.write().dir(ino.0 as usize)?;
        let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        fs::File::from(openat(&dir, ".", how, Mode::empty())?).sync_all()
    }

    /// With `flags` as those of unlinkat(2).
    pub fn remove(&self, parent: Node, name: &OsStr, flags: UnlinkatFlags) -> io::Result<()> {
        let mut state = self.state.write();
        let child = state.child(parent, name).ok_or_else(stale)?;
        let dir = state.objects[child].dir.as_ref();
        if dir.is_some_and(|dir| !dir.names.is_empty()) {
            return Err(io::Error::from_raw_os_error(libc::ENOTEMPTY));
        }
        if state.is_made(child) {
            let dir = state.dir(parent.0 as usize)?;
            unlinkat(&dir, name, flags)?;
        }
        state.names(parent)?.take(name);
        let attr = &mut state.objects[child].attr;
        attr.nlink = attr.nlink.saturating_sub(1);
        Ok(())
    }

    pub fn move_to(&self, from: (Node, &OsStr), to: (Node, &OsStr)) -> io::Result<()> {
        let mut state = self.state.write();
        let child = state.child(from.0, from.1).ok_or_else(stale)?;
        if state.is_made(child) {
            let (old, new) = (state.dir(from.0.0 as usize)?, state.dir(to.0.0 as usize)?);
            renameat(&old, from.1, &new, to.1)?;
        }
        state.names(from.0)?.take(from.1);
        state.names(to.0)?.put(to.1, child);
        let object = &mut state.objects[child];
        (object.parent, object.name) = (to.0.0 as usize, to.1.to_owned());
        Ok(())
    }

    pub fn link_to(&self, ino: Node, to: (Node, &OsStr)) -> io::Result<FileAttr> {
        let mut state = self.state.write();
        let number = ino.0 as usize;
        if state.is_made(number) {
            let (parent, name) = {
                let object = &state.objects[number];
                (object.parent, object.name.clone())
            };
            let (old, new) = (state.dir(parent)?, state.dir(to.0.0 as usize)?);
            linkat(&old, &*name, &new, to.1, AtFlags::empty())?;
        }
        state.names(to.0)?.put(to.1, number);
        let attr = &mut state.objects[number].attr;
        attr.nlink += 1;
        Ok(*attr)
    }

    pub fn set(&self, ino: Node, fh: Option<u64>, change: &Change) -> io::Result<FileAttr> {
        let mut state = self.state.write();
        let number = ino.0 as usize;
        let object = state.object(ino).ok_or_else(stale)?;
        let (parent, name) = (object.parent, object.name.clone());
        if state.is_made(number) {
            let dir = state.dir(parent)?;
            if let Some(mode) = change.mode {
                let mode = Mode::from_bits_retain(mode & 0o7777);
                fchmodat(&dir, &*name, mode, FchmodatFlags::FollowSymlink)?;
            }
            if change.owner != (None, None) {
                let (uid, gid) = (
                    change.owner.0.map(Uid::from_raw),
                    change.owner.1.map(Gid::from_raw),
                );
                fchownat(&dir, &*name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            let (atime, mtime) = change.times;
            if atime.is_some() || mtime.is_some() {
                let how = UtimensatFlags::NoFollowSymlink;
                utimensat(&dir, &*name, &spec(atime), &spec(mtime), how)?;
            }
            if let Some(size) = change.size {
                match fh.and_then(|fh| state.open.get(&fh)) {
                    Some(file) => ftruncate(file.as_fd(), size as i64)?,
                    None => {
                        let how = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                        let file = openat(&dir, &*name, how, Mode::empty())?;
                        ftruncate(&file, size as i64)?;
                    }
                }
            }
        }
        let attr = &mut state.objects[number].attr;
        attr.perm = change.mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
        attr.uid = change.owner.0.unwrap_or(attr.uid);
        attr.gid = change.owner.1.unwrap_or(attr.gid);
        attr.size = change.size.unwrap_or(attr.size);
        attr.atime = change.times.0.map_or(attr.atime, time);
        attr.mtime = change.times.1.map_or(attr.mtime, time);
        attr.ctime = SystemTime::now();
        Ok(*attr)
    }
}
