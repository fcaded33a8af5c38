//! Images and uppers that somebody made to do harm, on real mounts. Each is walked whole, changed
//! everywhere, mounted again and walked again. The daemon opens nothing outside of the layers, waits for
//! no FIFO, and does not panic.

mod descriptors;
mod images;
mod large;
mod trace;
mod uppers;

use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::canary::Canary;
use crate::support::foreground::Daemon;
use crate::support::sys::{self, Errno, Result};
use crate::support::{Compare, Fixture, Node, Tree, isolated, require_all, within};

/// A walk of a small image, or a set of changes, ends by then, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// After a remount all is as it was, but for the sizes of directories (S53).
const REMOUNTED: Compare = Compare {
    dir_size: false,
    ..Compare::BYTES
};

fn file(path: impl AsRef<Path>, content: &str) {
    sys::make(path, content.as_bytes()).unwrap();
}

fn dirs(path: impl AsRef<Path>) {
    std::fs::create_dir_all(path).unwrap();
}

fn bytes(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

/// Whether what a change says is to be taken as an error of the test.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// All changes are possible, but for deleting the longest names in `.wh.` style (S42).
    Success,
    /// Marks are wrong here and there: an error is an answer.
    Answer,
}

impl Expect {
    fn check(self, what: &str, path: &Path, result: Result<()>) -> bool {
        let long = path.file_name().is_some_and(|name| name.len() > 251);
        match result {
            Ok(()) => true,
            Err(Errno::ENAMETOOLONG) if long => false,
            Err(_) if self == Expect::Answer => false,
            Err(e) => panic!("{what} {path:?}: {e}"),
        }
    }
}

/// Walks all that is mounted: lstat, xattrs, data, targets, listings.
fn walk(mnt: &Path) -> Tree {
    let mnt = mnt.to_owned();
    within(PATIENCE, "a walk", move || Tree::read(&mnt))
}

/// Changes each object in one way or another, the deepest first.
fn change(mnt: &Path, tree: &Tree, expect: Expect) {
    let objects: Vec<_> = tree
        .0
        .iter()
        .rev()
        .filter(|(path, _)| !path.is_empty())
        .collect();
    for (i, (path, node)) in objects.into_iter().enumerate() {
        change_one(&mnt.join(bytes(path)), node, i, expect);
    }
}

fn change_one(path: &Path, node: &Node, i: usize, expect: Expect) {
    let to = path.with_file_name(format!("changed {i}"));
    let ok = |what: &str, result| expect.check(what, path, result);
    let kind = node.mode & libc::S_IFMT;
    ok("chown", sys::lchown(path, 12, 34));
    if kind != libc::S_IFLNK {
        ok("chmod", chmod(path, 0o750));
    }
    match kind {
        libc::S_IFREG => {
            ok("append", append(path));
        }
        libc::S_IFDIR => {
            ok("create", sys::make(path.join(format!("made {i}")), b"made"));
            if expect == Expect::Success {
                assert_eq!(sys::rmdir(path), Err(Errno::ENOTEMPTY));
            }
        }
        _ => {}
    }
    match (kind, i % 4) {
        (_, 0) => drop(ok("rename", sys::rename(path, &to, 0))),
        (libc::S_IFDIR, 1) => {
            ok("unlink", sys::unlink(path.join(format!("made {i}"))));
            if !matches!(sys::rmdir(path), Ok(()) | Err(Errno::ENOTEMPTY)) {
                ok("rmdir", sys::rmdir(path));
            }
        }
        (libc::S_IFDIR, _) => {}
        (_, 1) => drop(ok("unlink", sys::unlink(path))),
        (_, 2) => {
            if ok("unlink", sys::unlink(path)) {
                ok("mkdir", sys::mkdir(path, 0o755));
            }
        }
        _ => drop(ok("link", sys::link(path, &to))),
    }
}

/// The same for what is no link: a name may stand for another thing by now, and who follows must not be us.
fn chmod(path: &Path, mode: u32) -> Result<()> {
    let fd = sys::open(path, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    sys::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)
}

fn append(path: &Path) -> Result<()> {
    // Nothing that a mark calls a file may make us wait.
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    sys::write(&sys::open(path, flags, 0)?, b"!").map(drop)
}

/// A stack of layers that links lead out of.
struct Hostile {
    canary: Canary,
    fixture: Fixture,
}

impl Hostile {
    /// `fill` gets the layers, topmost first.
    fn new(
        name: &str,
        layers: usize,
        fill: impl FnOnce(&[PathBuf], &Canary) + Send,
    ) -> Option<Hostile> {
        if !require_all(&["root", "fuse"]) {
            return None;
        }
        let canary = Canary::new();
        let mut fixture = Fixture::new(name);
        for _ in 0..layers {
            fixture.lower();
        }
        isolated(|| fill(&fixture.lowers, &canary));
        fixture.watch_lowers();
        Some(Hostile { canary, fixture })
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.fixture.at(path)
    }

    /// Walks, changes, mounts again, walks again. Gives `look` the tree to begin with.
    fn run(&self, look: impl FnOnce(&Hostile, &Tree)) {
        let daemon = Daemon::mount(&self.fixture);
        let mnt = self.fixture.mnt.clone();
        let before = walk(&mnt);
        look(self, &before);
        self.canary.check();
        within(PATIENCE, "changes", {
            let mnt = mnt.clone();
            move || isolated(|| change(&mnt, &before, Expect::Success))
        });
        let changed = walk(&mnt);
        daemon.end();
        let daemon = Daemon::mount(&self.fixture);
        assert_eq!(changed.difference(&walk(&mnt), REMOUNTED), None);
        daemon.end();
        self.canary.check();
    }
}

/// The paths of a tree, with what tells their kinds in `ls -F`.
fn shapes(tree: &Tree) -> Vec<String> {
    let shape = |(path, node): (&Vec<u8>, &Node)| {
        let mark = match node.mode & libc::S_IFMT {
            libc::S_IFDIR => "/",
            libc::S_IFLNK => "@",
            libc::S_IFIFO => "|",
            libc::S_IFSOCK => "=",
            libc::S_IFCHR | libc::S_IFBLK => "%",
            _ => "",
        };
        format!("{}{mark}", String::from_utf8_lossy(path))
    };
    tree.0
        .iter()
        .filter(|(path, _)| !path.is_empty())
        .map(shape)
        .collect()
}
