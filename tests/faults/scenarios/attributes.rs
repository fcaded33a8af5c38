//! Attributes, extended ones too.

use cvmfs_union::union::api::{SetAttr, SetTime};

use super::{acl, on, write};
use crate::support::faults::Scenario;
use crate::support::{Fs, is_root};

pub fn attributes() -> Vec<Scenario> {
    let (uid, gid) = match is_root() {
        true => (7, 8),
        false => (
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        ),
    };
    let chmod = |path: &'static str| on(format!("chmod {path:?}"), move |m| m.chmod(path, 0o700));
    vec![
        chmod("dir/file"),
        chmod("dir"),
        chmod("dir/sub"),
        chmod("fifo"),
        chmod("first"),
        chmod(""),
        on("chmod the other of two names", |m| m.chmod("second", 0o600))
            .after(|m| m.chmod("first", 0o640)),
        on("chmod a file of the upper", |m| m.chmod("new", 0o600)).after(|m| m.write("new", b"x")),
        on("chown a symlink", move |m| m.chown("symlink", uid, gid)),
        on("chown a file", move |m| m.chown("dir/sub/deep", uid, gid)),
        on("set a time", |m| m.set_mtime("dir/file", 1)),
        on("set both times", |m| {
            let now = Some(SetTime::Now);
            m.setattr(
                "dir/sub",
                &SetAttr {
                    atime: now,
                    mtime: now,
                    ..SetAttr::default()
                },
            )
        }),
        on("drop privileges", |m| {
            m.setattr("dir/file", &SetAttr::default())
        }),
    ]
}

pub fn xattrs() -> Vec<Scenario> {
    vec![
        on("setxattr on a file of a layer", |m| {
            m.setxattr("dir/file", "user.b", b"x", 0)
        }),
        on("setxattr on a directory of a layer", |m| {
            m.setxattr("dir/sub", "user.b", b"x", 0)
        }),
        on("setxattr on the root", |m| {
            m.setxattr("", "user.b", b"x", 0)
        }),
        on("setxattr on a file of the upper", |m| {
            m.setxattr("new", "user.b", b"x", 0)
        })
        .after(|m| m.write("new", b"x")),
        on("setxattr of a union's name", |m| {
            m.setxattr("dir", "user.overlay.opaque", b"y", 0)
        }),
        on("setxattr of a default ACL", |m| {
            m.setxattr("dir", "system.posix_acl_default", &acl(), 0)
        }),
        on("removexattr", |m| m.removexattr("dir/file", "user.a")),
        on("removexattr from a file of the upper", |m| {
            m.removexattr("dir/file", "user.a")
        })
        .after(|m| write(m, "dir/file", 0, b"x")),
    ]
}
