//! Owners, link counts and ACLs that are shown otherwise than they are stored.

use cvmfs_union::layer::overrides::Overrides;
use cvmfs_union::union::Union;
use cvmfs_union::union::api::{Caller, Kind, RenameKind, SetAttr};
use cvmfs_union::union::shown::{IdMap, IdRange, Shown};
use nix::errno::Errno;

use super::sample;
use crate::support::{Fs, Merged, Stack, assert_same, is_root};

/// A hundred ids.
fn range(stored: u32, shown: u32) -> IdMap {
    let count = 100;
    IdMap {
        ranges: vec![IdRange {
            stored,
            shown,
            count,
        }],
        squash: None,
    }
}

/// Stored ids from 1000 on are shown from 0 on.
fn shifted() -> IdMap {
    range(1000, 0)
}

fn stack(shown: Shown) -> Stack {
    let mut stack = Stack::new(2);
    sample(&stack);
    stack.shown = shown;
    stack
}

fn owner(merged: &Merged, path: &str) -> (u32, u32) {
    let attr = merged.stat(path).unwrap();
    (attr.uid, attr.gid)
}

fn chown(uid: u32, gid: u32) -> SetAttr {
    SetAttr {
        uid: Some(uid),
        gid: Some(gid),
        ..SetAttr::default()
    }
}

#[test]
fn mapped_owners_are_shown_and_stored() {
    if !is_root() {
        return;
    }
    let stack = stack(Shown {
        uids: shifted(),
        gids: shifted(),
        ..Shown::default()
    });
    stack.lower(1).chown("plain", 1005, 1006).unwrap();
    let mut merged = stack.mount();
    assert_eq!(owner(&merged, "plain"), (5, 6));
    // Nobody's, as in a user namespace.
    assert_eq!(owner(&merged, "dir"), (65534, 65534));

    // A copy-up keeps the stored owner.
    merged.chmod("plain", 0o600).unwrap();
    assert_eq!(owner(&merged, "plain"), (5, 6));
    assert_eq!(stack.upper().stat("plain").unwrap().uid, 1005);

    merged.setattr("plain", &chown(7, 8)).unwrap();
    assert_eq!(owner(&merged, "plain"), (7, 8));
    let stored = stack.upper().stat("plain").unwrap();
    assert_eq!((stored.uid, stored.gid), (1007, 1008));
    let outside = merged.setattr("plain", &chown(100, 0));
    assert_eq!(outside, Err(Errno::EINVAL));

    merged.caller = Caller {
        uid: 9,
        gid: 10,
        umask: 0,
    };
    merged.mkdir("made", 0o755).unwrap();
    merged.write("made/file", b"x").unwrap();
    for path in ["made", "made/file"] {
        assert_eq!(owner(&merged, path), (9, 10));
        let stored = stack.upper().stat(path).unwrap();
        assert_eq!((stored.uid, stored.gid), (1009, 1010), "{path}");
    }
    merged.caller.uid = 100;
    assert_eq!(merged.mkdir("outside", 0o755), Err(Errno::EOVERFLOW));
    let merged = stack.reopen(merged);
    assert_eq!(owner(&merged, "made/file"), (9, 10));
}

#[test]
fn squashed_owners_are_shown_of_all() {
    let root = IdMap {
        squash: Some(0),
        ..IdMap::default()
    };
    let stack = stack(Shown {
        uids: root.clone(),
        gids: root,
        ..Shown::default()
    });
    let merged = stack.mount();
    merged.write("made", b"x").unwrap();
    merged.chmod("plain", 0o600).unwrap();
    for path in ["", "plain", "dir", "dir/sub/deep", "made"] {
        assert_eq!(owner(&merged, path), (0, 0), "{path}");
    }
    if is_root() {
        // What is set is stored, and would show without squashing.
        merged.setattr("plain", &chown(7, 8)).unwrap();
        assert_eq!(owner(&merged, "plain"), (0, 0));
        assert_eq!(stack.upper().stat("plain").unwrap().uid, 7);
    }
}

/// Bug to avoid: who drops set-id bits by a write is compared with the owner as it is shown.
#[test]
fn the_shown_owner_may_drop_set_id_bits() {
    if !is_root() {
        return;
    }
    let stack = stack(Shown {
        uids: shifted(),
        gids: shifted(),
        ..Shown::default()
    });
    stack.lower(1).chown("plain", 1005, 1005).unwrap();
    stack.lower(1).with_mode("plain", 0o4755);
    let mut merged = stack.mount();
    merged.caller = Caller {
        uid: 5,
        gid: 5,
        umask: 0,
    };
    merged.setattr("plain", &SetAttr::default()).unwrap();
    assert_eq!(merged.stat("plain").unwrap().mode, 0o755);
}

#[test]
fn directories_without_a_count_read_no_listing() {
    let stack = stack(Shown {
        static_nlink: true,
        ..Shown::default()
    });
    let merged = stack.mount();
    // That of the root is read at mount.
    assert_eq!(merged.stat("dir").unwrap().nlink, 1);
    assert_eq!(merged.union.counts().listings, 1);
    merged.mkdir("made", 0o755).unwrap();
    assert_eq!(merged.stat("made").unwrap().nlink, 1);
    // Files keep their counts.
    merged.write("file", b"x").unwrap();
    assert_eq!(merged.stat("file").unwrap().nlink, 1);
    merged.link("file", "link").unwrap();
    assert_eq!(merged.stat("file").unwrap().nlink, 2);
}

#[test]
fn no_acls_if_none_are_wanted() {
    const ACL: &str = "system.posix_acl_access";
    let stack = stack(Shown {
        no_acls: true,
        ..Shown::default()
    });
    let merged = stack.mount();
    // A kernel that checks ACLs takes any other error for its answer to an access.
    assert_eq!(merged.getxattr("plain", ACL), Err(Errno::ENODATA));
    assert_eq!(
        merged.setxattr("plain", ACL, b"", 0),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(merged.removexattr("plain", ACL), Err(Errno::EOPNOTSUPP));
    merged.setxattr("plain", "user.a", b"b", 0).unwrap();
    assert_eq!(merged.listxattr("plain").unwrap(), ["user.a"]);
}

const OVERRIDE: &str = "user.containers.override_stat";

#[test]
fn what_a_layer_keeps_beside_its_files() {
    let mut stack = Stack::new(2);
    sample(&stack);
    stack
        .lower(1)
        .with_xattr("", OVERRIDE, "0:0:755")
        .with_xattr("plain", OVERRIDE, "5:6:4600")
        .with_xattr("empty", OVERRIDE, "7:8:0700:dir")
        .with_file("null", "")
        .with_xattr("null", OVERRIDE, "0:0:666:char-1-3");
    // The layer above has none on its root, so one on a file is a user's.
    stack
        .lower(0)
        .with_file("other", "")
        .with_xattr("other", OVERRIDE, "5:6:600");
    stack.read_only = true;
    let merged = stack.mount();
    let shown = |path: &str| merged.stat(path).map(|a| (a.mode, a.uid, a.gid));
    assert_eq!(shown("plain"), Ok((0o4600, 5, 6)));
    assert_eq!(shown("empty"), Ok((0o700, 7, 8)));
    let null = merged.stat("null").unwrap();
    assert_eq!((null.kind, null.rdev), (Kind::Char, libc::makedev(1, 3)));
    assert!(merged.listxattr("plain").unwrap().is_empty());
    assert_ne!(shown("other").unwrap().1, 5);
    assert_eq!(merged.listxattr("other").unwrap(), [OVERRIDE]);
    assert_eq!(merged.read("plain").unwrap(), b"plain");
}

#[test]
fn what_was_beside_a_file_is_on_its_copy() {
    if !is_root() {
        return;
    }
    let stack = Stack::new(2);
    sample(&stack);
    stack
        .lower(1)
        .with_xattr("", OVERRIDE, "0:0:755")
        .with_xattr("plain", OVERRIDE, "5:6:640");
    let merged = stack.mount();
    merged.set_mtime("plain", 7).unwrap();
    assert_eq!(owner(&merged, "plain"), (5, 6));
    let copy = stack.upper().stat("plain").unwrap();
    assert_eq!((copy.uid, copy.gid, copy.mode), (5, 6, 0o640));
    let keys = stack.upper().listxattr("plain").unwrap();
    assert!(!keys.iter().any(|key| key == OVERRIDE), "{keys:?}");
}

/// Modes of its files may be wider than they are to be shown.
#[test]
fn an_upper_of_that_kind_is_refused() {
    let stack = Stack::new(1);
    stack.upper().with_xattr("", OVERRIDE, "0:0:755");
    let refused = Union::new(&stack.config()).unwrap_err();
    assert_eq!(refused.errno(), libc::EOPNOTSUPP);
    assert!(refused.to_string().contains("override_stat"), "{refused}");
}

/// Without privileges too: nothing is given away but in words.
#[test]
fn owners_are_kept_beside_the_files_of_an_upper() {
    let kinds = [
        Some(Overrides::of_user()),
        is_root().then(Overrides::of_root),
    ];
    for beside in kinds.into_iter().flatten() {
        let mut stack = stack(Shown {
            beside: Some(beside),
            no_acls: true,
            ..Shown::default()
        });
        let key = beside.key().to_str().unwrap();
        let mut merged = stack.mount();
        merged.caller = Caller {
            uid: 7,
            gid: 8,
            umask: 0o022,
        };
        let shown = |merged: &Merged, path: &str| {
            let attr = merged.stat(path).unwrap();
            (attr.uid, attr.gid, attr.mode)
        };
        merged.write("made", b"data").unwrap();
        merged.mkdir("new", 0o3777).unwrap();
        assert_eq!(shown(&merged, "new"), (7, 8, 0o3755));
        // What a set-gid directory lends.
        merged.chown("new", 7, 70000).unwrap();
        merged.mkdir("new/in", 0o700).unwrap();
        assert_eq!(shown(&merged, "new/in"), (7, 70000, 0o2700));

        merged.chmod("made", 0o6755).unwrap();
        assert_eq!(shown(&merged, "made"), (7, 8, 0o6755));
        merged.truncate("made", 1).unwrap();
        assert_eq!(shown(&merged, "made"), (7, 8, 0o755));
        merged.chmod("made", 0o4711).unwrap();
        merged.chown("made", 9, 10).unwrap();
        assert_eq!(shown(&merged, "made"), (9, 10, 0o711));
        merged.chmod("made", 0o4600).unwrap();

        // A copy-up, with the owner of the layer's file, and one for the change of it.
        let before = shown(&merged, "plain");
        merged.set_mtime("plain", 7).unwrap();
        assert_eq!(shown(&merged, "plain"), before);
        merged.chown("dir/sub/deep", 5, 6).unwrap();
        assert_eq!(shown(&merged, "dir/sub/deep").0, 5);

        // One that cannot have the attribute of users.
        merged.mknod("pipe", libc::S_IFIFO | 0o640, 0).unwrap();
        assert_eq!(merged.stat("pipe").unwrap().mode, 0o640);
        if is_root() {
            assert_eq!(owner(&merged, "pipe"), (7, 8));
        }

        let upper = stack.upper();
        let own = upper.stat("made").unwrap();
        assert_eq!((own.uid, own.mode), (upper.stat("").unwrap().uid, 0o700));
        assert_eq!(upper.getxattr("made", key).unwrap(), b"9:10:4600");

        // It is no attribute of users, and one that they call so is another.
        assert_eq!(merged.listxattr("made").unwrap(), [""; 0]);
        assert_eq!(merged.getxattr("made", key), Err(Errno::ENODATA));
        let set = merged.setxattr("made", key, b"0:0:777", 0);
        if beside == Overrides::of_root() {
            assert_eq!(set, Err(Errno::EPERM));
        } else {
            set.unwrap();
            assert_eq!(merged.listxattr("made").unwrap(), [key]);
        }
        assert_eq!(shown(&merged, "made"), (9, 10, 0o4600));

        merged.rename("new", "moved", RenameKind::Replace).unwrap();
        let tree = merged.tree();
        drop(merged);
        let merged = stack.mount();
        assert_same(&merged.tree(), &tree, "another union");
        drop(merged);
        stack.shown.beside = None;
        let refused = Union::new(&stack.config()).unwrap_err();
        assert_eq!(refused.errno(), libc::EOPNOTSUPP);
        assert!(
            refused.to_string().contains("xattr_permissions"),
            "{refused}"
        );
    }
}

#[test]
fn an_upper_is_not_begun_twice() {
    let mut stack = Stack::new(1);
    stack.upper().with_file("file", "");
    stack.shown.beside = Some(Overrides::of_user());
    let refused = Union::new(&stack.config()).unwrap_err();
    assert_eq!(refused.errno(), libc::EINVAL);
    assert!(
        refused.to_string().contains("xattr_permissions"),
        "{refused}"
    );
}

#[test]
fn broken_values_are_errors() {
    let stack = Stack::new(1);
    stack
        .lower(0)
        .with_xattr("", OVERRIDE, "0:0:755")
        .with_file("file", "")
        .with_xattr("file", OVERRIDE, "0:0");
    let merged = stack.mount();
    assert_eq!(merged.stat("file").map(drop), Err(Errno::EIO));
}

fn squash_to(id: u32) -> IdMap {
    IdMap {
        squash: Some(id),
        ..IdMap::default()
    }
}

fn mode_of(stack: &Stack, path: &str) -> u32 {
    stack.upper().stat(path).unwrap().mode & 0o7777
}

/// Bug to avoid: who is shown as the owner of root's file makes a program of it that runs as root.
#[test]
fn set_id_bits_are_the_stored_owners_to_set() {
    if !is_root() {
        return;
    }
    let stack = stack(Shown {
        uids: squash_to(1000),
        gids: squash_to(1000),
        ..Shown::default()
    });
    let mut merged = stack.mount();
    merged.caller = Caller {
        uid: 1000,
        gid: 1000,
        umask: 0,
    };
    // Of root, once for the copy-up and once for the copy.
    for _ in 0..2 {
        merged.chmod("plain", 0o6755).unwrap();
        assert_eq!(merged.stat("plain").unwrap().mode & 0o7777, 0o755);
        assert_eq!(mode_of(&stack, "plain"), 0o755);
    }
    // For directories they mean something else.
    merged.chmod("dir", 0o2755).unwrap();
    assert_eq!(mode_of(&stack, "dir"), 0o2755);
    // One's own.
    merged.write("made", b"x").unwrap();
    merged.chmod("made", 0o6755).unwrap();
    assert_eq!(mode_of(&stack, "made"), 0o6755);
    // Root may do all.
    merged.caller.uid = 0;
    merged.chmod("plain", 0o4755).unwrap();
    assert_eq!(mode_of(&stack, "plain"), 0o4755);
}

/// Whom a range maps to an owner is that owner, as with an id-mapped mount.
#[test]
fn mapped_owners_set_set_id_bits() {
    if !is_root() {
        return;
    }
    let stack = stack(Shown {
        uids: range(0, 1000),
        gids: range(0, 1000),
        ..Shown::default()
    });
    let mut merged = stack.mount();
    merged.caller = Caller {
        uid: 1000,
        gid: 1000,
        umask: 0,
    };
    merged.chmod("plain", 0o6755).unwrap();
    assert_eq!(mode_of(&stack, "plain"), 0o6755);
}

/// Bug to avoid: the real 65534 is taken for the owner of all that nobody owns.
#[test]
fn nobody_does_not_own_what_is_outside_of_the_mapping() {
    if !is_root() {
        return;
    }
    let stack = stack(Shown {
        uids: shifted(),
        gids: shifted(),
        ..Shown::default()
    });
    stack.lower(1).chown("plain", 5, 5).unwrap();
    let mut merged = stack.mount();
    assert_eq!(owner(&merged, "plain"), (65534, 65534));
    merged.caller = Caller {
        uid: 65534,
        gid: 65534,
        umask: 0,
    };
    assert_eq!(merged.chmod("plain", 0o666), Err(Errno::EPERM));
    assert!(!stack.upper().names("").unwrap().contains(&"plain".into()));
    merged.caller.uid = 0;
    merged.chmod("plain", 0o666).unwrap();
}
