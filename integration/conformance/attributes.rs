//! Attributes: times, xattrs, owners, modes and what they permit.

use std::path::Path;
use std::process::Command;

use super::{create, mode, umask};
use crate::support::sys::{self, Errno};
use crate::support::{require, run, text};

pub fn times(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"").unwrap();
    let got = || {
        let stat = sys::stat(&file).unwrap();
        (
            (stat.st_atime, stat.st_atime_nsec),
            (stat.st_mtime, stat.st_mtime_nsec),
        )
    };
    for time in [
        (0, 0),
        (1, 999_999_999),
        (-1, 500_000_000),
        (-86_400, 1),
        (4_000_000_000, 7),
    ] {
        sys::utimens(&file, time, (time.0, 123_456_789)).unwrap();
        assert_eq!(got(), (time, (time.0, 123_456_789)));
    }
    sys::utimens(&file, (10, 11), (0, libc::UTIME_OMIT)).unwrap();
    assert_eq!(got(), ((10, 11), (4_000_000_000, 123_456_789)));
    let before = crate::support::now() - 1;
    sys::utimens(&file, (0, libc::UTIME_OMIT), (0, libc::UTIME_NOW)).unwrap();
    assert_eq!(got().0, (10, 11));
    assert!((before..before + 60).contains(&got().1.0));
    sys::symlink("f", dir.join("l")).unwrap();
    sys::utimens(dir.join("l"), (5, 6), (7, 8)).unwrap();
    let link = sys::lstat(dir.join("l")).unwrap();
    assert_eq!((link.st_mtime, link.st_mtime_nsec), (7, 8));
    assert_ne!(got().1.0, 7);
    sys::utimens(dir, (1, 0), (2, 0)).unwrap();
    assert_eq!(sys::stat(dir).unwrap().st_mtime, 2);
    sys::make(dir.join("g"), b"").unwrap();
    assert!(sys::stat(dir).unwrap().st_mtime >= before);
    let owner_only = sys::as_user(1000, 1000, || sys::utimens(&file, (1, 1), (1, 1)));
    assert_eq!(owner_only, Err(Errno::EPERM));
}

pub fn xattrs(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"").unwrap();
    for path in [file.as_path(), dir] {
        assert_eq!(sys::getxattr(path, "user.a"), Err(Errno::ENODATA));
        sys::setxattr(path, "user.a", b"1", 0).unwrap();
        sys::setxattr(path, "user.empty", b"", 0).unwrap();
        sys::setxattr(path, "trusted.b", &[0, 255], 0).unwrap();
        assert_eq!(
            sys::setxattr(path, "user.a", b"2", libc::XATTR_CREATE),
            Err(Errno::EEXIST)
        );
        assert_eq!(
            sys::setxattr(path, "user.c", b"2", libc::XATTR_REPLACE),
            Err(Errno::ENODATA)
        );
        sys::setxattr(path, "user.a", b"22", libc::XATTR_REPLACE).unwrap();
        assert_eq!(sys::getxattr(path, "user.a").unwrap(), b"22");
        assert_eq!(sys::getxattr(path, "user.empty").unwrap(), b"");
        assert_eq!(sys::getxattr(path, "trusted.b").unwrap(), [0, 255]);
        let names: Vec<_> = sys::listxattr(path)
            .unwrap()
            .iter()
            .map(|name| text(name))
            .collect();
        assert_eq!(names, ["trusted.b", "user.a", "user.empty"]);
        sys::removexattr(path, "user.a").unwrap();
        assert_eq!(sys::removexattr(path, "user.a"), Err(Errno::ENODATA));
    }
    let user = sys::as_user(1000, 1000, || sys::setxattr(&file, "user.x", b"", 0));
    assert_eq!(user, Err(Errno::EACCES));
    sys::symlink("f", dir.join("l")).unwrap();
    assert_eq!(
        sys::setxattr(dir.join("l"), "user.x", b"", 0),
        Err(Errno::EPERM)
    );
    sys::setxattr(dir.join("l"), "trusted.x", b"v", 0).unwrap();
    assert_eq!(sys::getxattr(dir.join("l"), "trusted.x").unwrap(), b"v");
}

pub fn setuid_cleared_by_write(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"content").unwrap();
    let set = || sys::chmod(&file, 0o6777).unwrap();
    let as_other = |body: &dyn Fn()| sys::as_user(1000, 1000, body);
    set();
    let fd = sys::open(&file, libc::O_RDWR, 0).unwrap();
    sys::pwrite(&fd, b"r", 0).unwrap();
    assert_eq!(mode(&file), 0o6777, "root's write keeps them");
    as_other(&|| {
        let fd = sys::open(&file, libc::O_WRONLY, 0).unwrap();
        assert_eq!(mode(&file), 0o6777, "opening keeps them");
        sys::pwrite(&fd, b"w", 0).unwrap();
    });
    assert_eq!(mode(&file), 0o777, "write");
    set();
    as_other(&|| sys::truncate(&file, 3).unwrap());
    assert_eq!(mode(&file), 0o777, "truncate");
    set();
    as_other(&|| drop(sys::open(&file, libc::O_WRONLY | libc::O_TRUNC, 0).unwrap()));
    assert_eq!(mode(&file), 0o777, "O_TRUNC");
    // A file capability goes with the write of anyone.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    sys::setxattr(&file, "security.capability", &capability, 0).unwrap();
    as_other(&|| {
        let fd = sys::open(&file, libc::O_WRONLY, 0).unwrap();
        sys::pwrite(&fd, b"x", 0).unwrap();
    });
    assert_eq!(
        sys::getxattr(&file, "security.capability"),
        Err(Errno::ENODATA)
    );
}

pub fn setuid_cleared_by_chown(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"").unwrap();
    sys::chmod(&file, 0o6755).unwrap();
    sys::lchown(&file, 1000, 1000).unwrap();
    assert_eq!(mode(&file), 0o755);
    sys::chmod(&file, 0o2745).unwrap();
    sys::lchown(&file, 1000, 1001).unwrap();
    assert_eq!(
        mode(&file),
        0o2745,
        "set-gid without group execute is a lock mode"
    );
    sys::chmod(dir, 0o6755).unwrap();
    sys::lchown(dir, 1000, 1000).unwrap();
    assert_eq!(mode(dir), 0o6755, "directories keep theirs");
    // chmod by an owner outside the file's group loses set-gid.
    sys::as_user(1000, 1000, || sys::chmod(&file, 0o2755).unwrap());
    assert_eq!(mode(&file), 0o755);
    let taken = sys::as_user(1000, 1000, || sys::lchown(&file, 1001, u32::MAX));
    assert_eq!(taken, Err(Errno::EPERM));
}

pub fn setgid_directory(dir: &Path) {
    let sub = dir.join("sub");
    sys::mkdir(&sub, 0o755).unwrap();
    sys::lchown(&sub, 0, 500).unwrap();
    sys::chmod(&sub, 0o2777).unwrap();
    sys::as_user(1000, 1000, || {
        create(sub.join("f"), 0o2775);
        sys::mkdir(sub.join("d"), 0o755).unwrap();
        sys::symlink("x", sub.join("l")).unwrap();
        sys::mknod(sub.join("p"), libc::S_IFIFO | 0o644, 0).unwrap();
    });
    for name in ["f", "d", "l", "p"] {
        let stat = sys::lstat(sub.join(name)).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (1000, 500), "{name}");
    }
    assert_eq!(mode(sub.join("d")), 0o2755);
    assert_eq!(
        mode(sub.join("f")),
        0o755,
        "no set-gid for one outside the group"
    );
}

pub fn sticky_directory(dir: &Path) {
    sys::chmod(dir, 0o1777).unwrap();
    sys::make(dir.join("roots"), b"").unwrap();
    sys::mkdir(dir.join("rootsdir"), 0o777).unwrap();
    sys::as_user(1000, 1000, || {
        create(dir.join("own"), 0o644);
        assert_eq!(sys::unlink(dir.join("roots")), Err(Errno::EPERM));
        assert_eq!(sys::rmdir(dir.join("rootsdir")), Err(Errno::EPERM));
        assert_eq!(
            sys::rename(dir.join("roots"), dir.join("x"), 0),
            Err(Errno::EPERM)
        );
        assert_eq!(
            sys::rename(dir.join("own"), dir.join("roots"), 0),
            Err(Errno::EPERM)
        );
    });
    let other = sys::as_user(1001, 1001, || sys::unlink(dir.join("own")));
    assert_eq!(other, Err(Errno::EPERM));
    sys::as_user(1000, 1000, || sys::unlink(dir.join("own")).unwrap());
}

pub fn permissions(dir: &Path) {
    sys::make(dir.join("secret"), b"s").unwrap();
    sys::chmod(dir.join("secret"), 0o600).unwrap();
    sys::mkdir(dir.join("closed"), 0o700).unwrap();
    sys::make(dir.join("closed/f"), b"").unwrap();
    sys::as_user(1000, 1000, || {
        let denied = Some(Errno::EACCES);
        assert_eq!(
            sys::open(dir.join("secret"), libc::O_RDONLY, 0).err(),
            denied
        );
        assert_eq!(sys::stat(dir.join("closed/f")).err(), denied);
        assert_eq!(sys::readdir(dir.join("closed")).err(), denied);
        assert_eq!(sys::make(dir.join("new"), b"").err(), denied);
        assert_eq!(sys::mkdir(dir.join("new"), 0o755).err(), denied);
        assert_eq!(sys::unlink(dir.join("secret")).err(), denied);
        assert_eq!(
            sys::rename(dir.join("secret"), dir.join("x"), 0).err(),
            denied
        );
        assert_eq!(sys::chmod(dir.join("secret"), 0o666), Err(Errno::EPERM));
    });
    sys::as_user(1000, 0, || {
        sys::open(dir.join("secret"), libc::O_RDONLY, 0).unwrap_err();
    });
}

pub fn default_acl(dir: &Path) {
    if !require("setfacl") {
        return;
    }
    let facl = |args: &[&str]| {
        let output = Command::new("setfacl")
            .args(args)
            .arg(dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    facl(&["-m", "d:u:1000:rwx,d:g::r-x,d:o::---"]);
    umask(0o077);
    create(dir.join("f"), 0o666);
    sys::mkdir(dir.join("d"), 0o777).unwrap();
    assert_eq!(
        mode(dir.join("f")),
        0o660,
        "the umask does not apply, the mask does"
    );
    assert_eq!(mode(dir.join("d")), 0o770);
    sys::getxattr(dir.join("d"), "system.posix_acl_default").unwrap();
    sys::getxattr(dir.join("f"), "system.posix_acl_access").unwrap();
    sys::as_user(1000, 1000, || {
        sys::open(dir.join("f"), libc::O_RDWR, 0).unwrap();
    });
    sys::as_user(1001, 1001, || {
        let result = sys::open(dir.join("f"), libc::O_RDONLY, 0);
        assert_eq!(result.err(), Some(Errno::EACCES));
    });
    sys::chmod(dir.join("f"), 0o600).unwrap();
    sys::as_user(1000, 1000, || {
        let result = sys::open(dir.join("f"), libc::O_RDONLY, 0);
        assert_eq!(
            result.err(),
            Some(Errno::EACCES),
            "chmod sets the ACL's mask"
        );
    });
}

pub fn inode_flags(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"data").unwrap();
    let shown = || {
        let output = run(Command::new("lsattr").arg(&file));
        text(&output.stdout)
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let set = |flag: &str| {
        run(Command::new("chattr").arg(flag).arg(&file))
            .status
            .success()
    };
    assert!(!shown().contains('d'));
    assert!(set("+d"));
    assert!(shown().contains('d'));
    assert!(set("+a"));
    assert_eq!(sys::truncate(&file, 1), Err(Errno::EPERM));
    assert!(set("-a"));
    assert_eq!(sys::truncate(&file, 1), Ok(()));
}
