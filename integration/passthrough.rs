//! Files of the upper that the kernel reads and writes itself, beside those it may not.

use std::fs;

use crate::support::files::{file, union_with};
use crate::support::sys::{self, Map};
use crate::support::{Fixture, daemon};

const VALUES: [&str; 4] = ["auto", "off", "upper", "all"];

fn mounted(name: &str, value: &str) -> Option<Fixture> {
    union_with(name, 1, &["--passthrough", value], |lower| {
        file(lower[0].join("f"), &"lower".repeat(2000));
    })
}

/// Bytes that the daemon has written, answers to the kernel included.
fn written_by_daemon(f: &Fixture) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", daemon::of(&f.mnt))).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
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
