//! Many processes on few names of one mount, with the kernel's caches dropped in between: what each was
//! told fits what is left, every view of it is the same, and the daemon keeps nothing.
//!
//! `CVMFS_UNION_RACES_SECONDS` makes each test longer, `CVMFS_UNION_RACES_SEED` repeats the choices.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::daemon;
use crate::support::deadline::Deadline;
use crate::support::random::Random;
use crate::support::sys::{self, Errno};
use crate::support::{Compare, Fixture, Tree, require_all, text};

const PROCESSES: usize = 5;
/// What a worker process is told: what to do, where, how long, and its seed.
const ROLE: &str = "CVMFS_UNION_RACES_WORKER";

fn seconds(usual: u64) -> u64 {
    let asked = std::env::var("CVMFS_UNION_RACES_SECONDS");
    asked.map_or(usual, |s| s.parse().unwrap())
}

fn seed() -> u64 {
    let asked = std::env::var("CVMFS_UNION_RACES_SEED");
    let now = || {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        since.as_secs() ^ u64::from(since.subsec_nanos())
    };
    asked.map_or_else(|_| now(), |s| s.parse().unwrap())
}

/// The names that were made less those that were taken away, and how much was done.
#[derive(Default)]
struct Balance {
    names: BTreeMap<String, i64>,
    done: u64,
}

impl Balance {
    fn add(&mut self, name: &str, by: i64) {
        *self.names.entry(name.to_owned()).or_default() += by;
    }

    fn merge(&mut self, said: &str) {
        for line in said.lines().filter_map(|l| l.strip_prefix("BALANCE ")) {
            let (name, by) = line.rsplit_once(' ').unwrap();
            match name {
                "done" => self.done += by.parse::<u64>().unwrap(),
                name => self.add(name, by.parse().unwrap()),
            }
        }
    }
}

/// A worker process, if this is one; otherwise nothing.
#[test]
fn worker() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    let [what, root, seconds, seed] = words[..] else {
        panic!("{role}");
    };
    let root = Path::new(root);
    let mut random = Random::new(seed.parse().unwrap());
    let time = Duration::from_secs(seconds.parse().unwrap());
    let end = Instant::now() + time;
    let act: fn(&Path, &mut Random, &mut Balance) = match what {
        "storm" => storm,
        "count" => count,
        "move" => moves,
        "list" => list,
        other => panic!("{other}"),
    };
    let _deadline = Deadline::new(what, time + Duration::from_secs(60));
    let mut balance = Balance::default();
    while Instant::now() < end {
        act(root, &mut random, &mut balance);
        balance.done += 1;
    }
    // Away from what the test harness writes.
    println!();
    for (name, by) in &balance.names {
        println!("BALANCE {name} {by}");
    }
    println!("BALANCE done {}", balance.done);
}

/// What names that come and go, and moves into each other, may answer.
fn expected<T>(result: sys::Result<T>) -> Option<T> {
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

fn storm(root: &Path, random: &mut Random, _: &mut Balance) {
    const NAMES: [&str; 12] = [
        "plain",
        "first",
        "second",
        "empty",
        "other",
        "new",
        "dir",
        "dir/file",
        "dir/gone",
        "dir/sub",
        "dir/sub/deep",
        "other/sub",
    ];
    let mut pick = || root.join(NAMES[random.below(NAMES.len())]);
    let (a, b) = (pick(), pick());
    let write = |path: &Path| {
        let fd = sys::open(path, libc::O_RDWR, 0)?;
        sys::pwrite(&fd, b"storm", 1)?;
        sys::pread(&fd, 100, 0).map(drop)
    };
    let either = |result: sys::Result<()>, also: Errno| match result {
        Err(e) if e == also => Ok(()),
        other => other,
    };
    expected(match random.below(15) {
        0 => sys::make(&a, b"made"),
        1 => sys::mkdir(&a, 0o755),
        2 => sys::unlink(&a),
        3 => sys::rmdir(&a),
        4 => sys::rename(&a, &b, 0),
        5 => sys::rename(&a, &b, libc::RENAME_EXCHANGE),
        6 => sys::rename(&a, &b, libc::RENAME_NOREPLACE),
        // EPERM is for directories.
        7 => either(sys::link(&a, &b), Errno::EPERM),
        8 | 9 => write(&a),
        10 => sys::chmod(&a, 0o700),
        11 => sys::truncate(&a, 3),
        12 => sys::names(&a).map(drop),
        13 => sys::utimens(&a, (1, 0), (2, 0)),
        _ => sys::listxattr(&a).map(drop),
    });
}

fn count(root: &Path, random: &mut Random, balance: &mut Balance) {
    let name = ["plain", "dir/file", "dir/gone", "dir/new"][random.below(4)];
    let path = root.join(name);
    let (change, by) = match random.below(3) {
        0 => (sys::make(&path, b""), 1),
        1 => (sys::link(root.join("first"), &path), 1),
        _ => (sys::unlink(&path), -1),
    };
    if expected(change).is_some() {
        balance.add(name, by);
    }
}

/// All directories below, as far as they stay while they are looked for.
fn directories(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while let Some(dir) = found.get(at).cloned() {
        at += 1;
        let entries = expected(sys::readdir(&dir)).unwrap_or_default();
        for entry in entries.iter().filter(|e| e.kind == libc::DT_DIR) {
            let name = std::str::from_utf8(&entry.name).unwrap();
            if name != "." && name != ".." && found.len() < 64 {
                found.push(dir.join(name));
            }
        }
    }
    found
}

fn moves(root: &Path, random: &mut Random, _: &mut Balance) {
    let all = directories(root);
    let mut pick = || all[random.below(all.len())].clone();
    let (from, to) = (pick(), pick());
    if from == root || to == root {
        return;
    }
    let result = match random.below(3) {
        0 => sys::rename(&from, &to, libc::RENAME_EXCHANGE),
        _ => {
            let to = to.join(from.file_name().unwrap());
            sys::rename(&from, to, libc::RENAME_NOREPLACE)
        }
    };
    expected(result);
}

/// Names that stay are listed once each, from whatever position one goes on; others come and go.
fn list(root: &Path, random: &mut Random, _: &mut Balance) {
    let goes = |n: usize| root.join(format!("d/goes{n}"));
    if random.below(4) != 0 {
        let (a, b) = (goes(random.below(90)), goes(random.below(90)));
        expected(match random.below(3) {
            0 => sys::unlink(a),
            1 => sys::make(a, b""),
            _ => sys::rename(a, b, 0),
        });
        return;
    }
    let mut dir = sys::Dir::open(root.join("d")).unwrap();
    let mut seen = Vec::new();
    let mut position = None;
    loop {
        // Go on in another stream, or in this one after a look elsewhere.
        if let Some(at) = position {
            if random.below(2) == 0 {
                dir = sys::Dir::open(root.join("d")).unwrap();
            } else {
                dir.rewind();
                dir.next().unwrap();
            }
            dir.seek(at);
        }
        for _ in 0..=random.below(30) {
            let Some(entry) = dir.next().unwrap() else {
                seen.sort();
                let all = seen.len();
                seen.dedup();
                assert_eq!((all, seen.len()), (60, 60), "names that stay");
                return;
            };
            position = Some(entry.next);
            if entry.name.starts_with(b"stays") {
                seen.push(entry.name);
            }
        }
    }
}

fn start(what: &str, root: &Path, time: u64, seed: u64) -> Child {
    let role = format!("{what} {} {time} {seed}", root.display());
    Command::new(std::env::current_exe().unwrap())
        .args([
            "races::worker",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Lets the processes loose, and drops caches meanwhile.
fn rage(fixture: &Fixture, roles: &[&str], time: u64) -> Balance {
    let seed = seed();
    eprintln!("{roles:?}: seed {seed}");
    let mut children: Vec<_> = (0..PROCESSES)
        .map(|i| start(roles[i % roles.len()], &fixture.mnt, time, seed ^ i as u64))
        .collect();
    let mut pids: Vec<u32> = children.iter().map(Child::id).collect();
    pids.push(daemon::of(&fixture.mnt).cast_unsigned());
    let _deadline = Deadline::of("races", Duration::from_secs(time + 60), pids);
    let mut balance = Balance::default();
    let mut failed = String::new();
    while children.iter_mut().any(|c| c.try_wait().unwrap().is_none()) {
        std::thread::sleep(Duration::from_millis(300));
        drop_caches();
    }
    for mut child in children {
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_end(&mut complained)
            .unwrap();
        if !child.wait().unwrap().success() {
            failed += &text(&complained);
        }
        balance.merge(&text(&said));
    }
    assert!(failed.is_empty(), "{failed}");
    assert!(balance.done > 0);
    eprintln!("{} operations", balance.done);
    balance
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Every view of the mount is the same: again, from new caches, and mounted anew. `at_first` is how many
/// descriptors the daemon had.
fn settle(mut fixture: Fixture, at_first: usize) {
    let pid = daemon::of(&fixture.mnt).cast_unsigned();
    let _deadline = Deadline::of(
        "settling",
        Duration::from_secs(60),
        vec![pid, std::process::id()],
    );
    let first = Tree::read(&fixture.mnt);
    let same = |what: &str, fixture: &Fixture| {
        let now = Tree::read(&fixture.mnt);
        // The size of a directory may be that from before a copy-up (S53).
        let how = Compare {
            dir_size: false,
            ..Compare::BYTES
        };
        if let Some(difference) = first.difference(&now, how) {
            panic!("{what}: {difference}");
        }
    };
    same("again", &fixture);
    drop_caches();
    same("with new caches", &fixture);
    drop_caches();
    let dirs = first
        .0
        .values()
        .filter(|n| n.mode & libc::S_IFMT == libc::S_IFDIR);
    // Those that are kept of directories: one of the upper, one of each lower.
    let most = at_first + dirs.count() * (1 + fixture.lowers.len());
    let open = descriptors(pid);
    assert!(
        open <= most,
        "{open} descriptors, {at_first} at first, expected up to {most}"
    );
    fixture.remount();
    same("mounted anew", &fixture);
    assert_eq!(sys::names(fixture.work.join("work")).unwrap(), [""; 0]);
}

fn sample() -> (Fixture, usize) {
    let mut fixture = Fixture::new("races");
    let (top, base) = (fixture.lower(), fixture.lower());
    for dir in ["dir", "dir/sub", "empty", "other", "a", "a/b", "c", "c/d"] {
        sys::mkdir(base.join(dir), 0o755).unwrap();
    }
    for file in [
        "plain",
        "first",
        "dir/file",
        "dir/gone",
        "dir/sub/deep",
        "a/b/f",
        "c/d/f",
    ] {
        sys::make(base.join(file), file.as_bytes()).unwrap();
    }
    sys::link(base.join("first"), base.join("second")).unwrap();
    sys::mkdir(top.join("dir"), 0o755).unwrap();
    sys::make(top.join("dir/.wh.gone"), b"").unwrap();
    sys::make(top.join("dir/above"), b"above").unwrap();
    sys::mkdir(base.join("d"), 0o755).unwrap();
    for i in 0..60 {
        sys::make(base.join(format!("d/stays{i}")), b"").unwrap();
        sys::make(base.join(format!("d/goes{i}")), b"").unwrap();
    }
    fixture.mount();
    let at_first = descriptors(daemon::of(&fixture.mnt).cast_unsigned());
    (fixture, at_first)
}

#[test]
fn a_storm_of_processes() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let (fixture, at_first) = sample();
    rage(&fixture, &["storm"], seconds(4));
    settle(fixture, at_first);
}

#[test]
fn creations_and_removals_of_processes_add_up() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let (fixture, at_first) = sample();
    let exists = |name: &str| i64::from(sys::lstat(fixture.at(name)).is_ok());
    let names = ["plain", "dir/file", "dir/gone", "dir/new"];
    let before = names.map(exists);
    let balance = rage(&fixture, &["count"], seconds(3));
    for (name, before) in names.iter().zip(before) {
        let by = balance.names.get(*name).copied().unwrap_or(0);
        assert_eq!(before + by, exists(name), "{name}");
    }
    let links = sys::stat(fixture.at("first")).unwrap().st_nlink;
    let first = sys::stat(fixture.at("first")).unwrap().st_ino;
    let tree = Tree::read(&fixture.mnt);
    let names = tree.0.values().filter(|n| n.ino == first).count();
    assert_eq!(
        links, names as u64,
        "links of a file that others were linked to"
    );
    settle(fixture, at_first);
}

/// Directories move below each other, while their names are listed. Nobody is lost.
#[test]
fn directories_move_across_each_other() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let (fixture, at_first) = sample();
    let files = |fixture: &Fixture| {
        let tree = Tree::read(&fixture.mnt);
        let files = tree.0.into_values();
        let files = files.filter(|n| n.mode & libc::S_IFMT == libc::S_IFREG && n.size > 0);
        let mut files: Vec<_> = files.map(|n| (n.ino, n.content)).collect();
        files.sort();
        files
    };
    let before = files(&fixture);
    rage(&fixture, &["move"], seconds(4));
    assert_eq!(files(&fixture), before);
    settle(fixture, at_first);
}

#[test]
fn listings_while_names_come_and_go() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let (fixture, at_first) = sample();
    rage(&fixture, &["list"], seconds(3));
    settle(fixture, at_first);
}
