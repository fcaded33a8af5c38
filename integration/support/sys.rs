//! System calls by their names, with their error numbers.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag};

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

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_retain(mode & 0o7777)
}

fn count(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

pub fn open(path: impl AsRef<Path>, flags: i32, mode: u32) -> Result<OwnedFd> {
    openat(libc::AT_FDCWD, path, flags, mode)
}

pub fn openat(dir: RawFd, path: impl AsRef<Path>, flags: i32, mode: u32) -> Result<OwnedFd> {
    let path = c(path.as_ref());
    // SAFETY: the path ends with a NUL.
    let fd = unsafe { libc::openat(dir, path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    ok(fd)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a regular file, which must not be there, with this content.
pub fn make(path: impl AsRef<Path>, content: &[u8]) -> Result<()> {
    let fd = open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o644)?;
    pwrite(&fd, content, 0)?;
    Ok(())
}

pub fn stat(path: impl AsRef<Path>) -> Result<libc::stat> {
    nix::sys::stat::stat(path.as_ref())
}

pub fn lstat(path: impl AsRef<Path>) -> Result<libc::stat> {
    nix::sys::stat::lstat(path.as_ref())
}

pub fn fstat(fd: &impl AsFd) -> Result<libc::stat> {
    nix::sys::stat::fstat(fd)
}

/// When it was made, in seconds since the epoch; None where that is not told.
pub fn birth(path: impl AsRef<Path>) -> Result<Option<i64>> {
    let path = c(path.as_ref());
    // SAFETY: all zeroes are a value of this structure of numbers.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, mask) = (libc::AT_SYMLINK_NOFOLLOW, libc::STATX_BTIME);
    // SAFETY: the path ends with a NUL, and the structure is writable.
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
    /// One that is made up.
    pub fn new(kind: i32, content: &[u8]) -> Handle {
        let mut bytes = [0; HANDLE_SIZE];
        bytes[..content.len()].copy_from_slice(content);
        let size = content.len() as u32;
        Handle { size, kind, bytes }
    }

    pub fn of(path: impl AsRef<Path>) -> Result<Handle> {
        let path = c(path.as_ref());
        let mut handle = Handle::new(0, &[0; HANDLE_SIZE]);
        let mut mount = 0;
        let raw = (&raw mut handle).cast();
        // SAFETY: the path ends with a NUL, and the structure has the size that it says.
        ok(unsafe {
            libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), raw, &raw mut mount, 0)
        })?;
        Ok(handle)
    }

    /// Opens it on the mount that a descriptor is of.
    pub fn open(&self, mount: &impl AsRawFd, flags: i32) -> Result<OwnedFd> {
        let raw = (&raw const *self).cast_mut().cast();
        // SAFETY: the structure lives as long as the call, which does not change it.
        let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), raw, flags) };
        ok(fd)?;
        // SAFETY: the call returned a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

pub fn mkdir(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    mkdirat(libc::AT_FDCWD, path, mode)
}

pub fn mkdirat(dir: RawFd, path: impl AsRef<Path>, mode: u32) -> Result<()> {
    let path = c(path.as_ref());
    // SAFETY: the path ends with a NUL.
    ok(unsafe { libc::mkdirat(dir, path.as_ptr(), mode) })
}

pub fn mknod(path: impl AsRef<Path>, mode: u32, dev: u64) -> Result<()> {
    let (kind, mode) = (SFlag::from_bits_retain(mode), permissions(mode));
    nix::sys::stat::mknod(path.as_ref(), kind & SFlag::S_IFMT, mode, dev)
}

pub fn unlink(path: impl AsRef<Path>) -> Result<()> {
    unlinkat(libc::AT_FDCWD, path, 0)
}

pub fn rmdir(path: impl AsRef<Path>) -> Result<()> {
    unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR)
}

pub fn unlinkat(dir: RawFd, path: impl AsRef<Path>, flags: i32) -> Result<()> {
    let path = c(path.as_ref());
    // SAFETY: the path ends with a NUL.
    ok(unsafe { libc::unlinkat(dir, path.as_ptr(), flags) })
}

pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>, flags: u32) -> Result<()> {
    let flags = RenameFlags::from_bits_retain(flags);
    nix::fcntl::renameat2(AT_FDCWD, from.as_ref(), AT_FDCWD, to.as_ref(), flags)
}

pub fn link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    nix::unistd::linkat(AT_FDCWD, from, AT_FDCWD, to, AtFlags::empty())
}

pub fn symlink(target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
    nix::unistd::symlinkat(target.as_ref(), AT_FDCWD, path.as_ref())
}

pub fn readlink(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = c(path.as_ref());
    let mut buffer = vec![0u8; 4096];
    // SAFETY: the path ends with a NUL, and the length is that of the buffer.
    let got = unsafe { libc::readlink(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(count(got)?);
    Ok(buffer)
}

pub fn chmod(path: impl AsRef<Path>, mode: u32) -> Result<()> {
    let flag = FchmodatFlags::FollowSymlink;
    nix::sys::stat::fchmodat(AT_FDCWD, path.as_ref(), permissions(mode), flag)
}

pub fn fchmod(fd: &impl AsFd, mode: u32) -> Result<()> {
    nix::sys::stat::fchmod(fd, permissions(mode))
}

pub fn lchown(path: impl AsRef<Path>, uid: u32, gid: u32) -> Result<()> {
    let path = c(path.as_ref());
    // SAFETY: the path ends with a NUL.
    ok(unsafe { libc::lchown(path.as_ptr(), uid, gid) })
}

pub fn fchown(fd: &impl AsRawFd, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the call takes numbers only.
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
    // SAFETY: the path ends with a NUL, and there are two times.
    ok(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) })
}

pub fn futimens(fd: &impl AsRawFd, atime: (i64, i64), mtime: (i64, i64)) -> Result<()> {
    let times = [spec(atime), spec(mtime)];
    // SAFETY: there are two times.
    ok(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) })
}

pub fn truncate(path: impl AsRef<Path>, size: i64) -> Result<()> {
    nix::unistd::truncate(path.as_ref(), size)
}

pub fn ftruncate(fd: &impl AsFd, size: i64) -> Result<()> {
    nix::unistd::ftruncate(fd, size)
}

pub fn pread(fd: &impl AsFd, size: usize, offset: i64) -> Result<Vec<u8>> {
    let mut buffer = vec![0u8; size];
    let got = nix::sys::uio::pread(fd, &mut buffer, offset)?;
    buffer.truncate(got);
    Ok(buffer)
}

pub fn pwrite(fd: &impl AsFd, bytes: &[u8], offset: i64) -> Result<usize> {
    nix::sys::uio::pwrite(fd, bytes, offset)
}

pub fn write(fd: &impl AsFd, bytes: &[u8]) -> Result<usize> {
    nix::unistd::write(fd, bytes)
}

pub fn lseek(fd: &impl AsRawFd, offset: i64, whence: i32) -> Result<i64> {
    // SAFETY: the call takes numbers only.
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) };
    if at < 0 { Err(Errno::last()) } else { Ok(at) }
}

pub fn fallocate(fd: &impl AsRawFd, mode: i32, offset: i64, size: i64) -> Result<()> {
    // SAFETY: the call takes numbers only.
    ok(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, size) })
}

pub fn fsync(fd: &impl AsFd) -> Result<()> {
    nix::unistd::fsync(fd)
}

/// What the close of a descriptor does for what was written by it, and the errors that it tells.
pub fn flush(fd: &impl AsFd) -> Result<()> {
    nix::unistd::close(nix::unistd::dup(fd)?)
}

pub fn setxattr(
    path: impl AsRef<Path>,
    name: impl AsRef<OsStr>,
    value: &[u8],
    flags: i32,
) -> Result<()> {
    let (path, name) = (c(path.as_ref()), c(name));
    let (data, size) = (value.as_ptr().cast(), value.len());
    // SAFETY: the strings end with a NUL, and the length is that of the buffer.
    ok(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), data, size, flags) })
}

pub fn fsetxattr(fd: &impl AsRawFd, name: &str, value: &[u8]) -> Result<()> {
    let name = c(name);
    let (data, size) = (value.as_ptr().cast(), value.len());
    // SAFETY: the strings end with a NUL, and the length is that of the buffer.
    ok(unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), data, size, 0) })
}

pub fn fgetxattr(fd: &impl AsRawFd, name: &str) -> Result<Vec<u8>> {
    let name = c(name);
    let mut buffer = vec![0u8; 65536];
    let data = buffer.as_mut_ptr().cast();
    // SAFETY: the strings end with a NUL, and the length is that of the buffer.
    let got = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), data, buffer.len()) };
    buffer.truncate(count(got)?);
    Ok(buffer)
}

pub fn getxattr(path: impl AsRef<Path>, name: impl AsRef<OsStr>) -> Result<Vec<u8>> {
    let (path, name) = (c(path.as_ref()), c(name));
    let mut buffer = vec![0u8; 65536];
    let data = buffer.as_mut_ptr().cast();
    // SAFETY: the strings end with a NUL, and the length is that of the buffer.
    let got = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), data, buffer.len()) };
    buffer.truncate(count(got)?);
    Ok(buffer)
}

/// The names, sorted.
pub fn listxattr(path: impl AsRef<Path>) -> Result<Vec<Vec<u8>>> {
    let path = c(path.as_ref());
    let mut buffer = vec![0u8; 65536];
    let data = buffer.as_mut_ptr().cast();
    // SAFETY: the strings end with a NUL, and the length is that of the buffer.
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
    // SAFETY: the strings end with a NUL.
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
        // SAFETY: the path ends with a NUL.
        let dir = unsafe { libc::opendir(path.as_ptr()) };
        if dir.is_null() {
            Err(Errno::last())
        } else {
            Ok(Dir(dir))
        }
    }

    pub fn next(&mut self) -> Result<Option<Entry>> {
        Errno::clear();
        // SAFETY: the stream is open as long as `self` lives.
        let entry = unsafe { libc::readdir(self.0) };
        if entry.is_null() {
            let errno = Errno::last_raw();
            return if errno == 0 {
                Ok(None)
            } else {
                Err(Errno::from_raw(errno))
            };
        }
        // SAFETY: the entry is valid until the next call on this stream, which nobody shares.
        let entry = unsafe { &*entry };
        // SAFETY: the name of an entry ends with a NUL.
        let name = unsafe { CStr::from_ptr(entry.d_name.as_ptr()) };
        Ok(Some(Entry {
            name: name.to_bytes().to_vec(),
            ino: entry.d_ino,
            kind: entry.d_type,
            // SAFETY: the stream is open as long as `self` lives.
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
        // SAFETY: the stream is open as long as `self` lives.
        unsafe { libc::seekdir(self.0, to) };
    }

    pub fn rewind(&mut self) {
        // SAFETY: the stream is open as long as `self` lives.
        unsafe { libc::rewinddir(self.0) };
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and this is its last use.
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
    // SAFETY: these calls take numbers only.
    let set = |uid: u32, gid: u32| unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    };
    // SAFETY: an empty list is not read.
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
        // SAFETY: the kernel chooses a place that nothing else uses.
        let at = unsafe { libc::mmap(none, size, protection, flags, fd.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            Err(Errno::last())
        } else {
            Ok(Map(at.cast(), size))
        }
    }

    pub fn get(&self, at: usize) -> u8 {
        assert!(at < self.1);
        // SAFETY: the place lies in the mapping, as was just checked.
        unsafe { self.0.add(at).read_volatile() }
    }

    pub fn set(&mut self, at: usize, byte: u8) {
        assert!(at < self.1);
        // SAFETY: the place lies in the mapping, as was just checked.
        unsafe { self.0.add(at).write_volatile(byte) };
    }

    pub fn sync(&self) -> Result<()> {
        // SAFETY: this is the whole of the mapping.
        ok(unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the whole of the mapping, and its last use.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// Ends all writing of a file system to its disk, its journal too (ext4, XFS, as a test of theirs does).
pub fn shut_down(mountpoint: &Path) -> Result<()> {
    const SHUTDOWN: libc::c_ulong = 0x8004_587d;
    const NO_LOG_FLUSH: u32 = 2;
    let root = open(mountpoint, libc::O_RDONLY, 0)?;
    // SAFETY: the call reads one number, which lives as long.
    ok(unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) })
}
