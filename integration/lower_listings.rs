//! Directories of lowers are read to their end, whatever their server takes for an answer, and with no
//! request that only tells the end where a CVMFS client says it before.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use fuser::Errno as Wire;

use crate::support::random::Random;
use crate::support::slow_fs::{Fault, SlowFs};
use crate::support::sys::{self, Errno};
use crate::support::{Fixture, daemon, files, require_all, setting};

/// What a name of so many bytes takes of an answer, as the kernel counts it.
fn entry(name: usize) -> usize {
    (24 + name).next_multiple_of(8)
}

/// Makes files whose names have these lengths, longer where that takes to be different.
fn fill(dir: &Path, lengths: &[usize]) {
    fs::create_dir_all(dir).unwrap();
    for (i, length) in lengths.iter().enumerate() {
        let number = i.to_string();
        let rest = "x".repeat(length.saturating_sub(number.len()));
        fs::write(dir.join(number + &rest), "").unwrap();
    }
}

fn union_of(slow: &SlowFs) -> Fixture {
    let mut union = Fixture::new("listings");
    union.lowers.push(slow.root().to_owned());
    union.trust_lowers();
    union.mount();
    union
}

fn names(dir: &Path) -> BTreeSet<String> {
    files::names(dir).into_iter().collect()
}

/// The lengths of names in directories that an answer of a page just holds, or just does not.
fn around_a_page() -> Vec<Vec<usize>> {
    const PAGE: usize = 4096;
    let dots = 2 * entry(1);
    let mut dirs = Vec::new();
    for length in [3, 8, 9, 31, 64, 100, 200, 255] {
        for bytes in [PAGE - 1048, PAGE - 280, PAGE, 2 * PAGE - 1048, 2 * PAGE] {
            let most = (bytes - dots) / entry(length);
            dirs.extend((most - 2..most + 3).map(|count| vec![length; count]));
            // The last ones are as long as they can be.
            dirs.push([vec![length; most], vec![255; 3]].concat());
        }
    }
    let seed = setting("CVMFS_UNION_SEED", 1);
    eprintln!("CVMFS_UNION_SEED={seed}");
    let mut random = Random::new(seed);
    for _ in 0..60 {
        let count = 1 + random.below(300);
        let longest = 1 + random.below(255);
        dirs.push((0..count).map(|_| 1 + random.below(longest)).collect());
    }
    dirs
}

#[test]
fn of_all_sizes() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let dirs = around_a_page();
    let name = |i: usize| format!("d{i}");
    let slow = SlowFs::cached(|top| {
        for (i, lengths) in dirs.iter().enumerate() {
            fill(&top.join(name(i)), lengths);
        }
    });
    for page in [false, true] {
        for i in 0..if page { dirs.len() } else { 0 } {
            slow.faults.set(Fault::Page, name(i));
        }
        let union = union_of(&slow);
        for (i, lengths) in dirs.iter().enumerate() {
            let (asked, seen) = slow.faults.count("readdir", || names(&union.at(name(i))));
            let what = format!("directory {i}, a page at a time: {page}");
            assert_eq!(seen, names(&slow.source.join(name(i))), "{what}");
            let bytes: usize = 64 + lengths.iter().map(|len| entry(*len)).sum::<usize>();
            if bytes <= 3048 {
                assert_eq!(asked, 1, "{bytes} bytes in {what}");
            }
        }
    }
}

/// Neither of a server that is no CVMFS client, nor of one that says so and has other cookies.
#[test]
fn of_servers_that_do_not_fill_their_answers() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    for slow in [
        SlowFs::new(|top| fill(&top.join("d"), &[5; 50])),
        SlowFs::cached(|top| fill(&top.join("d"), &[5; 50])),
    ] {
        slow.faults.set(Fault::FewNames, "d");
        let union = union_of(&slow);
        let (asked, seen) = slow.faults.count("readdir", || names(&union.at("d")));
        assert_eq!(seen, names(&slow.source.join("d")));
        assert!(asked > 50 / 3, "{asked} requests");
    }
}

/// A program that is stopped and goes on has a signal pending, for which older kernels end an answer
/// after any of its names.
#[test]
fn of_a_daemon_that_is_stopped_meanwhile() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let slow = SlowFs::cached(|top| {
        for i in 0..10 {
            fill(&top.join(format!("d{i}")), &[5; 50]);
        }
    });
    let union = union_of(&slow);
    let pid = daemon::of(&union.mnt);
    slow.faults.delay(Duration::from_millis(50));
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            for i in 0..10 {
                let dir = format!("d{i}");
                assert_eq!(names(&union.at(&dir)), names(&slow.source.join(&dir)));
            }
        });
        while !work.is_finished() {
            daemon::signal(pid, libc::SIGSTOP);
            daemon::signal(pid, libc::SIGCONT);
            thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn of_a_layer_that_fails_meanwhile() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let slow = SlowFs::cached(|top| fill(&top.join("d"), &[20; 300]));
    let whole = names(&slow.source.join("d"));
    let mut failed = 0;
    // Beyond the requests that it takes.
    for request in 0..12 {
        let union = union_of(&slow);
        sys::lstat(union.at("d")).unwrap();
        // A listing of several answers.
        slow.faults.set(Fault::Page, "d");
        slow.faults.fail_after(request, true, Wire::EIO);
        let seen = sys::names(union.at("d"));
        slow.faults.lift();
        match seen {
            Ok(names) => assert_eq!(BTreeSet::from_iter(names), whole, "request {request}"),
            Err(errno) => {
                assert_eq!(errno, Errno::EIO, "request {request}");
                failed += 1;
            }
        }
        assert_eq!(names(&union.at("d")), whole, "after request {request}");
    }
    assert!((4..12).contains(&failed), "{failed} requests");
}
