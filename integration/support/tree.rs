//! Whole trees, read through the system calls of programs, and how they differ.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{sys, text};

/// Everything about one object that a comparison may look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    pub size: u64,
    pub rdev: u64,
    pub ino: u64,
    pub mtime: (i64, i64),
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path, in order, that is the same file.
    pub same_as: Vec<u8>,
}

/// All listings of a tree tell the numbers and kinds that attributes tell. Attributes are asked for when all
/// is listed, so none come with the names because they seem to be wanted.
pub fn check_listings(root: &Path) {
    let (mut dirs, mut listed) = (vec![root.to_owned()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in sys::readdir(&dir).unwrap() {
            if entry.name != b"." && entry.name != b".." {
                let path = dir.join(OsStr::from_bytes(&entry.name));
                dirs.extend((entry.kind == libc::DT_DIR).then(|| path.clone()));
                listed.push((path, entry.ino, u32::from(entry.kind) << 12));
            }
        }
    }
    for (path, ino, kind) in listed {
        let seen = sys::lstat(&path).unwrap();
        let seen = (seen.st_ino, seen.st_mode & libc::S_IFMT);
        assert_eq!((ino, kind), seen, "{}", path.display());
    }
}

/// How two trees are compared.
#[derive(Clone, Copy)]
pub struct Compare {
    /// Times from then on are all the same "now".
    pub now: i64,
    /// Whether link counts of directories count.
    pub dir_nlink: bool,
    /// Whether inode numbers must be equal.
    pub ino: bool,
    /// Whether directories' sizes are part of it.
    pub dir_size: bool,
}

impl Compare {
    pub const BYTES: Compare = Compare {
        now: i64::MAX,
        dir_nlink: true,
        ino: true,
        dir_size: true,
    };
}

/// A whole tree, by path relative to its root (which is the empty path).
#[derive(Clone, Debug, Default)]
pub struct Tree(pub BTreeMap<Vec<u8>, Node>);

impl Tree {
    pub fn read(root: &Path) -> Tree {
        let mut tree = Tree::default();
        tree.add(root, Vec::new());
        let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (path, node) in &mut tree.0 {
            node.same_as = first
                .entry(node.ino)
                .or_insert_with(|| path.clone())
                .clone();
        }
        tree
    }

    fn add(&mut self, full: &Path, relative: Vec<u8>) {
        let meta =
            fs::symlink_metadata(full).unwrap_or_else(|e| panic!("lstat {}: {e}", full.display()));
        let kind = meta.file_type();
        let mut xattrs = BTreeMap::new();
        for name in sys::listxattr(full).unwrap_or_default() {
            let value = sys::getxattr(full, OsStr::from_bytes(&name)).unwrap_or_default();
            xattrs.insert(name, value);
        }
        let content = if kind.is_file() {
            fs::read(full).unwrap_or_else(|e| panic!("read {}: {e}", full.display()))
        } else if kind.is_symlink() {
            fs::read_link(full).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let device = kind.is_char_device() || kind.is_block_device();
        let node = Node {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            nlink: meta.nlink(),
            size: meta.size(),
            rdev: if device { meta.rdev() } else { 0 },
            ino: meta.ino(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            content,
            xattrs,
            same_as: Vec::new(),
        };
        self.0.insert(relative.clone(), node);
        if !kind.is_dir() {
            return;
        }
        let mut names: Vec<_> = sys::readdir(full)
            .unwrap_or_else(|e| panic!("readdir {}: {e}", full.display()))
            .into_iter()
            .map(|entry| entry.name)
            .filter(|name| name != b"." && name != b"..")
            .collect();
        names.sort();
        for pair in names.windows(2) {
            assert_ne!(
                pair[0],
                pair[1],
                "a name is listed twice in {}",
                full.display()
            );
        }
        for name in names {
            let mut below = relative.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend(&name);
            self.add(&full.join(OsStr::from_bytes(&name)), below);
        }
    }

    /// The first differences, if there are any.
    pub fn difference(&self, other: &Tree, how: Compare) -> Option<String> {
        let mut said = Vec::new();
        for path in self
            .0
            .keys()
            .chain(other.0.keys().filter(|p| !self.0.contains_key(*p)))
        {
            let name = text(path);
            match (self.0.get(path), other.0.get(path)) {
                (Some(_), None) => said.push(format!("{name:?} is missing")),
                (None, Some(_)) => said.push(format!("{name:?} should not be")),
                (Some(a), Some(b)) => {
                    let (a, b) = (how.view(a), how.view(b));
                    if a != b {
                        said.push(format!("{name:?}: expected {a:?}\n    found {b:?}"));
                    }
                }
                (None, None) => {}
            }
        }
        said.truncate(8);
        (!said.is_empty()).then(|| said.join("\n  "))
    }
}

impl Compare {
    fn view(self, node: &Node) -> Node {
        let mut node = node.clone();
        let dir = node.mode & libc::S_IFMT == libc::S_IFDIR;
        if node.mtime.0 >= self.now {
            node.mtime = (i64::MAX, 0);
        }
        if dir && !self.dir_nlink {
            node.nlink = 0;
        }
        if dir && !self.dir_size {
            node.size = 0;
        }
        if !self.ino {
            node.ino = 0;
        }
        node
    }
}
