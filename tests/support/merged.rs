//! A union, by path.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Deref;
use std::sync::Arc;

use cvmfs_union::error::Error;
use cvmfs_union::union::Union;
use cvmfs_union::union::api::{Attr, Caller, Ino, Kind, ROOT, RenameKind, SetAttr, SetTime, Time};
use nix::errno::Errno;

use super::fs::{Entry, Fs, OPEN, Res, Tree, split};
use super::xattr_list;

/// How many calls are left, and what to do before the last of them.
type Hook = (u32, Box<dyn FnOnce()>);

/// A union whose calls can be waited for: each is one deref.
pub struct Calls {
    union: Arc<Union>,
    hook: Cell<Option<Hook>>,
}

impl Deref for Calls {
    type Target = Union;

    fn deref(&self) -> &Union {
        match self.hook.take() {
            Some((n, hook)) if n <= 1 => hook(),
            Some((n, hook)) => self.hook.set(Some((n - 1, hook))),
            None => {}
        }
        &self.union
    }
}

impl Calls {
    /// Runs the hook before the `n`-th call from now on.
    pub fn pause_before(&self, n: u32, hook: impl FnOnce() + 'static) {
        self.hook.set(Some((n, Box::new(hook))));
    }

    /// Takes the hook back; true where it had not run yet.
    pub fn dismiss(&self) -> bool {
        self.hook.take().is_some()
    }

    /// For one more user.
    pub fn share(&self) -> Arc<Union> {
        self.union.clone()
    }

    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.union) > 1
    }
}

/// No file of a test is made before this, but with a time that was set.
const OLD: i64 = 1_500_000_000;

pub struct Merged {
    pub union: Calls,
    pub caller: Caller,
    /// The lookups that were counted, as the kernel keeps count.
    lookups: RefCell<Vec<Ino>>,
    /// Dumps show the times of what has not changed lately.
    pub times: bool,
    /// What a dump under way has found, by path: nothing changes meanwhile.
    walked: RefCell<Option<HashMap<String, Ino>>>,
    /// Open files that dumps of the tree look at: number and handle.
    pub kept: RefCell<Vec<(Ino, u64)>>,
}

/// What a call failed with.
pub fn ok<T>(result: Result<T, Error>) -> Res<T> {
    result.map_err(|e| Errno::from_raw(e.errno()))
}

impl Merged {
    pub fn new(union: Union) -> Merged {
        Merged::sharing(Arc::new(union))
    }

    /// One more user of a union, who counts lookups of his own.
    pub fn sharing(union: Arc<Union>) -> Merged {
        let (uid, gid) = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        );
        Merged {
            union: Calls {
                union,
                hook: Cell::default(),
            },
            caller: Caller { uid, gid, umask: 0 },
            lookups: RefCell::default(),
            times: false,
            walked: RefCell::default(),
            kept: RefCell::default(),
        }
    }

    /// The number of the object under a path; its lookups stay counted.
    pub fn walk(&self, path: &str) -> Res<Ino> {
        let Ok((dir, name)) = split(path) else {
            return Ok(ROOT);
        };
        let known = |w: &HashMap<String, Ino>| w.get(path).copied();
        if let Some(ino) = self.walked.borrow().as_ref().and_then(known) {
            return Ok(ino);
        }
        let ino = self.child(self.walk(dir)?, name)?.ino;
        if let Some(walked) = self.walked.borrow_mut().as_mut() {
            walked.insert(path.to_owned(), ino);
        }
        Ok(ino)
    }

    /// The kernel looks up what it moves, and what is in the way.
    fn seen_by_kernel(&self, path: &str) {
        self.walk(path).ok();
    }

    fn child(&self, parent: Ino, name: &str) -> Res<Attr> {
        match ok(self.union.lookup(parent, OsStr::new(name)))? {
            Some(attr) => Ok(self.counted(attr)),
            None => Err(Errno::ENOENT),
        }
    }

    pub fn counted(&self, attr: Attr) -> Attr {
        self.lookups.borrow_mut().push(attr.ino);
        attr
    }

    /// The directory of a path, and the name in it.
    pub fn at<'a>(&self, path: &'a str) -> Res<(Ino, &'a OsStr)> {
        let (dir, name) = split(path)?;
        let dir = self.walk(dir)?;
        match ok(self.union.getattr(dir, None))?.kind {
            cvmfs_union::union::api::Kind::Dir => Ok((dir, OsStr::new(name))),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Takes all lookups back, as a kernel short of memory does.
    pub fn forget(&self) {
        for ino in self.lookups.take() {
            self.union.forget(ino, 1);
        }
    }

    /// Nothing is remembered of what was asked so far, but for the root.
    pub fn start_over(&self) {
        self.forget();
        self.union.drop_listings();
    }

    /// Takes all lookups back, and how many nodes are left then. What was in use when it was forgotten
    /// goes at the latest when much else has been forgotten.
    pub fn nodes_left(&self) -> usize {
        self.forget();
        for ino in (2..18).flat_map(|ino| std::iter::repeat_n(ino, 8192)) {
            if self.union.nodes() == 1 {
                break;
            }
            self.union.forget(ino, 0);
        }
        self.union.nodes()
    }

    pub fn setattr(&self, path: &str, set: &SetAttr) -> Res<()> {
        let ino = self.walk(path)?;
        ok(self.union.setattr(&self.caller, ino, None, set)).map(drop)
    }

    /// Keeps a file open and takes its name away. Its number stays looked up.
    pub fn keep_unlinked(&self, path: &str) -> Res<()> {
        let ino = self.walk(path)?;
        let fh = self.open(path, libc::O_RDWR)?;
        self.kept.borrow_mut().push((ino, fh));
        self.unlink(path)
    }

    fn made(&self, result: Result<Attr, Error>) -> Res<()> {
        self.counted(ok(result)?);
        Ok(())
    }
}

impl Fs for Merged {
    fn mtime_of_old(&self, attr: &Attr) -> Option<i64> {
        let old = self.times && attr.kind != Kind::Dir && attr.mtime.sec < OLD;
        old.then_some(attr.mtime.sec)
    }

    fn dumping(&self, begins: bool) {
        self.walked.replace(begins.then(HashMap::new));
    }

    fn add_open(&self, tree: &mut Tree) -> Result<(), String> {
        for (i, (ino, fh)) in self.kept.borrow().iter().enumerate() {
            let path = format!("{OPEN} {i}");
            let failed = |e: Errno| format!("{path}: {e}");
            let attr = ok(self.union.getattr(*ino, Some(*fh))).map_err(failed)?;
            let mut entry = Entry::of(&attr, path.clone());
            let size = usize::try_from(attr.size).unwrap();
            entry.data = self.pread(*fh, 0, size + 1).map_err(failed)?;
            let keys = ok(self.union.listxattr(*ino)).map_err(failed)?;
            for key in xattr_list(&keys) {
                let value = ok(self.union.getxattr(*ino, OsStr::new(&key))).map_err(failed)?;
                entry.xattrs.insert(key, value);
            }
            tree.0.insert(path, entry);
        }
        Ok(())
    }

    fn stat(&self, path: &str) -> Res<Attr> {
        let Ok((dir, name)) = split(path) else {
            return ok(self.union.getattr(ROOT, None));
        };
        let seen = self.child(self.walk(dir)?, name)?;
        let mut again = ok(self.union.getattr(seen.ino, None))?;
        // The union's own reading of a directory counts as access.
        again.atime = seen.atime;
        assert_eq!(again, seen, "getattr and lookup: {path}");
        Ok(seen)
    }

    fn names(&self, path: &str) -> Res<Vec<String>> {
        let dir = self.walk(path)?;
        let mut found = Vec::new();
        let listed = ok(self.union.readdir(dir, 0, &mut |e| {
            found.push((String::from_utf8(e.name.to_vec()).unwrap(), e.ino, e.kind));
            true
        }));
        listed?;
        let mut names = Vec::new();
        for (name, ino, kind) in found.into_iter().skip(2) {
            let attr = self.child(dir, &name)?;
            assert_eq!(
                (attr.ino, attr.kind),
                (ino, kind),
                "readdir and lookup: {path}/{name}"
            );
            names.push(name);
        }
        names.sort();
        Ok(names)
    }

    fn readlink(&self, path: &str) -> Res<Vec<u8>> {
        ok(self.union.readlink(self.walk(path)?))
    }

    fn create(&self, path: &str, mode: u32) -> Res<u64> {
        let (dir, name) = self.at(path)?;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        let (attr, fh) = ok(self.union.create(&self.caller, dir, name, mode, flags))?;
        self.counted(attr);
        Ok(fh)
    }

    fn open(&self, path: &str, flags: i32) -> Res<u64> {
        ok(self.union.open(&self.caller, self.walk(path)?, flags))
    }

    fn pread(&self, fh: u64, offset: u64, len: usize) -> Res<Vec<u8>> {
        ok(self.union.read(fh, offset, len))
    }

    fn pwrite(&self, fh: u64, offset: u64, data: &[u8]) -> Res<usize> {
        ok(self.union.write(fh, offset, data, false))
    }

    fn close(&self, fh: u64) {
        self.union.release(fh);
    }

    fn mkdir(&self, path: &str, mode: u32) -> Res<()> {
        let (dir, name) = self.at(path)?;
        self.made(self.union.mkdir(&self.caller, dir, name, mode))
    }

    fn symlink(&self, target: &str, path: &str) -> Res<()> {
        let (dir, name) = self.at(path)?;
        self.made(
            self.union
                .symlink(&self.caller, dir, name, target.as_bytes()),
        )
    }

    fn mknod(&self, path: &str, mode: u32, rdev: u64) -> Res<()> {
        let (dir, name) = self.at(path)?;
        let rdev = u32::try_from(rdev).unwrap();
        self.made(self.union.mknod(&self.caller, dir, name, mode, rdev))
    }

    fn link(&self, from: &str, to: &str) -> Res<()> {
        let from = self.walk(from)?;
        let (dir, name) = self.at(to)?;
        self.made(self.union.link(from, dir, name))
    }

    fn unlink(&self, path: &str) -> Res<()> {
        self.seen_by_kernel(path);
        let (dir, name) = self.at(path)?;
        ok(self.union.unlink(dir, name))
    }

    fn rmdir(&self, path: &str) -> Res<()> {
        self.seen_by_kernel(path);
        let (dir, name) = self.at(path)?;
        ok(self.union.rmdir(dir, name))
    }

    fn rename(&self, from: &str, to: &str, kind: RenameKind) -> Res<()> {
        self.seen_by_kernel(from);
        self.seen_by_kernel(to);
        let ((dir, name), (to_dir, to_name)) = (self.at(from)?, self.at(to)?);
        ok(self.union.rename(dir, name, to_dir, to_name, kind))
    }

    fn chmod(&self, path: &str, mode: u32) -> Res<()> {
        self.setattr(
            path,
            &SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            },
        )
    }

    fn chown(&self, path: &str, uid: u32, gid: u32) -> Res<()> {
        self.setattr(
            path,
            &SetAttr {
                uid: Some(uid),
                gid: Some(gid),
                ..SetAttr::default()
            },
        )
    }

    fn truncate(&self, path: &str, size: u64) -> Res<()> {
        self.setattr(
            path,
            &SetAttr {
                size: Some(size),
                ..SetAttr::default()
            },
        )
    }

    fn set_mtime(&self, path: &str, sec: i64) -> Res<()> {
        let mtime = Some(SetTime::At(Time { sec, nsec: 0 }));
        self.setattr(
            path,
            &SetAttr {
                mtime,
                ..SetAttr::default()
            },
        )
    }

    fn setxattr(&self, path: &str, key: &str, value: &[u8], flags: i32) -> Res<()> {
        let ino = self.walk(path)?;
        ok(self
            .union
            .setxattr(&self.caller, ino, OsStr::new(key), value, flags))
    }

    fn getxattr(&self, path: &str, key: &str) -> Res<Vec<u8>> {
        ok(self.union.getxattr(self.walk(path)?, OsStr::new(key)))
    }

    fn listxattr(&self, path: &str) -> Res<Vec<String>> {
        ok(self.union.listxattr(self.walk(path)?)).map(|list| xattr_list(&list))
    }

    fn removexattr(&self, path: &str, key: &str) -> Res<()> {
        ok(self.union.removexattr(self.walk(path)?, OsStr::new(key)))
    }
}
