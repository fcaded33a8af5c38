//! Files that the kernel reads and writes itself, beside those it may not.

use std::fs;
use std::path::Path;

use nix::mount::MsFlags;

use crate::support::files::{file, union_with};
use crate::support::slow_fs::SlowFs;
use crate::support::sys::{self, Errno, Map};
use crate::support::{Compare, Fixture, daemon, require_all};

mod below;

const VALUES: [&str; 4] = ["auto", "off", "upper", "all"];

fn mounted(name: &str, value: &str) -> Option<Fixture> {
    let options = ["--writeback=off", "--passthrough", value];
    union_with(name, 1, &options, |lower| {
        file(lower[0].join("f"), &"lower".repeat(2000));
    })
}

/// Bytes that the daemon has written, answers to the kernel included.
fn written_by_daemon(f: &Fixture) -> u64 {
    daemon::io(&f.mnt, "wchar")
}

#[test]
fn data_of_the_upper_go_past_the_daemon() {
    for value in VALUES {
        let Some(f) = mounted("past", value) else {
            return;
        };
        let data = vec![7; 8 << 20];
        let before = written_by_daemon(&f);
        fs::write(f.at("new"), &data).unwrap();
        assert!(fs::read(f.at("new")).unwrap() == data);
        let moved = written_by_daemon(&f) - before;
        assert_eq!(moved < 1 << 20, value != "off", "{value}: {moved}");
        assert!(fs::read(f.upper.join("new")).unwrap() == data);
    }
}

/// Opens from before a copy-up go through the page cache, and so does what is opened beside them.
#[test]
fn opens_of_all_kinds_agree() {
    for value in VALUES {
        let Some(f) = mounted("kinds", value) else {
            return;
        };
        let open = |flags| sys::open(f.at("f"), flags, 0).unwrap();
        for round in 0..3u8 {
            let early = open(libc::O_RDONLY);
            let seen = Map::new(&early, 4096, libc::PROT_READ, libc::MAP_SHARED).unwrap();
            let _ = seen.get(0);
            let fds = [
                open(libc::O_RDWR),
                open(libc::O_RDWR | libc::O_DIRECT),
                open(libc::O_RDWR),
            ];
            for (i, fd) in (0u8..).zip(&fds) {
                let mark = b'A' + 10 * round + i;
                sys::pwrite(fd, &[mark], i64::from(i)).unwrap();
                for reader in fds.iter().chain([&early]) {
                    let got = sys::pread(reader, 1, i64::from(i)).unwrap();
                    assert_eq!(got, [mark], "{value}, round {round}, written by {i}");
                }
                assert_eq!(seen.get(usize::from(i)), mark, "{value}, round {round}");
            }
            let mut map = Map::new(
                &fds[0],
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
            )
            .unwrap();
            map.set(100, round);
            map.sync().unwrap();
            assert_eq!(sys::pread(&fds[2], 1, 100).unwrap(), [round]);
            assert_eq!(sys::fstat(&early).unwrap().st_size, 10_000);
        }
    }
}

/// How a file is open is decided anew when the last has closed it.
#[test]
fn what_was_copied_up_goes_past_the_daemon_once_it_is_opened_anew() {
    let Some(f) = mounted("anew", "upper") else {
        return;
    };
    let data = vec![7; 8 << 20];
    let reader = sys::open(f.at("f"), libc::O_RDONLY, 0).unwrap();
    let passes = || {
        let before = written_by_daemon(&f);
        fs::write(f.at("f"), &data).unwrap();
        assert!(fs::read(f.at("f")).unwrap() == data);
        written_by_daemon(&f) - before < 1 << 20
    };
    assert!(!passes(), "while it is open through the page cache");
    drop(reader);
    // The kernel tells of a close when it likes.
    daemon::wait("it still goes through the daemon", passes);
}

const SIZE: usize = 4 << 20;

/// A union without an upper, of a file system that counts what it is asked.
fn of_layers_only(name: &str, options: &[&str]) -> Option<(SlowFs, Fixture)> {
    if !require_all(&["root", "fuse", "passthrough"]) {
        return None;
    }
    let slow = SlowFs::new(|dir| {
        sys::make(dir.join("program"), &vec![7; SIZE]).unwrap();
        sys::make(dir.join("other"), b"other").unwrap();
    });
    let mut fixture = Fixture::new(name);
    // A file system that was mounted anew has other numbers.
    fixture.compare = Compare {
        ino: false,
        ..Compare::BYTES
    };
    fixture.lowers.push(slow.root().to_owned());
    fixture.read_only = true;
    fixture.options = options.iter().map(ToString::to_string).collect();
    fixture.mount();
    // In this order, as the last is dropped first.
    Some((slow, fixture))
}

fn remount_writable(mnt: &Path) {
    let flags = MsFlags::MS_REMOUNT;
    nix::mount::mount(None::<&str>, mnt, None::<&str>, flags, None::<&str>).unwrap();
}

#[test]
fn layers_are_read_past_the_daemon_where_nothing_is_written() {
    let Some((slow, f)) = of_layers_only("layers", &["--passthrough=all"]) else {
        return;
    };
    let before = written_by_daemon(&f);
    let data = fs::read(f.at("program")).unwrap();
    assert!(data == vec![7; SIZE]);
    let moved = written_by_daemon(&f) - before;
    assert!(moved < 1 << 20, "{moved} bytes through the daemon");
    // One more was needed to see what the layer's file system can do.
    let (opens, held) = slow.faults.count("open", || {
        let open = || sys::open(f.at("program"), libc::O_RDONLY, 0).unwrap();
        [open(), open(), open()]
    });
    assert_eq!(opens, 3, "opens of the layer by three of the program");
    assert_eq!(sys::pread(&held[2], 1, SIZE as i64 - 1).unwrap(), [7]);
    drop(held);
    let (opens, other) = slow
        .faults
        .count("open", || fs::read(f.at("other")).unwrap());
    assert_eq!((opens, other), (1, b"other".to_vec()));
}

/// The kernel opens a backing file with the flags of whoever opens the file in the mount.
#[test]
fn a_layer_cannot_be_written_by_what_the_kernel_was_given() {
    if !require_all(&["root", "fuse", "passthrough"]) {
        return;
    }
    let mut f = Fixture::new("not-written");
    sys::make(f.lower().join("program"), &[7; 8192]).unwrap();
    f.read_only = true;
    f.options = vec!["--passthrough=all".to_owned()];
    f.mount();
    let path = f.at("program");
    let reader = sys::open(&path, libc::O_RDONLY, 0).unwrap();
    let map = Map::new(&reader, 4096, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    assert_eq!(map.get(0), 7);
    // Only the daemon is left to say no.
    remount_writable(&f.mnt);
    let number = std::os::fd::AsRawFd::as_raw_fd(&reader);
    let mut ways = vec![path.clone(), format!("/proc/self/fd/{number}").into()];
    for entry in fs::read_dir("/proc/self/map_files").unwrap() {
        let entry = entry.unwrap().path();
        ways.extend(
            fs::read_link(&entry)
                .is_ok_and(|to| to == path)
                .then_some(entry),
        );
    }
    assert_eq!(ways.len(), 3, "the mapping is among them");
    for way in &ways {
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR | libc::O_TRUNC] {
            let refused = sys::open(way, flags, 0).err();
            assert_eq!(refused, Some(Errno::EROFS), "{} {flags:o}", way.display());
        }
    }
    assert_eq!(sys::truncate(&path, 0).err(), Some(Errno::EROFS));
    assert_eq!(sys::chmod(&path, 0o777).err(), Some(Errno::EROFS));
    let written = Map::new(
        &reader,
        4096,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
    );
    assert_eq!(written.err(), Some(Errno::EACCES));
    assert_eq!(sys::pread(&reader, 2, 0).unwrap(), [7, 7]);
}

/// Also where an upper stands above: a layer's file is not given away as long as it may be copied up.
#[test]
fn layers_below_an_upper_are_read_by_the_daemon() {
    for value in VALUES {
        let Some(f) = mounted("below", value) else {
            return;
        };
        let reader = sys::open(f.at("f"), libc::O_RDONLY, 0).unwrap();
        let before = written_by_daemon(&f);
        assert_eq!(sys::pread(&reader, 5, 0).unwrap(), b"lower");
        assert!(written_by_daemon(&f) - before >= 10_000, "{value}");
        let number = std::os::fd::AsRawFd::as_raw_fd(&reader);
        let again = format!("/proc/self/fd/{number}");
        let writer = sys::open(again, libc::O_RDWR, 0).unwrap();
        sys::pwrite(&writer, b"UPPER", 0).unwrap();
        assert_eq!(sys::pread(&reader, 5, 0).unwrap(), b"UPPER", "{value}");
    }
}

/// What is read past the daemon fails past it too, but who comes later is served again.
#[test]
fn a_layer_that_comes_back_is_read_past_the_daemon_again() {
    let Some((slow, f)) = of_layers_only("comes-back", &["--passthrough=all"]) else {
        return;
    };
    let read = || fs::read(f.at("other"));
    assert_eq!(read().unwrap(), b"other");
    slow.kill();
    assert_eq!(read().unwrap_err().raw_os_error(), Some(libc::EIO));
    slow.detach();
    slow.attach();
    daemon::wait("the layer is not used again", || read().is_ok());
    let before = written_by_daemon(&f);
    assert!(fs::read(f.at("program")).unwrap() == vec![7; SIZE]);
    assert!(written_by_daemon(&f) - before < 1 << 20);
}
