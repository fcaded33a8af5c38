//! What tests ask of a file system by path, be it a union or a plain directory, and dumps of whole
//! trees to compare. Paths have no leading slash; the empty one is the root. No symlink is followed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use cvmfs_union::union::api::{Attr, Kind, RenameKind};
use nix::errno::Errno;

pub type Res<T> = Result<T, Errno>;

/// Operations by path.
pub trait Fs {
    fn stat(&self, path: &str) -> Res<Attr>;
    /// The names in a directory, without the dots, sorted.
    fn names(&self, path: &str) -> Res<Vec<String>>;
    fn readlink(&self, path: &str) -> Res<Vec<u8>>;

    /// Makes a file that must not be there yet, and opens it for reading and writing.
    fn create(&self, path: &str, mode: u32) -> Res<u64>;
    fn open(&self, path: &str, flags: i32) -> Res<u64>;
    fn pread(&self, fh: u64, offset: u64, len: usize) -> Res<Vec<u8>>;
    fn pwrite(&self, fh: u64, offset: u64, data: &[u8]) -> Res<usize>;
    fn close(&self, fh: u64);

    fn mkdir(&self, path: &str, mode: u32) -> Res<()>;
    fn symlink(&self, target: &str, path: &str) -> Res<()>;
    /// `mode` holds the kind.
    fn mknod(&self, path: &str, mode: u32, rdev: u64) -> Res<()>;
    fn link(&self, from: &str, to: &str) -> Res<()>;
    fn unlink(&self, path: &str) -> Res<()>;
    fn rmdir(&self, path: &str) -> Res<()>;
    fn rename(&self, from: &str, to: &str, kind: RenameKind) -> Res<()>;

    fn chmod(&self, path: &str, mode: u32) -> Res<()>;
    fn chown(&self, path: &str, uid: u32, gid: u32) -> Res<()>;
    fn truncate(&self, path: &str, size: u64) -> Res<()>;
    fn set_mtime(&self, path: &str, sec: i64) -> Res<()>;

    fn setxattr(&self, path: &str, key: &str, value: &[u8], flags: i32) -> Res<()>;
    fn getxattr(&self, path: &str, key: &str) -> Res<Vec<u8>>;
    fn listxattr(&self, path: &str) -> Res<Vec<String>>;
    fn removexattr(&self, path: &str, key: &str) -> Res<()>;

    /// The link count to show for a directory. Plain file systems differ in what they count.
    fn dir_nlink(&self, attr: &Attr, _subdirs: u32) -> u32 {
        attr.nlink
    }

    /// All the data of a file.
    fn read(&self, path: &str) -> Res<Vec<u8>> {
        let size = usize::try_from(self.stat(path)?.size).unwrap();
        let fh = self.open(path, libc::O_RDONLY)?;
        // One more byte than the size says: a file that is longer than it shows is a bug.
        let data = self.pread(fh, 0, size + 1);
        self.close(fh);
        data
    }

    /// Makes the file, or replaces its data.
    fn write(&self, path: &str, data: &[u8]) -> Res<()> {
        let fh = match self.create(path, 0o644) {
            Err(Errno::EEXIST) => self.open(path, libc::O_WRONLY | libc::O_TRUNC)?,
            other => other?,
        };
        let done = self.pwrite(fh, 0, data);
        self.close(fh);
        assert_eq!(done?, data.len());
        Ok(())
    }

    fn exists(&self, path: &str) -> bool {
        match self.stat(path) {
            Ok(_) => true,
            Err(Errno::ENOENT | Errno::ENOTDIR) => false,
            Err(e) => panic!("stat {path}: {e}"),
        }
    }

    /// The time of the last change of an object, if dumps are to show it and it was not changed lately.
    fn mtime_of_old(&self, _attr: &Attr) -> Option<i64> {
        None
    }

    /// Told at the begin and the end of a dump.
    fn dumping(&self, _begins: bool) {}

    /// Adds what is open and is to be looked at, too.
    fn add_open(&self, _tree: &mut Tree) -> Result<(), String> {
        Ok(())
    }

    fn tree(&self) -> Tree {
        self.try_tree().unwrap_or_else(|e| panic!("{e}"))
    }

    /// The whole tree, or which call failed on which path.
    fn try_tree(&self) -> Result<Tree, String> {
        let mut tree = Tree::default();
        self.dumping(true);
        let added = tree.add(self, "", &mut HashMap::new());
        self.dumping(false);
        added?;
        self.add_open(&mut tree)?;
        Ok(tree)
    }
}

/// One object of a dump.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u64,
    /// 0 of a directory.
    pub size: u64,
    /// Data, or target.
    pub data: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Where dumps show it.
    pub mtime: Option<i64>,
    /// The first path that shows the same inode number.
    pub same_as: String,
}

impl Entry {
    /// Without data and attributes.
    pub fn of(attr: &Attr, same_as: String) -> Entry {
        Entry {
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            rdev: attr.rdev,
            size: attr.size,
            data: Vec::new(),
            xattrs: BTreeMap::new(),
            mtime: None,
            same_as,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry {
            kind,
            mode,
            uid,
            gid,
            nlink,
            rdev,
            size,
            ..
        } = self;
        write!(
            f,
            "{kind:?} {mode:04o} {uid}:{gid} nlink={nlink} rdev={rdev:x} size={size}"
        )?;
        let shown = self.data.get(..24).unwrap_or(&self.data);
        write!(
            f,
            " {:?} as {:?}",
            String::from_utf8_lossy(shown),
            self.same_as
        )?;
        if let Some(mtime) = self.mtime {
            write!(f, " mtime={mtime}")?;
        }
        for (key, value) in &self.xattrs {
            write!(f, " {key}={:?}", String::from_utf8_lossy(value))?;
        }
        Ok(())
    }
}

/// What begins the key of an open file without a name in a dump.
pub const OPEN: &str = "(open)";

/// A dump of a whole tree, by path.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<String, Entry>);

impl Tree {
    fn add<F: Fs + ?Sized>(
        &mut self,
        fs: &F,
        path: &str,
        first: &mut HashMap<u64, String>,
    ) -> Result<(), String> {
        let failed = |what: &'static str| move |e: Errno| format!("{what} {path:?}: {e}");
        let attr = fs.stat(path).map_err(failed("stat"))?;
        let same_as = first
            .entry(attr.ino)
            .or_insert_with(|| path.to_owned())
            .clone();
        let mut entry = Entry::of(&attr, same_as);
        entry.xattrs = xattrs(fs, path).map_err(failed("xattrs"))?;
        entry.mtime = fs.mtime_of_old(&attr);
        match attr.kind {
            Kind::File => entry.data = fs.read(path).map_err(failed("read"))?,
            Kind::Symlink => entry.data = fs.readlink(path).map_err(failed("readlink"))?,
            Kind::Dir => {
                let mut subdirs = 0;
                for name in fs.names(path).map_err(failed("list"))? {
                    let below = join(path, &name);
                    self.add(fs, &below, first)?;
                    subdirs += u32::from(self.0[&below].kind == Kind::Dir);
                }
                entry.size = 0;
                entry.nlink = fs.dir_nlink(&attr, subdirs);
            }
            _ => {}
        }
        self.0.insert(path.to_owned(), entry);
        Ok(())
    }

    /// One line for each path, those that are not the same in the other tree marked.
    pub fn against(&self, other: &Tree) -> String {
        let line = |(path, entry): (&String, &Entry)| {
            let mark = if other.0.get(path) == Some(entry) {
                ' '
            } else {
                '*'
            };
            format!("{mark} {path:?}: {entry}\n")
        };
        self.0.iter().map(line).collect()
    }

    /// Without what stands under no path: open files that have no name.
    pub fn settled(&self) -> Tree {
        let named = |(path, _): &(&String, &Entry)| !path.starts_with(OPEN);
        let entries = self.0.iter().filter(named);
        Tree(entries.map(|(p, e)| (p.clone(), e.clone())).collect())
    }

    pub fn paths(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.against(self))
    }
}

/// The attributes of the namespaces that tests use; a machine may add others to every file.
fn xattrs<F: Fs + ?Sized>(fs: &F, path: &str) -> Res<BTreeMap<String, Vec<u8>>> {
    let keys = fs.listxattr(path)?;
    let ours = keys
        .into_iter()
        .filter(|k| k.starts_with("user.") || k.starts_with("trusted."));
    ours.map(|key| fs.getxattr(path, &key).map(|value| (key, value)))
        .collect()
}

/// Both trees whole, if they differ.
pub fn difference(got: &Tree, want: &Tree) -> Option<String> {
    let text = || format!("got:\n{}want:\n{}", got.against(want), want.against(got));
    (got != want).then(text)
}

#[track_caller]
pub fn assert_same(got: &Tree, want: &Tree, what: &str) {
    if let Some(text) = difference(got, want) {
        panic!("{what}\n{text}");
    }
}

pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}

/// The directory and the name in it; EBUSY for the root, which has none.
pub fn split(path: &str) -> Res<(&str, &str)> {
    match path.rsplit_once('/') {
        Some(parts) => Ok(parts),
        None if path.is_empty() => Err(Errno::EBUSY),
        None => Ok(("", path)),
    }
}

pub fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}
