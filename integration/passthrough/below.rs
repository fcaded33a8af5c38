//! Files of layers that the kernel reads itself below an upper, and what becomes of them when they are written.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::written_by_daemon;
use crate::support::files::{gone, ino, union_with};
use crate::support::slow_fs::SlowFs;
use crate::support::stats::Stats;
use crate::support::sys::{self, Errno, Map};
use crate::support::{Compare, Fixture, daemon, require_all};

const MIB: usize = 1 << 20;
const OLD: u8 = b'o';

/// What the kernel is given with `auto`: a program, a library, and what is large.
const GIVEN: [(&str, usize, u32); 3] = [
    ("program", MIB, 0o755),
    ("libx.so.1", MIB, 0o644),
    ("data", 64 * MIB, 0o644),
];
const NOT_GIVEN: [(&str, usize, u32); 3] = [
    ("small", MIB - 1, 0o755),
    ("libsmall.so", MIB - 1, 0o644),
    ("text", 4 * MIB, 0o644),
];

/// A mount with these files in its layer, of [`OLD`] alone.
fn mounted(name: &str, options: &[&str], files: &[(&str, usize, u32)]) -> Option<Fixture> {
    if !require_all(&["passthrough"]) {
        return None;
    }
    let options = [&["--writeback=off", "--passthrough=auto"], options].concat();
    union_with(name, 1, &options, |lower| {
        for (name, size, mode) in files {
            sys::make(lower[0].join(name), &vec![OLD; *size]).unwrap();
            sys::chmod(lower[0].join(name), *mode).unwrap();
        }
    })
}

/// A mount with a program that the kernel is given.
fn program(name: &str) -> Option<Fixture> {
    mounted(name, &[], &GIVEN[..1])
}

fn open(path: impl AsRef<Path>, flags: i32) -> OwnedFd {
    sys::open(path, flags, 0).unwrap()
}

fn first(fd: &OwnedFd) -> u8 {
    sys::pread(fd, 1, 0).unwrap()[0]
}

/// Whether reading the file goes past the daemon. It is dropped from the page cache first.
fn goes_past(f: &Fixture, name: &str) -> bool {
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let before = written_by_daemon(f);
    let read = fs::read(f.at(name)).unwrap();
    assert!(read.iter().all(|byte| *byte == OLD));
    let moved = written_by_daemon(f) - before;
    (moved as usize) < read.len() / 2
}

/// Waits until the file, which everybody has closed, is known as any other: the kernel tells of the end of an
/// inode when it likes.
fn closed(f: &Fixture, name: &str, own: u64) {
    daemon::wait("the kernel has two inodes of the file", || {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        requests_of_a_stat(f, name) == 0
    });
    assert_eq!(ino(f.at(name)), own);
}

/// How many requests a stat takes: none of a file of which the kernel keeps what it was told.
fn requests_of_a_stat(f: &Fixture, name: &str) -> u64 {
    let stat = || sys::stat(f.at(name)).unwrap();
    stat();
    let (requests, _) = Stats::of(&f.mnt).during(stat);
    requests.values().sum()
}

#[test]
fn what_is_mapped_or_large_is_read_past_the_daemon() {
    let files = [&GIVEN[..], &NOT_GIVEN[..]].concat();
    for (value, given, others) in [
        ("auto", true, false),
        ("all", true, true),
        ("upper", false, false),
        ("off", false, false),
    ] {
        let option = format!("--passthrough={value}");
        let Some(f) = mounted("given", &[&option], &files) else {
            return;
        };
        for (files, expected) in [(GIVEN, given), (NOT_GIVEN, others)] {
            for (name, ..) in files {
                assert_eq!(goes_past(&f, name), expected, "{value}: {name}");
            }
        }
    }
}

/// As kernel overlayfs has it for mappings: who reads already goes on with what was there.
#[test]
fn a_writer_leaves_those_who_read_already_alone() {
    let Some(f) = program("writer") else {
        return;
    };
    let path = f.at("program");
    let own = ino(&path);
    let early = open(&path, libc::O_RDONLY);
    let seen = Map::new(&early, MIB, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_RDWR | libc::O_DIRECT] {
        let writer = open(&path, flags);
        sys::pwrite(&writer, b"n", 0).unwrap();
        let late = open(&path, libc::O_RDONLY);
        assert_eq!((first(&late), first(&early), seen.get(0)), (b'n', OLD, OLD));
        // All of them are one file.
        for stat in [
            sys::fstat(&early),
            sys::fstat(&writer),
            sys::fstat(&late),
            sys::stat(&path),
        ] {
            let stat = stat.unwrap();
            assert_eq!((stat.st_ino, stat.st_size), (own, MIB as i64));
        }
    }
    sys::fchmod(&early, 0o700).unwrap();
    assert_eq!(sys::stat(&path).unwrap().st_mode & 0o777, 0o700);
    sys::chmod(&path, 0o711).unwrap();
    assert_eq!(sys::fstat(&early).unwrap().st_mode & 0o777, 0o711);
    let mut map = Map::new(
        &open(&path, libc::O_RDWR),
        MIB,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
    )
    .unwrap();
    map.set(1, b'm');
    map.sync().unwrap();
    assert_eq!(fs::read(&path).unwrap()[..2], *b"nm");
    assert_eq!(seen.get(1), OLD);
    drop((map, seen, early));
    closed(&f, "program", own);
    assert_eq!(fs::read(&path).unwrap()[..3], *b"nmo");
    assert_eq!(fs::read(f.upper.join("program")).unwrap()[..3], *b"nmo");
}

/// The page cache of a file that was read through it, past it, and then written as another inode.
#[test]
fn nothing_old_is_read_when_all_have_closed_it() {
    let Some(f) = program("old") else {
        return;
    };
    let path = f.at("program");
    let own = ino(&path);
    // By who may write it is read through the page cache.
    let cached = open(&path, libc::O_RDWR);
    assert!(sys::pread(&cached, MIB, 0).unwrap() == vec![OLD; MIB]);
    drop(cached);
    daemon::wait("it is not read past the daemon", || {
        goes_past(&f, "program")
    });
    for round in b'0'..b'4' {
        let reader = open(&path, libc::O_RDONLY);
        let content = vec![round; MIB];
        fs::write(&path, &content).unwrap();
        assert!(fs::read(&path).unwrap() == content);
        drop(reader);
        closed(&f, "program", own);
        assert!(fs::read(&path).unwrap() == content);
        let size = i64::from(round);
        sys::truncate(&path, size).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content[..size as usize]);
    }
}

#[test]
fn a_file_that_is_read_past_the_daemon_is_truncated() {
    for by_path in [true, false] {
        let Some(f) = program("truncated") else {
            return;
        };
        let path = f.at("program");
        let early = open(&path, libc::O_RDONLY);
        if by_path {
            sys::truncate(&path, 7).unwrap();
        } else {
            drop(open(&path, libc::O_WRONLY | libc::O_TRUNC));
            sys::truncate(&path, 7).unwrap();
        }
        let expected = if by_path { vec![OLD; 7] } else { vec![0; 7] };
        assert_eq!(fs::read(&path).unwrap(), expected);
        assert_eq!(sys::fstat(&early).unwrap().st_size, 7);
        assert_eq!(sys::pread(&early, 1, MIB as i64 - 1).unwrap(), [OLD]);
    }
}

/// A link in `/proc` leads past all names.
#[test]
fn by_proc_it_is_read_as_it_is_now_and_not_written() {
    let Some(f) = program("proc") else {
        return;
    };
    let path = f.at("program");
    let early = open(&path, libc::O_RDONLY);
    let link = PathBuf::from(format!("/proc/self/fd/{}", early.as_raw_fd()));
    for flags in [libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC] {
        assert_eq!(sys::open(&link, flags, 0).err(), Some(Errno::ETXTBSY));
    }
    assert_eq!(sys::truncate(&link, 0).err(), Some(Errno::ETXTBSY));
    let before = open(&link, libc::O_RDONLY);
    assert_eq!(first(&before), OLD);
    let writer = open(&path, libc::O_RDWR);
    sys::pwrite(&writer, b"n", 0).unwrap();
    let now = open(&link, libc::O_RDONLY);
    assert_eq!(
        (first(&now), first(&before), first(&early)),
        (b'n', b'n', OLD)
    );
    // What is written by another name, or without a name, is read by it.
    fs::rename(&path, f.at("moved")).unwrap();
    sys::pwrite(&open(f.at("moved"), libc::O_WRONLY), b"m", 0).unwrap();
    assert_eq!(first(&now), b'm');
    sys::unlink(f.at("moved")).unwrap();
    sys::pwrite(&writer, b"l", 0).unwrap();
    assert_eq!((first(&now), first(&early)), (b'l', OLD));
    gone(&path);
}

/// The kernel knows each name for itself.
#[test]
fn all_names_lead_to_what_was_written() {
    if !require_all(&["passthrough"]) {
        return;
    }
    let options = ["--writeback=off", "--passthrough=auto"];
    let Some(f) = union_with("names", 1, &options, |lower| {
        sys::make(lower[0].join("a"), &vec![OLD; MIB]).unwrap();
        sys::chmod(lower[0].join("a"), 0o755).unwrap();
        sys::link(lower[0].join("a"), lower[0].join("b")).unwrap();
    }) else {
        return;
    };
    let early = [
        open(f.at("a"), libc::O_RDONLY),
        open(f.at("b"), libc::O_RDONLY),
    ];
    sys::link(f.at("a"), f.at("c")).unwrap();
    let early_too = open(f.at("c"), libc::O_RDONLY);
    fs::File::options()
        .write(true)
        .open(f.at("b"))
        .unwrap()
        .write_all_at(b"new", 0)
        .unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(first(&open(f.at(name), libc::O_RDONLY)), b'n', "{name}");
        let stat = sys::stat(f.at(name)).unwrap();
        assert_eq!((stat.st_ino, stat.st_nlink), (ino(f.at("a")), 3));
        let listed = sys::readdir(&f.mnt).unwrap();
        let entry = listed.iter().find(|e| e.name == name.as_bytes()).unwrap();
        assert_eq!(entry.ino, stat.st_ino, "{name}");
    }
    for fd in early.iter().chain([&early_too]) {
        assert_eq!(first(fd), OLD);
    }
}

/// A running program: a copy of one from here.
fn running(f: &Fixture) -> Child {
    let mut command = Command::new(f.at("sleep"));
    command.arg("60").spawn().unwrap()
}

#[test]
fn a_program_that_runs_is_not_written_and_can_be_replaced() {
    if !require_all(&["passthrough"]) {
        return;
    }
    let options = ["--writeback=off", "--passthrough=all"];
    let Some(f) = union_with("runs", 1, &options, |lower| {
        let mut program = fs::read("/bin/sleep").unwrap();
        // It is run all the same.
        program.resize(program.len().max(MIB), 0);
        sys::make(lower[0].join("sleep"), &program).unwrap();
        sys::chmod(lower[0].join("sleep"), 0o755).unwrap();
    }) else {
        return;
    };
    let path = f.at("sleep");
    let mut child = running(&f);
    daemon::wait("the program runs", || {
        sys::open(&path, libc::O_WRONLY, 0).err() == Some(Errno::ETXTBSY)
    });
    assert_eq!(sys::truncate(&path, 0).err(), Some(Errno::ETXTBSY));
    fs::copy(&path, f.at("new")).unwrap();
    fs::rename(f.at("new"), &path).unwrap();
    let mut second = running(&f);
    for child in [&mut child, &mut second] {
        assert!(child.try_wait().unwrap().is_none(), "it goes on");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    sys::pwrite(&open(&path, libc::O_WRONLY), b"#!", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap()[..2], *b"#!");
}

/// Readers come and go while it is written again and again: each sees it as it was at its open, or later.
#[test]
fn readers_beside_a_writer_see_nothing_torn_or_old() {
    let Some(f) = mounted("beside", &["--passthrough=all"], &GIVEN[..1]) else {
        return;
    };
    let path = f.at("program");
    let until = Instant::now() + Duration::from_secs(3);
    let written = AtomicU8::new(OLD);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while Instant::now() < until {
                    let least = written.load(Ordering::SeqCst);
                    let fd = open(&path, libc::O_RDONLY);
                    let seen = first(&fd);
                    assert!(seen >= least, "{seen} after {least} was written");
                    assert_eq!(sys::fstat(&fd).unwrap().st_size, MIB as i64);
                }
            });
        }
        while Instant::now() < until {
            let value = written.load(Ordering::SeqCst).saturating_add(1);
            let writer = open(&path, libc::O_RDWR);
            sys::pwrite(&writer, &[value], 0).unwrap();
            written.store(value, Ordering::SeqCst);
            drop(writer);
            sys::truncate(&path, MIB as i64).unwrap();
        }
    });
    assert!(written.load(Ordering::SeqCst) > OLD + 10);
}

/// Each file is written for the first time while others open it to read.
#[test]
fn who_is_sent_to_the_other_inode_gets_there() {
    const FILES: usize = 40;
    let names: Vec<String> = (0..FILES).map(|n| format!("program{n}")).collect();
    let files: Vec<_> = names.iter().map(|name| (&**name, MIB, 0o755)).collect();
    let Some(f) = mounted("sent", &[], &files) else {
        return;
    };
    let opens = AtomicUsize::new(0);
    for name in &names {
        let path = f.at(name);
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !end.load(Ordering::SeqCst) {
                        let fd = sys::open(&path, libc::O_RDONLY, 0);
                        assert!(fd.is_ok(), "{name}: {fd:?}");
                        opens.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            let before = opens.load(Ordering::SeqCst);
            while opens.load(Ordering::SeqCst) < before + 10 {
                thread::yield_now();
            }
            let writer = sys::open(&path, libc::O_RDWR, 0);
            let again = sys::open(&path, libc::O_WRONLY, 0);
            end.store(true, Ordering::SeqCst);
            assert!(writer.is_ok() && again.is_ok(), "{writer:?}, {again:?}");
        });
    }
}

/// A layer on a file system that may hang or die, of which the daemon keeps what reads it apart.
fn remote(value: &str) -> Option<(SlowFs, Fixture)> {
    if !require_all(&["root", "fuse", "passthrough"]) {
        return None;
    }
    let slow = SlowFs::cached(|dir| {
        sys::make(dir.join("program"), &vec![OLD; MIB]).unwrap();
        sys::chmod(dir.join("program"), 0o755).unwrap();
    });
    let mut f = Fixture::new("remote");
    f.compare = Compare {
        ino: false,
        ..Compare::BYTES
    };
    f.lowers.push(slow.root().to_owned());
    let profiles = f.scratch().join("profiles");
    f.options = vec![
        "--writeback=off".into(),
        format!("--passthrough={value}"),
        "--prefetch=auto".into(),
        format!("--profiles={}", profiles.display()),
    ];
    f.mount();
    Some((slow, f))
}

#[test]
fn what_may_hang_is_read_by_the_daemon_unless_told_otherwise() {
    let Some((_slow, f)) = remote("auto") else {
        return;
    };
    let past: Vec<bool> = (0..3).map(|_| goes_past(&f, "program")).collect();
    assert_eq!(past, [false; 3]);
}

/// On CVMFS the first open shows which parts of a file are read, so that they can be fetched ahead.
#[test]
fn what_is_to_be_fetched_ahead_is_read_by_the_daemon_once() {
    let Some((_slow, f)) = remote("all") else {
        return;
    };
    let past: Vec<bool> = (0..3).map(|_| goes_past(&f, "program")).collect();
    assert_eq!(past, [false, true, true]);
}
