//! Attributes: what is shown, and what a change changes.

use cvmfs_union::union::api::{Caller, Owner, SetAttr, SetTime, Time};
use nix::errno::Errno;

use super::sample;
use crate::support::{Fs, Merged, Stack, is_root};

fn set(merged: &Merged, path: &str, set: &SetAttr) {
    merged.setattr(path, set).unwrap();
}

#[test]
fn a_new_upper_takes_on_the_attributes_of_the_root() {
    let stack = Stack::new(2);
    stack
        .lower(0)
        .with_mode("", 0o750)
        .with_xattr("", "user.a", "root");
    let merged = stack.mount();
    assert_eq!(merged.stat("").unwrap().mode, 0o750);
    merged.chmod("", 0o711).unwrap();
    let merged = stack.reopen(merged);
    assert_eq!(merged.stat("").unwrap().mode, 0o711);
    assert_eq!(merged.getxattr("", "user.a").unwrap(), b"root");
}

/// The mount that takes the attributes over must not go by what the upper had before.
#[test]
fn the_root_shows_at_once_what_it_has_taken() {
    let stack = Stack::new(1);
    stack.lower(0).with_xattr("", "user.a", "root");
    let merged = stack.mount();
    assert_eq!(merged.getxattr("", "user.a").unwrap(), b"root");
    assert_eq!(merged.listxattr("").unwrap(), ["user.a"]);
}

/// Bug: a truncation to the size that the kernel saw already changed the time below, and not the one that
/// the kernel has and shows.
#[test]
fn truncation_leaves_the_time_to_a_kernel_that_collects_writes() {
    let old = Time { sec: -5, nsec: 7 };
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    merged.union.expect_writeback();
    // What the kernel has collected makes its size another than the upper's.
    for size in [0, 3, 3, 100] {
        let (size, mtime) = (Some(size), Some(SetTime::At(old)));
        let before = SetAttr {
            mtime,
            ..SetAttr::default()
        };
        set(&merged, "plain", &before);
        let cut = SetAttr {
            size,
            ..SetAttr::default()
        };
        set(&merged, "plain", &cut);
        let attr = merged.stat("plain").unwrap();
        assert_eq!((Some(attr.size), attr.mtime), (size, old));
        // Where it sees a change, it says when that was.
        let mtime = Some(SetTime::Now);
        set(
            &merged,
            "plain",
            &SetAttr {
                size,
                mtime,
                ..SetAttr::default()
            },
        );
        assert_ne!(merged.stat("plain").unwrap().mtime, old);
    }
}

#[test]
fn times_are_set_one_by_one() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let (old, past) = (
        Time { sec: -5, nsec: 7 },
        Time {
            sec: 1 << 31,
            nsec: 999_999_999,
        },
    );
    set(
        &merged,
        "plain",
        &SetAttr {
            atime: Some(SetTime::At(past)),
            ..SetAttr::default()
        },
    );
    set(
        &merged,
        "plain",
        &SetAttr {
            mtime: Some(SetTime::At(old)),
            ..SetAttr::default()
        },
    );
    let attr = merged.stat("plain").unwrap();
    assert_eq!((attr.atime, attr.mtime), (past, old));
    set(
        &merged,
        "plain",
        &SetAttr {
            mtime: Some(SetTime::Now),
            ..SetAttr::default()
        },
    );
    let attr = merged.stat("plain").unwrap();
    assert!(attr.mtime.sec > 1_600_000_000);
    assert_eq!(attr.atime, past);
}

#[test]
fn the_times_of_parents_change_with_names_only() {
    let stack = Stack::new(2);
    sample(&stack);
    stack.lower(0).with_mtime("dir", 77);
    let merged = stack.mount();
    merged.chmod("dir/file", 0o600).unwrap();
    merged.write("dir/upmost", b"x").unwrap();
    assert_eq!(
        merged.stat("dir").unwrap().mtime.sec,
        77,
        "copy-up changes no name"
    );
    merged.write("dir/new", b"x").unwrap();
    assert_ne!(merged.stat("dir").unwrap().mtime.sec, 77);
    merged.set_mtime("dir", 78).unwrap();
    merged.unlink("dir/file").unwrap();
    assert_ne!(merged.stat("dir").unwrap().mtime.sec, 78);
}

#[test]
fn an_empty_change_drops_privileges() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    assert_eq!(merged.stat("dir/file").unwrap().mode, 0o4755);
    set(&merged, "dir/file", &SetAttr::default());
    assert_eq!(merged.stat("dir/file").unwrap().mode, 0o755);
    assert_eq!(merged.read("dir/file").unwrap(), b"of the lowest layer");
}

#[test]
fn truncation_by_a_user_drops_set_id_bits() {
    let stack = Stack::new(2);
    sample(&stack);
    let mut merged = stack.mount();
    merged.caller = Caller {
        uid: 1000,
        gid: 1000,
        umask: 0,
    };
    merged.truncate("dir/file", 4).unwrap();
    let attr = merged.stat("dir/file").unwrap();
    assert_eq!((attr.mode, attr.size), (0o755, 4));
    assert_eq!(merged.read("dir/file").unwrap(), b"of t");
}

#[test]
fn a_metadata_copy_shows_size_and_data() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    merged.chmod("dir/file", 0o640).unwrap();
    let merged = stack.reopen(merged);
    let attr = merged.stat("dir/file").unwrap();
    assert_eq!((attr.mode, attr.size), (0o640, 19));
    assert_eq!(merged.read("dir/file").unwrap(), b"of the lowest layer");
    merged.truncate("dir/file", 6).unwrap();
    assert_eq!(stack.reopen(merged).read("dir/file").unwrap(), b"of the");
}

#[test]
fn truncation_grows_with_zeros() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    merged.truncate("plain", 8).unwrap();
    assert_eq!(merged.read("plain").unwrap(), b"plain\0\0\0");
    assert_eq!(merged.truncate("dir", 0), Err(Errno::EISDIR));
}

#[test]
fn directories_count_their_subdirectories() {
    let stack = Stack::new(2);
    stack
        .lower(1)
        .with_dir("d/one", 0o755)
        .with_dir("d/two", 0o755)
        .with_file("d/f", "");
    stack.lower(0).with_dir("d/three", 0o755).with_wh("d/two");
    let merged = stack.mount();
    assert_eq!(merged.stat("d").unwrap().nlink, 4);
    merged.mkdir("d/four", 0o755).unwrap();
    merged.rmdir("d/one").unwrap();
    assert_eq!(merged.stat("d").unwrap().nlink, 4);
    assert_eq!(stack.reopen(merged).stat("d").unwrap().nlink, 4);
}

#[test]
fn squashed_owners_are_root() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new(2);
    stack.owner = Owner::Squash;
    sample(&stack);
    stack.lower(1).chown("plain", 1000, 1000).unwrap();
    stack.lower(1).chown("dir/sub", 1000, 1000).unwrap();
    let merged = stack.mount();
    let owner = |path: &str| merged.stat(path).map(|a| (a.uid, a.gid));
    assert_eq!(owner("plain"), Ok((0, 0)));
    assert_eq!(owner("dir/sub"), Ok((0, 0)));
    merged.chmod("plain", 0o600).unwrap();
    assert_eq!(owner("plain"), Ok((0, 0)));
}

#[test]
fn a_directory_that_no_archive_held_is_as_the_layer_below_says() {
    if !is_root() {
        return;
    }
    let stack = Stack::new(2);
    stack
        .lower(1)
        .with_dir("d", 0o700)
        .with_xattr("d", "user.a", "below")
        .with_mtime("d", 5);
    stack.lower(0).with_dir("d", 0o755).with_file("d/f", "");
    stack.lower(0).chown("d", 65534, 65534).unwrap();
    let merged = stack.mount();
    let attr = merged.stat("d").unwrap();
    assert_eq!(
        (attr.mode, attr.uid, attr.gid, attr.mtime.sec),
        (0o700, 0, 0, 5)
    );
    assert_eq!(merged.getxattr("d", "user.a").unwrap(), b"below");
    merged.write("d/new", b"").unwrap();
    assert_eq!(stack.reopen(merged).stat("d").unwrap().mode, 0o700);
}
