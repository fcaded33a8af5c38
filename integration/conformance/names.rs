//! Names: creating, renaming, linking, and the kinds of objects.

use std::os::fd::AsRawFd;
use std::path::Path;

use super::{create, mode, read, umask};
use crate::support::sys::{self, Errno};

pub fn creation_modes(dir: &Path) {
    for (mask, expected) in [(0o022, 0o755), (0o077, 0o700), (0, 0o777), (0o777, 0)] {
        umask(mask);
        let at = |name: &str| dir.join(format!("{name}{mask:o}"));
        create(at("f"), 0o777);
        sys::mkdir(at("d"), 0o777).unwrap();
        sys::mknod(at("p"), libc::S_IFIFO | 0o777, 0).unwrap();
        sys::symlink("x", at("l")).unwrap();
        assert_eq!(
            [mode(at("f")), mode(at("d")), mode(at("p"))],
            [expected; 3],
            "{mask:o}"
        );
        assert_eq!(mode(at("l")), 0o777);
    }
    umask(0o022);
    create(dir.join("special"), 0o7777);
    assert_eq!(mode(dir.join("special")), 0o7755);
    // The mode does not bind the descriptor that creates the file.
    let fd = sys::open(dir.join("none"), libc::O_CREAT | libc::O_RDWR, 0).unwrap();
    assert_eq!(sys::write(&fd, b"x"), Ok(1));
}

const KINDS: [&str; 4] = ["file", "dir", "full", "link"];

fn make_kind(path: &Path, kind: &str) {
    match kind {
        "file" => sys::make(path, b"f").unwrap(),
        "link" => sys::symlink("target", path).unwrap(),
        _ => sys::mkdir(path, 0o755).unwrap(),
    }
    if kind == "full" {
        sys::make(path.join("inside"), b"i").unwrap();
    }
}

pub fn rename_matrix(dir: &Path) {
    for from in KINDS {
        for to in KINDS {
            let (a, b) = (
                dir.join(format!("{from}-{to}")),
                dir.join(format!("to-{from}-{to}")),
            );
            make_kind(&a, from);
            make_kind(&b, to);
            let ino = sys::lstat(&a).unwrap().st_ino;
            let is_dir = |kind: &str| kind == "dir" || kind == "full";
            let expected = match (is_dir(from), is_dir(to)) {
                (true, false) => Err(Errno::ENOTDIR),
                (false, true) => Err(Errno::EISDIR),
                (true, true) if to == "full" => Err(Errno::ENOTEMPTY),
                _ => Ok(()),
            };
            assert_eq!(sys::rename(&a, &b, 0), expected, "{from} over {to}");
            if expected.is_ok() {
                assert_eq!(sys::lstat(&b).unwrap().st_ino, ino);
                assert_eq!(sys::lstat(&a).err(), Some(Errno::ENOENT));
                if from == "full" {
                    assert_eq!(sys::names(&b).unwrap(), ["inside"]);
                }
            }
        }
    }
    // Two names of one file: nothing happens.
    sys::make(dir.join("one"), b"").unwrap();
    sys::link(dir.join("one"), dir.join("two")).unwrap();
    sys::rename(dir.join("one"), dir.join("two"), 0).unwrap();
    assert!(dir.join("one").exists() && dir.join("two").exists());
    sys::mkdir(dir.join("outer"), 0o755).unwrap();
    let inner = dir.join("outer/inner");
    assert_eq!(
        sys::rename(dir.join("outer"), &inner, 0),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        sys::rename(dir.join("missing"), &inner, 0),
        Err(Errno::ENOENT)
    );
}

pub fn rename_noreplace(dir: &Path) {
    for kind in KINDS {
        let (a, b, c) = (
            dir.join(format!("a{kind}")),
            dir.join("b"),
            dir.join(format!("c{kind}")),
        );
        make_kind(&a, kind);
        if !b.exists() {
            make_kind(&b, "file");
        }
        assert_eq!(
            sys::rename(&a, &b, libc::RENAME_NOREPLACE),
            Err(Errno::EEXIST)
        );
        assert_eq!(sys::rename(&a, &c, libc::RENAME_NOREPLACE), Ok(()));
        assert_eq!(sys::lstat(&a).err(), Some(Errno::ENOENT));
    }
}

pub fn rename_exchange(dir: &Path) {
    for from in KINDS {
        for to in KINDS {
            let (a, b) = (
                dir.join(format!("{from}-{to}")),
                dir.join(format!("to-{from}-{to}")),
            );
            make_kind(&a, from);
            make_kind(&b, to);
            let ino = |path: &Path| sys::lstat(path).unwrap().st_ino;
            let before = (ino(&a), ino(&b));
            assert_eq!(sys::rename(&a, &b, libc::RENAME_EXCHANGE), Ok(()));
            assert_eq!((ino(&b), ino(&a)), before, "{from} with {to}");
        }
    }
    let result = sys::rename(
        dir.join("file-file"),
        dir.join("none"),
        libc::RENAME_EXCHANGE,
    );
    assert_eq!(result, Err(Errno::ENOENT));
    let both = libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE;
    assert_eq!(
        sys::rename(dir.join("file-file"), dir.join("n"), both),
        Err(Errno::EINVAL)
    );
}

pub fn rename_directories(dir: &Path) {
    sys::mkdir(dir.join("a"), 0o755).unwrap();
    sys::mkdir(dir.join("b"), 0o755).unwrap();
    sys::mkdir(dir.join("a/sub"), 0o755).unwrap();
    sys::make(dir.join("a/sub/file"), b"content").unwrap();
    let fd = sys::open(dir.join("a/sub/file"), libc::O_RDWR, 0).unwrap();
    sys::rename(dir.join("a/sub"), dir.join("b/moved"), 0).unwrap();
    sys::write(&fd, b"C").unwrap();
    assert_eq!(read(dir.join("b/moved/file")), b"Content");
    let parent = sys::stat(dir.join("b/moved/..")).unwrap().st_ino;
    assert_eq!(parent, sys::stat(dir.join("b")).unwrap().st_ino);
    assert_eq!(sys::stat(dir.join("a")).unwrap().st_nlink, 2);
    assert_eq!(sys::names(dir.join("a")).unwrap(), [""; 0]);
}

pub fn hardlinks(dir: &Path) {
    let (a, b) = (dir.join("a"), dir.join("b"));
    sys::make(&a, b"content").unwrap();
    sys::link(&a, &b).unwrap();
    let (sa, sb) = (sys::stat(&a).unwrap(), sys::stat(&b).unwrap());
    assert_eq!(
        (sa.st_ino, sa.st_dev, sa.st_nlink),
        (sb.st_ino, sb.st_dev, 2)
    );
    assert_eq!(sb.st_nlink, 2);
    std::fs::write(&b, b"through b").unwrap();
    assert_eq!(read(&a), b"through b");
    sys::chmod(&a, 0o600).unwrap();
    assert_eq!(mode(&b), 0o600);
    sys::unlink(&a).unwrap();
    assert_eq!(sys::stat(&b).unwrap().st_nlink, 1);
    assert_eq!(sys::link(dir, dir.join("d")), Err(Errno::EPERM));
    assert_eq!(sys::link(&b, &b), Err(Errno::EEXIST));
    // Of a symlink itself.
    sys::symlink("b", dir.join("l")).unwrap();
    sys::link(dir.join("l"), dir.join("m")).unwrap();
    assert_eq!(sys::lstat(dir.join("m")).unwrap().st_nlink, 2);
}

pub fn long_names(dir: &Path) {
    let name = "n".repeat(255);
    sys::make(dir.join(&name), b"x").unwrap();
    assert_eq!(sys::names(dir).unwrap(), [name.as_str()]);
    let other = "o".repeat(255);
    sys::rename(dir.join(&name), dir.join(&other), 0).unwrap();
    sys::link(dir.join(&other), dir.join(&name)).unwrap();
    sys::unlink(dir.join(&name)).unwrap();
    sys::unlink(dir.join(&other)).unwrap();
    sys::mkdir(dir.join(&name), 0o755).unwrap();
    sys::rmdir(dir.join(&name)).unwrap();
    sys::symlink("t", dir.join(&name)).unwrap();
    let long = "n".repeat(256);
    assert_eq!(sys::make(dir.join(&long), b""), Err(Errno::ENAMETOOLONG));
    assert_eq!(sys::lstat(dir.join(&long)).err(), Some(Errno::ENAMETOOLONG));
    let odd = "new\nline \u{e4}\u{1F980} \\ \"";
    sys::make(dir.join(odd), b"").unwrap();
    assert!(sys::names(dir).unwrap().contains(&odd.to_string()));
}

pub fn deep_paths(dir: &Path) {
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    let name = "d".repeat(200);
    let depth = 30;
    let mut fds = vec![sys::open(dir, directory, 0).unwrap()];
    for _ in 0..depth {
        let parent = fds.last().unwrap().as_raw_fd();
        sys::mkdirat(parent, &name, 0o755).unwrap();
        fds.push(sys::openat(parent, &name, directory, 0).unwrap());
    }
    let bottom = fds.last().unwrap().as_raw_fd();
    let file = sys::openat(bottom, "f", libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    sys::write(&file, b"deep").unwrap();
    sys::fchmod(&file, 0o600).unwrap();
    let again = sys::openat(bottom, "f", libc::O_RDONLY, 0).unwrap();
    assert_eq!(sys::pread(&again, 10, 0).unwrap(), b"deep");
    sys::unlinkat(bottom, "f", 0).unwrap();
    fds.pop();
    while let Some(parent) = fds.pop() {
        sys::unlinkat(parent.as_raw_fd(), &name, libc::AT_REMOVEDIR).unwrap();
    }
}

pub fn symlinks(dir: &Path) {
    let long = "t".repeat(4095);
    sys::symlink(&long, dir.join("long")).unwrap();
    assert_eq!(sys::readlink(dir.join("long")).unwrap(), long.as_bytes());
    assert_eq!(sys::lstat(dir.join("long")).unwrap().st_size, 4095);
    sys::mkdir(dir.join("d"), 0o755).unwrap();
    sys::make(dir.join("d/f"), b"through").unwrap();
    sys::symlink("d", dir.join("s")).unwrap();
    assert_eq!(read(dir.join("s/f")), b"through");
    sys::symlink("loop", dir.join("loop")).unwrap();
    assert_eq!(sys::stat(dir.join("loop")).err(), Some(Errno::ELOOP));
    sys::symlink("made", dir.join("dangling")).unwrap();
    drop(sys::open(dir.join("dangling"), libc::O_CREAT | libc::O_WRONLY, 0o644).unwrap());
    assert!(dir.join("made").exists());
    assert_eq!(sys::readlink(dir.join("made")), Err(Errno::EINVAL));
    sys::lchown(dir.join("s"), 5, 6).unwrap();
    assert_eq!(sys::lstat(dir.join("s")).unwrap().st_uid, 5);
    assert_eq!(sys::stat(dir.join("s")).unwrap().st_uid, 0);
    assert_eq!(sys::rmdir(dir.join("s")), Err(Errno::ENOTDIR));
    sys::unlink(dir.join("s")).unwrap();
    assert!(dir.join("d/f").exists());
}

pub fn special_files(dir: &Path) {
    let null = libc::makedev(1, 3);
    sys::mknod(dir.join("null"), libc::S_IFCHR | 0o666, null).unwrap();
    sys::mknod(
        dir.join("block"),
        libc::S_IFBLK | 0o600,
        libc::makedev(7, 300),
    )
    .unwrap();
    sys::mknod(dir.join("sock"), libc::S_IFSOCK | 0o600, 0).unwrap();
    sys::mknod(dir.join("file"), libc::S_IFREG | 0o640, 0).unwrap();
    let stat = sys::lstat(dir.join("null")).unwrap();
    assert_eq!(
        (stat.st_mode & libc::S_IFMT, stat.st_rdev),
        (libc::S_IFCHR, null)
    );
    assert_eq!(
        sys::lstat(dir.join("block")).unwrap().st_rdev,
        libc::makedev(7, 300)
    );
    assert_eq!(mode(dir.join("file")), 0o640);
    let result = sys::as_user(1000, 1000, || {
        sys::mknod(dir.join("n"), libc::S_IFCHR | 0o666, null)
    });
    assert!(matches!(result, Err(Errno::EPERM | Errno::EACCES)));
    // A pipe works between two ends opened here.
    sys::mknod(dir.join("pipe"), libc::S_IFIFO | 0o600, 0).unwrap();
    let reader = sys::open(dir.join("pipe"), libc::O_RDONLY | libc::O_NONBLOCK, 0).unwrap();
    let writer = sys::open(dir.join("pipe"), libc::O_WRONLY, 0).unwrap();
    sys::write(&writer, b"through").unwrap();
    let mut buffer = [0u8; 16];
    let got = nix::unistd::read(&reader, &mut buffer).unwrap();
    assert_eq!(&buffer[..got], b"through");
    // So does a socket, where its path fits.
    let bound = std::os::unix::net::UnixListener::bind(dir.join("s"));
    let listener = bound.unwrap();
    std::os::unix::net::UnixStream::connect(dir.join("s")).unwrap();
    drop(listener);
}
