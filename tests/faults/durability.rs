//! What is synced, and when: by the order of the calls.

use cvmfs_union::sys::fault;
use cvmfs_union::union::api::{Durability, Whiteouts};

use crate::support::fs::Res;
use crate::support::{Fs, Merged, Stack, ok};
use crate::union::{DIALECTS, sample};

use Durability::{Auto, Full, Volatile};

type Act = fn(&Merged) -> Res<()>;

const DATA: [&str; 3] = ["pwrite", "copy_file_range", "ftruncate"];
const SYNCS: [&str; 3] = ["fdatasync", "fsync", "sync_file_range"];

/// The calls of an operation in a fresh union.
fn calls(
    durability: Durability,
    whiteouts: Whiteouts,
    prepare: Act,
    act: Act,
) -> Vec<&'static str> {
    let mut stack = Stack::with(2, whiteouts);
    stack.durability = durability;
    sample(&stack);
    let merged = stack.mount();
    prepare(&merged).unwrap();
    fault::record();
    let done = act(&merged);
    let calls = fault::recorded();
    done.unwrap();
    calls
}

fn nothing(_: &Merged) -> Res<()> {
    Ok(())
}

fn write(path: &str, merged: &Merged) -> Res<()> {
    let fh = merged.open(path, libc::O_WRONLY)?;
    let done = merged.pwrite(fh, 1, b"changed");
    merged.close(fh);
    done.map(drop)
}

/// The copied data, and the call that makes them count.
fn published(calls: &[&'static str], by: &[&str]) -> (usize, usize) {
    let copied = calls.iter().position(|c| *c == "pwrite");
    let copied = copied.unwrap_or_else(|| panic!("no data copied: {calls:?}"));
    let publishes = |(i, c): (usize, &&str)| (i > copied && by.contains(c)).then_some(i);
    let shown = calls.iter().enumerate().find_map(publishes);
    let shown = shown.unwrap_or_else(|| panic!("nothing published: {calls:?}"));
    let last = calls[..shown].iter().rposition(|c| DATA.contains(c));
    (last.unwrap_or(copied), shown)
}

#[test]
fn copied_data_are_synced_before_they_show_unless_volatile() {
    let copy_ups: [(Act, Act, &[&str]); 3] = [
        (
            nothing,
            |m| write("dir/sub/deep", m),
            &["renameat", "linkat"],
        ),
        // The index of hard links shows them already.
        (nothing, |m| write("second", m), &["renameat", "linkat"]),
        // Where the metadata are, the data count as soon as the mark goes.
        (
            |m| m.chmod("plain", 0o600),
            |m| write("plain", m),
            &["removexattr"],
        ),
    ];
    for whiteouts in DIALECTS {
        for durability in [Auto, Full, Volatile] {
            for (prepare, act, by) in copy_ups {
                let calls = calls(durability, whiteouts, prepare, act);
                let (last, shown) = published(&calls, by);
                let between = &calls[last..shown];
                let syncs = between.iter().filter(|c| SYNCS.contains(c));
                let syncs: Vec<_> = syncs.copied().collect();
                let right = match durability {
                    // Where the file system keeps the order, the data need only be written out.
                    Auto => syncs.len() == 1,
                    Full => syncs == ["fdatasync"],
                    Volatile => syncs.is_empty() && !calls.iter().any(|c| SYNCS.contains(c)),
                };
                assert!(right, "{durability:?}, {whiteouts:?}: {calls:?}");
            }
        }
    }
}

#[test]
fn full_syncs_the_directory_of_each_copy() {
    for whiteouts in DIALECTS {
        for (durability, want) in [(Auto, 0), (Full, 3), (Volatile, 0)] {
            // Two directories and a file.
            let calls = calls(durability, whiteouts, nothing, |m| write("dir/sub/deep", m));
            let at = |name| {
                let found = calls.iter().enumerate().filter(move |(_, c)| **c == name);
                found.map(|(i, _)| i).collect::<Vec<_>>()
            };
            let (copies, syncs) = (at("renameat"), at("fsync"));
            assert_eq!(copies.len(), 3, "{calls:?}");
            assert_eq!(syncs.len(), want, "{durability:?}: {calls:?}");
            for (i, (copy, sync)) in copies.iter().zip(&syncs).enumerate() {
                let next = copies.get(i + 1).copied().unwrap_or(calls.len());
                assert!(copy < sync && *sync < next, "{durability:?}: {calls:?}");
            }
        }
    }
}

#[test]
fn programs_sync_unless_volatile() {
    for (durability, want) in [(Auto, true), (Full, true), (Volatile, false)] {
        let file = |m: &Merged| {
            let fh = m.open("new", libc::O_WRONLY)?;
            let done = ok(m.union.fsync(fh, false));
            m.close(fh);
            done
        };
        let dir = |m: &Merged| {
            let dir = m.walk("made")?;
            ok(m.union.fsyncdir(dir, false))
        };
        let prepare = |m: &Merged| {
            m.mkdir("made", 0o755)?;
            m.write("new", b"x")
        };
        for act in [file as Act, dir] {
            let calls = calls(durability, Whiteouts::Auto, prepare, act);
            assert_eq!(calls.contains(&"fsync"), want, "{durability:?}: {calls:?}");
        }
    }
}
