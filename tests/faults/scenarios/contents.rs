//! Data: copied up, filled in, cut off, changed behind an open handle.

use std::ffi::OsStr;

use cvmfs_union::union::api::{RenameKind::Replace, SetAttr, SetTime};

use super::{create, on, set_id, set_id_file, with_handle, write};
use crate::support::faults::{Lacking, Scenario};
use crate::support::fs::Res;
use crate::support::{Fs, Merged, Stack, ok};
use crate::union::sample;

/// More than one piece of a copy by reading and writing, and a file with holes.
fn large(stack: &Stack) {
    sample(stack);
    stack
        .lower(1)
        .with_file("large", &"0123456789abcdef".repeat((1 << 16) + 100))
        .with_file("sparse", "head");
    let sparse = stack.lower(1);
    write_at(sparse, "sparse", 200 << 10, b"middle");
    sparse.truncate("sparse", 400 << 10).unwrap();
}

fn write_at(disk: &impl Fs, path: &str, offset: u64, data: &[u8]) {
    let fh = disk.open(path, libc::O_WRONLY).unwrap();
    disk.pwrite(fh, offset, data).unwrap();
    disk.close(fh);
}

/// As between two file systems.
const BY_READING: Lacking = &[("ficlone", libc::EXDEV), ("copy_file_range", libc::EXDEV)];
const WITHOUT_HOLES: Lacking = &[
    ("ficlone", libc::EOPNOTSUPP),
    ("copy_file_range", libc::EOPNOTSUPP),
    ("lseek", libc::EINVAL),
];

pub fn data() -> Vec<Scenario> {
    let change = |name: &str, path: &'static str| {
        Scenario::new(name, large, move |m| write(m, path, 2, b"changed"))
    };
    vec![
        on("write to a small file of a layer", |m| {
            write(m, "dir/sub/deep", 2, b"changed")
        }),
        on("write to one of two names", |m| {
            write(m, "second", 2, b"changed")
        }),
        on("write to a file of the upper", |m| {
            write(m, "plain", 2, b"changed")
        })
        .after(|m| m.write("plain", b"of the upper")),
        change("write to a large file of a layer", "large"),
        change("write to a large file of a layer elsewhere", "large").lacking(BY_READING),
        change("write to a sparse file of a layer", "sparse"),
        change("write to a sparse file of a layer elsewhere", "sparse").lacking(BY_READING),
        change("write to a sparse file without SEEK_DATA", "sparse").lacking(WITHOUT_HOLES),
        on("allocate in a file of a layer", |m| {
            with_handle(m, "plain", libc::O_WRONLY, |fh| {
                ok(m.union.fallocate(fh, 0, 100, 0))
            })
        }),
        on("copy a range into a file of a layer", |m| {
            with_handle(m, "dir/sub/deep", libc::O_RDONLY, |from| {
                with_handle(m, "plain", libc::O_WRONLY, |to| {
                    ok(m.union.copy_file_range(from, 0, to, 1, 4))
                })
            })
        }),
        on("open a file of a layer with O_TRUNC", |m| {
            with_handle(m, "dir/sub/deep", libc::O_WRONLY | libc::O_TRUNC, Ok)
        }),
        on("open a file of the upper with O_TRUNC", |m| {
            with_handle(m, "plain", libc::O_WRONLY | libc::O_TRUNC, Ok)
        })
        .after(|m| m.write("plain", b"of the upper")),
        on("open one of two names with O_TRUNC", |m| {
            with_handle(m, "first", libc::O_WRONLY | libc::O_TRUNC, Ok)
        }),
        on("open a metadata copy with O_TRUNC", |m| {
            with_handle(m, "plain", libc::O_WRONLY | libc::O_TRUNC, Ok)
        })
        .after(|m| m.chmod("plain", 0o600)),
        on("truncate to nothing", |m| m.truncate(set_id_file(), 0)),
        on("truncate to less", |m| m.truncate(set_id_file(), 5)),
        on("truncate to more", |m| m.truncate("dir/sub/deep", 50)),
        on("truncate one of two names", |m| m.truncate("second", 3)),
        on("truncate a file of the upper", |m| m.truncate("plain", 3))
            .after(|m| m.write("plain", b"of the upper")),
    ]
}

/// A crash while the data come leaves the time of it.
fn time_lost(scenario: Scenario, path: &'static str) -> Scenario {
    let mtime = Some(SetTime::Now);
    let set = SetAttr {
        mtime,
        ..SetAttr::default()
    };
    scenario.or_crashed("S61", move |m| m.setattr(path, &set))
}

pub fn metadata_copies() -> Vec<Scenario> {
    fn copied(m: &Merged) -> Res<()> {
        m.chmod("dir/file", set_id())
    }
    vec![
        time_lost(
            on("write to a metadata copy", |m| {
                write(m, "dir/file", 2, b"changed")
            })
            .after(copied),
            "dir/file",
        ),
        time_lost(
            on("truncate a metadata copy", |m| m.truncate("plain", 3))
                .after(|m| m.chmod("plain", 0o600)),
            "plain",
        ),
        on("truncate a metadata copy to nothing", |m| {
            m.truncate("plain", 0)
        })
        .after(|m| m.chmod("plain", 0o600)),
        on("chmod a metadata copy", |m| m.chmod("dir/file", 0o600)).after(copied),
        on("setxattr on a metadata copy", |m| {
            m.setxattr("dir/file", "user.b", b"x", 0)
        })
        .after(copied),
        time_lost(
            on("write to a moved metadata copy", |m| {
                write(m, "moved", 2, b"changed")
            })
            .after(|m| {
                copied(m)?;
                m.rename("dir/file", "moved", Replace)
            }),
            "moved",
        ),
        time_lost(
            on("write to one of two names of a metadata copy", |m| {
                write(m, "second", 2, b"changed")
            })
            .after(|m| m.chmod("first", 0o600)),
            "first",
        ),
        on("link to a metadata copy", |m| m.link("dir/file", "new")).after(copied),
        on("write below a moved directory", |m| {
            write(m, "moved/deep", 2, b"changed")
        })
        .after(|m| m.rename("dir/sub", "moved", Replace)),
        on("create below a moved directory", |m| create(m, "moved/new"))
            .after(|m| m.rename("dir/sub", "moved", Replace)),
    ]
}

pub fn unlinked_and_open() -> Vec<Scenario> {
    fn first(m: &Merged) -> (u64, u64) {
        *m.kept.borrow().first().unwrap()
    }
    fn set(m: &Merged, set: &SetAttr) -> Res<()> {
        let (ino, fh) = first(m);
        ok(m.union.setattr(&m.caller, ino, Some(fh), set)).map(drop)
    }
    let mut all = Vec::new();
    for (which, upper, path) in [
        ("of a layer", false, "plain"),
        ("of the upper", true, "plain"),
        ("with two names before", false, "first"),
    ] {
        let open = |name: &str, act: fn(&Merged) -> Res<()>| {
            on(format!("{name} an unlinked open file {which}"), act).with_open(move |m| {
                if upper {
                    m.write(path, b"of the upper")?;
                }
                if path == "first" {
                    m.unlink("second")?;
                }
                m.keep_unlinked(path)
            })
        };
        all.push(open("write to", |m| {
            m.pwrite(first(m).1, 2, b"changed").map(drop)
        }));
        all.push(open("chmod", |m| {
            set(
                m,
                &SetAttr {
                    mode: Some(0o600),
                    ..SetAttr::default()
                },
            )
        }));
        all.push(open("truncate", |m| {
            set(
                m,
                &SetAttr {
                    size: Some(3),
                    ..SetAttr::default()
                },
            )
        }));
        all.push(open("setxattr on", |m| {
            let name = OsStr::new("user.b");
            ok(m.union.setxattr(&m.caller, first(m).0, name, b"x", 0))
        }));
    }
    all
}
