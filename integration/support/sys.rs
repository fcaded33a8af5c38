//! System calls by their names, with their error numbers.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use nix::errno::Errno;

pub type Result<T> = std::result::Result<T, Errno>;

pub fn c(path: impl AsRef<OsStr>) -> CString {
    CString::new(path.as_ref().as_bytes()).unwrap()
}

fn ok(result: libc::c_int) -> Result<()> {
    if result < 0 {
        Err(Errno::last())
    } else {
        Ok(())
    }
}

fn count(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

pub fn open(path: impl AsRef<Path>, flags: i32, mode: u32) -> Result<OwnedFd> {
    openat(libc::AT_FDCWD, path, flags, mode)
}

pub fn openat(dir: RawFd, path: impl AsRef<Path>, flags: i32, mode: u32) -> Result<OwnedFd> {
    let path = c(path.as_ref());
    let fd = unsafe { libc::openat(dir, path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    ok(fd)?;
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a regular file, which must not be there, with this content.
pub fn make(path: impl AsRef<Path>, content: &[u8]) -> Result<()> {
    let fd = open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o644)?;
    pwrite(&fd, content, 0)?;
    Ok(())
}

fn stat_by(call: impl FnOnce(*mut libc::stat) -> i32) -> Result<libc::stat> {
    let mut stat = unsafe { std::mem::zeroed() };
    ok(call(&mut stat))?;
    Ok(stat)
}

pub fn stat(path: impl AsRef<Path>) -> Result<libc::stat> {
    let path = c(path.as_ref());
    stat_by(|s| unsafe { libc::stat(path.as_ptr(), s) })
}

pub fn lstat(path: impl AsRef<Path>) -> Result<libc::stat> {
    let path = c(path.as_ref());
    stat_by(|s| unsafe { libc::lstat(path.as_ptr(), s) })
}

pub fn fstat(fd: &impl AsRawFd) -> Result<libc::stat> {
    stat_by(|s| unsafe { libc::fstat(fd.as_raw_fd(), s) })
}

/// When it was made, in seconds since the epoch; None where that is not told.
pub fn birth(path: impl AsRef<Path>) -> Result<Option<i64>> {
    let path = c(path.as_ref());
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, mask) = (libc::AT_SYMLINK_NOFOLLOW, libc::STATX_BTIME);
    ok(unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, mask, &raw mut stat) })?;
    Ok((stat.stx_mask & libc::STATX_BTIME != 0).then_some(stat.stx_btime.tv_sec))
}

const HANDLE_SIZE: usize = 128;

/// A file by its handle, as name_to_handle_at gives it.
#[repr(C, align(8))]
pub struct Handle {
    size: u32,
    kind: i32,
    bytes: [u8; HANDLE_SIZE],
}

impl Handle {
    pub fn of(path: impl AsRef<Path>) -> Result<Handle> {
        let path = c(path.as_ref());
        let mut handle = Handle {
            size: HANDLE_SIZE as u32,
            kind: 0,
            bytes: [0; HANDLE_SIZE],
        };
        let mut mount = 0;
        let raw = (&raw mut handle).cast();
        ok(unsafe {
            libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), raw, &raw mut mount, 0)
        })?;
        Ok(handle)
    }

    /// Opens it on the mount that a descriptor is of.
    pub fn open(&self, mount: &impl AsRawFd, flags: i32) -> Result<OwnedFd> {
        let raw = (&raw const *self).cast_mut().cast();
        let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), raw, flags) };
        ok(fd)?;
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

pub fn mkdir(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    mkdirat(libc::AT_FDCWD, path, mode)
}

pub fn mkdirat(dir: RawFd, path: impl AsRef<Path>, mode: u32) -> Result<()> {
    let path = c(path.as_ref());
    ok(unsafe { libc::mkdirat(dir, path.as_ptr(), mode) })
}

pub fn mknod(path: impl AsRef<Path>, mode: u32, dev: u64) -> Result<()> {
    let path = c(path.as_ref());
    ok(unsafe { libc::mknod(path.as_ptr(), mode, dev) })
}

pub fn unlink(path: impl AsRef<Path>) -> Result<()> {
    unlinkat(libc::AT_FDCWD, path, 0)
}

pub fn rmdir(path: impl AsRef<Path>) -> Result<()> {
    unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR)
}

pub fn unlinkat(dir: RawFd, path: impl AsRef<Path>, flags: i32) -> Result<()> {
    let path = c(path.as_ref());
    ok(unsafe { libc::unlinkat(dir, path.as_ptr(), flags) })
}

pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>, flags: u32) -> Result<()> {
    let (from, to) = (c(from.as_ref()), c(to.as_ref()));
    let cwd = libc::AT_FDCWD;
    ok(unsafe { libc::renameat2(cwd, from.as_ptr(), cwd, to.as_ptr(), flags) })
}

pub fn link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (c(from.as_ref()), c(to.as_ref()));
    ok(unsafe { libc::link(from.as_ptr(), to.as_ptr()) })
}

pub fn symlink(target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
    let (target, path) = (c(target.as_ref()), c(path.as_ref()));
    ok(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) })
}

pub fn readlink(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = c(path.as_ref());
    let mut buffer = vec![0u8; 4096];
    let got = unsafe { libc::readlink(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(count(got)?);
    Ok(buffer)
}

pub fn chmod(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    let path = c(path.as_ref());
    ok(unsafe { libc::chmod(path.as_ptr(), mode) })
}

pub fn fchmod(fd: &impl AsRawFd, mode: u32) -> Result<()> {
    ok(unsafe { libc::fchmod(fd.as_raw_fd(), mode) })
}

pub fn lchown(path: impl AsRef<Path>, uid: u32, gid: u32) -> Result<()> {
    let path = c(path.as_ref());
    ok(unsafe { libc::lchown(path.as_ptr(), uid, gid) })
}

pub fn fchown(fd: &impl AsRawFd, uid: u32, gid: u32) -> Result<()> {
    ok(unsafe { libc::fchown(fd.as_raw_fd(), uid, gid) })
}

fn spec((sec, nsec): (i64, i64)) -> libc::timespec {
    libc::timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    }
}

/// Sets atime and mtime, of a symlink itself.
pub fn utimens(path: impl AsRef<Path>, atime: (i64, i64), mtime: (i64, i64)) -> Result<()> {
    let path = c(path.as_ref());
    let times = [spec(atime), spec(mtime)];
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    ok(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) })
}

pub fn futimens(fd: &impl AsRawFd, atime: (i64, i64), mtime: (i64, i64)) -> Result<()> {
    let times = [spec(atime), spec(mtime)];
    ok(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) })
}

pub fn truncate(path: impl AsRef<Path>, size: i64) -> Result<()> {
    let path = c(path.as_ref());
    ok(unsafe { libc::truncate(path.as_ptr(), size) })
}

pub fn ftruncate(fd: &impl AsRawFd, size: i64) -> Result<()> {
    ok(unsafe { libc::ftruncate(fd.as_raw_fd(), size) })
}

pub fn pread(fd: &impl AsRawFd, size: usize, offset: i64) -> Result<Vec<u8>> {
    let mut buffer = vec![0u8; size];
    let got = unsafe { libc::pread(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), size, offset) };
    buffer.truncate(count(got)?);
    Ok(buffer)
}

pub fn pwrite(fd: &impl AsRawFd, bytes: &[u8], offset: i64) -> Result<usize> {
    count(unsafe { libc::pwrite(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), offset) })
}

pub fn write(fd: &impl AsRawFd, bytes: &[u8]) -> Result<usize> {
    count(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

pub fn lseek(fd: &impl AsRawFd, offset: i64, whence: i32) -> Result<i64> {
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) };
    if at < 0 { Err(Errno::last()) } else { Ok(at) }
}

pub fn fallocate(fd: &impl AsRawFd, mode: i32, offset: i64, size: i64) -> Result<()> {
    ok(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, size) })
}

pub fn fsync(fd: &impl AsRawFd) -> Result<()> {
    ok(unsafe { libc::fsync(fd.as_raw_fd()) })
}

pub fn setxattr(
    path: impl AsRef<Path>,
    name: impl AsRef<OsStr>,
    value: &[u8],
    flags: i32,
) -> Result<()> {
    let (path, name) = (c(path.as_ref()), c(name));
    let (data, size) = (value.as_ptr().cast(), value.len());
    ok(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), data, size, flags) })
}

pub fn fsetxattr(fd: &impl AsRawFd, name: &str, value: &[u8]) -> Result<()> {
    let name = c(name);
    let (data, size) = (value.as_ptr().cast(), value.len());
    ok(unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), data, size, 0) })
}

pub fn fgetxattr(fd: &impl AsRawFd, name: &str) -> Result<Vec<u8>> {
    let name = c(name);
    let mut buffer = vec![0u8; 65536];
    let data = buffer.as_mut_ptr().cast();
    let got = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), data, buffer.len()) };
    buffer.truncate(count(got)?);
    Ok(buffer)
}

pub fn getxattr(path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<Vec<u8>> {
    let (path, name) = (c(path.as_ref()), c(name));
    let mut buffer = vec![0u8; 65536];
    let data = buffer.as_mut_ptr().cast();
    let got = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), data, buffer.len()) };
    buffer.truncate(count(got)?);
    Ok(buffer)
}

/// The names, sorted.
pub fn listxattr(path: impl AsRef<Path>) -> Result<Vec<Vec<u8>>> {
    let path = c(path.as_ref());
    let mut buffer = vec![0u8; 65536];
    let data = buffer.as_mut_ptr().cast();
    let got = count(unsafe { libc::llistxattr(path.as_ptr(), data, buffer.len()) })?;
    let mut names: Vec<_> = buffer[..got]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    Ok(names)
}

pub fn removexattr(path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<()> {
    let (path, name) = (c(path.as_ref()), c(name));
    ok(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })
}

pub struct Entry {
    pub name: Vec<u8>,
    pub ino: u64,
    pub kind: u8,
    /// Where `telldir` stood after it.
    pub next: i64,
}

/// An open directory stream.
pub struct Dir(*mut libc::DIR);

impl Dir {
    pub fn open(path: impl AsRef<Path>) -> Result<Dir> {
        let path = c(path.as_ref());
        let dir = unsafe { libc::opendir(path.as_ptr()) };
        if dir.is_null() {
            Err(Errno::last())
        } else {
            Ok(Dir(dir))
        }
    }

    pub fn next(&mut self) -> Result<Option<Entry>> {
        Errno::clear();
        let entry = unsafe { libc::readdir(self.0) };
        if entry.is_null() {
            let errno = Errno::last_raw();
            return if errno == 0 {
                Ok(None)
            } else {
                Err(Errno::from_raw(errno))
            };
        }
        let entry = unsafe { &*entry };
        let name = unsafe { CStr::from_ptr(entry.d_name.as_ptr()) };
        Ok(Some(Entry {
            name: name.to_bytes().to_vec(),
            ino: entry.d_ino,
            kind: entry.d_type,
            next: unsafe { libc::telldir(self.0) },
        }))
    }

    pub fn rest(&mut self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        while let Some(entry) = self.next()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    pub fn seek(&mut self, to: i64) {
        unsafe { libc::seekdir(self.0, to) };
    }

    pub fn rewind(&mut self) {
        unsafe { libc::rewinddir(self.0) };
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        unsafe { libc::closedir(self.0) };
    }
}

/// A whole directory, with `.` and `..`.
pub fn readdir(path: impl AsRef<Path>) -> Result<Vec<Entry>> {
    Dir::open(path)?.rest()
}

/// The names in a directory, sorted, without `.` and `..`.
pub fn names(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let mut names: Vec<_> = readdir(path)?
        .into_iter()
        .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    Ok(names)
}

/// Does something with the file system as another user (of this thread only).
pub fn as_user<T>(uid: u32, gid: u32, body: impl FnOnce() -> T) -> T {
    let set = |uid: u32, gid: u32| unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    };
    unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
    set(uid, gid);
    let result = body();
    set(0, 0);
    result
}

/// A mapping of a file's beginning.
pub struct Map(*mut u8, usize);

impl Map {
    pub fn new(fd: &impl AsRawFd, size: usize, protection: i32, flags: i32) -> Result<Map> {
        let none = std::ptr::null_mut();
        let at = unsafe { libc::mmap(none, size, protection, flags, fd.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            Err(Errno::last())
        } else {
            Ok(Map(at.cast(), size))
        }
    }

    pub fn get(&self, at: usize) -> u8 {
        assert!(at < self.1);
        unsafe { self.0.add(at).read_volatile() }
    }

    pub fn set(&mut self, at: usize, byte: u8) {
        assert!(at < self.1);
        unsafe { self.0.add(at).write_volatile(byte) };
    }

    pub fn sync(&self) -> Result<()> {
        ok(unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// Ends all writing of a file system to its disk, its journal too (ext4, XFS, as a test of theirs does).
pub fn shut_down(mountpoint: &Path) -> Result<()> {
    const SHUTDOWN: libc::c_ulong = 0x8004_587d;
    const NO_LOG_FLUSH: u32 = 2;
    let root = open(mountpoint, libc::O_RDONLY, 0)?;
    ok(unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) })
}
