//! How often the file system of the layers is asked: no more than if the merged tree were one plain
//! directory in it, and as often with many layers as with one.
//!
//! The layers lie in a FUSE file system that counts, and whose answers the kernel keeps, as it does
//! those of CVMFS.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::support::files::file;
use crate::support::slow_fs::SlowFs;
use crate::support::stats::Stats;
use crate::support::sys;
use crate::support::{Fixture, require_all};

type Tally = BTreeMap<&'static str, u64>;

const PACKAGES: usize = 30;
const MODULES: usize = 8;

/// Each file of the merged tree, and which of three layers owns it (0: the bottom).
fn tree() -> Vec<(String, usize)> {
    let mut files = Vec::new();
    for package in 0..PACKAGES {
        for module in 0..MODULES {
            let path = format!("lib/py/pkg{package}/m{module}.py");
            files.push((path, package % 3));
        }
    }
    for dir in 0..20 {
        for name in 0..20 {
            files.push((format!("share/d{dir}/s{}/f{name}", dir % 2), 0));
        }
    }
    for name in 0..20 {
        files.push((format!("bin/tool{name}"), 2 * (name % 2)));
    }
    files
}

/// The tree as so many layers, `l0` the topmost: bottom, middle and top own it; the others hold nothing
/// of what is looked at.
fn fill(top: &Path, layers: usize) {
    let owner = |of: usize| match of {
        0 => layers - 1,
        1 => layers / 2,
        _ => 0,
    };
    for layer in 0..layers {
        file(top.join(format!("l{layer}/opt/x{layer}/f")), "x");
    }
    for (path, of) in tree() {
        file(top.join(format!("l{}/{path}", owner(of))), &path.repeat(40));
    }
}

/// A way into the merged tree, and the file system below it.
struct Way {
    slow: SlowFs,
    union: Option<Fixture>,
    root: PathBuf,
    seen: Tally,
}

impl Way {
    fn flat() -> Way {
        let slow = SlowFs::cached(|top| {
            for layer in 0..12 {
                file(top.join(format!("flat/opt/x{layer}/f")), "x");
            }
            for (path, _) in tree() {
                file(top.join(format!("flat/{path}")), &path.repeat(40));
            }
        });
        let root = slow.root().join("flat");
        Way {
            slow,
            union: None,
            root,
            seen: Tally::new(),
        }
    }

    fn union(layers: usize) -> Way {
        let slow = SlowFs::cached(|top| fill(top, layers));
        let mut union = Fixture::new("requests");
        union.lowers = (0..layers)
            .map(|i| slow.root().join(format!("l{i}")))
            .collect();
        union.trust_lowers();
        union.mount();
        let root = union.mnt.clone();
        Way {
            slow,
            union: Some(union),
            root,
            seen: Tally::new(),
        }
    }

    /// The requests since the last call.
    fn more(&mut self) -> Tally {
        let now = self.slow.faults.tally();
        let mut more = now.clone();
        for (kind, count) in &self.seen {
            *more.get_mut(kind).unwrap() -= count;
        }
        more.retain(|_, count| *count > 0);
        self.seen = now;
        more
    }
}

type Step = (&'static str, fn(&Path));

/// What a program does, in its order.
const WORK: [Step; 7] = [
    ("mount and stat", |root| {
        sys::stat(root).unwrap();
    }),
    ("imports", imports),
    ("imports again", imports),
    ("find lib", |root| find(&root.join("lib"))),
    ("absent names", absent),
    ("stat of paths", |root| {
        for (path, _) in tree().iter().filter(|(path, _)| path.starts_with("share")) {
            sys::lstat(root.join(path)).unwrap();
        }
    }),
    ("find share", |root| find(&root.join("share"))),
];

/// Looks for each package where it is not, and reads its modules.
fn imports(root: &Path) {
    for package in 0..10 {
        for place in ["bin", "lib/py"] {
            for end in ["", ".so", ".py", ".pyc"] {
                let path = root.join(format!("{place}/pkg{package}{end}"));
                let there = place == "lib/py" && end.is_empty();
                assert_eq!(sys::lstat(path).is_ok(), there);
            }
        }
        for module in 0..MODULES {
            let path = root.join(format!("lib/py/pkg{package}/m{module}.py"));
            assert!(sys::lstat(path.with_extension("so")).is_err());
            sys::stat(&path).unwrap();
            fs::read(&path).unwrap();
        }
    }
}

fn absent(root: &Path) {
    for _ in 0..20 {
        for name in 0..100 {
            assert!(sys::lstat(root.join(format!("bin/absent{name}"))).is_err());
        }
    }
}

fn find(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if sys::lstat(entry.path()).unwrap().st_mode & libc::S_IFMT == libc::S_IFDIR {
            find(&entry.path());
        }
    }
}

fn measure(mut way: Way) -> Vec<(&'static str, Tally)> {
    let done = WORK.iter().map(|(name, work)| {
        work(&way.root);
        (*name, way.more())
    });
    let done = done.collect();
    drop(way.union);
    done
}

fn total(tally: &Tally) -> u64 {
    tally.values().sum()
}

#[test]
fn no_more_than_of_a_plain_directory() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let flat = measure(Way::flat());
    let few = measure(Way::union(12));
    let many = measure(Way::union(50));
    for (union, layers) in [(&measure(Way::union(1)), 1), (&few, 12), (&many, 50)] {
        let (_, mount) = &union[0];
        // Each is found and listed, one is asked for its repository and the revision of that, and the upper takes on
        // the root.
        let of_each = ["lookup", "opendir", "readdir"];
        let mut want: Tally = of_each.map(|kind| (kind, layers)).into();
        want.extend([("getxattr", 2), ("getattr", 1), ("listxattr", 1)]);
        assert_eq!(*mount, want, "{layers} layers");
        for ((work, asked), (_, plain)) in union.iter().zip(&flat).skip(1) {
            let (n, most) = (total(asked), total(plain));
            assert!(
                n <= most,
                "{work}, {layers} layers: {asked:?}, of {plain:?}"
            );
        }
        for again in ["imports again", "absent names"] {
            let (_, asked) = union.iter().find(|(work, _)| *work == again).unwrap();
            assert_eq!(*asked, Tally::new(), "{again}, {layers} layers");
        }
    }
    assert_eq!(few[1..], many[1..]);
}

/// A directory of which one layer holds all is asked for names, and not read, until reading it would
/// have cost as much.
#[test]
fn a_directory_is_listed_when_probes_repeat() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut way = Way::union(3);
    way.more();
    let lookups = |n| Tally::from([("lookup", n)]);
    let at = |name: &str| way.root.join("share/d0/s0").join(name);
    let (there, absent) = (at("f0"), [at("a0"), at("a1"), at("a2"), at("a3"), at("a4")]);
    let gone = |path: &Path| assert!(sys::lstat(path).is_err());
    sys::lstat(&there).unwrap();
    assert_eq!(way.more(), lookups(4));
    for path in &absent[..3] {
        gone(path);
        assert_eq!(way.more(), lookups(1));
        gone(path);
        assert_eq!(way.more(), Tally::new());
    }
    gone(&absent[3]);
    assert_eq!(way.more(), Tally::from([("opendir", 1), ("readdir", 1)]));
    gone(&absent[4]);
    assert_eq!(way.more(), Tally::new());
}

/// Names and kinds of a whole tree, as `find` wants them.
fn names_of(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            names_of(&entry.path());
        }
    }
}

/// A listing asks for no attributes where nobody wants them; numbers and kinds are right all the same.
#[test]
fn names_cost_no_more_than_of_a_plain_directory() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let of = |mut way: Way| {
        sys::lstat(&way.root).unwrap();
        way.more();
        names_of(&way.root.join("lib"));
        let found = way.more();
        // Directories, and files.
        for dir in ["share/d3", "share/d3/s1"] {
            let dir = way.root.join(dir);
            for entry in sys::readdir(&dir).unwrap() {
                let name = OsStr::from_bytes(&entry.name);
                if name != "." && name != ".." {
                    let seen = sys::lstat(dir.join(name)).unwrap();
                    let seen = (seen.st_ino, seen.st_mode & libc::S_IFMT);
                    assert_eq!((entry.ino, u32::from(entry.kind) << 12), seen);
                }
            }
        }
        found
    };
    let flat = of(Way::flat());
    // `lib`, `lib/py` and what is in it.
    assert_eq!(flat["lookup"], 2 + PACKAGES as u64);
    let union = of(Way::union(1));
    assert!(total(&union) <= total(&flat), "{union:?}, of {flat:?}");
    // Those that merge are found and listed in each of the three layers. Each listing is one request
    // less than a program's.
    let listed = 2 + PACKAGES as u64;
    let union = of(Way::union(12));
    assert!(
        total(&union) <= total(&flat) + 2 * 2 * 3 - listed,
        "{union:?}, of {flat:?}"
    );
}

/// Who looks at all the names, as `ls -l` does, is given the attributes with them from then on.
#[test]
fn attributes_come_with_the_names_for_those_who_look_at_them() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let way = Way::union(3);
    let stats = Stats::of(&way.root);
    let (asked, ()) = stats.during(|| find(&way.root.join("share")));
    drop(stats);
    // Of 400 files in 20 directories, those of a directory now and then. Each directory is looked up, too.
    assert!((40..200).contains(&asked["lookup"]), "{asked:?}");
    assert!(asked["readdirplus"] >= 20, "{asked:?}");
}

/// What a program reads at once is not asked of the layer in as many pieces as the program itself would
/// send.
#[test]
fn large_files_are_read_in_fewer_requests_than_of_a_plain_directory() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let data = vec![b'x'; 8 << 20];
    let slow = SlowFs::cached(|top| {
        fs::write(top.join("plain"), &data).unwrap();
        fs::write(top.join("ours"), &data).unwrap();
    });
    let mut union = Fixture::new("large");
    union.lowers.push(slow.root().to_owned());
    union.trust_lowers();
    union.mount();
    let read = |path| {
        slow.faults
            .count("read", || assert!(fs::read(path).unwrap() == data))
            .0
    };
    let (plain, ours) = (read(slow.root().join("plain")), read(union.at("ours")));
    assert!(ours * 4 <= plain * 3, "{ours}, of {plain}");
}
