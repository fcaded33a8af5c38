//! Copy-up: the copy shows what the original showed, and comes whole or not at all.

use cvmfs_union::union::api::{Attr, Kind, RenameKind, SetAttr};

use super::sample;
use crate::support::fs::Res;
use crate::support::{Fs, Merged, Stack, assert_same, at_once, is_root};

fn write(merged: &Merged, path: &str, offset: u64, data: &[u8]) -> Res<()> {
    let fh = merged.open(path, libc::O_WRONLY)?;
    let done = merged.pwrite(fh, offset, data);
    merged.close(fh);
    done.map(drop)
}

/// What copying up must keep: all but what says where it is stored.
fn kept(attr: Attr) -> Attr {
    let none = attr.mtime;
    let size = if attr.kind == Kind::Dir { 0 } else { attr.size };
    Attr {
        size,
        blocks: 0,
        blksize: 0,
        ctime: none,
        atime: none,
        ..attr
    }
}

#[test]
fn the_copy_keeps_number_times_owner_and_attributes() {
    let stack = Stack::new(2);
    sample(&stack);
    for (path, sec) in [
        ("dir/sub/deep", 1_000_000_001),
        ("dir/sub", 3),
        ("dir", 2),
        ("fifo", 4),
    ] {
        stack.lower(1).with_mtime(path, sec);
    }
    if is_root() {
        stack.lower(1).chown("dir/sub/deep", 1000, 1001).unwrap();
    }
    let merged = stack.mount();
    let paths = [
        "dir/sub/deep",
        "dir/sub",
        "dir",
        "fifo",
        "symlink",
        "first",
        "second",
        "plain",
    ];
    let attrs = |m: &Merged| paths.map(|p| kept(m.stat(p).unwrap()));
    let (before, tree) = (attrs(&merged), merged.tree());
    for path in paths {
        // To the owner that it has: a copy-up without a change.
        let attr = merged.stat(path).unwrap();
        merged.chown(path, attr.uid, attr.gid).unwrap();
    }
    assert_eq!(attrs(&merged), before);
    assert_same(&merged.tree(), &tree, "copied up");
    merged.forget();
    let merged = stack.reopen(merged);
    if is_root() {
        // `user.` attributes, that an ordinary user's numbers are kept in, exist on files and
        // directories only.
        assert_eq!(attrs(&merged), before, "reopened");
    }
    assert_same(&merged.tree(), &tree, "reopened");
}

#[test]
fn an_open_file_follows_its_data_up() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let reader = merged.open("plain", libc::O_RDONLY).unwrap();
    assert_eq!(merged.pread(reader, 0, 100).unwrap(), b"plain");
    write(&merged, "plain", 0, b"P").unwrap();
    assert_eq!(merged.pread(reader, 0, 100).unwrap(), b"Plain");
    merged.close(reader);
}

#[test]
fn an_open_file_without_a_name_is_copied_up() {
    for whiteouts in super::DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        let ino = merged.walk("plain").unwrap();
        let fh = merged.open("plain", libc::O_RDONLY).unwrap();
        merged.unlink("plain").unwrap();
        let set = SetAttr {
            mode: Some(0o600),
            ..Default::default()
        };
        let attr = merged
            .union
            .setattr(&merged.caller, ino, Some(fh), &set)
            .unwrap();
        assert_eq!((attr.mode, attr.nlink, attr.size), (0o600, 0, 5));
        assert_eq!(merged.pread(fh, 0, 100).unwrap(), b"plain");
        let set = SetAttr {
            size: Some(2),
            ..Default::default()
        };
        merged
            .union
            .setattr(&merged.caller, ino, None, &set)
            .unwrap();
        assert_eq!(merged.pread(fh, 0, 100).unwrap(), b"pl");
        merged.close(fh);
        assert!(!stack.reopen(merged).exists("plain"));
    }
}

#[test]
fn holes_stay_holes() {
    let stack = Stack::new(1);
    stack
        .lower(0)
        .with_file("sparse", "head")
        .truncate("sparse", 64 << 20)
        .unwrap();
    let fh = stack.lower(0).open("sparse", libc::O_WRONLY).unwrap();
    stack.lower(0).pwrite(fh, 32 << 20, b"middle").unwrap();
    stack.lower(0).close(fh);
    let merged = stack.mount();
    write(&merged, "sparse", 0, b"H").unwrap();
    let attr = stack.upper().stat("sparse").unwrap();
    assert_eq!(attr.size, 64 << 20);
    assert!(
        attr.blocks < 1024,
        "{} blocks for two pieces of data",
        attr.blocks
    );
    let fh = merged.open("sparse", libc::O_RDONLY).unwrap();
    assert_eq!(merged.pread(fh, 0, 5).unwrap(), b"Head\0");
    assert_eq!(merged.pread(fh, (32 << 20) - 1, 8).unwrap(), b"\0middle\0");
    merged.close(fh);
}

#[test]
fn a_portable_upper_holds_whole_files() {
    let mut stack = Stack::new(2);
    stack.portable = true;
    sample(&stack);
    let merged = stack.mount();
    merged.chmod("dir/file", 0o600).unwrap();
    assert_eq!(
        stack.upper().read("dir/file").unwrap(),
        b"of the lowest layer"
    );
}

#[test]
fn nothing_is_copied_up_without_an_upper() {
    let mut stack = Stack::new(2);
    stack.read_only = true;
    sample(&stack);
    let merged = stack.mount();
    let rofs = Err(nix::errno::Errno::EROFS);
    assert_eq!(merged.chmod("dir", 0o700), rofs);
    assert_eq!(write(&merged, "plain", 0, b"x"), rofs);
    assert_eq!(merged.write("new", b"x"), rofs);
    assert_eq!(merged.unlink("plain"), rofs);
    assert_eq!(merged.rmdir("empty"), rofs);
    assert_eq!(merged.link("plain", "new"), rofs);
    assert_eq!(merged.setxattr("plain", "user.x", b"", 0), rofs);
}

#[test]
fn many_writers_copy_up_once() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let (ino, caller, union) = (
        merged.walk("dir/sub/deep").unwrap(),
        merged.caller,
        &*merged.union,
    );
    at_once((0..8u8).map(|i| {
        move || {
            let fh = union.open(&caller, ino, libc::O_WRONLY).unwrap();
            let done = union.write(fh, u64::from(i), &[b'0' + i], false);
            union.release(fh);
            done.unwrap()
        }
    }));
    assert_eq!(merged.read("dir/sub/deep").unwrap(), b"01234567n");
}

/// An ordinary user may change its own file's attributes, and yet not write or read its data.
#[test]
fn files_that_may_not_be_written_or_read() {
    for whiteouts in super::DIALECTS {
        for mode in [0o444, 0o400, 0o200, 0o000] {
            let stack = Stack::with(2, whiteouts);
            stack
                .lower(1)
                .with_file("dir/first", "data")
                .with_file("dir/second", "data");
            // The stack reads its lowers at the end, which a user can do with a readable file only.
            let readable = is_root() || mode & 0o400 != 0;
            stack
                .lower(1)
                .with_mode("dir/first", if readable { mode } else { 0o400 });
            let merged = stack.mount();
            merged
                .set_mtime("dir/first", 5)
                .unwrap_or_else(|e| panic!("{mode:o}: {e}"));
            merged.chmod("dir/second", mode).unwrap();
            let merged = stack.reopen(merged);
            for path in ["dir/first", "dir/second"] {
                let attr = merged
                    .stat(path)
                    .unwrap_or_else(|e| panic!("{path} {mode:o}: {e}"));
                let shown = if readable || path == "dir/second" {
                    mode
                } else {
                    0o400
                };
                assert_eq!((attr.mode, attr.size), (shown, 4), "{path}");
                merged
                    .chmod(path, 0o600)
                    .unwrap_or_else(|e| panic!("{path} {mode:o}: {e}"));
                assert_eq!(merged.read(path).unwrap(), b"data");
            }
        }
    }
}

/// The data of a metadata copy are found by its name; when the name changes they must not be lost.
#[test]
fn a_metadata_copy_finds_its_data_under_any_name() {
    for whiteouts in super::DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        for path in ["plain", "dir/sub/deep", "dir/upmost"] {
            merged.chmod(path, 0o600).unwrap();
        }
        let merged = stack.reopen(merged);
        assert_eq!(merged.read("plain").unwrap(), b"plain");
        merged
            .rename("plain", "moved", RenameKind::Replace)
            .unwrap();
        // What the layer holds under the new name is something else.
        merged
            .rename("dir/upmost", "first", RenameKind::Exchange)
            .unwrap();
        merged.link("dir/sub/deep", "linked").unwrap();
        merged.rename("dir", "else", RenameKind::Replace).unwrap();
        merged.write("plain", b"another").unwrap();
        let check = |merged: &Merged| {
            assert_eq!(merged.read("moved").unwrap(), b"plain");
            assert_eq!(merged.read("first").unwrap(), b"of the topmost layer");
            assert_eq!(merged.read("else/upmost").unwrap(), b"one of two names");
            assert_eq!(merged.read("linked").unwrap(), b"deep down");
            assert_eq!(merged.read("else/sub/deep").unwrap(), b"deep down");
            assert_eq!(merged.read("plain").unwrap(), b"another");
        };
        check(&merged);
        let merged = stack.reopen(merged);
        check(&merged);
        merged.unlink("else/sub/deep").unwrap();
        assert_eq!(stack.reopen(merged).read("linked").unwrap(), b"deep down");
    }
}

/// The time of a directory is remembered between two copy-ups, but not over a change.
#[test]
fn a_copy_up_keeps_the_time_that_the_directory_has_now() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let mtime = |m: &Merged| m.stat("dir").unwrap().mtime;
    merged.chmod("dir/file", 0o600).unwrap();
    merged.set_mtime("dir", 5).unwrap();
    merged.chmod("dir/upmost", 0o600).unwrap();
    assert_eq!(mtime(&merged).sec, 5);
    merged.unlink("dir/upmost").unwrap();
    let changed = mtime(&merged);
    assert_ne!(changed.sec, 5);
    merged.chmod("dir/sub", 0o700).unwrap();
    assert_eq!(mtime(&merged), changed);
}
