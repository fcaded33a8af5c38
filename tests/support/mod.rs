//! Stacks of plain directories, the union of them, and comparisons of whole trees.

#[path = "../../integration/support/deadline.rs"]
pub mod deadline;
pub mod disk;
pub mod faults;
pub mod fs;
pub mod memory;
pub mod merged;
#[path = "../../integration/support/random.rs"]
pub mod random;

use std::cell::OnceCell;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cvmfs_union::error::Error;
use cvmfs_union::union::Union;
use cvmfs_union::union::api::{
    Durability, Limits, LowerSpec, Owner, UnionConfig, UpperSpec, Whiteouts,
};
use cvmfs_union::union::shown::Shown;
use tempfile::TempDir;

pub use disk::Disk;
pub use fs::{Fs, Tree, assert_same};
pub use merged::{Merged, ok};

/// How long to wait for locks that nobody has for long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Directories to mount as a union. When it is dropped, the lowers must be what they were.
#[derive(Debug)]
pub struct Stack {
    dir: PathBuf,
    /// None: somebody else removes the directories.
    owned: Option<TempDir>,
    lowers: Vec<Disk>,
    pub read_only: bool,
    pub whiteouts: Whiteouts,
    pub portable: bool,
    pub owner: Owner,
    pub shown: Shown,
    pub durability: Durability,
    pub limits: Limits,
    /// Dumps of the union show times.
    pub times: bool,
    before: OnceCell<Vec<Tree>>,
}

impl Stack {
    /// Empty lowers and an empty upper.
    pub fn new(lowers: usize) -> Stack {
        let dir = temp_dir();
        let lower = |i| format!("lower{i}");
        let names = ["upper".to_owned(), "work".to_owned()];
        for name in names.into_iter().chain((0..lowers).map(lower)) {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut stack = Stack::attach(dir.path(), lowers);
        stack.owned = Some(dir);
        stack
    }

    /// The directories of a stack that somebody else made.
    pub fn attach(dir: &Path, lowers: usize) -> Stack {
        let lower = |i| Disk::new(&dir.join(format!("lower{i}")));
        Stack {
            dir: dir.to_owned(),
            owned: None,
            lowers: (0..lowers).map(lower).collect(),
            read_only: false,
            whiteouts: Whiteouts::Auto,
            portable: false,
            owner: Owner::Keep,
            shown: Shown::default(),
            durability: Durability::Auto,
            limits: Limits::default(),
            times: false,
            before: OnceCell::new(),
        }
    }

    /// The same with a way to write deletions.
    pub fn with(lowers: usize, whiteouts: Whiteouts) -> Stack {
        let mut stack = Stack::new(lowers);
        stack.whiteouts = whiteouts;
        stack
    }

    /// 0 is the topmost.
    pub fn lower(&self, index: usize) -> &Disk {
        &self.lowers[index]
    }

    pub fn lowers(&self) -> &[Disk] {
        &self.lowers
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn upper(&self) -> Disk {
        Disk::new(&self.path("upper"))
    }

    pub fn work(&self) -> Disk {
        Disk::new(&self.path("work"))
    }

    /// Makes the upper and the work directory empty again, and new.
    pub fn reset(&self) {
        for name in ["upper", "work"] {
            std::fs::remove_dir_all(self.path(name)).unwrap();
            std::fs::create_dir(self.path(name)).unwrap();
        }
    }

    pub fn config(&self) -> UnionConfig {
        let lower = |i| LowerSpec {
            identity: format!("layer {i}"),
            path: self.lower_path(i),
        };
        let upper = UpperSpec {
            upper: self.path("upper"),
            work: self.path("work"),
        };
        UnionConfig {
            lowers: (0..self.lowers.len()).map(lower).collect(),
            upper: (!self.read_only).then_some(upper),
            apart: None,
            whiteouts: self.whiteouts,
            portable_upper: self.portable,
            owner: self.owner,
            shown: self.shown.clone(),
            durability: self.durability,
            limits: self.limits,
            learning: None,
        }
    }

    fn lower_path(&self, index: usize) -> PathBuf {
        self.path(&format!("lower{index}"))
    }

    fn lower_trees(&self) -> Vec<Tree> {
        self.lowers.iter().map(Fs::tree).collect()
    }

    /// The union. The lowers must not change from now on.
    pub fn mount(&self) -> Merged {
        self.before.get_or_init(|| self.lower_trees());
        let mut merged = Merged::new(self.open().unwrap());
        merged.times = self.times;
        merged
    }

    /// The same, which may fail.
    pub fn open(&self) -> Result<Union, Error> {
        self.open_after(&|| ())
    }

    /// The same, with something to be done before each attempt. A process that another thread starts has
    /// the descriptors of this one, and with them the locks, until it runs its program.
    pub fn open_after(&self, before: &dyn Fn()) -> Result<Union, Error> {
        let begun = Instant::now();
        loop {
            before();
            match Union::new(&self.config()) {
                Err(e) if e.errno() == libc::EWOULDBLOCK && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                union => return union,
            }
        }
    }

    /// How many descriptors of this process lead into the directories of the stack.
    pub fn descriptors(&self) -> usize {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.filter(|to| to.starts_with(&self.dir)).count()
    }

    /// Few things are kept, so that eviction is part of everything.
    pub fn keep_little(&mut self) {
        self.limits = Limits {
            directories: NonZeroUsize::MIN,
            listings: NonZeroUsize::MIN,
            files: NonZeroUsize::MIN,
        };
    }

    /// The union as the next mount sees it. No one else uses it.
    pub fn reopen(&self, merged: Merged) -> Merged {
        assert!(!merged.union.is_shared());
        drop(merged);
        self.mount()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let (false, Some(before)) = (std::thread::panicking(), self.before.get()) {
            for (i, (now, before)) in self.lower_trees().iter().zip(before).enumerate() {
                assert_same(now, before, &format!("lower {i} has changed"));
            }
        }
    }
}

/// Where the test directories lie: in `CVMFS_UNION_TEST_DIR`, or in memory if that can hold what the
/// unions write, or among the temporary files.
pub fn temp_dir() -> TempDir {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    let base = BASE.get_or_init(|| match std::env::var_os("CVMFS_UNION_TEST_DIR") {
        Some(dir) => dir.into(),
        None if holds_marks(Path::new("/dev/shm")) => "/dev/shm".into(),
        None => std::env::temp_dir(),
    });
    tempfile::Builder::new()
        .prefix("cvmfs-union-test")
        .tempdir_in(base)
        .unwrap()
}

fn holds_marks(path: &Path) -> bool {
    let Ok(dir) = tempfile::tempdir_in(path) else {
        return false;
    };
    let disk = Disk::new(dir.path());
    disk.mknod("whiteout", libc::S_IFCHR, 0).is_ok()
        && disk.write("file", b"").is_ok()
        && disk.setxattr("file", "user.test", b"y", 0).is_ok()
}

/// Does each on a thread of its own, all at once. The threads are joined, as the end of a scope is nothing
/// that a thread sanitizer sees: the standard library is not instrumented.
pub fn at_once<T: Send>(acts: impl IntoIterator<Item = impl FnOnce() -> T + Send>) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = acts.into_iter().map(|act| scope.spawn(act)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The namespace that the marks of overlayfs stand in.
pub fn mark_space() -> &'static str {
    if is_root() { "trusted" } else { "user" }
}

pub fn opaque_key() -> String {
    format!("{}.overlay.opaque", mark_space())
}

/// The names of a list in which each is ended by a NUL.
pub fn xattr_list(list: &[u8]) -> Vec<String> {
    let names = list.split(|b| *b == 0).filter(|k| !k.is_empty());
    names
        .map(|k| String::from_utf8(k.to_vec()).unwrap())
        .collect()
}
