//! Data: reading and writing, sizes, mappings, locks, programs.

use std::fs::{File, TryLockError};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::read;
use crate::support::sys::{self, Errno};

pub fn exclusive_and_truncating_open(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"content").unwrap();
    let exclusive = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    assert_eq!(
        sys::open(&file, exclusive, 0o644).err(),
        Some(Errno::EEXIST)
    );
    sys::symlink("nowhere", dir.join("l")).unwrap();
    assert_eq!(
        sys::open(dir.join("l"), exclusive, 0o644).err(),
        Some(Errno::EEXIST)
    );
    let fd = sys::open(&file, libc::O_RDWR | libc::O_TRUNC, 0).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_size, 0);
    assert_eq!(read(&file), b"");
    assert_eq!(sys::open(dir, libc::O_RDWR, 0).err(), Some(Errno::EISDIR));
    assert_eq!(
        sys::open(dir.join("f/x"), libc::O_RDONLY, 0).err(),
        Some(Errno::ENOTDIR)
    );
    assert_eq!(
        sys::open(dir.join("no"), libc::O_RDONLY, 0).err(),
        Some(Errno::ENOENT)
    );
    let nofollow = libc::O_RDONLY | libc::O_NOFOLLOW;
    assert_eq!(
        sys::open(dir.join("l"), nofollow, 0).err(),
        Some(Errno::ELOOP)
    );
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    assert_eq!(sys::open(&file, directory, 0).err(), Some(Errno::ENOTDIR));
}

pub fn append(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"one").unwrap();
    let a = sys::open(&file, libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
    let b = sys::open(&file, libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
    for fd in [&a, &b, &a] {
        assert_eq!(sys::write(fd, b"+"), Ok(1));
    }
    assert_eq!(read(&file), b"one+++");
    sys::truncate(&file, 1).unwrap();
    sys::write(&b, b"!").unwrap();
    assert_eq!(read(&file), b"o!");
}

pub fn unlinked_open_file(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"content").unwrap();
    let fd = sys::open(&file, libc::O_RDWR, 0).unwrap();
    let ino = sys::fstat(&fd).unwrap().st_ino;
    sys::unlink(&file).unwrap();
    sys::make(&file, b"another").unwrap();
    sys::fchmod(&fd, 0o600).unwrap();
    sys::fchown(&fd, 12, 34).unwrap();
    sys::futimens(&fd, (1, 2), (3, 4)).unwrap();
    sys::fsetxattr(&fd, "user.x", b"y").unwrap();
    let stat = sys::fstat(&fd).unwrap();
    assert_eq!(
        (stat.st_ino, stat.st_nlink, stat.st_mode & 0o777),
        (ino, 0, 0o600)
    );
    assert_eq!(
        (stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec),
        (12, 34, 3, 4)
    );
    sys::pwrite(&fd, b"C", 0).unwrap();
    sys::ftruncate(&fd, 4).unwrap();
    assert_eq!(sys::pread(&fd, 100, 0).unwrap(), b"Cont");
    assert_eq!(read(&file), b"another");
    assert_eq!(sys::stat(&file).unwrap().st_uid, 0);
    // A file replaced by rename is as gone as an unlinked one.
    sys::make(dir.join("g"), b"new").unwrap();
    let old = sys::open(&file, libc::O_RDWR, 0).unwrap();
    sys::rename(dir.join("g"), &file, 0).unwrap();
    assert_eq!(sys::fstat(&old).unwrap().st_nlink, 0);
    assert_eq!(sys::pread(&old, 100, 0).unwrap(), b"another");
}

pub fn sizes_and_holes(dir: &Path) {
    let file = dir.join("f");
    let fd = sys::open(&file, libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    let mega = 1 << 20;
    sys::pwrite(&fd, &[1; 4096], 8 * mega).unwrap();
    sys::fsync(&fd).unwrap();
    let stat = sys::fstat(&fd).unwrap();
    assert_eq!(stat.st_size, 8 * mega + 4096);
    assert!(stat.st_blocks * 512 < mega, "{} blocks", stat.st_blocks);
    assert_eq!(sys::lseek(&fd, 0, libc::SEEK_DATA), Ok(8 * mega));
    assert_eq!(sys::lseek(&fd, 0, libc::SEEK_HOLE), Ok(0));
    assert_eq!(
        sys::lseek(&fd, 8 * mega, libc::SEEK_HOLE),
        Ok(8 * mega + 4096)
    );
    assert_eq!(
        sys::lseek(&fd, 9 * mega, libc::SEEK_DATA),
        Err(Errno::ENXIO)
    );
}

pub fn sizes(dir: &Path) {
    let file = dir.join("f");
    let fd = sys::open(&file, libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    sys::pwrite(&fd, &[1; 4096], 4096).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_size, 8192);
    sys::ftruncate(&fd, 100).unwrap();
    sys::truncate(&file, 200).unwrap();
    assert_eq!(sys::pread(&fd, 1000, 0).unwrap(), [0; 200]);
    assert_eq!(sys::truncate(&file, -1), Err(Errno::EINVAL));
    assert_eq!(sys::truncate(dir, 0), Err(Errno::EISDIR));
}

pub fn fallocate_modes(dir: &Path) {
    let fd = sys::open(dir.join("f"), libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    sys::pwrite(&fd, &[7; 65536], 0).unwrap();
    let unsupported = |result: sys::Result<()>| match result {
        Err(Errno::EOPNOTSUPP) => true,
        other => {
            other.unwrap();
            false
        }
    };
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    let block = |at: i64| sys::pread(&fd, 1, at).unwrap();
    if !unsupported(sys::fallocate(&fd, 0, 0, 131_072)) {
        assert_eq!(sys::fstat(&fd).unwrap().st_size, 131_072);
        sys::fallocate(&fd, keep, 0, 1 << 20).unwrap();
        assert_eq!(sys::fstat(&fd).unwrap().st_size, 131_072);
    }
    if !unsupported(sys::fallocate(
        &fd,
        libc::FALLOC_FL_PUNCH_HOLE | keep,
        4096,
        8192,
    )) {
        assert_eq!(
            [block(4095), block(4096), block(12287), block(12288)],
            [[7], [0], [0], [7]]
        );
    }
    if !unsupported(sys::fallocate(&fd, libc::FALLOC_FL_ZERO_RANGE, 16384, 4096)) {
        assert_eq!([block(16383), block(16384), block(20480)], [[7], [0], [7]]);
    }
    let size = sys::fstat(&fd).unwrap().st_size;
    if !unsupported(sys::fallocate(&fd, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)) {
        assert_eq!(sys::fstat(&fd).unwrap().st_size, size - 4096);
        assert_eq!([block(0), block(8191), block(8192)], [[0], [0], [7]]);
    }
    let size = sys::fstat(&fd).unwrap().st_size;
    if !unsupported(sys::fallocate(
        &fd,
        libc::FALLOC_FL_INSERT_RANGE,
        8192,
        4096,
    )) {
        assert_eq!(sys::fstat(&fd).unwrap().st_size, size + 4096);
        assert_eq!([block(8192), block(12288)], [[0], [7]]);
    }
}

pub fn mapping_shared(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, &[b'a'; 8192]).unwrap();
    let fd = sys::open(&file, libc::O_RDWR, 0).unwrap();
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let mut map = sys::Map::new(&fd, 8192, both, libc::MAP_SHARED).unwrap();
    map.set(5000, b'm');
    assert_eq!(sys::pread(&fd, 1, 5000).unwrap(), b"m");
    sys::pwrite(&fd, b"w", 1).unwrap();
    assert_eq!(map.get(1), b'w');
    map.sync().unwrap();
    drop(fd);
    map.set(6000, b'n');
    drop(map);
    let content = read(&file);
    assert_eq!([content[1], content[5000], content[6000]], *b"wmn");
}

pub fn mapping_private(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, &[b'a'; 8192]).unwrap();
    let fd = sys::open(&file, libc::O_RDONLY, 0).unwrap();
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let mut map = sys::Map::new(&fd, 8192, both, libc::MAP_PRIVATE).unwrap();
    map.set(0, b'p');
    assert_eq!((map.get(0), read(&file)[0]), (b'p', b'a'));
    let shared = sys::Map::new(&fd, 8192, both, libc::MAP_SHARED);
    assert_eq!(shared.err(), Some(Errno::EACCES));
}

pub fn locks(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"content").unwrap();
    let fd = sys::open(&file, libc::O_RDWR, 0).unwrap();
    let other = sys::open(&file, libc::O_RDWR, 0).unwrap();
    let lock = |kind: i32, start: i64, size: i64| libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: size,
        l_pid: 0,
    };
    // Open-file-description locks are between descriptors.
    let set = |fd: &OwnedFd, lock: libc::flock| fcntl(fd, FcntlArg::F_OFD_SETLK(&lock));
    set(&fd, lock(libc::F_WRLCK, 0, 4)).unwrap();
    let conflict = set(&other, lock(libc::F_RDLCK, 3, 1));
    assert_eq!(conflict.err(), Some(Errno::EAGAIN));
    set(&other, lock(libc::F_WRLCK, 4, 1)).unwrap();
    set(&fd, lock(libc::F_UNLCK, 0, 0)).unwrap();
    set(&other, lock(libc::F_UNLCK, 0, 0)).unwrap();
    // Record locks are between processes.
    fcntl(&fd, FcntlArg::F_SETLK(&lock(libc::F_WRLCK, 0, 4))).unwrap();
    let mut query = lock(libc::F_RDLCK, 0, 0);
    // SAFETY: the child makes system calls only, of which the last ends it.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let result = fcntl(&other, FcntlArg::F_GETLK(&mut query));
            let held = query.l_type == libc::F_WRLCK as i16 && query.l_len == 4;
            let seen = result.is_ok() && held;
            // SAFETY: nothing is to be tidied up in the child.
            unsafe { libc::_exit(i32::from(!seen)) }
        }
    };
    let ended = waitpid(child, None);
    let seen = Ok(WaitStatus::Exited(child, 0));
    assert_eq!(ended, seen, "another process sees the record lock");
    // And flock.
    let (fd, other) = (File::from(fd), File::from(other));
    fd.try_lock().unwrap();
    let conflict = other.try_lock_shared();
    assert!(matches!(conflict, Err(TryLockError::WouldBlock)));
    fd.unlock().unwrap();
    other.try_lock_shared().unwrap();
}

pub fn temporary_file(dir: &Path) {
    let fd = match sys::open(dir, libc::O_TMPFILE | libc::O_RDWR, 0o600) {
        Err(Errno::EOPNOTSUPP) => return,
        other => other.unwrap(),
    };
    sys::write(&fd, b"content").unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_nlink, 0);
    assert_eq!(sys::names(dir).unwrap(), [""; 0]);
    let from = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let follow = nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW;
    let (cwd, to) = (nix::fcntl::AT_FDCWD, dir.join("f"));
    nix::unistd::linkat(cwd, from.as_str(), cwd, &to, follow).unwrap();
    assert_eq!(read(dir.join("f")), b"content");
}

pub fn copy_range(dir: &Path) {
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    sys::make(dir.join("a"), &content).unwrap();
    let from = sys::open(dir.join("a"), libc::O_RDONLY, 0).unwrap();
    let to = sys::open(dir.join("b"), libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    copy_all(&from, &to, content.len());
    assert_eq!(read(dir.join("b")), content);
}

/// Copies by copy_file_range.
pub fn copy_all(from: &OwnedFd, to: &OwnedFd, size: usize) {
    let mut copied = 0;
    while copied < size {
        let got = nix::fcntl::copy_file_range(from, None, to, None, size).unwrap();
        assert!(got > 0, "the end comes after {copied} bytes");
        copied += got;
    }
}

pub fn execute(dir: &Path) {
    let file = dir.join("true");
    std::fs::copy("/bin/true", &file).unwrap();
    sys::chmod(&file, 0o755).unwrap();
    // A child forked by another test may hold the copy's writing descriptor for a moment.
    for _ in 0..50 {
        match Command::new(&file).status() {
            Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            status => {
                assert!(status.unwrap().success());
                break;
            }
        }
    }
    sys::chmod(&file, 0o644).unwrap();
    assert!(Command::new(&file).status().is_err());
}
