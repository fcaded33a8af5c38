//! What has been looked at once is answered by the kernel: no request reaches the daemon, and what the
//! kernel keeps stays right after changes through the mount.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::files::{file, gone, names, read, union_with};
use crate::support::stats::{Stats, Tally, counts};
use crate::support::sys;
use crate::support::{Fixture, run};

fn tree(name: &str) -> Option<Fixture> {
    tree_with(name, &[])
}

fn tree_with(name: &str, options: &[&str]) -> Option<Fixture> {
    union_with(name, 3, options, |lower| {
        for (i, dir) in lower.iter().enumerate() {
            file(dir.join(format!("both/f{i}")), &"x".repeat(1000 + i));
            file(dir.join(format!("only{i}/deep/f")), "below");
            sys::symlink("f", dir.join(format!("only{i}/deep/link"))).unwrap();
        }
        for program in ["/bin/true", "/bin/sh"] {
            let to = lower[2].join(&program[1..]);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(program, to).unwrap();
        }
    })
}

fn command(program: &str, args: &[&str], dir: &Path) {
    let output = run(Command::new(program).args(args).arg(dir));
    assert!(output.status.success(), "{program}: {output:?}");
}

fn find(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match sys::lstat(&path).unwrap().st_mode & libc::S_IFMT {
            libc::S_IFDIR => find(&path),
            libc::S_IFLNK => drop(sys::readlink(&path).unwrap()),
            _ => {}
        }
    }
}

fn absent(root: &Path) {
    for name in ["absent", "both/absent", "only1/deep/absent"] {
        gone(root.join(name));
    }
}

/// What is sent the third time: after the first listing of a directory the kernel asks once more for its
/// attributes, as it takes its access time to be changed.
fn third(f: &Fixture, job: impl Fn()) -> Tally {
    job();
    job();
    Stats::of(&f.mnt).during(job).0
}

#[test]
fn nothing_is_asked_again() {
    // A kernel that collects writes asks for attributes after each close, as it does not know the blocks.
    let Some(f) = tree_with("warm", &["--writeback=off"]) else {
        return;
    };
    let none = counts([]);
    assert_eq!(third(&f, || find(&f.mnt)), none);
    assert_eq!(third(&f, || absent(&f.mnt)), none);
    // These ask for the file system's type and room too, which no kernel keeps: the one statfs of each is not in the tally.
    for (program, option) in [("find", "-H"), ("du", "-s")] {
        let seen = third(&f, || command(program, &[option], &f.mnt));
        assert_eq!(seen, none, "{program}");
    }
    assert_eq!(third(&f, || command("ls", &["-R"], &f.mnt)), none);
    let seen = third(&f, || drop(read(f.at("both/f1"))));
    assert_eq!(seen, counts([("open", 1)]));
    // The program lies in the mount; its libraries are the machine's.
    let seen = third(&f, || {
        command(f.at("bin/true").to_str().unwrap(), &[], &f.mnt)
    });
    // It asks for capabilities, as this mount honours them.
    assert_eq!(seen, counts([("open", 1), ("getxattr", 1)]));
}

/// No kernel keeps attributes like `security.selinux`, which `ls -l` asks for: but no layer is asked.
#[test]
fn a_long_listing_asks_no_layer() {
    let Some(f) = tree("long") else { return };
    let list = || command("ls", &["-lR"], &f.mnt);
    let seen = third(&f, list);
    assert!(seen.keys().all(|kind| kind == "getxattr"), "{seen:?}");
    let (asked, ()) = Stats::of(&f.mnt).asked_during(list);
    assert_eq!(asked, [counts([]), counts([]), counts([])]);
}

/// A listing of names alone is kept by the kernel, until so many of them are looked up that it had better come with
/// their attributes.
#[test]
fn a_long_listing_that_is_kept_costs_no_lookup_for_each_name() {
    const MANY: usize = 5000;
    let Some(f) = union_with("listed", 1, &[], |lower| {
        (0..MANY).for_each(|i| file(lower[0].join(format!("many/f{i}")), ""));
    }) else {
        return;
    };
    let dir = f.at("many");
    assert_eq!(names(&dir).len(), MANY);
    let stats = Stats::of(&f.mnt);
    let (seen, _) = stats.during(|| assert_eq!(names(&dir).len(), MANY));
    let asked = |seen: &Tally, kind: &str| seen.get(kind).copied().unwrap_or(0);
    assert_eq!(asked(&seen, "readdir") + asked(&seen, "readdirplus"), 0);
    let list = || {
        let output = run(Command::new("ls").arg("-l").arg(&dir));
        let lines = String::from_utf8(output.stdout).unwrap();
        assert_eq!(lines.matches("-rw").count(), MANY);
    };
    let (seen, _) = stats.during(list);
    let lookups = asked(&seen, "lookup");
    assert!(lookups < MANY as u64 / 2, "{seen:?}");
    assert!(asked(&seen, "readdirplus") > 0, "{seen:?}");
    let (seen, _) = stats.during(list);
    assert_eq!(asked(&seen, "lookup"), 0, "{seen:?}");
}

/// Listings of names bring the directories with their attributes: who goes down a tree looks up nothing.
#[test]
fn a_fresh_tree_is_gone_through_without_lookups() {
    const DIRS: u64 = 20;
    let Some(f) = union_with("gone-through", 2, &[], |lower| {
        for i in 0..DIRS {
            file(lower[0].join(format!("t/d{i}/sub/f")), "");
            file(lower[1].join(format!("t/d{i}/g")), "");
        }
    }) else {
        return;
    };
    let (seen, ()) = Stats::of(&f.mnt).during(|| command("find", &[], &f.at("t")));
    let asked = |kind: &str| seen.get(kind).copied().unwrap_or(0);
    assert_eq!(asked("lookup"), 1, "{seen:?}");
    // The top, its directories and what is in each: the beginning, the other names, the end.
    let directories = 1 + 2 * DIRS;
    let listings = asked("readdir") + asked("readdirplus");
    assert!(listings <= 3 * directories, "{seen:?}");
}

#[test]
fn what_is_kept_stays_right() {
    let Some(f) = tree("right") else { return };
    let look = || {
        find(&f.mnt);
        find(&f.mnt);
        absent(&f.mnt);
    };
    look();
    file(f.at("both/absent"), "here");
    assert_eq!(names(f.at("both")), ["absent", "f0", "f1", "f2"]);
    look_at(&f, "both/absent", "here", 0o644);
    sys::unlink(f.at("both/absent")).unwrap();
    look();
    sys::chmod(f.at("both/f0"), 0o600).unwrap();
    look_at(&f, "both/f0", &"x".repeat(1000), 0o600);
    fs::write(f.at("both/f0"), "short").unwrap();
    look_at(&f, "both/f0", "short", 0o600);
    sys::rename(f.at("both/f0"), f.at("only1/moved"), 0).unwrap();
    gone(f.at("both/f0"));
    look_at(&f, "only1/moved", "short", 0o600);
    sys::unlink(f.at("both/f1")).unwrap();
    assert_eq!(names(f.at("both")), ["f2"]);
    sys::rename(f.at("only1"), f.at("moved"), 0).unwrap();
    gone(f.at("only1"));
    assert_eq!(names(f.at("moved")), ["deep", "moved"]);
    assert_eq!(read(f.at("moved/deep/f")), "below");
}

fn look_at(f: &Fixture, path: &str, content: &str, mode: u32) {
    let seen = sys::lstat(f.at(path)).unwrap();
    assert_eq!(
        (seen.st_size, seen.st_mode & 0o777),
        (content.len() as i64, mode)
    );
    assert_eq!(read(f.at(path)), content);
}
