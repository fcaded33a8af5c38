//! Making objects: whole or not at all, over whiteouts, with the right owner and mode.

use cvmfs_union::union::api::{Caller, Kind, ROOT};
use nix::errno::Errno;

use super::{DIALECTS, sample};
use crate::support::fs::Res;
use crate::support::{Fs, Merged, Stack, is_root, ok};

fn create(merged: &Merged, path: &str) -> Res<()> {
    merged.create(path, 0o640).map(|fh| merged.close(fh))
}

#[test]
fn create_opens_what_is_there_unless_it_may_not() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let (name, exclusive) = (std::ffi::OsStr::new("plain"), libc::O_CREAT | libc::O_EXCL);
    let create = |flags| {
        ok(merged
            .union
            .create(&merged.caller, ROOT, name, 0o600, flags))
    };
    assert_eq!(create(exclusive).unwrap_err(), Errno::EEXIST);
    let (attr, fh) = create(libc::O_CREAT | libc::O_RDWR).unwrap();
    assert_eq!((attr.mode, attr.size), (0o644, 5));
    assert_eq!(merged.pread(fh, 0, 10).unwrap(), b"plain");
    merged.close(fh);
}

#[test]
fn what_is_there_is_not_made_again() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.write("new", b"").unwrap();
        for path in ["plain", "dir", "dir/sub/deep", "new"] {
            assert_eq!(merged.mkdir(path, 0o755), Err(Errno::EEXIST), "{path}");
            assert_eq!(merged.symlink("x", path), Err(Errno::EEXIST), "{path}");
            let fifo = merged.mknod(path, libc::S_IFIFO | 0o600, 0);
            assert_eq!(fifo, Err(Errno::EEXIST), "{path}");
        }
        assert_eq!(merged.mkdir("plain/x", 0o755), Err(Errno::ENOTDIR));
        assert_eq!(merged.mkdir("nowhere/x", 0o755), Err(Errno::ENOENT));
    }
}

#[test]
fn a_directory_over_a_deleted_one_is_empty() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.unlink("dir/sub/deep").unwrap();
        merged.rmdir("dir/sub").unwrap();
        merged.mkdir("dir/sub", 0o755).unwrap();
        assert_eq!(merged.names("dir/sub").unwrap(), [""; 0]);
        assert_eq!(stack.reopen(merged).names("dir/sub").unwrap(), [""; 0]);
    }
}

#[test]
fn a_directory_in_place_of_a_file() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.unlink("plain").unwrap();
        merged.mkdir("plain", 0o755).unwrap();
        merged.write("plain/inside", b"x").unwrap();
        let merged = stack.reopen(merged);
        assert_eq!(merged.names("plain").unwrap(), ["inside"]);
    }
}

#[test]
fn umask_and_owner_of_the_caller() {
    if !is_root() {
        return;
    }
    let stack = Stack::new(2);
    sample(&stack);
    let mut merged = stack.mount();
    merged.caller = Caller {
        uid: 1000,
        gid: 1001,
        umask: 0o027,
    };
    merged.mkdir("made", 0o777).unwrap();
    merged.write("made/file", b"x").unwrap();
    merged.symlink("to", "made/symlink").unwrap();
    merged.mknod("made/fifo", libc::S_IFIFO | 0o666, 0).unwrap();
    let shown = |path: &str| merged.stat(path).map(|a| (a.mode, a.uid, a.gid));
    assert_eq!(shown("made"), Ok((0o750, 1000, 1001)));
    assert_eq!(shown("made/file"), Ok((0o640, 1000, 1001)));
    assert_eq!(shown("made/symlink"), Ok((0o777, 1000, 1001)));
    assert_eq!(shown("made/fifo"), Ok((0o640, 1000, 1001)));
}

#[test]
fn a_set_gid_directory_lends_its_group() {
    if !is_root() {
        return;
    }
    let stack = Stack::new(2);
    sample(&stack);
    let mut merged = stack.mount();
    merged.chown("dir", 0, 55).unwrap();
    merged.chmod("dir", 0o2777).unwrap();
    merged.caller = Caller {
        uid: 1000,
        gid: 1001,
        umask: 0,
    };
    merged.mkdir("dir/made", 0o755).unwrap();
    merged.write("dir/file2", b"x").unwrap();
    let shown = |path: &str| merged.stat(path).map(|a| (a.mode, a.uid, a.gid));
    assert_eq!(shown("dir/made"), Ok((0o2755, 1000, 55)));
    assert_eq!(shown("dir/file2"), Ok((0o644, 1000, 55)));
}

/// Of `struct posix_acl_xattr`: version 2, then owner rwx, user 7 rw-, group r-x, mask rwx, others ---.
fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 6, 7),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    acl
}

#[test]
fn a_default_acl_wins_over_the_umask() {
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let mut merged = stack.mount();
        match merged.setxattr("dir", default, &acl(), 0) {
            Err(Errno::EOPNOTSUPP) => return,
            other => other.unwrap(),
        }
        merged.caller.umask = 0o077;
        merged.unlink("dir/file").unwrap();
        // On a free name, and in the place of a whiteout.
        for (name, parent) in [("dir/new", "dir/newdir"), ("dir/file", "dir/sub/x")] {
            create(&merged, name).unwrap();
            assert_eq!(merged.stat(name).unwrap().mode, 0o640, "{name}");
            assert!(merged.getxattr(name, access).is_ok(), "{name}");
            merged.mkdir(parent, 0o777).unwrap();
        }
        assert_eq!(merged.getxattr("dir/newdir", default).unwrap(), acl());
        assert_eq!(merged.getxattr("dir/sub/x", default), Err(Errno::ENODATA));
        assert_eq!(merged.stat("dir/sub/x").unwrap().mode, 0o700);
    }
}

#[test]
fn a_device_0_0_of_a_user_is_no_whiteout() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.mknod("device", libc::S_IFCHR | 0o600, 0).unwrap();
        merged.unlink("plain").unwrap();
        merged.mknod("plain", libc::S_IFCHR | 0o600, 0).unwrap();
        let merged = stack.reopen(merged);
        for path in ["device", "plain"] {
            let attr = merged.stat(path).unwrap();
            assert_eq!(
                (attr.kind, attr.mode, attr.rdev, attr.size),
                (Kind::Char, 0o600, 0, 0)
            );
        }
        merged.unlink("device").unwrap();
        assert!(!stack.reopen(merged).exists("device"));
    }
}

#[test]
fn a_device_keeps_its_number() {
    let stack = Stack::new(2);
    let merged = stack.mount();
    if merged
        .mknod("null", libc::S_IFCHR | 0o666, libc::makedev(1, 3))
        .is_ok()
    {
        merged
            .mknod("disk", libc::S_IFBLK | 0o600, libc::makedev(7, 1))
            .unwrap();
        let merged = stack.reopen(merged);
        assert_eq!(merged.stat("null").unwrap().rdev, libc::makedev(1, 3));
        assert_eq!(merged.stat("disk").unwrap().rdev, libc::makedev(7, 1));
        assert_eq!(merged.stat("disk").unwrap().kind, Kind::Block);
    }
}

/// What a directory lends is kept in memory, and must not be kept too long.
#[test]
fn a_directory_that_changes_lends_something_else() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        for dir in ["dir", "made"] {
            if dir == "made" {
                merged.mkdir(dir, 0o755).unwrap();
            }
            let path = |name: &str| format!("{dir}/{name}");
            merged.mkdir(&path("1"), 0o755).unwrap();
            assert_eq!(merged.stat(&path("1")).unwrap().mode, 0o755);
            merged.chmod(dir, 0o2755).unwrap();
            merged.mkdir(&path("2"), 0o755).unwrap();
            assert_eq!(merged.stat(&path("2")).unwrap().mode, 0o2755);
            if is_root() {
                merged.chown(dir, 0, 77).unwrap();
                create(&merged, &path("3")).unwrap();
                assert_eq!(merged.stat(&path("3")).unwrap().gid, 77);
            }
            let default = "system.posix_acl_default";
            match merged.setxattr(dir, default, &acl(), 0) {
                Err(Errno::EOPNOTSUPP) => return,
                other => other.unwrap(),
            }
            merged.mkdir(&path("4"), 0o777).unwrap();
            assert_eq!(merged.getxattr(&path("4"), default).unwrap(), acl());
            merged.mkdir(&path("4/5"), 0o777).unwrap();
            assert_eq!(merged.getxattr(&path("4/5"), default).unwrap(), acl());
            merged.removexattr(dir, default).unwrap();
            merged.mkdir(&path("6"), 0o777).unwrap();
            assert_eq!(merged.getxattr(&path("6"), default), Err(Errno::ENODATA));
        }
    }
}

/// The work directory may lie where its owner has set a default ACL.
#[test]
fn the_work_directory_lends_nothing() {
    let stack = Stack::new(2);
    sample(&stack);
    let default = "system.posix_acl_default";
    match stack.work().setxattr("", default, &acl(), 0) {
        Err(Errno::EOPNOTSUPP) => return,
        other => other.unwrap(),
    }
    let merged = stack.mount();
    merged.chmod("plain", 0o604).unwrap();
    merged.chmod("dir", 0o705).unwrap();
    for path in ["plain", "dir"] {
        let keys = merged.listxattr(path).unwrap();
        assert!(!keys.iter().any(|k| k.contains("acl")), "{path}: {keys:?}");
        let keys = stack.upper().listxattr(path).unwrap();
        assert!(!keys.iter().any(|k| k.contains("acl")), "{path}: {keys:?}");
    }
    assert_eq!(merged.stat("plain").unwrap().mode, 0o604);
}
