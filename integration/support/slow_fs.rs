//! A read-only FUSE file system that shows a directory, and fails, stalls or dies where a test tells it to.
//!
//! The kernel caches nothing of it, unless it is [`SlowFs::cached`]: every operation on it asks here,
//! is counted, and meets the faults of the moment. The test's process serves it, so a thread that waits for it must not be the one that
//! serves; where anything may wait, each request has a thread of its own.

mod cold;
mod faults;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cvmfs_union::fuse::convert::wire_device;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};
use nix::mount::{MntFlags, umount2};

pub use self::cold::Cold;
pub use self::faults::{Fault, Faults};
use super::{Mounted, Scratch, mount_fuse, sys};

/// So many names come before the failure of `ListRest`, and at once with `FewNames`.
const FEW_NAMES: usize = 3;
/// As long is an answer with `Page`.
const PAGE: u64 = 4096;
const REPOSITORY: &[u8] = b"images.example.org";
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The mount. Dropping it lifts the faults and unmounts.
pub struct SlowFs {
    pub faults: Arc<Faults>,
    /// What it has to fetch first, if that takes time.
    pub cold: Option<Arc<Cold>>,
    /// The directory that is shown.
    pub source: PathBuf,
    keep: Duration,
    mounted: Mounted,
    // Removed last, when nothing is mounted in it.
    _scratch: Scratch,
}

impl SlowFs {
    /// Shows the directory that `fill` has filled.
    pub fn new(fill: impl FnOnce(&Path)) -> SlowFs {
        Self::with(Duration::ZERO, fill)
    }

    /// The same as CVMFS: the kernel may keep what it was told, here for ever, each object says of
    /// which repository it is, and a listing comes in slices, with the bytes up to there for a cookie.
    pub fn cached(fill: impl FnOnce(&Path)) -> SlowFs {
        Self::with(FOREVER, fill)
    }

    fn with(keep: Duration, fill: impl FnOnce(&Path)) -> SlowFs {
        let scratch = Scratch::new("slow");
        let source = scratch.dir("source");
        fill(&source);
        Self::of(source, keep, None, scratch)
    }

    /// A directory that is there, [`cached`](Self::cached).
    pub fn showing(source: &Path) -> SlowFs {
        Self::of(source.to_owned(), FOREVER, None, Scratch::new("slow"))
    }

    /// The same as a CVMFS client with an empty cache.
    pub fn cold(source: &Path, cold: Cold) -> SlowFs {
        let cold = Some(Arc::new(cold));
        Self::of(source.to_owned(), FOREVER, cold, Scratch::new("slow"))
    }

    fn of(source: PathBuf, keep: Duration, cold: Option<Arc<Cold>>, scratch: Scratch) -> SlowFs {
        let mnt = scratch.dir("mnt");
        let faults = Arc::<Faults>::default();
        serve(&source, &mnt, &faults, cold.clone(), keep);
        SlowFs {
            faults,
            cold,
            source,
            keep,
            mounted: Mounted(mnt),
            _scratch: scratch,
        }
    }

    /// The mountpoint.
    pub fn root(&self) -> &Path {
        &self.mounted.0
    }

    /// Ends as if its daemon were killed: requests under way fail, and all later ones.
    pub fn kill(&self) {
        // The force ends the connection; only a busy mount stays then.
        let _held = sys::open(self.root(), libc::O_PATH, 0).unwrap();
        let busy = umount2(self.root(), MntFlags::MNT_FORCE);
        assert_eq!(busy, Err(nix::Error::EBUSY));
        let dead = sys::names(self.root());
        assert_eq!(dead.err(), Some(nix::Error::ENOTCONN));
    }

    /// Takes the mount away, dead or not. Who has it open keeps it.
    pub fn detach(&self) {
        umount2(self.root(), MntFlags::MNT_DETACH).unwrap();
    }

    /// Mounts anew after [`detach`](Self::detach).
    pub fn attach(&self) {
        serve(
            &self.source,
            self.root(),
            &self.faults,
            self.cold.clone(),
            self.keep,
        );
    }
}

impl SlowFs {
    /// Mounts anew what is [`cold`](Self::cold), in the same place: neither it nor the kernel has anything.
    pub fn renew(&self) {
        self.detach();
        self.cold.as_ref().unwrap().forget();
        self.attach();
    }
}

impl Drop for SlowFs {
    fn drop(&mut self) {
        self.faults.lift();
    }
}

/// Mounts, and serves on a thread of its own.
fn serve(source: &Path, mnt: &Path, faults: &Arc<Faults>, cold: Option<Arc<Cold>>, keep: Duration) {
    let shown = Shown {
        source: source.to_owned(),
        nodes: Mutex::default(),
        faults: faults.clone(),
        cold,
        keep,
    };
    // The root is number 1.
    shown.ino(Path::new(""));
    let fs = Mirror(Arc::new(shown));
    // Read-only as CVMFS, or the kernel asks for the attributes again after each listing.
    let read_only = if keep.is_zero() { "" } else { ",ro" };
    let device = mount_fuse(mnt, &format!(",allow_other,default_permissions{read_only}"));
    let config = fuser::Config::default();
    let session = fuser::Session::from_fd(fs, device, fuser::SessionACL::All, config).unwrap();
    std::thread::spawn(move || {
        if let Err(e) = session.run() {
            eprintln!("slow file system: {e}");
        }
    });
}

struct Mirror(Arc<Shown>);

struct Shown {
    source: PathBuf,
    nodes: Mutex<Nodes>,
    faults: Arc<Faults>,
    cold: Option<Arc<Cold>>,
    /// How long the kernel may keep an answer.
    keep: Duration,
}

/// The path of each node, whose number is one more than its index; none is ever forgotten.
#[derive(Default)]
struct Nodes {
    paths: Vec<PathBuf>,
    numbers: HashMap<PathBuf, u64>,
}

impl Mirror {
    /// Answers a request about a node, on a thread of its own if anything may wait.
    fn answer(&self, ino: INodeNo, answer: impl FnOnce(&Shown, PathBuf) + Send + 'static) {
        let shown = self.0.clone();
        let path = shown.path(ino);
        if let Some(cold) = self.0.cold.as_ref() {
            cold.serve(move || answer(&shown, path));
        } else if shown.faults.may_wait() {
            std::thread::spawn(move || answer(&shown, path));
        } else {
            answer(&shown, path);
        }
    }
}

impl Shown {
    /// Waits for what has to be fetched.
    fn fetch(&self, path: &Path) {
        if let Some(cold) = &self.cold {
            cold.fetch(path);
        }
    }

    /// The same of what tells about a path, or, with `within`, about what is in it.
    fn fetch_catalogue(&self, path: &Path, within: bool) {
        if let Some(cold) = &self.cold {
            cold.fetch_catalogue(path, within);
        }
    }

    fn path(&self, ino: INodeNo) -> PathBuf {
        self.nodes.lock().unwrap().paths[ino.0 as usize - 1].clone()
    }

    fn ino(&self, path: &Path) -> INodeNo {
        let Nodes { paths, numbers } = &mut *self.nodes.lock().unwrap();
        if let Some(number) = numbers.get(path) {
            return INodeNo(*number);
        }
        paths.push(path.to_owned());
        numbers.insert(path.to_owned(), paths.len() as u64);
        INodeNo(paths.len() as u64)
    }

    fn attr(&self, path: &Path) -> Result<FileAttr, Errno> {
        let meta = fs::symlink_metadata(self.source.join(path))?;
        Ok(file_attr(self.ino(path), &meta))
    }

    /// The node number 0, which stands for no object.
    fn absent(&self) -> FileAttr {
        let mut attr = self.attr(Path::new("")).unwrap();
        attr.ino = INodeNo(0);
        attr
    }

    fn entries(&self, path: &Path) -> Result<Vec<Entry>, Errno> {
        let in_slices = !self.keep.is_zero() && !self.faults.has(Fault::FewNames, path);
        let mut entries: Vec<Entry> = Vec::new();
        let mut add = |ino, kind, name: OsString| {
            let before = entries.last().map_or(0, |entry| entry.cookie);
            let len = match in_slices {
                true => (24 + name.len() as u64).next_multiple_of(8),
                false => 1,
            };
            entries.push(Entry {
                ino,
                kind,
                name,
                cookie: before + len,
            });
        };
        add(self.ino(path), FileType::Directory, ".".into());
        add(self.ino(path), FileType::Directory, "..".into());
        for entry in fs::read_dir(self.source.join(path))? {
            let entry = entry?;
            let name = entry.file_name();
            add(self.ino(&path.join(&name)), kind(entry.file_type()?), name);
        }
        Ok(entries)
    }
}

/// A name of a directory.
struct Entry {
    ino: INodeNo,
    kind: FileType,
    name: OsString,
    /// For what comes after it.
    cookie: u64,
}

/// The attributes of an object under a number.
pub fn file_attr(ino: INodeNo, meta: &fs::Metadata) -> FileAttr {
    let time = |sec: i64, nsec: i64| -> SystemTime {
        UNIX_EPOCH + Duration::new(sec.max(0) as u64, nsec as u32)
    };
    FileAttr {
        ino,
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
        rdev: wire_device(meta.rdev()),
        blksize: 4096,
        flags: 0,
    }
}

fn kind(of: fs::FileType) -> FileType {
    if of.is_dir() {
        FileType::Directory
    } else if of.is_symlink() {
        FileType::Symlink
    } else if of.is_char_device() {
        FileType::CharDevice
    } else if of.is_block_device() {
        FileType::BlockDevice
    } else if of.is_fifo() {
        FileType::NamedPipe
    } else if of.is_socket() {
        FileType::Socket
    } else {
        FileType::RegularFile
    }
}

impl Shown {
    /// The answer to a read.
    fn read(&self, path: &Path, at: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.faults.stall(Fault::Stall, path);
        self.faults.enter("read", path)?;
        self.faults.check(Fault::Read, path)?;
        let file = fs::File::open(self.source.join(path))?;
        let len = file.metadata()?.len();
        let mut end = len.min(at + u64::from(size));
        if self.faults.has(Fault::Short, path) {
            end = end.min(len / 2);
        }
        if end > len / 2 {
            self.faults.check(Fault::ReadRest, path)?;
        }
        let mut bytes = vec![0; end.saturating_sub(at) as usize];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// The names after a cookie.
    fn list(&self, path: &Path, at: u64) -> Result<Vec<Entry>, Errno> {
        self.faults.enter("readdir", path)?;
        self.faults.check(Fault::List, path)?;
        let mut entries = self.entries(path)?;
        entries.retain(|entry| entry.cookie > at);
        if let Err(errno) = self.faults.check(Fault::ListRest, path) {
            if at > 0 {
                return Err(errno);
            }
            entries.truncate(FEW_NAMES);
        }
        if self.faults.has(Fault::FewNames, path) {
            entries.truncate(FEW_NAMES);
        }
        if self.faults.has(Fault::Page, path) {
            entries.retain(|entry| entry.cookie <= at + PAGE);
        }
        Ok(entries)
    }

    fn xattr(&self, path: &Path, key: Option<&OsStr>) -> Result<Vec<u8>, Errno> {
        let kind = if key.is_some() {
            "getxattr"
        } else {
            "listxattr"
        };
        self.faults.enter(kind, path)?;
        if key.is_some_and(|key| key == "user.fqrn") {
            self.faults.check(Fault::Repository, path)?;
            if !self.keep.is_zero() {
                return Ok(REPOSITORY.to_vec());
            }
        }
        if let Some(cold) = &self.cold
            && key.is_some_and(|key| key == "user.ndownload")
        {
            return Ok(cold.transfers().to_string().into_bytes());
        }
        let file = self.source.join(path);
        let found = match key {
            Some(key) => sys::getxattr(&file, key),
            None => sys::listxattr(&file).map(|names| {
                let ended = names.into_iter().map(|name| [name, vec![0]].concat());
                ended.collect::<Vec<_>>().concat()
            }),
        };
        found.map_err(|errno| Errno::from_i32(errno as i32))
    }
}

fn reply_xattr(result: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match result {
        Err(errno) => reply.error(errno),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

impl Filesystem for Mirror {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.answer(parent, move |fs, dir| {
            let path = dir.join(name);
            let found = fs.faults.enter("lookup", &path);
            fs.fetch_catalogue(&path, false);
            let found = found.and_then(|()| fs.faults.check(Fault::Lookup, &path));
            match found.and_then(|()| fs.attr(&path)) {
                Ok(attr) => reply.entry(&fs.keep, &attr, Generation(0)),
                Err(Errno::ENOENT) if !fs.keep.is_zero() => {
                    reply.entry(&fs.keep, &fs.absent(), Generation(0));
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(ino, move |fs, path| {
            let found = fs.faults.enter("getattr", &path);
            let found = found.and_then(|()| fs.faults.check(Fault::Getattr, &path));
            match found.and_then(|()| fs.attr(&path)) {
                Ok(attr) => reply.attr(&fs.keep, &attr),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(ino, move |fs, path| {
            let read = || Ok::<_, Errno>(std::fs::read_link(fs.source.join(&path))?);
            match fs.faults.enter("readlink", &path).and_then(|()| read()) {
                Ok(target) => reply.data(target.as_os_str().as_bytes()),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer(ino, move |fs, path| {
            let found = fs.faults.enter("open", &path);
            fs.fetch(&path);
            match found.and_then(|()| fs.faults.check(Fault::Open, &path)) {
                // Without the page cache a short answer reaches the reader as it is.
                Ok(()) if fs.keep.is_zero() => {
                    reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
                }
                Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer(ino, move |fs, path| {
            fs.fetch_catalogue(&path, true);
            match fs.faults.enter("opendir", &path) {
                Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
                Err(errno) => reply.error(errno),
            }
        });
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
        self.answer(ino, move |fs, path| match fs.read(&path, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.answer(ino, move |fs, path| {
            let entries = match fs.list(&path, offset) {
                Ok(entries) => entries,
                Err(errno) => return reply.error(errno),
            };
            for entry in entries {
                if reply.add(entry.ino, entry.cookie, entry.kind, entry.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        self.answer(ino, move |fs, path| {
            reply_xattr(fs.xattr(&path, Some(&name)), size, reply);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(ino, move |fs, path| {
            reply_xattr(fs.xattr(&path, None), size, reply);
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answer(ino, move |fs, path| {
            match fs.faults.enter("statfs", &path) {
                Ok(()) if fs.cold.is_some() => {
                    reply.statfs(1 << 20, 1 << 20, 1 << 20, 100, 50, 4096, 255, 4096);
                }
                Ok(()) => reply.statfs(1000, 500, 500, 100, 50, 4096, 255, 4096),
                Err(errno) => reply.error(errno),
            }
        });
    }
}
