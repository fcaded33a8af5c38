//! What the workloads are about: paths of the image, chosen once and the same for every system.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::support::Scratch;
use crate::support::random::Random;

/// How much work a row is.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub stat: usize,
    pub files: usize,
    pub changed: usize,
    pub dirs: usize,
    pub new: usize,
    /// Of the file that is written.
    pub mib: usize,
}

impl Sizes {
    pub const ANCHORS: Sizes = Sizes {
        stat: 20_000,
        files: 10_000,
        changed: 2_000,
        dirs: 500,
        new: 10_000,
        mib: 1024,
    };
    pub const SMOKE: Sizes = Sizes {
        stat: 40,
        files: 20,
        changed: 10,
        dirs: 5,
        new: 20,
        mib: 1,
    };
}

/// A file is small up to this.
const SMALL: u64 = 16 << 10;
/// A directory is deep from so many names on.
const DEEP: usize = 5;
/// So many different names are looked for on the search path.
const SEARCHED: usize = 500;
const PATH: [&str; 6] = [
    "usr/local/sbin",
    "usr/local/bin",
    "usr/sbin",
    "usr/bin",
    "sbin",
    "bin",
];

/// Files of one path a line, relative to the root.
pub struct Lists {
    scratch: Scratch,
    pub sizes: Sizes,
}

#[derive(Default)]
struct Found {
    all: Vec<String>,
    files: Vec<String>,
    small: Vec<String>,
    dirs: Vec<String>,
}

impl Lists {
    /// Chooses from a tree; what lies in `srv` is for rows of its own.
    pub fn of(flat: &Path, sizes: Sizes) -> Lists {
        let mut found = Found::default();
        for name in sorted(flat) {
            if name != Path::new("srv") {
                walk(flat, &name, &mut found);
            }
        }
        let lists = Lists {
            scratch: Scratch::new("lists"),
            sizes,
        };
        lists.write("stat", choice(&found.all, sizes.stat));
        lists.write("stat-2k", choice(&found.all, sizes.changed));
        lists.write("files", choice(&found.files, sizes.files));
        lists.write("small", choice(&found.small, sizes.files));
        lists.write("changed", choice(&found.small, sizes.changed));
        let deep = |dir: &&String| dir.split('/').count() >= DEEP;
        let deep: Vec<_> = found.dirs.iter().filter(deep).cloned().collect();
        lists.write("deep", choice(&deep, sizes.dirs));
        let dirs = choice(&found.dirs, sizes.changed);
        let absent = |i| format!("{}/absent-{i}", dirs[i % dirs.len()]);
        lists.write("absent", (0..sizes.stat).map(absent).collect());
        let searched = |i| PATH.map(|dir| format!("{dir}/no-program-{i}"));
        lists.write("root", vec![".".to_owned()]);
        lists.write("one", choice(&found.small, 1));
        lists.write("path", (0..SEARCHED).flat_map(searched).collect());
        let again = |_| (0..100).map(|i| format!("{}/missing-{i}", dirs[i % 4]));
        lists.write("absent-100", (0..20).flat_map(again).collect());
        lists
    }

    /// A list's file.
    pub fn path(&self, name: &str) -> String {
        let path: PathBuf = self.scratch.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn write(&self, name: &str, lines: Vec<String>) {
        fs::write(self.path(name), lines.join("\n")).unwrap();
    }
}

fn sorted(dir: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries
        .map(|e| PathBuf::from(e.unwrap().file_name()))
        .collect()
}

fn walk(root: &Path, path: &Path, found: &mut Found) {
    let plain = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    if !path.as_os_str().as_bytes().iter().all(plain) {
        return;
    }
    let (full, name) = (root.join(path), path.to_str().unwrap().to_owned());
    let meta = fs::symlink_metadata(&full).unwrap();
    found.all.push(name.clone());
    if meta.is_file() {
        // All of the workloads have something to read.
        if meta.len() > 0 && meta.len() <= SMALL {
            found.small.push(name.clone());
        }
        found.files.push(name);
    } else if meta.is_dir() {
        found.dirs.push(name);
        for below in sorted(&full) {
            walk(root, &path.join(below), found);
        }
    }
}

/// So many of them, in no order, the same each time.
fn choice(of: &[String], count: usize) -> Vec<String> {
    let (mut left, mut random) = (of.to_vec(), Random::new(1));
    let count = count.min(left.len());
    assert!(count > 0, "nothing to choose from");
    for at in 0..count {
        let other = at + random.below(left.len() - at);
        left.swap(at, other);
    }
    left.truncate(count);
    left
}
