//! Directories: listings, counts, and directories without a name.

use std::os::fd::AsRawFd;
use std::path::Path;

use crate::support::sys::{self, Errno};
use crate::support::text;

pub fn removed_open_directory(dir: &Path) {
    let sub = dir.join("sub");
    sys::mkdir(&sub, 0o755).unwrap();
    let fd = sys::open(&sub, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    sys::rmdir(&sub).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_nlink, 0);
    sys::fchmod(&fd, 0o700).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_mode & 0o777, 0o700);
    let made = sys::openat(fd.as_raw_fd(), "x", libc::O_CREAT | libc::O_RDWR, 0o644);
    assert_eq!(made.err(), Some(Errno::ENOENT));
    assert_eq!(sys::mkdirat(fd.as_raw_fd(), "d", 0o755), Err(Errno::ENOENT));
    sys::mkdir(&sub, 0o755).unwrap();
    assert_eq!(sys::stat(&sub).unwrap().st_nlink, 2);
}

pub fn link_counts_of_directories(dir: &Path) {
    let nlink = || sys::stat(dir).unwrap().st_nlink;
    let first = nlink();
    sys::mkdir(dir.join("a"), 0o755).unwrap();
    sys::mkdir(dir.join("b"), 0o755).unwrap();
    sys::make(dir.join("f"), b"").unwrap();
    assert_eq!(nlink(), first + 2);
    sys::rename(dir.join("a"), dir.join("b/a"), 0).unwrap();
    assert_eq!(
        (nlink(), sys::stat(dir.join("b")).unwrap().st_nlink),
        (first + 1, 3)
    );
    sys::rmdir(dir.join("b/a")).unwrap();
    sys::rmdir(dir.join("b")).unwrap();
    assert_eq!(nlink(), first);
}

pub fn readdir_numbers(dir: &Path) {
    sys::mkdir(dir.join("d"), 0o755).unwrap();
    sys::make(dir.join("f"), b"").unwrap();
    sys::symlink("x", dir.join("l")).unwrap();
    sys::mknod(dir.join("p"), libc::S_IFIFO | 0o644, 0).unwrap();
    let entries = sys::readdir(dir).unwrap();
    assert_eq!(entries.len(), 6);
    for entry in entries {
        let name = text(&entry.name);
        let stat = sys::lstat(dir.join(&name)).unwrap();
        assert_eq!(
            u32::from(entry.kind) << 12,
            stat.st_mode & libc::S_IFMT,
            "{name}"
        );
        // `..` of a mount's root may be another file system's; here it is not.
        assert_eq!(entry.ino, stat.st_ino, "{name}");
        assert_eq!(stat.st_dev, sys::stat(dir).unwrap().st_dev, "{name}");
    }
}

pub fn seekdir(dir: &Path) {
    for i in 0..300 {
        sys::make(
            dir.join(format!("file with a longer name, number {i}")),
            b"",
        )
        .unwrap();
    }
    let mut stream = sys::Dir::open(dir).unwrap();
    let all = stream.rest().unwrap();
    assert_eq!(all.len(), 302);
    for (i, entry) in all.iter().enumerate().step_by(37) {
        stream.seek(entry.next);
        let rest: Vec<_> = stream.rest().unwrap().into_iter().map(|e| e.name).collect();
        let expected: Vec<_> = all[i + 1..].iter().map(|e| e.name.clone()).collect();
        assert_eq!(rest, expected, "after entry {i}");
    }
    sys::make(dir.join("later"), b"").unwrap();
    stream.rewind();
    assert_eq!(stream.rest().unwrap().len(), 303);
}

pub fn readdir_while_removing(dir: &Path) {
    for i in 0..500 {
        sys::make(dir.join(format!("{i}")), b"").unwrap();
    }
    let mut stream = sys::Dir::open(dir).unwrap();
    let mut seen = 0;
    while let Some(entry) = stream.next().unwrap() {
        let name = text(&entry.name);
        if name != "." && name != ".." {
            sys::unlink(dir.join(name)).unwrap();
            seen += 1;
        }
    }
    assert_eq!(seen, 500);
    assert_eq!(sys::names(dir).unwrap(), [""; 0]);
}

pub fn many_entries(dir: &Path) {
    for i in 0..5000 {
        sys::make(dir.join(format!("entry-{i:05}")), b"").unwrap();
    }
    let names = sys::names(dir).unwrap();
    assert_eq!(names.len(), 5000);
    assert_eq!(
        (names[0].as_str(), names[4999].as_str()),
        ("entry-00000", "entry-04999")
    );
}
