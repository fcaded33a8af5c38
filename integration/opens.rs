//! How often a layer is opened and read, and the daemon is asked, for files that many open many times.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;

use crate::support::files::{file, names, union_with};
use crate::support::slow_fs::{Fault, Faults, SlowFs};
use crate::support::stats::Stats;
use crate::support::sys::{self, Errno, Map};
use crate::support::{Fixture, daemon, require_all};

const READERS: usize = 50;
const SIZE: usize = 3 << 20;

/// A union over a file system that counts what it is asked.
fn counted(name: &str, read_only: bool, options: &[&str]) -> Option<(SlowFs, Fixture)> {
    if !require_all(&["root", "fuse"]) {
        return None;
    }
    let slow = SlowFs::new(|dir| {
        for name in ["one", "many", "small"] {
            let size = if name == "small" { 100 } else { SIZE };
            sys::make(dir.join(name), &vec![name.as_bytes()[0]; size]).unwrap();
        }
    });
    let mut fixture = Fixture::new(name);
    fixture.lowers.push(slow.root().to_owned());
    fixture.read_only = read_only;
    fixture.options = options.iter().map(ToString::to_string).collect();
    fixture.mount();
    Some((slow, fixture))
}

/// For each open of a file that the kernel is to read by itself it has to be given the layer's.
const NOT_ALL: &[&str] = &["--passthrough=auto"];

fn read(path: &Path) {
    let data = fs::read(path).unwrap();
    let name = path.file_name().unwrap().as_encoded_bytes();
    assert!(data.iter().all(|byte| *byte == name[0]));
}

/// Many have the file open before the first is answered.
fn read_together(path: &Path, faults: &Faults) {
    let start = Barrier::new(READERS + 1);
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let _fd = sys::open(path, libc::O_RDONLY, 0).unwrap();
                start.wait();
                read(path);
            });
        }
        start.wait();
        faults.wait_for_stall();
        faults.lift();
    });
}

#[test]
fn many_readers_of_a_cold_file_cost_what_one_does() {
    for read_only in [false, true] {
        let Some((slow, f)) = counted("readers", read_only, NOT_ALL) else {
            return;
        };
        let faults = &slow.faults;
        for (name, size) in [("small", 100), ("many", SIZE)] {
            let bytes = daemon::io(&f.mnt, "rchar");
            let (opens, (reads, ())) = faults.count("open", || {
                faults.count("read", || {
                    faults.set(Fault::Stall, name);
                    read_together(&f.at(name), faults);
                })
            });
            assert_eq!(opens, 1, "{name}, read only: {read_only}");
            if name == "small" {
                assert_eq!(reads, 1, "read only: {read_only}");
            }
            // The requests of the kernel count too.
            let bytes = daemon::io(&f.mnt, "rchar") - bytes;
            let most = size as u64 + (1 << 20);
            assert!(bytes < most, "{name}, read only {read_only}: {bytes} bytes");
        }
    }
}

/// Nothing is opened to look at it, nor to read what the kernel has.
#[test]
fn a_layer_is_opened_for_data_that_nobody_has_only() {
    for read_only in [false, true] {
        let Some((slow, f)) = counted("cached", read_only, NOT_ALL) else {
            return;
        };
        let faults = &slow.faults;
        let path = f.at("small");
        let (opens, _) = faults.count("open", || {
            sys::stat(&path).unwrap();
            let fd = sys::open(&path, libc::O_RDONLY, 0).unwrap();
            sys::fstat(&fd).unwrap();
        });
        assert_eq!(opens, 0, "of a file that is not read");
        let (opens, _) = faults.count("open", || read(&path));
        assert_eq!(opens, 1);
        let before = faults.requests();
        for _ in 0..10 {
            read(&path);
            let fd = sys::open(&path, libc::O_RDONLY, 0).unwrap();
            let map = Map::new(&fd, 100, libc::PROT_READ, libc::MAP_SHARED).unwrap();
            assert_eq!(map.get(99), b's');
        }
        assert_eq!(faults.requests(), before, "read only: {read_only}");
    }
}

/// Asks for everything that a file is opened for.
fn use_all(f: &Fixture) {
    assert_eq!(names(&f.mnt), ["d", "run"]);
    assert_eq!(names(f.at("d")), ["deep", "f"]);
    assert_eq!(names(f.at("d/deep")), [""; 0]);
    assert_eq!(fs::read(f.at("d/f")).unwrap(), b"lower");
    let run = Command::new(f.at("run")).stdout(Stdio::null()).status();
    assert!(run.unwrap().success());
    let fd = sys::open(f.at("d/f"), libc::O_RDONLY, 0).unwrap();
    let map = Map::new(&fd, 5, libc::PROT_READ, libc::MAP_PRIVATE).unwrap();
    assert_eq!(map.get(4), b'r');
    let dir = sys::open(f.at("d"), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    assert_eq!(
        sys::fstat(&dir).unwrap().st_ino,
        sys::stat(f.at("d")).unwrap().st_ino
    );
}

/// How many files each of the next tests has.
const SMALL: usize = 300;

/// Small files that nobody has opened yet.
fn small_files(name: &str) -> Option<Fixture> {
    union_with(name, 1, NOT_ALL, |lowers| fill_small(&lowers[0]))
}

fn fill_small(dir: &Path) {
    for i in 0..SMALL {
        file(dir.join(format!("f{i}")), &format!("content of {i}"));
    }
}

/// Of all sizes up to the largest that is sent.
fn sized(i: usize) -> String {
    let size = (128 << 10) * (i + 1) / SMALL;
    let line = format!("line of {i}\n");
    line.repeat(size.div_ceil(line.len()))[..size].to_owned()
}

#[test]
fn small_files_that_are_opened_and_read_cost_one_request() {
    let fill = |lowers: &[std::path::PathBuf]| {
        for i in 0..SMALL {
            file(lowers[0].join(format!("f{i}")), &sized(i));
        }
    };
    let Some(f) = union_with("early", 1, NOT_ALL, fill) else {
        return;
    };
    names(&f.mnt);
    let stats = Stats::of(&f.mnt);
    let read_all = || {
        for i in 0..SMALL {
            let text = fs::read_to_string(f.at(format!("f{i}"))).unwrap();
            assert_eq!(text, sized(i));
        }
    };
    let (asked, ()) = stats.during(read_all);
    assert_eq!(asked["open"], SMALL as u64);
    // Those to learn from, and the samples after them.
    let reads = asked["read"];
    assert!(
        (SMALL / 16..SMALL / 16 + 8).contains(&(reads as usize)),
        "{reads}"
    );
    let is_cached = || {
        let (asked, ()) = stats.during(read_all);
        assert_eq!(asked["open"], SMALL as u64);
        !asked.contains_key("read")
    };
    // A machine may take back memory that was not used for a while, with pages that have just come to lie in it.
    assert!((0..20).any(|_| is_cached()));
    for i in 0..20 {
        let fd = sys::open(f.at(format!("f{i}")), libc::O_RDONLY, 0).unwrap();
        let pages = sized(i).len().next_multiple_of(4096);
        let map = Map::new(&fd, pages, libc::PROT_READ, libc::MAP_SHARED).unwrap();
        assert!(
            (sized(i).len()..pages).all(|at| map.get(at) == 0),
            "behind the end of {i}"
        );
    }
}

#[test]
fn files_that_are_opened_and_not_read_are_soon_not_read_for_nothing() {
    let Some((slow, f)) = counted_files("unread") else {
        return;
    };
    for i in 0..20 {
        fs::read(f.at(format!("f{i}"))).unwrap();
    }
    let (opened, ()) = slow.faults.count("open", || {
        for i in 20..SMALL {
            sys::open(f.at(format!("f{i}")), libc::O_RDONLY, 0).unwrap();
        }
    });
    // Three samples, and those between them.
    assert!(opened <= 3 * 16, "{opened}");
}

/// The same on a file system that counts.
fn counted_files(name: &str) -> Option<(SlowFs, Fixture)> {
    if !require_all(&["root", "fuse"]) {
        return None;
    }
    let slow = SlowFs::new(fill_small);
    let mut fixture = Fixture::new(name);
    fixture.lowers.push(slow.root().to_owned());
    fixture.options = NOT_ALL.iter().map(ToString::to_string).collect();
    fixture.mount();
    Some((slow, fixture))
}

/// Readers see nothing that was never there, and what is shown at the end is what is there.
#[test]
fn files_that_are_cut_off_while_they_are_opened() {
    let Some(mut f) = small_files("cut off") else {
        return;
    };
    names(&f.mnt);
    for i in 0..20 {
        fs::read(f.at(format!("f{i}"))).unwrap();
    }
    for i in 20..SMALL {
        let path = f.at(format!("f{i}"));
        let whole = format!("content of {i}");
        let start = Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    let seen = fs::read_to_string(&path).unwrap();
                    // The kernel may still have the old size when the new data come.
                    let data = seen.trim_end_matches('\0');
                    assert!(whole.starts_with(data), "{seen:?}");
                });
            }
            start.wait();
            sys::truncate(&path, 7).unwrap();
        });
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
    }
    f.remount();
    for i in 20..SMALL {
        assert_eq!(
            fs::read_to_string(f.at(format!("f{i}"))).unwrap(),
            "content"
        );
    }
}

#[test]
fn a_mount_without_an_upper_is_not_told_of_opens() {
    for (read_only, upper) in [(true, false), (false, true)] {
        let Some(mut f) = union_with("untold", 1, &[], |lower| {
            file(lower[0].join("d/f"), "lower");
            fs::create_dir(lower[0].join("d/deep")).unwrap();
            fs::copy("/bin/true", lower[0].join("run")).unwrap();
        }) else {
            return;
        };
        f.umount();
        f.read_only = read_only;
        // With it each exec asks for capabilities, which the kernel keeps of no FUSE file system.
        f.options = [NOT_ALL, &["-o", "nosuid"]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        f.mount();
        // What is asked once and never again is among these: the end of a file that is closed.
        use_all(&f);
        use_all(&f);
        let before = daemon::io(&f.mnt, "syscw");
        use_all(&f);
        let answers = daemon::io(&f.mnt, "syscw") - before;
        assert_eq!(answers != 0, upper, "{answers} answers");
    }
}

/// What works by a handle elsewhere works without one, and changes are refused as ever.
#[test]
fn files_that_were_not_opened_do_all_that_reading_takes() {
    let Some((_slow, f)) = counted("unopened", true, &[]) else {
        return;
    };
    let fd = sys::open(f.at("small"), libc::O_RDONLY, 0).unwrap();
    assert_eq!(sys::fsync(&fd), Ok(()));
    assert_eq!(sys::lseek(&fd, 0, libc::SEEK_DATA), Ok(0));
    assert_eq!(sys::lseek(&fd, 0, libc::SEEK_HOLE), Ok(100));
    let direct = sys::open(f.at("small"), libc::O_RDONLY | libc::O_DIRECT, 0).unwrap();
    assert_eq!(sys::pread(&direct, 200, 0).unwrap(), vec![b's'; 100]);
    assert_eq!(
        sys::open(f.at("small"), libc::O_RDWR, 0).err(),
        Some(Errno::EROFS)
    );
    let dir = sys::open(&f.mnt, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    assert_eq!(sys::fsync(&dir), Ok(()));
    // A program that is out of the kernel's memory again is read again.
    nix::fcntl::posix_fadvise(
        &fd,
        0,
        0,
        nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )
    .unwrap();
    read(&f.at("small"));
}

/// The kernel grants no more than for a disk unless it is told to.
#[test]
fn large_files_are_read_in_large_pieces() {
    let Some((_slow, f)) = counted("pieces", false, &[]) else {
        return;
    };
    let before = daemon::io(&f.mnt, "syscw");
    let mut file = fs::File::open(f.at("one")).unwrap();
    let mut piece = vec![0; 16 << 10];
    while std::io::Read::read(&mut file, &mut piece).unwrap() > 0 {}
    let answers = daemon::io(&f.mnt, "syscw") - before;
    assert!(answers <= 12, "{answers} answers for {SIZE} bytes");
}
