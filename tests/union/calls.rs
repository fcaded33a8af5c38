//! The system calls of the main operations on the upper: these and no others, each for a reason.
//!
//! Closing a descriptor is not recorded. Nothing is synced here: `faults::durability` has that.

use std::ffi::OsStr;

use cvmfs_union::sys::fault;
use cvmfs_union::union::api::{Attr, DirEntry, Durability, RenameKind, SetAttr, SetTime, Time};

use crate::support::{Fs, Merged, Stack, ok};

/// Sent after the kernel has looked up what it is about.
type Request = Box<dyn FnOnce(&Merged)>;

/// A system call, and what it is for.
type Call = (&'static str, &'static str);

/// The files of the layer that one case uses, so that the next one finds its own untouched.
const FILES: [&str; 2] = ["dir/first", "dir/second"];

/// A metadata copy of a file in a directory that had one before. The time of the directory is known.
const METADATA: [Call; 7] = [
    ("openat to make", "the copy, with its mode"),
    ("ftruncate", "its size"),
    ("setxattr", "the data are in the layer"),
    ("listxattr", "what the layer's file has"),
    ("setxattr", "its number"),
    ("utimensat", "its times"),
    ("renameat", "to its place"),
];

const AFTER: [Call; 2] = [
    ("utimensat", "the parent has not changed for users"),
    ("fstatat", "the attributes for the reply"),
];

fn set(set: SetAttr) -> impl Fn(&Merged) -> Request {
    move |merged| {
        let ino = merged.walk(FILES[1]).unwrap();
        Box::new(move |m| {
            ok(m.union.setattr(&m.caller, ino, None, &set)).unwrap();
        })
    }
}

/// Plays a request in a directory that no layer holds, and in a merged one that is in the upper. In both
/// something was made before.
fn above(name: &str, prepare: impl Fn(&Merged, &str) -> Request, calls: &[Call]) {
    for dir in ["new", "dir"] {
        play(
            &format!("{name} in {dir}"),
            |merged| {
                merged.write(&format!("{dir}/before"), b"").unwrap();
                prepare(merged, dir)
            },
            calls,
        );
    }
}

fn play(name: &str, prepare: impl Fn(&Merged) -> Request, calls: &[Call]) {
    let mut stack = Stack::new(1);
    stack.durability = Durability::Volatile;
    for path in FILES {
        stack
            .lower(0)
            .with_file(path, "content")
            .with_mode(path, 0o640);
    }
    let merged = stack.mount();
    merged.mkdir("new", 0o755).unwrap();
    let request = prepare(&merged);
    fault::record();
    request(&merged);
    let made = fault::recorded();
    let wanted: Vec<_> = calls.iter().map(|(call, _)| *call).collect();
    assert_eq!(alike(&made), wanted, "{name}: {calls:#?}");
}

/// Where blocks can be shared, two calls do what reading and writing does elsewhere.
fn alike(calls: &[&'static str]) -> Vec<&'static str> {
    let cloned = calls.contains(&"ficlone");
    let each = calls.iter().map(|call| match *call {
        "ficlone" => "pread",
        "ftruncate" if cloned => "pwrite",
        other => other,
    });
    each.collect()
}

#[test]
fn making_and_removing() {
    let stat = ("fstatat", "number and attributes");
    let keep = ("openat", "what is open stays usable (S8)");
    above(
        "create",
        |m, dir| {
            let dir = m.walk(dir).unwrap();
            Box::new(move |m| {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
                let made = m
                    .union
                    .create(&m.caller, dir, OsStr::new("x"), 0o644, flags);
                let (attr, fh) = ok(made).unwrap();
                // What a program's first write asks for.
                let capability = OsStr::new("security.capability");
                ok(m.union.getxattr(attr.ino, capability)).unwrap_err();
                m.pwrite(fh, 0, b"x").unwrap();
                m.close(fh);
                m.counted(attr);
            })
        },
        &[("openat to make", "the file"), stat, ("pwrite", "the data")],
    );
    above(
        "mkdir",
        |m, dir| {
            let dir = m.walk(dir).unwrap();
            Box::new(move |m| {
                let made = m.union.mkdir(&m.caller, dir, OsStr::new("x"), 0o755);
                m.counted(ok(made).unwrap());
            })
        },
        &[("mkdirat", "the directory"), stat],
    );
    above(
        "symlink",
        |m, dir| {
            let dir = m.walk(dir).unwrap();
            Box::new(move |m| {
                let made = m.union.symlink(&m.caller, dir, OsStr::new("x"), b"y");
                m.counted(ok(made).unwrap());
            })
        },
        &[("symlinkat", "the link"), stat],
    );
    above(
        "unlink",
        |m, dir| {
            let dir = m.walk(dir).unwrap();
            Box::new(move |m| ok(m.union.unlink(dir, OsStr::new("before"))).unwrap())
        },
        &[keep, ("unlinkat", "the name")],
    );
    above(
        "rmdir",
        |m, dir| {
            m.mkdir(&format!("{dir}/x"), 0o755).unwrap();
            let dir = m.walk(dir).unwrap();
            Box::new(move |m| ok(m.union.rmdir(dir, OsStr::new("x"))).unwrap())
        },
        &[keep, ("rmdirat", "the name")],
    );
    play(
        "unlink in a layer",
        |m| {
            m.write("dir/before", b"").unwrap();
            let dir = m.walk("dir").unwrap();
            m.walk("dir/first").unwrap();
            Box::new(move |m| ok(m.union.unlink(dir, OsStr::new("first"))).unwrap())
        },
        &[("mknodat", "the whiteout")],
    );
}

#[test]
fn looking_and_listing() {
    above(
        "lookup",
        |m, dir| {
            let dir = m.walk(dir).unwrap();
            Box::new(move |m| {
                ok(m.union.lookup(dir, OsStr::new("absent"))).unwrap();
                let attr = ok(m.union.lookup(dir, OsStr::new("before"))).unwrap();
                m.counted(attr.unwrap());
            })
        },
        &[("fstatat", "the attributes of the one that is there")],
    );
    play(
        "list",
        |m| {
            for name in ["new/a", "new/b", "new/c"] {
                m.write(name, b"").unwrap();
            }
            let dir = m.walk("new").unwrap();
            Box::new(move |m| {
                let mut found = Vec::new();
                let mut each = |entry: &DirEntry<'_>, attr: &Attr| {
                    found.extend((entry.cookie > 2).then_some(*attr));
                    entry.cookie > 2 || entry.ino == attr.ino
                };
                ok(m.union.readdirplus(dir, 2, &mut each)).unwrap();
                for attr in found {
                    m.counted(attr);
                }
            })
        },
        &[
            ("fstatat", "of a"),
            ("fstatat", "of b"),
            ("fstatat", "of c"),
        ],
    );
}

#[test]
fn renaming() {
    let rename = |from: &'static str, to: &'static str, dir| -> Request {
        Box::new(move |m: &Merged| {
            let (from, to) = (OsStr::new(from), OsStr::new(to));
            ok(m.union.rename(dir, from, dir, to, RenameKind::Replace)).unwrap();
        })
    };
    above(
        "rename",
        |m, dir| rename("before", "after", m.walk(dir).unwrap()),
        &[("renameat", "the change")],
    );
    above(
        "rename over a file",
        |m, dir| {
            m.write(&format!("{dir}/after"), b"").unwrap();
            rename("before", "after", m.walk(dir).unwrap())
        },
        &[
            ("openat", "what is replaced stays usable (S8)"),
            ("renameat", "the change"),
        ],
    );
    let mut calls = METADATA.to_vec();
    calls.extend([
        ("utimensat", "the parent has not changed yet"),
        ("setxattr", "where the layer has the data"),
        ("renameat with whiteout", "the change"),
    ]);
    play(
        "rename in a layer",
        |m| {
            m.chmod(FILES[0], 0o600).unwrap();
            m.walk(FILES[1]).unwrap();
            rename("second", "after", m.walk("dir").unwrap())
        },
        &calls,
    );
}

#[test]
fn copying_up() {
    let first = |m: &Merged| m.chmod(FILES[0], 0o600).unwrap();
    let play = |name, change: SetAttr, calls: &[Call]| {
        let request = set(change);
        let prepare = |m: &Merged| {
            first(m);
            request(m)
        };
        play(name, prepare, calls);
    };
    let whole = [&METADATA[..], &AFTER].concat();
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    play("chmod", mode, &whole);
    let time = Some(SetTime::At(Time { sec: 5, nsec: 0 }));
    let times = SetAttr {
        atime: time,
        mtime: time,
        ..SetAttr::default()
    };
    play("utimes", times, &whole);
    let owner = SetAttr {
        uid: Some(nix::unistd::geteuid().as_raw()),
        ..SetAttr::default()
    };
    let chown = [("fchownat", "the change")];
    play(
        "chown",
        owner,
        &[&METADATA[..], &AFTER[..1], &chown, &AFTER[1..]].concat(),
    );
}

#[test]
fn copying_up_data() {
    let prepare = |m: &Merged| -> Request {
        let fh = m.open(FILES[0], libc::O_WRONLY).unwrap();
        m.pwrite(fh, 0, b"x").unwrap();
        m.close(fh);
        let ino = m.walk(FILES[1]).unwrap();
        Box::new(move |m| {
            let fh = ok(m.union.open(&m.caller, ino, libc::O_WRONLY)).unwrap();
            ok(m.union.getxattr(ino, OsStr::new("security.capability"))).unwrap_err();
            m.pwrite(fh, 7, b"!").unwrap();
            m.close(fh);
        })
    };
    play(
        "append",
        prepare,
        &[
            (
                "listxattr",
                "whether the layer's file has capabilities, or any",
            ),
            ("openat to make", "the copy, with its mode"),
            ("openat", "the layer's file"),
            ("pread", "its data"),
            ("pwrite", "into the copy"),
            ("setxattr", "its number"),
            ("utimensat", "its times"),
            ("renameat", "to its place"),
            ("utimensat", "the parent has not changed for users"),
            ("pwrite", "what the program writes"),
        ],
    );
}
