//! The union on plain directories: one file for each family of operations.

mod aliases;
mod attr;
mod calls;
mod check;
mod copy_up;
mod create;
mod dialect;
mod early;
mod ending;
mod files;
mod interleave;
mod link;
mod lookup;
mod marks;
mod memory;
mod numbers;
mod races;
mod readdir;
mod remove;
mod rename;
mod shown;
mod view;
mod xattr;

use cvmfs_union::union::api::Whiteouts;

use crate::support::Stack;

/// Both ways to write deletions.
pub const DIALECTS: [Whiteouts; 2] = [Whiteouts::Overlay, Whiteouts::Wh];

/// Two layers with something of everything.
pub fn sample(stack: &Stack) {
    stack
        .lower(1)
        .with_file("dir/file", "of the lowest layer")
        .with_mode("dir/file", 0o4755)
        .with_xattr("dir/file", "user.a", "value")
        .with_file("dir/sub/deep", "deep down")
        .with_file("dir/gone", "hidden above")
        .with_dir("empty", 0o750)
        .with_file("shallow/hidden", "the only one")
        .with_file("first", "one of two names")
        .with_link("first", "second")
        .with_symlink("symlink", "dir/file")
        .with_node("fifo", libc::S_IFIFO | 0o640, 0)
        .with_file("plain", "plain")
        .with_file("covered/below", "never seen");
    for path in ["dir/file", "dir/sub/deep", "first", "fifo", "plain"] {
        stack.lower(1).with_mtime(path, 1_000_000_000);
    }
    stack
        .lower(0)
        .with_wh("dir/gone")
        .with_whiteout("shallow/hidden")
        .with_file("dir/upmost", "of the topmost layer")
        .with_opq("covered")
        .with_file("covered/above", "seen");
}
