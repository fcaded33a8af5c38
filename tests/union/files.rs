//! Files of lowers that are read, with a handle and without one.

use std::num::NonZeroUsize;

use cvmfs_union::union::unopened;

use crate::support::{Merged, Stack};

const FILES: usize = 50;
/// How many of them stay open.
const KEPT: usize = 8;

fn stack() -> Stack {
    let mut stack = Stack::new(1);
    for i in 0..FILES {
        stack.lower(0).with_file(&name(i), &format!("data {i}"));
    }
    stack.read_only = true;
    stack.limits.files = NonZeroUsize::new(KEPT).unwrap();
    stack
}

fn name(i: usize) -> String {
    format!("f{i}")
}

fn read(merged: &Merged, i: usize) {
    let fh = unopened(merged.walk(&name(i)).unwrap());
    let whole = merged.union.read(fh, 0, 100).unwrap();
    assert_eq!(whole, format!("data {i}").into_bytes());
    assert_eq!(merged.union.read(fh, 5, 1).unwrap(), &whole[5..6]);
}

#[test]
fn what_was_not_opened_is_read_and_few_of_it_stay_open() {
    let stack = stack();
    let merged = stack.mount();
    let before = stack.descriptors();
    for round in 0..2 {
        for i in 0..FILES {
            read(&merged, i);
        }
        assert_eq!(stack.descriptors() - before, KEPT, "round {round}");
    }
    let dir = merged.walk("").unwrap();
    let mut names = 0;
    let listed = merged.union.readdir(dir, 0, &mut |_| {
        names += 1;
        true
    });
    listed.unwrap();
    assert_eq!(names, FILES + 2);
}

#[test]
fn nothing_is_changed_by_way_of_what_was_not_opened() {
    let stack = stack();
    let merged = stack.mount();
    let fh = unopened(merged.walk(&name(0)).unwrap());
    let refused = merged.union.write(fh, 0, b"written", false);
    assert_eq!(refused.unwrap_err().errno(), libc::EROFS);
    let refused = merged.union.fallocate(fh, 0, 100, 0);
    assert_eq!(refused.unwrap_err().errno(), libc::EROFS);
    assert_eq!(
        merged.union.read(unopened(77), 0, 1).unwrap_err().errno(),
        libc::ESTALE
    );
}

/// All handles of a file read by one descriptor, which goes with the last.
#[test]
fn handles_share_a_descriptor() {
    let mut stack = stack();
    stack.read_only = false;
    let merged = stack.mount();
    let before = stack.descriptors();
    let ino = merged.walk(&name(1)).unwrap();
    let caller = cvmfs_union::union::api::Caller {
        uid: 0,
        gid: 0,
        umask: 0,
    };
    let open = |flags| merged.union.open(&caller, ino, flags).unwrap();
    let handles = [
        open(libc::O_RDONLY),
        open(libc::O_RDWR),
        open(libc::O_RDONLY),
    ];
    assert_eq!(stack.descriptors(), before, "opened before it is read");
    for fh in handles {
        assert_eq!(merged.union.read(fh, 0, 100).unwrap(), b"data 1");
        assert_eq!(stack.descriptors(), before + 1);
    }
    for fh in handles {
        assert_eq!(stack.descriptors(), before + 1);
        merged.union.release(fh);
    }
    assert_eq!(stack.descriptors(), before);
}
