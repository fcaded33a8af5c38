//! A read-only FUSE file system that shows a directory, and fails or stalls where a test tells it to.
//!
//! The kernel caches nothing of it: every operation on it asks here, and meets the faults of the
//! moment. The test's process serves it, so a thread that waits for it must not be the one that
//! serves; reads that stall do so on threads of their own.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};

use super::{Mounted, Scratch, mount_fuse};

/// What goes wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// EIO for a lookup.
    Lookup,
    /// EIO for its attributes.
    Getattr,
    /// EIO for a listing at once.
    List,
    /// EIO for a listing, after some names.
    ListRest,
    /// EIO for any read.
    Read,
    /// EIO for what lies behind the middle of the file.
    ReadRest,
    /// The file ends in its middle, whatever its size says.
    Short,
    /// Reads wait until the fault is lifted.
    Stall,
}

/// So many names come before the failure of `ListRest`.
const NAMES_BEFORE_FAILURE: usize = 3;
const PATIENCE: Duration = Duration::from_secs(10);

/// The faults there are, and the reads that wait.
#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    set: HashSet<(Fault, PathBuf)>,
    stalled: usize,
}

impl Faults {
    /// Makes this go wrong from now on. The path is relative to the root.
    pub fn set(&self, fault: Fault, path: impl Into<PathBuf>) {
        self.lock().set.insert((fault, path.into()));
    }

    /// All is well again; the reads that wait go on.
    pub fn lift(&self) {
        self.lock().set.clear();
        self.changed.notify_all();
    }

    /// Waits until a read stalls.
    pub fn wait_for_stall(&self) {
        let (state, timeout) = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, |s| s.stalled == 0)
            .unwrap();
        drop(state);
        assert!(!timeout.timed_out(), "nothing was read");
    }

    fn has(&self, fault: Fault, path: &Path) -> bool {
        self.lock().set.contains(&(fault, path.to_owned()))
    }

    fn stall(&self, path: &Path) {
        let mut state = self.lock();
        state.stalled += 1;
        self.changed.notify_all();
        let key = (Fault::Stall, path.to_owned());
        let mut state = self
            .changed
            .wait_while(state, |s| s.set.contains(&key))
            .unwrap();
        state.stalled -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that fails poisons nothing that the clean-up needs.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The mount. Dropping it lifts the faults and unmounts.
pub struct SlowFs {
    pub faults: Arc<Faults>,
    mounted: Mounted,
    // Removed last, when nothing is mounted in it.
    _scratch: Scratch,
}

impl SlowFs {
    /// Shows the directory that `fill` has filled.
    pub fn new(fill: impl FnOnce(&Path)) -> SlowFs {
        let scratch = Scratch::new("slow");
        let (source, mnt) = (scratch.dir("source"), scratch.dir("mnt"));
        fill(&source);
        let faults = Arc::<Faults>::default();
        let nodes = Mutex::new(vec![PathBuf::new()]);
        let fs = Mirror {
            source,
            nodes,
            faults: faults.clone(),
        };
        let device = mount_fuse(&mnt, ",allow_other,default_permissions");
        let mounted = Mounted(mnt);
        let config = fuser::Config::default();
        let session = fuser::Session::from_fd(fs, device, fuser::SessionACL::All, config).unwrap();
        std::thread::spawn(move || {
            if let Err(e) = session.run() {
                eprintln!("slow file system: {e}");
            }
        });
        SlowFs {
            faults,
            mounted,
            _scratch: scratch,
        }
    }

    /// The mountpoint.
    pub fn root(&self) -> &Path {
        &self.mounted.0
    }
}

impl Drop for SlowFs {
    fn drop(&mut self) {
        self.faults.lift();
    }
}

struct Mirror {
    source: PathBuf,
    /// The path of each node, whose number is one more than its index; none is ever forgotten.
    nodes: Mutex<Vec<PathBuf>>,
    faults: Arc<Faults>,
}

impl Mirror {
    fn path(&self, ino: INodeNo) -> PathBuf {
        self.nodes.lock().unwrap()[ino.0 as usize - 1].clone()
    }

    fn ino(&self, path: &Path) -> INodeNo {
        let mut nodes = self.nodes.lock().unwrap();
        let at = nodes
            .iter()
            .position(|known| known == path)
            .unwrap_or_else(|| {
                nodes.push(path.to_owned());
                nodes.len() - 1
            });
        INodeNo(at as u64 + 1)
    }

    fn attr(&self, path: &Path) -> Result<FileAttr, Errno> {
        let meta = fs::symlink_metadata(self.source.join(path))?;
        let time = |sec: i64, nsec: i64| -> SystemTime {
            UNIX_EPOCH + Duration::new(sec.max(0) as u64, nsec as u32)
        };
        Ok(FileAttr {
            ino: self.ino(path),
            size: meta.size(),
            blocks: meta.blocks(),
            atime: time(meta.atime(), meta.atime_nsec()),
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime: time(meta.ctime(), meta.ctime_nsec()),
            crtime: UNIX_EPOCH,
            kind: kind(meta.file_type()),
            perm: (meta.mode() & 0o7777) as u16,
            nlink: meta.nlink() as u32,
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn entries(&self, path: &Path) -> Result<Vec<(INodeNo, FileType, PathBuf)>, Errno> {
        let dir = |name: &str| (self.ino(path), FileType::Directory, PathBuf::from(name));
        let mut entries = vec![dir("."), dir("..")];
        for entry in fs::read_dir(self.source.join(path))? {
            let entry = entry?;
            let name = PathBuf::from(entry.file_name());
            entries.push((self.ino(&path.join(&name)), kind(entry.file_type()?), name));
        }
        Ok(entries)
    }
}

fn kind(of: fs::FileType) -> FileType {
    if of.is_dir() {
        FileType::Directory
    } else if of.is_symlink() {
        FileType::Symlink
    } else {
        FileType::RegularFile
    }
}

/// The answer to a read, with the faults but for the stall.
fn read(file: &Path, faults: &Faults, path: &Path, at: u64, size: u32) -> Result<Vec<u8>, Errno> {
    let file = fs::File::open(file)?;
    let len = file.metadata()?.len();
    let mut end = len.min(at + u64::from(size));
    if faults.has(Fault::Short, path) {
        end = end.min(len / 2);
    }
    let late = faults.has(Fault::ReadRest, path) && end > len / 2;
    if late || faults.has(Fault::Read, path) {
        return Err(Errno::EIO);
    }
    let mut bytes = vec![0; end.saturating_sub(at) as usize];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

impl Filesystem for Mirror {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.path(parent).join(name);
        if self.faults.has(Fault::Lookup, &path) {
            return reply.error(Errno::EIO);
        }
        match self.attr(&path) {
            Ok(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let path = self.path(ino);
        if self.faults.has(Fault::Getattr, &path) {
            return reply.error(Errno::EIO);
        }
        match self.attr(&path) {
            Ok(attr) => reply.attr(&Duration::ZERO, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        use std::os::unix::ffi::OsStrExt;
        match fs::read_link(self.source.join(self.path(ino))) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(e) => reply.error(e.into()),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Without the page cache a short answer reaches the reader as it is.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let path = self.path(ino);
        let (file, faults) = (self.source.join(&path), self.faults.clone());
        let answer = move || {
            if faults.has(Fault::Stall, &path) {
                faults.stall(&path);
            }
            match read(&file, &faults, &path, offset, size) {
                Ok(bytes) => reply.data(&bytes),
                Err(errno) => reply.error(errno),
            }
        };
        std::thread::spawn(answer);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let path = self.path(ino);
        let broken = self.faults.has(Fault::ListRest, &path);
        if self.faults.has(Fault::List, &path) || (broken && offset > 0) {
            return reply.error(Errno::EIO);
        }
        let entries = match self.entries(&path) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let most = if broken {
            NAMES_BEFORE_FAILURE
        } else {
            entries.len()
        };
        for (i, (ino, kind, name)) in entries.iter().enumerate().take(most).skip(offset as usize) {
            if reply.add(*ino, i as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
