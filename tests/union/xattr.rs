//! Extended attributes: the users' are kept, the unions' are hidden.

use nix::errno::Errno;

use super::{DIALECTS, sample};
use crate::support::{Fs, Stack, is_root, mark_space};

/// Names that a union claims for itself.
fn claimed() -> Vec<String> {
    let space = mark_space();
    [
        "overlay.opaque",
        "overlay.redirect",
        "overlay.overlay.opaque",
        "cvmfs-union.ino",
    ]
    .iter()
    .chain(&[
        "fuseoverlayfs.opaque",
        "overlay.whiteout",
        "overlay.metacopy",
    ])
    .map(|tail| format!("{space}.{tail}"))
    .collect()
}

#[test]
fn claimed_names_are_the_users_too() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.write("new", b"").unwrap();
        for path in ["dir", "dir/file", "new", ""] {
            for key in claimed() {
                merged.setxattr(path, &key, b"y", 0).unwrap();
            }
        }
        let tree = merged.tree();
        let merged = stack.reopen(merged);
        crate::support::assert_same(&merged.tree(), &tree, "marks of users have no meaning");
        let has = merged.listxattr("new").unwrap();
        for key in claimed() {
            assert!(has.contains(&key), "{key} in {has:?}");
            assert_eq!(merged.getxattr("new", &key).unwrap(), b"y");
            merged.removexattr("new", &key).unwrap();
            assert_eq!(merged.getxattr("new", &key), Err(Errno::ENODATA));
        }
    }
}

#[test]
fn marks_are_hidden() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        stack
            .lower(1)
            .with_file("dir/file", "x")
            .with_dir("redone", 0o755);
        stack.lower(0).with_opaque("opaque");
        let merged = stack.mount();
        merged.chmod("dir/file", 0o600).unwrap();
        merged
            .rename("dir", "moved", cvmfs_union::union::api::RenameKind::Replace)
            .unwrap();
        merged.rmdir("redone").unwrap();
        merged.mkdir("redone", 0o755).unwrap();
        let merged = stack.reopen(merged);
        for path in merged.tree().paths() {
            assert_eq!(merged.listxattr(path).unwrap(), [""; 0], "{path}");
            for key in claimed() {
                assert_eq!(merged.getxattr(path, &key), Err(Errno::ENODATA), "{path}");
                assert_eq!(
                    merged.removexattr(path, &key),
                    Err(Errno::ENODATA),
                    "{path}"
                );
            }
        }
        assert_eq!(merged.read("moved/file").unwrap(), b"x");
    }
}

#[test]
fn create_and_replace() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let (create, replace) = (libc::XATTR_CREATE, libc::XATTR_REPLACE);
    assert_eq!(
        merged.setxattr("plain", "user.x", b"1", replace),
        Err(Errno::ENODATA)
    );
    merged.setxattr("plain", "user.x", b"1", create).unwrap();
    assert_eq!(
        merged.setxattr("plain", "user.x", b"2", create),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        merged.setxattr("dir/file", "user.a", b"2", create),
        Err(Errno::EEXIST)
    );
    merged.setxattr("dir/file", "user.a", b"", replace).unwrap();
    assert_eq!(merged.getxattr("dir/file", "user.a").unwrap(), b"");
}

#[test]
fn an_absent_one_copies_nothing_up() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    assert_eq!(
        merged.removexattr("dir/file", "user.none"),
        Err(Errno::ENODATA)
    );
    assert_eq!(
        merged.getxattr("dir/file", "user.none"),
        Err(Errno::ENODATA)
    );
    assert_eq!(stack.upper().names("").unwrap(), [""; 0]);
}

#[test]
fn a_copy_has_them_all() {
    let stack = Stack::new(2);
    sample(&stack);
    let long = "v".repeat(1000);
    stack.lower(1).with_xattr("dir/file", "user.long", &long);
    if is_root() {
        stack.lower(1).with_xattr("dir/file", "trusted.own", "t");
        // Version 2, effective, CAP_NET_RAW permitted.
        let capability = [
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        stack
            .lower(1)
            .setxattr("dir/file", "security.capability", &capability, 0)
            .unwrap();
    }
    let merged = stack.mount();
    let before = merged.listxattr("dir/file").unwrap();
    merged.chmod("dir/file", 0o700).unwrap();
    let merged = stack.reopen(merged);
    let mut after = merged.listxattr("dir/file").unwrap();
    after.sort_by_key(|k| before.iter().position(|b| b == k));
    assert_eq!(after, before);
    assert_eq!(
        merged.getxattr("dir/file", "user.long").unwrap(),
        long.as_bytes()
    );
}

#[test]
fn what_has_none_is_remembered_and_forgotten() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    merged.write("new", b"").unwrap();
    assert_eq!(merged.getxattr("new", "user.x"), Err(Errno::ENODATA));
    assert_eq!(merged.listxattr("new").unwrap(), [""; 0]);
    merged.setxattr("new", "user.x", b"1", 0).unwrap();
    assert_eq!(merged.getxattr("new", "user.x").unwrap(), b"1");
    merged.link("new", "other").unwrap();
    assert_eq!(merged.listxattr("other").unwrap(), ["user.x"]);
}
