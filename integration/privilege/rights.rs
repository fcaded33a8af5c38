//! A matrix of owners, modes, callers and operations: the mount answers what a plain directory does,
//! and what becomes of the objects is the same.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use crate::support::creds::{
    CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_MKNOD,
    CAP_SETFCAP, CAP_SYS_ADMIN, Creds,
};
use crate::support::sys::{self, Errno};
use crate::support::{Fixture, Scratch, isolated, require_all};

const OWNER: u32 = 1000;
const MEMBER: u32 = 1001;
const STRANGER: u32 = 2000;
const GROUP: u32 = 500;

/// Directories and the files in each: owner, group, mode.
const DIRS: [(u32, u32, u32); 4] = [
    (0, 0, 0o1777),
    (OWNER, GROUP, 0o2775),
    (OWNER, GROUP, 0o1771),
    (0, GROUP, 0o070),
];
const FILES: [(u32, u32, u32); 5] = [
    (OWNER, OWNER, 0o600),
    (OWNER, GROUP, 0o4775),
    (MEMBER, GROUP, 0o666),
    (OWNER, GROUP, 0o006),
    (0, GROUP, 0o2070),
];

fn callers() -> Vec<Creds> {
    let stranger = || Creds::user(STRANGER, STRANGER, &[]);
    vec![
        Creds::root(),
        Creds::root_without("DAC", &[CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH]),
        Creds::root_without("FOWNER", &[CAP_FOWNER, CAP_CHOWN]),
        Creds::root_without("CHOWN", &[CAP_CHOWN]),
        Creds::root_without("FSETID", &[CAP_FSETID]),
        Creds::root_without("ADMIN", &[CAP_SYS_ADMIN, CAP_SETFCAP, CAP_MKNOD]),
        Creds::user(OWNER, OWNER, &[]),
        Creds::user(OWNER, OWNER, &[GROUP]),
        Creds::user(MEMBER, MEMBER, &[GROUP]),
        Creds::user(MEMBER, GROUP, &[]),
        stranger(),
        stranger().with("DAC_OVERRIDE", &[CAP_DAC_OVERRIDE]),
        stranger().with("DAC_READ_SEARCH", &[CAP_DAC_READ_SEARCH]),
        stranger().with("FOWNER", &[CAP_FOWNER]),
        stranger().with("CHOWN and FOWNER", &[CAP_CHOWN, CAP_FOWNER]),
        stranger().with("FSETID", &[CAP_FSETID]),
    ]
}

fn name(parts: (u32, u32, u32)) -> String {
    format!("{}.{}.{:o}", parts.0, parts.1, parts.2)
}

fn own(path: &Path, (uid, gid, mode): (u32, u32, u32)) {
    sys::lchown(path, uid, gid).unwrap();
    sys::chmod(path, mode).unwrap();
}

/// The objects of the matrix.
fn build(root: &Path) {
    sys::mkdir(root, 0o755).unwrap();
    for dir in DIRS {
        let path = root.join(name(dir));
        sys::mkdir(&path, 0o755).unwrap();
        for file in FILES {
            let path = path.join(name(file));
            sys::make(&path, b"#!/bin/true\n").unwrap();
            sys::setxattr(&path, "user.t", b"t", 0).unwrap();
            own(&path, file);
        }
        sys::mkdir(path.join("sub"), 0o755).unwrap();
        sys::symlink("sub", path.join("symlink")).unwrap();
        own(&path, dir);
    }
}

fn access(path: &Path, mode: i32, flags: i32) -> sys::Result<()> {
    let path = sys::c(path);
    let at = libc::AT_FDCWD;
    // SAFETY: the path ends with a NUL.
    match unsafe { libc::syscall(libc::SYS_faccessat2, at, path.as_ptr(), mode, flags) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

/// `u::rwx,g::r-x,o::r--` and one more entry, as the kernel stores it.
fn acl() -> Vec<u8> {
    let none = u32::MAX;
    let entries = [
        (0x01u16, 7u16, none),
        (0x02, 6, MEMBER),
        (0x04, 5, none),
        (0x10, 7, none),
        (0x20, 4, none),
    ];
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

type Op = (&'static str, fn(&Path) -> sys::Result<()>);

fn open(path: &Path, flags: i32) -> sys::Result<()> {
    sys::open(path, flags, 0o666).map(drop)
}

fn beside(path: &Path, name: &str) -> PathBuf {
    path.with_file_name(name)
}

/// In this order, on each file, one after the other.
const OPS: &[Op] = &[
    ("access r", |p| access(p, libc::R_OK, 0)),
    ("access w", |p| access(p, libc::W_OK, libc::AT_EACCESS)),
    ("access x", |p| access(p, libc::X_OK, libc::AT_EACCESS)),
    ("stat", |p| sys::stat(p).map(drop)),
    ("open r", |p| open(p, libc::O_RDONLY)),
    ("open w", |p| open(p, libc::O_WRONLY)),
    ("open rw", |p| open(p, libc::O_RDWR)),
    ("open for append", |p| {
        open(p, libc::O_WRONLY | libc::O_APPEND)
    }),
    ("open without atime", |p| {
        open(p, libc::O_RDONLY | libc::O_NOATIME)
    }),
    ("open by O_CREAT", |p| {
        open(p, libc::O_WRONLY | libc::O_CREAT)
    }),
    ("getxattr", |p| sys::getxattr(p, "user.t").map(drop)),
    ("listxattr", |p| sys::listxattr(p).map(drop)),
    ("write", |p| {
        let fd = sys::open(p, libc::O_WRONLY, 0)?;
        sys::pwrite(&fd, b"#", 0).map(drop)
    }),
    ("set user xattr", |p| sys::setxattr(p, "user.u", b"u", 0)),
    ("set trusted xattr", |p| {
        sys::setxattr(p, "trusted.t", b"u", 0)
    }),
    ("set security xattr", |p| {
        sys::setxattr(p, "security.t", b"u", 0)
    }),
    ("set capability", |p| {
        sys::setxattr(p, "security.capability", &CAPABILITY, 0)
    }),
    ("remove xattr", |p| sys::removexattr(p, "user.t")),
    ("touch", |p| {
        sys::utimens(p, (0, libc::UTIME_NOW), (0, libc::UTIME_NOW))
    }),
    ("set times", |p| sys::utimens(p, (1, 0), (2, 0))),
    ("chgrp to the group", |p| sys::lchown(p, u32::MAX, GROUP)),
    ("chown nothing", |p| sys::lchown(p, u32::MAX, u32::MAX)),
    ("chown to a stranger", |p| {
        sys::lchown(p, STRANGER, u32::MAX)
    }),
    ("chmod", |p| sys::chmod(p, 0o6775)),
    ("truncate", |p| sys::truncate(p, 5)),
    ("chmod again", |p| sys::chmod(p, 0o664)),
    ("set ACL", |p| {
        sys::setxattr(p, "system.posix_acl_access", &acl(), 0)
    }),
    ("open and truncate", |p| {
        open(p, libc::O_WRONLY | libc::O_TRUNC)
    }),
    ("link", |p| sys::link(p, beside(p, "linked"))),
    ("unlink the link", |p| sys::unlink(beside(p, "linked"))),
    ("rename", |p| sys::rename(p, beside(p, "renamed"), 0)),
    ("rename back", |p| sys::rename(beside(p, "renamed"), p, 0)),
    ("rename into another", |p| {
        sys::rename(p, beside(p, "sub/x"), 0)
    }),
    ("exchange", |p| {
        sys::rename(p, beside(p, "sub"), libc::RENAME_EXCHANGE)
    }),
    ("exchange back", |p| {
        sys::rename(p, beside(p, "sub"), libc::RENAME_EXCHANGE)
    }),
    ("unlink", |p| sys::unlink(p)),
    ("create", |p| {
        open(p, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR)
    }),
    ("create set-id", |p| {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        sys::open(beside(p, "setid"), flags, 0o6775).map(drop)
    }),
    ("unlink set-id", |p| sys::unlink(beside(p, "setid"))),
    ("mkdir", |p| sys::mkdir(beside(p, "made"), 0o777)),
    ("rmdir", |p| sys::rmdir(beside(p, "made"))),
    ("mkfifo", |p| {
        sys::mknod(beside(p, "fifo"), libc::S_IFIFO | 0o666, 0)
    }),
    ("unlink fifo", |p| sys::unlink(beside(p, "fifo"))),
    ("mknod", |p| {
        sys::mknod(
            beside(p, "null"),
            libc::S_IFCHR | 0o666,
            libc::makedev(1, 3),
        )
    }),
    ("unlink device", |p| sys::unlink(beside(p, "null"))),
    ("symlink", |p| sys::symlink("target", beside(p, "made"))),
    ("unlink symlink", |p| sys::unlink(beside(p, "made"))),
    ("list", |p| sys::names(p.parent().unwrap()).map(drop)),
    ("chmod directory", |p| {
        let dir = p.parent().unwrap();
        let mode = sys::stat(dir)?.st_mode & 0o7777;
        sys::chmod(dir, mode)
    }),
];

/// What is left of the objects that an operation may touch, as root sees it.
fn state(root: &Path, dir: (u32, u32, u32), file: (u32, u32, u32)) -> String {
    let mut text = String::new();
    for name in [
        "".to_owned(),
        name(file),
        "sub".to_owned(),
        "setid".to_owned(),
        "fifo".to_owned(),
    ] {
        let path = root.join(self::name(dir)).join(&name);
        match sys::lstat(&path) {
            Err(Errno::ENOENT) => {}
            Ok(s) => {
                let is_file = s.st_mode & libc::S_IFMT == libc::S_IFREG;
                let size = if is_file { s.st_size } else { 0 };
                let keys = if is_file {
                    sys::listxattr(&path).unwrap()
                } else {
                    vec![]
                };
                let keys: Vec<_> = keys.iter().map(|k| String::from_utf8_lossy(k)).collect();
                let (mode, uid, gid) = (s.st_mode, s.st_uid, s.st_gid);
                write!(text, " [{name} {mode:o} {uid}:{gid} {size} {keys:?}]").unwrap();
            }
            Err(e) => write!(text, " [{name} {e}]").unwrap(),
        }
    }
    text
}

/// What the caller is told, and what becomes of the objects, line by line.
fn journal(root: &Path, who: &Creds) -> Vec<String> {
    let (ask, asked) = channel::<(usize, PathBuf)>();
    let (tell, told) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            who.run(|| {
                for (op, path) in asked {
                    tell.send(OPS[op].1(&path)).unwrap();
                }
            });
        });
        let mut lines = Vec::new();
        for (dir, file) in DIRS.iter().flat_map(|dir| FILES.map(|file| (*dir, file))) {
            let path = root.join(name(dir)).join(name(file));
            for (i, (what, _)) in OPS.iter().enumerate() {
                ask.send((i, path.clone())).unwrap();
                let said = told.recv().unwrap();
                let state = state(root, dir, file);
                let (dir, file) = (name(dir), name(file));
                lines.push(format!("{dir}/{file} {what}: {said:?}{state}"));
            }
            // The next one begins with an intact directory.
            for left in [path.clone(), beside(&path, "sub/x")] {
                let gone = sys::unlink(left);
                assert!(matches!(gone, Ok(()) | Err(Errno::ENOENT)), "{gone:?}");
            }
        }
        drop(ask);
        lines
    })
}

/// S56: the daemon is told the caller's user and primary group, and no capability. So uid 0 decides
/// instead of CAP_FSETID at a truncation, and instead of CAP_FOWNER at a chown of nothing; and who is
/// of a group otherwise makes no set-gid programs of that group.
fn is_known(who: &Creds, line: &str) -> bool {
    let differs = |cap, op| who.name.contains(cap) && line.contains(op);
    let member = who.gid != GROUP && who.groups.contains(&GROUP);
    member && line.contains(" create set-id: ")
        || differs("FSETID", " truncate: ")
        || differs("FOWNER", " chown nothing: ")
}

/// The lines that differ, for each file the first.
fn differences(who: &Creds, want: &[String], got: &[String]) -> Vec<String> {
    let (mut wrong, mut over) = (Vec::new(), None);
    for (want, got) in want.iter().zip(got) {
        let file = want.split(' ').next();
        if want == got || over == file {
            continue;
        }
        over = file;
        if !is_known(who, want) {
            wrong.push(format!("{}:\n  want {want}\n  got  {got}", who.name));
        }
    }
    wrong
}

#[test]
fn the_matrix_is_that_of_a_plain_directory() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut fixture = Fixture::new("rights");
    let plain = Scratch::new("rights-plain");
    let lower = fixture.lower();
    let callers = callers();
    // One tree for each caller: in the lower, and made through the mount.
    for i in 0..callers.len() {
        build(&lower.join(format!("lower{i}")));
        for part in ["lower", "upper"] {
            build(&plain.path().join(format!("{part}{i}")));
        }
    }
    fixture.mount();
    isolated(|| {
        for i in 0..callers.len() {
            build(&fixture.at(format!("upper{i}")));
        }
    });
    let mut wrong = Vec::new();
    let mut count = 0;
    for (i, who) in callers.iter().enumerate() {
        for part in ["lower", "upper"] {
            let tree = format!("{part}{i}");
            let want = journal(&plain.path().join(&tree), who);
            let got = journal(&fixture.at(&tree), who);
            count += want.len();
            wrong.extend(differences(who, &want, &got));
        }
    }
    eprintln!("{count} answers of {} callers compared", callers.len());
    let shown = wrong.len().min(40);
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong[..shown].join("\n")
    );
}

/// A program runs for whom its mode lets run it.
#[test]
fn programs_run_for_whom_they_may() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut fixture = Fixture::new("exec");
    let plain = Scratch::new("exec-plain");
    let lower = fixture.lower();
    let modes = [0o755, 0o750, 0o700, 0o711, 0o644, 0o001];
    for root in [lower.as_path(), plain.path()] {
        for mode in modes {
            let path = root.join(format!("{mode:o}"));
            std::fs::copy("/bin/true", &path).unwrap();
            own(&path, (OWNER, GROUP, mode));
        }
    }
    fixture.mount();
    for (uid, gid) in [
        (0, 0),
        (OWNER, OWNER),
        (MEMBER, GROUP),
        (STRANGER, STRANGER),
    ] {
        for mode in modes {
            let runs = |root: &Path| {
                use std::os::unix::process::CommandExt;
                let mut command = std::process::Command::new(root.join(format!("{mode:o}")));
                let status = command.uid(uid).gid(gid).current_dir("/").status();
                status.map(|s| s.code()).map_err(|e| e.raw_os_error())
            };
            let (want, got) = (runs(plain.path()), runs(&fixture.mnt));
            assert_eq!(got, want, "{mode:o} as {uid}:{gid}");
        }
    }
}
