//! Names: how long, which ones, and what renaming does.

use crate::support::Fixture;
use crate::support::sys::{self, Errno};

/// So long that a whiteout's prefix does not fit before them.
pub const LONG: std::ops::RangeInclusive<usize> = 252..=255;

pub fn long_names(f: &mut Fixture) {
    let name = |letter: &str, size: usize| format!("long/{}", letter.repeat(size));
    for size in LONG {
        let (lower, made) = (f.at(name("n", size)), f.at(name("m", size)));
        assert_eq!(std::fs::read(&lower).unwrap(), b"content");
        std::fs::write(&lower, b"changed").unwrap();
        sys::make(&made, b"made").unwrap();
        sys::rename(&made, f.at(name("o", size)), 0).unwrap();
        sys::unlink(&lower).unwrap();
        assert_eq!(sys::lstat(&lower).err(), Some(Errno::ENOENT));
    }
    f.remount();
    let names = sys::names(f.at("long")).unwrap();
    let expected: Vec<_> = LONG.map(|size| "o".repeat(size)).collect();
    assert_eq!(names, expected);
}

pub fn wh_names(f: &mut Fixture) {
    for name in [".wh.file", "dir/.wh.inside", "dir/.wh..wh..opq"] {
        sys::make(f.at(name), b"mine").unwrap();
    }
    f.remount();
    assert_eq!(std::fs::read(f.at("file")).unwrap(), b"content");
    assert_eq!(std::fs::read(f.at(".wh.file")).unwrap(), b"mine");
    let names = sys::names(f.at("dir")).unwrap();
    let expected = [".wh..wh..opq", ".wh.inside", "inside", "sub", "sub2"];
    assert_eq!(names, expected);
}

pub fn overlay_xattrs(f: &mut Fixture) {
    let keys = [
        "trusted.overlay.opaque",
        "user.overlay.x",
        "user.fuseoverlayfs.x",
    ];
    for path in ["file", "dir"] {
        for key in keys {
            sys::setxattr(f.at(path), key, b"y", 0).unwrap();
        }
    }
    f.remount();
    for path in ["file", "dir"] {
        for key in keys {
            assert_eq!(
                sys::getxattr(f.at(path), key).unwrap(),
                b"y",
                "{path} {key}"
            );
        }
        let listed = sys::listxattr(f.at(path)).unwrap();
        assert_eq!(listed.len(), keys.len());
    }
    let names = sys::names(f.at("dir")).unwrap();
    assert_eq!(names, ["inside", "sub", "sub2"]);
}

pub fn rename_directory(f: &mut Fixture) {
    sys::rename(f.at("dir"), f.at("empty/moved"), 0).unwrap();
    for _ in 0..2 {
        assert_eq!(sys::lstat(f.at("dir")).err(), Some(Errno::ENOENT));
        let below = std::fs::read(f.at("empty/moved/sub/below")).unwrap();
        assert_eq!(below, b"content");
        f.remount();
    }
}

pub fn exchange_files(f: &mut Fixture) {
    let number = |path: &str| sys::stat(f.at(path)).unwrap().st_ino;
    let before = (number("file"), number("dir/inside"));
    std::fs::write(f.at("dir/inside"), b"from dir").unwrap();
    let exchange = libc::RENAME_EXCHANGE;
    sys::rename(f.at("file"), f.at("dir/inside"), exchange).unwrap();
    sys::rename(f.at("other"), f.at("setid"), exchange).unwrap();
    assert_eq!((number("dir/inside"), number("file")), before);
    for _ in 0..2 {
        assert_eq!(std::fs::read(f.at("file")).unwrap(), b"from dir");
        assert_eq!(std::fs::read(f.at("dir/inside")).unwrap(), b"content");
        let mode = sys::stat(f.at("other")).unwrap().st_mode & 0o7777;
        assert_eq!(mode, 0o6777);
        f.remount();
    }
}

pub fn noreplace_onto_whiteout(f: &mut Fixture) {
    let noreplace = libc::RENAME_NOREPLACE;
    sys::unlink(f.at("file")).unwrap();
    sys::rename(f.at("dir/inside"), f.at("file"), noreplace).unwrap();
    let taken = sys::rename(f.at("other"), f.at("file"), noreplace);
    assert_eq!(taken, Err(Errno::EEXIST));
    sys::rmdir(f.at("empty")).unwrap();
    sys::mkdir(f.at("new"), 0o755).unwrap();
    sys::rename(f.at("new"), f.at("empty"), noreplace).unwrap();
    f.remount();
    assert!(f.at("file").is_file() && f.at("empty").is_dir());
}

fn assert_device_zero(f: &Fixture, path: &str) {
    let stat = sys::lstat(f.at(path)).unwrap();
    assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR, "{path}");
    assert_eq!(stat.st_rdev, 0, "{path}");
}

pub fn rename_leaves_a_device(f: &mut Fixture) {
    sys::rename(f.at("file"), f.at("moved"), libc::RENAME_WHITEOUT).unwrap();
    assert_eq!(std::fs::read(f.at("moved")).unwrap(), b"content");
    assert_device_zero(f, "file");
    f.remount();
    assert_device_zero(f, "file");
}

pub fn device_zero(f: &mut Fixture) {
    sys::mknod(f.at("dir/device"), libc::S_IFCHR | 0o600, 0).unwrap();
    assert_device_zero(f, "dir/device");
    f.remount();
    assert_device_zero(f, "dir/device");
}
