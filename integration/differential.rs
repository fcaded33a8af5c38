//! Random operations by system calls on a plain directory and on ours: every result is compared,
//! and the whole tree now and then, at the end, and after a remount.
//!
//! `CVMFS_UNION_DIFF_SEEDS` (20) seeds of `CVMFS_UNION_DIFF_OPS` (5000) operations each;
//! `CVMFS_UNION_DIFF_FIRST` is the first seed, to repeat one.

use std::collections::VecDeque;
use std::path::Path;

use crate::support::script::{Item, Op, Random, SLOTS, Side, USER, all_old, layer, put};
use crate::support::{
    Compare, Fixture, Scratch, Tree, check_listings, isolated, mode, now, require_all, setting,
    sys, text,
};

fn compare(
    seed: u64,
    when: &str,
    sides: &[Side; 2],
    dir_nlink: bool,
    log: &VecDeque<String>,
) -> [Tree; 2] {
    let trees = [Tree::read(&sides[0].root), Tree::read(&sides[1].root)];
    let how = Compare {
        now: sides[0].start,
        dir_nlink,
        ino: false,
        dir_size: false,
    };
    if let Some(difference) = trees[0].difference(&trees[1], how) {
        fail(seed, &format!("trees differ {when}:\n  {difference}"), log);
    }
    trees
}

fn fail(seed: u64, what: &str, log: &VecDeque<String>) -> ! {
    let last: Vec<_> = log.iter().map(String::as_str).collect();
    panic!("seed {seed}: {what}\nlast operations:\n{}", last.join("\n"));
}

/// Makes random operations, whatever comes of each; but without names and attributes that are
/// the marks of unions.
pub fn stress(root: &Path, seed: u64, ops: usize) {
    let mut random = Random::new(seed ^ 0x5eed);
    let mut side = Side::new(root.into(), now());
    for _ in 0..ops {
        let op = Op::random(&mut random);
        let text = format!("{op:?}");
        if !text.contains(".wh.") && !text.contains("overlay") {
            // An error is an answer like others.
            let _answer = side.apply(&op);
        }
    }
}

/// What may be other than in a plain tree.
#[derive(Clone, Copy)]
pub struct Lacks {
    /// Directories have no link counts.
    pub dir_nlink: bool,
    /// The kernel collects writes: see [`Side::no_change`].
    pub time_of_no_change: bool,
}

/// Runs a seed on a plain tree and on `other`; `remount` makes it anew in place. Link counts of
/// directories are compared where the file system has any.
fn run(
    seed: u64,
    ops: usize,
    plain: &Path,
    other: &Path,
    collected: bool,
    mut remount: impl FnMut(),
) {
    let lacks = Lacks {
        dir_nlink: sys::stat(plain).unwrap().st_nlink == 1,
        time_of_no_change: collected,
    };
    check_listings(other);
    compared(seed, ops, plain, other, lacks, || {
        remount();
        check_listings(other);
    });
}

pub fn compared(
    seed: u64,
    ops: usize,
    plain: &Path,
    other: &Path,
    lacks: Lacks,
    mut remount: impl FnMut(),
) {
    let mut random = Random::new(seed ^ 0x5eed);
    let start = now() - 1;
    let mut sides = [
        Side::new(plain.into(), start),
        Side::new(other.into(), start),
    ];
    let mut log = VecDeque::new();
    let compare = |when: &str, sides: &[Side; 2], log: &VecDeque<String>| {
        compare(seed, when, sides, !lacks.dir_nlink, log)
    };
    compare("at the start", &sides, &log);
    for number in 1..=ops {
        let op = Op::random(&mut random);
        // S56: a stranger's chown of nothing is granted while somebody has the file open for writing.
        let unclear = matches!(op, Op::Chown(_, u32::MAX, u32::MAX));
        let user = random.chance(10) && !unclear;
        let no_change = if lacks.time_of_no_change {
            sides[0].no_change(&op)
        } else {
            None
        };
        let answers = sides.each_mut().map(|side| {
            if user {
                sys::as_user(USER, USER, || side.apply(&op))
            } else {
                side.apply(&op)
            }
        });
        if let (Some(file), Ok(_)) = (no_change, &answers[0]) {
            file.put_times_back();
        }
        let short = format!("{op:?}");
        let short: String = short.chars().take(200).collect();
        let who = if user { " as user" } else { "" };
        log.push_back(format!("{number}: {short}{who} = {:?}", answers[0]));
        if log.len() > 30 {
            log.pop_front();
        }
        if answers[0] != answers[1] {
            fail(
                seed,
                &format!("expected {:?}\nfound {:?}", answers[0], answers[1]),
                &log,
            );
        }
        if number % (ops / 4).max(1) == 0 {
            let [_, before] = compare("before a remount", &sides, &log);
            for side in &mut sides {
                side.held = [const { None }; SLOTS];
            }
            remount();
            let [_, after] = compare("after a remount", &sides, &log);
            for (path, node) in &before.0 {
                if after.0[path].ino != node.ino {
                    let change = (node.ino, after.0[path].ino);
                    fail(
                        seed,
                        &format!("{:?} changed its number: {change:?}", text(path)),
                        &log,
                    );
                }
            }
        } else if number % 100 == 0 {
            compare("on the way", &sides, &log);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let first = setting("CVMFS_UNION_DIFF_FIRST", 1);
    first..first + setting("CVMFS_UNION_DIFF_SEEDS", 20)
}

fn ops() -> usize {
    usize::try_from(setting("CVMFS_UNION_DIFF_OPS", 5000)).unwrap()
}

/// That the comparison itself is sound: two plain trees never differ.
#[test]
fn plain_is_as_plain() {
    if !require_all(&["root"]) {
        return;
    }
    for seed in seeds().take(3) {
        let scratch = Scratch::new("differential-plain");
        let dirs = [scratch.dir("one"), scratch.dir("two")];
        isolated(|| {
            let items = layer(&mut Random::new(seed), true, true);
            for dir in &dirs {
                items.iter().for_each(|item| put(dir, item, true));
                all_old(dir);
            }
            run(seed, ops(), &dirs[0], &dirs[1], false, || {});
        });
    }
}

/// CVMFS cannot hold a file with names in several directories: its other names come beside the first.
fn as_on_cvmfs((i, item): (usize, Item)) -> Item {
    match item {
        Item::Link(from, _) => {
            let beside = format!("{from}-{i}");
            Item::Link(from, beside)
        }
        other => other,
    }
}

/// `cvmfs`: the layers are as those there.
fn against_plain(seeds: impl Iterator<Item = u64>, options: &[&str], cvmfs: bool) {
    for seed in seeds {
        let mut fixture = Fixture::new("differential");
        fixture
            .options
            .extend(options.iter().map(|o| (*o).to_owned()));
        let plain = fixture.scratch().join("plain");
        isolated(|| {
            sys::mkdir(&plain, 0o755).unwrap();
            let mut random = Random::new(seed);
            let count = 1 + random.below(3);
            // Topmost first, as the mount wants them; applied from the bottom.
            let layers: Vec<_> = (0..count)
                .map(|i| layer(&mut random, i == 0, i + 1 == count))
                .map(|items| match cvmfs {
                    true => items.into_iter().enumerate().map(as_on_cvmfs).collect(),
                    false => items,
                })
                .collect();
            let dirs: Vec<_> = layers.iter().map(|_| fixture.lower()).collect();
            for (items, dir) in layers.iter().zip(&dirs).rev() {
                if cvmfs {
                    sys::setxattr(dir, "user.fqrn", b"images.example.org", 0).unwrap();
                }
                for item in items {
                    put(dir, item, false);
                }
                items.iter().for_each(|item| put(&plain, item, true));
                all_old(dir);
            }
            all_old(&plain);
            fixture.mount();
            let mnt = fixture.mnt.clone();
            let collected = mode::collects_writes();
            run(seed, ops(), &plain, &mnt, collected, || fixture.remount());
        });
        eprintln!("seed {seed}: {} operations", ops());
    }
}

#[test]
fn ours_is_as_plain() {
    if require_all(&["root", "fuse"]) {
        against_plain(seeds(), &[], false);
    }
}

/// With deletions written as `.wh.` files, which takes other steps.
#[test]
fn wh_style_is_as_plain() {
    if require_all(&["root", "fuse"]) {
        against_plain(seeds().take(5), &["--whiteouts", "wh"], false);
    }
}

/// With listings of names alone.
#[test]
fn layers_on_cvmfs_are_as_plain() {
    if require_all(&["root", "fuse"]) {
        against_plain(seeds().take(5), &[], true);
    }
}
