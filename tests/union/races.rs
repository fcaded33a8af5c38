//! Many threads on few names: what each was told fits what is left, and nothing else is left.
//!
//! `CVMFS_UNION_RACES_SECONDS` makes each test longer, `CVMFS_UNION_RACES_SEED` repeats a choice.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use cvmfs_union::union::api::{Kind, RenameKind};
use nix::errno::Errno;

use super::{DIALECTS, sample};
use crate::support::deadline::Deadline;
use crate::support::fs::Res;
use crate::support::random::Random;
use crate::support::{Fs, Merged, Stack, assert_same, at_once, ok};

const THREADS: usize = 6;

/// How long a test goes on: so many seconds, or as long as is asked for.
pub fn patience(seconds: u64) -> Duration {
    let asked = std::env::var("CVMFS_UNION_RACES_SECONDS");
    Duration::from_secs(asked.map_or(seconds, |s| s.parse().unwrap()))
}

/// The seed of the whole run.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let asked = std::env::var("CVMFS_UNION_RACES_SEED");
        let seed = asked.map_or_else(|_| crate::model::fresh_seed(), |s| s.parse().unwrap());
        eprintln!("seed of the races: {seed}");
        seed
    })
}

/// What a storm began with, to compare its end with.
struct Storm<'a> {
    stack: &'a Stack,
    merged: Merged,
    descriptors: usize,
    _deadline: Deadline,
}

impl<'a> Storm<'a> {
    fn new(stack: &'a mut Stack, what: &str) -> Storm<'a> {
        stack.keep_little();
        let what = format!("{what} {:?}", stack.whiteouts);
        let time = patience(2) + Duration::from_secs(60);
        let merged = stack.mount();
        Storm {
            stack,
            merged,
            descriptors: stack.descriptors(),
            _deadline: Deadline::new(&what, time),
        }
    }

    /// Every thread is a user of its own, and goes on until the time is over. How often it went.
    fn rage(&self, seconds: u64, act: impl Fn(usize, &Merged, &mut Random) + Sync) -> u32 {
        let end = Instant::now() + patience(seconds);
        let (start, count) = (Barrier::new(THREADS), AtomicU32::new(0));
        at_once((0..THREADS).map(|i| {
            let (start, count, act) = (&start, &count, &act);
            let (union, seed) = (self.merged.union.share(), seed());
            move || {
                let user = Merged::sharing(union);
                let mut random = Random::new(seed ^ (i as u64) << 32);
                start.wait();
                while Instant::now() < end {
                    act(i, &user, &mut random);
                    count.fetch_add(1, Ordering::Relaxed);
                    if random.below(8) == 0 {
                        user.forget();
                    }
                }
                user.forget();
            }
        }));
        let count = count.into_inner();
        eprintln!("{:?}: {count} operations", self.stack.whiteouts);
        count
    }

    /// Nothing is left but the tree, and the next mount shows the same.
    fn settle(self) {
        let Storm {
            stack,
            merged,
            descriptors: before,
            ..
        } = self;
        assert_eq!(merged.nodes_left(), 1, "nodes that nobody knows");
        // More than at the start: one kept directory of the lowers, and one of the upper.
        let open = stack.descriptors();
        assert!(open <= before + 2, "{open} descriptors, {before} at first");
        assert_eq!(stack.work().names("work").unwrap(), [""; 0]);
        let live = merged.tree();
        assert_eq!(live, merged.tree());
        let next = stack.reopen(merged);
        assert_same(&next.tree(), &live, "reopened");
        drop(next);
        assert_eq!(stack.descriptors(), stack.lowers().len());
    }
}

/// What names that come and go, and moves into each other, may answer.
fn expected<T>(result: Res<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(
            Errno::ENOENT
            | Errno::EEXIST
            | Errno::ENOTDIR
            | Errno::EISDIR
            | Errno::ENOTEMPTY
            | Errno::EINVAL
            | Errno::ELOOP,
        ) => None,
        Err(e) => panic!("{e}"),
    }
}

fn in_both_dialects(lowers: usize, what: &str, test: impl Fn(Storm<'_>)) {
    for whiteouts in DIALECTS {
        let mut stack = Stack::with(lowers, whiteouts);
        sample(&stack);
        test(Storm::new(&mut stack, what));
    }
}

/// One thread wins each exclusive creation, and one each removal.
#[test]
fn creations_and_removals_add_up() {
    const NAMES: [&str; 4] = ["plain", "dir/gone", "dir/sub/deep", "dir/new"];
    in_both_dialects(2, "creations", |storm| {
        let there: Vec<AtomicI64> = NAMES
            .iter()
            .map(|name| AtomicI64::new(storm.merged.exists(name).into()))
            .collect();
        storm.rage(1, |_, user, random| {
            let i = random.below(NAMES.len());
            let (name, there) = (NAMES[i], &there[i]);
            let change = match random.below(3) {
                0 => user.create(name, 0o644).map(|fh| {
                    user.close(fh);
                    1
                }),
                1 => user.link("first", name).map(|()| 1),
                _ => user.unlink(name).map(|()| -1),
            };
            there.fetch_add(expected(change).unwrap_or(0), Ordering::Relaxed);
        });
        for (name, there) in NAMES.iter().zip(there) {
            let exists = i64::from(storm.merged.exists(name));
            assert_eq!(there.into_inner(), exists, "{name}");
        }
        storm.settle();
    });
}

/// Bug: a lookup came upon a node that another one had just entered, asked for its place in the upper before
/// its name was known there, and failed with ESTALE.
#[test]
fn lookups_of_one_name_all_find_it() {
    in_both_dialects(2, "lookups of one name", |storm| {
        // A copy with a mark of its number, which makes a lookup compare places.
        storm.merged.chmod("dir/file", 0o640).unwrap();
        storm.merged.forget();
        storm.rage(1, |_, user, _| {
            let found = user.walk("dir/file");
            user.forget();
            found.unwrap();
        });
        storm.settle();
    });
}

/// Everything at once on few names, with listings and evictions in between.
#[test]
fn storms_leave_what_they_show() {
    const NAMES: [&str; 12] = [
        "plain",
        "first",
        "second",
        "empty",
        "shallow",
        "symlink",
        "dir",
        "dir/file",
        "dir/gone",
        "dir/sub",
        "dir/sub/deep",
        "shallow/sub",
    ];
    in_both_dialects(2, "storm", |storm| {
        storm.rage(2, |_, user, random| {
            let (a, b) = (
                NAMES[random.below(NAMES.len())],
                NAMES[random.below(NAMES.len())],
            );
            expected(match random.below(14) {
                0 => user.create(a, 0o644).map(|fh| user.close(fh)),
                1 => user.mkdir(a, 0o755),
                2 => user.unlink(a),
                3 => user.rmdir(a),
                4 => user.rename(a, b, RenameKind::Replace),
                5 => user.rename(a, b, RenameKind::Exchange),
                6 => user.rename(a, b, RenameKind::NoReplace),
                // EPERM is for directories.
                7 => match user.link(a, b) {
                    Err(Errno::EPERM) => Ok(()),
                    other => other,
                },
                8 => user.open(a, libc::O_RDWR).and_then(|fh| {
                    let done = user.pwrite(fh, 1, b"storm");
                    user.close(fh);
                    done.map(drop)
                }),
                // EOPNOTSUPP is for symlinks.
                9 => match user.chmod(a, 0o700) {
                    Err(Errno::EOPNOTSUPP) => Ok(()),
                    other => other,
                },
                10 => user.truncate(a, 3),
                11 => user.symlink("target", a),
                12 => list(user, a),
                _ => user.listxattr(a).map(drop),
            });
        });
        storm.settle();
    });
}

fn list(user: &Merged, path: &str) -> Res<()> {
    ok(user.union.readdir(user.walk(path)?, 0, &mut |_| true))
}

/// Each thread writes its own part of a file of a layer; all parts are there, and the attributes that
/// others set meanwhile.
#[test]
fn one_copy_up_for_many_writers() {
    const PART: usize = 4096;
    for whiteouts in DIALECTS {
        let end = Instant::now() + patience(1);
        let mut round = 0;
        while Instant::now() < end {
            round += 1;
            let mut stack = Stack::with(1, whiteouts);
            stack
                .lower(0)
                .with_file("d/big", &"l".repeat(PART * THREADS));
            let storm = Storm::new(&mut stack, "writers");
            let start = Barrier::new(THREADS);
            at_once((0..THREADS).map(|i| {
                let (start, union) = (&start, storm.merged.union.share());
                move || {
                    let user = Merged::sharing(union);
                    let fh = user.open("d/big", libc::O_RDWR).unwrap();
                    start.wait();
                    match (i + round) % 3 {
                        0 => user.chmod("d/big", 0o600).unwrap(),
                        1 => user.setxattr("d/big", "user.x", b"x", 0).unwrap(),
                        _ => {}
                    }
                    let part = vec![b'0' + u8::try_from(i).unwrap(); PART / 2];
                    let at = (i * PART) as u64;
                    assert_eq!(user.pwrite(fh, at, &part), Ok(PART / 2));
                    let read = user.pread(fh, at, PART).unwrap();
                    assert_eq!(read, [part, vec![b'l'; PART / 2]].concat());
                    user.close(fh);
                    user.forget();
                }
            }));
            let data = storm.merged.read("d/big").unwrap();
            for (i, part) in data.chunks(PART).enumerate() {
                let (new, old) = part.split_at(PART / 2);
                assert!(new.iter().all(|b| usize::from(*b) == i + usize::from(b'0')));
                assert!(old.iter().all(|b| *b == b'l'));
            }
            let attr = storm.merged.stat("d/big").unwrap();
            assert_eq!((attr.mode, attr.nlink), (0o600, 1));
            assert_eq!(storm.merged.getxattr("d/big", "user.x").unwrap(), b"x");
            assert_eq!(stack_files(storm.stack), 1);
            storm.settle();
        }
        eprintln!("{round} rounds");
    }
}

/// How many names the upper holds below `d`.
fn stack_files(stack: &Stack) -> usize {
    stack.upper().names("d").unwrap().len()
}

/// Directories move below each other. Nobody is lost, and nobody is his own ancestor.
#[test]
fn directories_move_across_each_other() {
    for whiteouts in DIALECTS {
        let mut stack = Stack::with(2, whiteouts);
        for dir in ["a/b", "c/d", "e", "f/g/h"] {
            for part in crate::support::fs::components(dir) {
                stack
                    .lower(1)
                    .with_file(&format!("{dir}/below-{part}"), part);
            }
            stack.lower(0).with_file(&format!("{dir}/above"), dir);
        }
        let storm = Storm::new(&mut stack, "moves");
        let files = |m: &Merged| {
            let tree = m.tree();
            let names = tree.0.iter().filter(|(_, e)| e.kind == Kind::File);
            let mut data: Vec<_> = names.map(|(_, e)| e.data.clone()).collect();
            data.sort();
            data
        };
        let before = files(&storm.merged);
        storm.rage(2, |_, user, random| {
            let all = directories(user);
            let mut pick = || all[random.below(all.len())].clone();
            let (from, to) = (pick(), pick());
            let name = from.rsplit('/').next().unwrap();
            let kind = match random.below(3) {
                0 => RenameKind::Exchange,
                _ => RenameKind::NoReplace,
            };
            let to = match kind {
                RenameKind::Exchange => to,
                _ => crate::support::fs::join(&to, name),
            };
            match user.rename(&from, &to, kind) {
                Err(Errno::EBUSY) => {}
                other => drop(expected(other)),
            }
        });
        assert_eq!(files(&storm.merged), before);
        storm.settle();
    }
}

/// The paths of all directories, as far as they stay while they are looked for.
fn directories(user: &Merged) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut at = 0;
    while let Some(dir) = found.get(at).cloned() {
        at += 1;
        let mut below = Vec::new();
        let listed = user.walk(&dir).and_then(|ino| {
            ok(user.union.readdir(ino, 0, &mut |e| {
                if e.kind == Kind::Dir && e.name != b"." && e.name != b".." {
                    below.push(String::from_utf8(e.name.to_vec()).unwrap());
                }
                true
            }))
        });
        if expected(listed).is_some() && found.len() < 64 {
            found.extend(
                below
                    .iter()
                    .map(|name| crate::support::fs::join(&dir, name)),
            );
        }
    }
    found
}

/// Names that stay are listed once each, from whatever position one goes on, while others go and come.
#[test]
fn listings_while_names_go_and_come() {
    for whiteouts in DIALECTS {
        let mut stack = Stack::with(2, whiteouts);
        for i in 0..40 {
            stack.lower(i % 2).with_file(&format!("d/stays{i}"), "");
            stack.lower(i % 2).with_file(&format!("d/goes{i}"), "");
        }
        let storm = Storm::new(&mut stack, "listings");
        for i in 40..60 {
            storm.merged.write(&format!("d/stays{i}"), b"").unwrap();
        }
        let over = AtomicBool::new(false);
        storm.rage(1, |i, user, random| {
            if i > 1 {
                let name = format!("d/goes{}", random.below(60));
                expected(match random.below(3) {
                    0 => user.unlink(&name),
                    1 => user.create(&name, 0o600).map(|fh| user.close(fh)),
                    _ => user.rename(
                        &name,
                        &format!("d/goes{}", random.below(60)),
                        RenameKind::Replace,
                    ),
                });
                return;
            }
            let dir = user.walk("d").unwrap();
            let (mut seen, mut cookie) = (Vec::new(), 0);
            loop {
                let (mut last, mut room) = (None, 1 + random.below(9));
                ok(user.union.readdir(dir, cookie, &mut |e| {
                    if room == 0 {
                        return false;
                    }
                    room -= 1;
                    last = Some(e.cookie);
                    if e.name.starts_with(b"stays") {
                        seen.push(e.name.to_vec());
                    }
                    true
                }))
                .unwrap();
                match last {
                    Some(last) => cookie = last,
                    None => break,
                }
            }
            assert_eq!(seen.len(), 60, "names that stay");
            assert_eq!(
                seen.iter().collect::<BTreeSet<_>>().len(),
                60,
                "names twice"
            );
            over.store(true, Ordering::Relaxed);
        });
        assert!(over.into_inner(), "nothing was listed");
        storm.settle();
    }
}
