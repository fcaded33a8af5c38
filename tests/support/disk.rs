//! A plain directory: what layers and uppers are built in, and the reference for the union.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cvmfs_union::sys::meta::Stat;
use cvmfs_union::sys::{dirent, file, meta, name, xattr};
use cvmfs_union::union::api::{Attr, Kind, RenameKind, Time};
use nix::errno::Errno;

use super::fs::{Fs, Res, components, join, split};
use super::{opaque_key, xattr_list};

#[derive(Debug)]
pub struct Disk {
    root: OwnedFd,
    open: RefCell<HashMap<u64, OwnedFd>>,
    next: Cell<u64>,
}

fn ok<T>(result: io::Result<T>) -> Res<T> {
    result.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

fn key(key: &str) -> CString {
    CString::new(key).unwrap()
}

impl Disk {
    pub fn new(path: &Path) -> Disk {
        let root = file::open_path(path, libc::O_PATH | libc::O_DIRECTORY).unwrap();
        Disk {
            root,
            open: RefCell::default(),
            next: Cell::new(1),
        }
    }

    fn dir(&self, path: &str) -> Res<OwnedFd> {
        let mut fd = ok(file::reopen(
            self.root.as_fd(),
            libc::O_PATH | libc::O_DIRECTORY,
        ))?;
        for name in components(path) {
            // Without O_DIRECTORY, so that a symlink is ENOTDIR on the way and not ELOOP.
            let next = ok(file::openat(fd.as_fd(), name.as_bytes(), libc::O_PATH, 0))?;
            if meta::fstatat(next.as_fd(), b"").unwrap().st_mode & libc::S_IFMT != libc::S_IFDIR {
                return Err(Errno::ENOTDIR);
            }
            fd = next;
        }
        Ok(fd)
    }

    fn at<'a>(&self, path: &'a str) -> Res<(OwnedFd, &'a [u8])> {
        let (dir, name) = split(path)?;
        Ok((self.dir(dir)?, name.as_bytes()))
    }

    /// Like `at`, and the root is its descriptor without a name.
    fn object<'a>(&self, path: &'a str) -> Res<(OwnedFd, &'a [u8])> {
        if path.is_empty() {
            Ok((self.dir("")?, b""))
        } else {
            self.at(path)
        }
    }

    fn keep(&self, fd: OwnedFd) -> u64 {
        let fh = self.next.get();
        self.next.set(fh + 1);
        self.open.borrow_mut().insert(fh, fd);
        fh
    }

    pub fn close_all(&self) {
        self.open.borrow_mut().clear();
    }

    /// Removes a name and all below it, if it is there.
    pub fn remove(&self, path: &str) {
        match self.stat(path).map(|a| a.kind) {
            Ok(Kind::Dir) => {
                for name in self.names(path).unwrap() {
                    self.remove(&join(path, &name));
                }
                if !path.is_empty() {
                    self.rmdir(path).unwrap();
                }
            }
            Ok(_) => self.unlink(path).unwrap(),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(e) => panic!("{path}: {e}"),
        }
    }
}

/// Building: each makes the directories on the way, and panics where it cannot.
impl Disk {
    pub fn parents(&self, path: &str) -> &Self {
        if let Ok((dir, _)) = split(path)
            && !dir.is_empty()
            && !self.exists(dir)
        {
            self.parents(dir).mkdir(dir, 0o755).unwrap();
        }
        self
    }

    pub fn with_dir(&self, path: &str, mode: u32) -> &Self {
        let disk = self.parents(path);
        if !disk.exists(path) {
            disk.mkdir(path, 0o755).unwrap();
        }
        disk.chmod(path, mode).unwrap();
        self
    }

    pub fn with_file(&self, path: &str, data: &str) -> &Self {
        self.parents(path).write(path, data.as_bytes()).unwrap();
        self
    }

    pub fn with_symlink(&self, path: &str, target: &str) -> &Self {
        self.parents(path).symlink(target, path).unwrap();
        self
    }

    pub fn with_link(&self, from: &str, to: &str) -> &Self {
        self.parents(to).link(from, to).unwrap();
        self
    }

    pub fn with_node(&self, path: &str, mode: u32, rdev: u64) -> &Self {
        self.parents(path).mknod(path, mode, rdev).unwrap();
        self
    }

    pub fn with_mode(&self, path: &str, mode: u32) -> &Self {
        self.chmod(path, mode).unwrap();
        self
    }

    pub fn with_xattr(&self, path: &str, key: &str, value: &str) -> &Self {
        self.setxattr(path, key, value.as_bytes(), 0).unwrap();
        self
    }

    pub fn with_mtime(&self, path: &str, sec: i64) -> &Self {
        self.set_mtime(path, sec).unwrap();
        self
    }

    /// A whiteout as overlayfs has it.
    pub fn with_whiteout(&self, path: &str) -> &Self {
        self.with_node(path, libc::S_IFCHR, 0)
    }

    /// A whiteout as image archives have it.
    pub fn with_wh(&self, path: &str) -> &Self {
        let (dir, name) = split(path).unwrap();
        self.with_file(&join(dir, &format!(".wh.{name}")), "")
    }

    /// An opaque directory as overlayfs has it.
    pub fn with_opaque(&self, path: &str) -> &Self {
        self.with_dir(path, 0o755)
            .with_xattr(path, &opaque_key(), "y")
    }

    /// An opaque directory as image archives have it.
    pub fn with_opq(&self, path: &str) -> &Self {
        self.with_file(&join(path, ".wh..wh..opq"), "")
    }
}

pub fn kind_of(mode: u32) -> Kind {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::Char,
        libc::S_IFBLK => Kind::Block,
        libc::S_IFREG => Kind::File,
        other => panic!("kind {other:o}"),
    }
}

fn attr_of(stat: &Stat) -> Attr {
    let time = |sec, nsec| Time {
        sec,
        nsec: u32::try_from(nsec).unwrap(),
    };
    Attr {
        ino: stat.st_ino,
        kind: kind_of(stat.st_mode),
        mode: stat.st_mode & 0o7777,
        nlink: u32::try_from(stat.st_nlink).unwrap(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: u64::try_from(stat.st_size).unwrap(),
        blocks: u64::try_from(stat.st_blocks).unwrap(),
        blksize: u32::try_from(stat.st_blksize).unwrap(),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

impl Fs for Disk {
    fn stat(&self, path: &str) -> Res<Attr> {
        let (dir, name) = self.object(path)?;
        ok(meta::fstatat(dir.as_fd(), name)).map(|stat| attr_of(&stat))
    }

    fn names(&self, path: &str) -> Res<Vec<String>> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let dir = ok(file::openat(self.dir(path)?.as_fd(), b".", flags, 0))?;
        let mut names = Vec::new();
        ok(dirent::read_dir(dir.as_fd(), |name, _, _| {
            names.push(String::from_utf8(name.to_vec()).unwrap());
        }))?;
        names.sort();
        Ok(names)
    }

    fn readlink(&self, path: &str) -> Res<Vec<u8>> {
        let (dir, name) = self.at(path)?;
        ok(name::readlinkat(dir.as_fd(), name))
    }

    fn create(&self, path: &str, mode: u32) -> Res<u64> {
        let (dir, name) = self.at(path)?;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        ok(file::openat(dir.as_fd(), name, flags, mode)).map(|fd| self.keep(fd))
    }

    fn open(&self, path: &str, flags: i32) -> Res<u64> {
        let (dir, name) = self.at(path)?;
        ok(file::openat(dir.as_fd(), name, flags, 0)).map(|fd| self.keep(fd))
    }

    fn pread(&self, fh: u64, offset: u64, len: usize) -> Res<Vec<u8>> {
        let mut data = vec![0; len];
        let open = self.open.borrow();
        let n = ok(file::pread(
            open.get(&fh).ok_or(Errno::EBADF)?.as_fd(),
            &mut data,
            offset,
        ))?;
        data.truncate(n);
        Ok(data)
    }

    fn pwrite(&self, fh: u64, offset: u64, data: &[u8]) -> Res<usize> {
        let open = self.open.borrow();
        ok(file::pwrite(
            open.get(&fh).ok_or(Errno::EBADF)?.as_fd(),
            data,
            offset,
        ))
    }

    fn close(&self, fh: u64) {
        self.open.borrow_mut().remove(&fh).unwrap();
    }

    fn mkdir(&self, path: &str, mode: u32) -> Res<()> {
        let (dir, name) = self.at(path)?;
        ok(name::mkdirat(dir.as_fd(), name, mode))
    }

    fn symlink(&self, target: &str, path: &str) -> Res<()> {
        let (dir, name) = self.at(path)?;
        ok(name::symlinkat(target.as_bytes(), dir.as_fd(), name))
    }

    fn mknod(&self, path: &str, mode: u32, rdev: u64) -> Res<()> {
        let (dir, name) = self.at(path)?;
        ok(name::mknodat(dir.as_fd(), name, mode, rdev))
    }

    fn link(&self, from: &str, to: &str) -> Res<()> {
        // By path, the kernel asks for the file before it asks for the new directory.
        self.stat(from)?;
        let ((dir, name), (to_dir, to_name)) = (self.at(from)?, self.at(to)?);
        ok(name::linkat(dir.as_fd(), name, to_dir.as_fd(), to_name))
    }

    fn unlink(&self, path: &str) -> Res<()> {
        let (dir, name) = self.at(path)?;
        ok(name::unlinkat(dir.as_fd(), name))
    }

    fn rmdir(&self, path: &str) -> Res<()> {
        let (dir, name) = self.at(path)?;
        ok(name::rmdirat(dir.as_fd(), name))
    }

    fn rename(&self, from: &str, to: &str, kind: RenameKind) -> Res<()> {
        let ((dir, name), (to_dir, to_name)) = (self.at(from)?, self.at(to)?);
        let flags = match kind {
            RenameKind::Replace => 0,
            RenameKind::NoReplace => libc::RENAME_NOREPLACE,
            RenameKind::Exchange => libc::RENAME_EXCHANGE,
            RenameKind::Whiteout => libc::RENAME_WHITEOUT,
        };
        ok(name::renameat(
            dir.as_fd(),
            name,
            to_dir.as_fd(),
            to_name,
            flags,
        ))
    }

    fn chmod(&self, path: &str, mode: u32) -> Res<()> {
        let (dir, name) = self.object(path)?;
        ok(meta::fchmodat(dir.as_fd(), name, mode))
    }

    fn chown(&self, path: &str, uid: u32, gid: u32) -> Res<()> {
        let (dir, name) = self.object(path)?;
        ok(meta::fchownat(dir.as_fd(), name, Some(uid), Some(gid)))
    }

    fn truncate(&self, path: &str, size: u64) -> Res<()> {
        let (dir, name) = self.at(path)?;
        let fd = ok(file::openat(dir.as_fd(), name, libc::O_WRONLY, 0))?;
        ok(file::ftruncate(fd.as_fd(), size))
    }

    fn set_mtime(&self, path: &str, sec: i64) -> Res<()> {
        let (dir, name) = self.object(path)?;
        let keep = libc::timespec {
            tv_sec: 0,
            tv_nsec: libc::UTIME_OMIT,
        };
        let times = [
            keep,
            libc::timespec {
                tv_sec: sec,
                tv_nsec: 0,
            },
        ];
        ok(meta::utimensat(dir.as_fd(), name, &times))
    }

    fn setxattr(&self, path: &str, k: &str, value: &[u8], flags: i32) -> Res<()> {
        let (dir, name) = self.object(path)?;
        ok(xattr::set(dir.as_fd(), name, &key(k), value, flags))
    }

    fn getxattr(&self, path: &str, k: &str) -> Res<Vec<u8>> {
        let (dir, name) = self.object(path)?;
        ok(xattr::get(dir.as_fd(), name, &key(k)))
    }

    fn listxattr(&self, path: &str) -> Res<Vec<String>> {
        let (dir, name) = self.object(path)?;
        ok(xattr::list(dir.as_fd(), name)).map(|list| xattr_list(&list))
    }

    fn removexattr(&self, path: &str, k: &str) -> Res<()> {
        let (dir, name) = self.object(path)?;
        ok(xattr::remove(dir.as_fd(), name, &key(k)))
    }

    /// Some file systems count the subdirectories, some do not.
    fn dir_nlink(&self, _attr: &Attr, subdirs: u32) -> u32 {
        2 + subdirs
    }
}
