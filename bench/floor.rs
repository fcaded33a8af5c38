//! The floor: a FUSE daemon that knows everything before the first request and answers from memory. It asks no layer, keeps
//! no order and hands nothing over, with the same crate, threads, receivers and flags as ours: what it costs is what the
//! kernel and the crate take, and no daemon upon them can be faster. What is changed it changes in a directory, by one
//! system call for each request, as any daemon must whose changes are to last. Whether attributes are wanted with listings
//! it is told.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use cvmfs_union::fuse::convert::{FOREVER, absent};
use cvmfs_union::fuse::receivers::Receivers;
use cvmfs_union::fuse::{Options, negotiate};
use cvmfs_union::sys::mount::{MountFlags, mount_direct};
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle as Fh, Filesystem, FopenFlags, Generation,
    INodeNo as Node, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use nix::unistd::UnlinkatFlags;
use parking_lot::RwLock;

use changes::Change;

use crate::support::slow_fs::file_attr;

mod changes;

const GENERATION: Generation = Generation(0);
const ROOT: usize = 1;

/// The word for listings of names, with attributes of the directories among them alone.
pub const NAMES: &str = "names";
/// How long its end may take.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The process: `TREE CHANGES MOUNTPOINT [names]`. Ends when it is unmounted.
pub fn main(args: &[String]) {
    let how = MountFlags {
        source: None,
        flags: nix::mount::MsFlags::empty(),
        allow_other: true,
    };
    let threads = Options::default().threads;
    let state = State::read(Path::new(&args[0]), PathBuf::from(&args[1]));
    let fd = mount_direct(Path::new(&args[2]), &how).unwrap();
    let receivers = Arc::new(Receivers::new(threads, fd.try_clone().unwrap()));
    let floor = Floor {
        receivers: receivers.clone(),
        names: args.get(3).is_some_and(|word| word == NAMES),
        state: RwLock::new(state),
    };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    config.clone_fd = Options::default().clone_fd;
    let session = Session::from_fd(floor, fd, SessionACL::All, config).unwrap();
    let watched = receivers.clone();
    thread::spawn(move || watched.ended(session.run()));
    receivers.watch(LAST_WAIT).unwrap();
}

struct Object {
    attr: FileAttr,
    parent: usize,
    name: OsString,
    /// In the tree; None: it was made, and stands in the directory of changes.
    path: Option<PathBuf>,
    dir: Option<Dir>,
}

#[derive(Default)]
struct Dir {
    /// By the cookies of a listing, which stay when others go.
    names: BTreeMap<u64, (OsString, usize)>,
    by_name: HashMap<OsString, (u64, usize)>,
    last: u64,
    /// The same directory among the changes.
    changes: Option<Arc<OwnedFd>>,
}

impl Dir {
    fn put(&mut self, name: &OsStr, child: usize) {
        self.take(name);
        self.last += 1;
        self.names.insert(self.last, (name.to_owned(), child));
        self.by_name.insert(name.to_owned(), (self.last, child));
    }

    fn take(&mut self, name: &OsStr) -> Option<usize> {
        let (cookie, child) = self.by_name.remove(name)?;
        self.names.remove(&cookie);
        Some(child)
    }
}

struct Floor {
    receivers: Arc<Receivers>,
    /// Listings are of names.
    names: bool,
    state: RwLock<State>,
}

/// The objects, by their numbers; and the open files, by theirs.
struct State {
    objects: Vec<Object>,
    changes: PathBuf,
    open: HashMap<u64, Arc<fs::File>>,
    /// The number of the last of them; 0 stands for one that is not open.
    last: u64,
}

impl State {
    fn read(tree: &Path, changes: PathBuf) -> State {
        let mut state = State {
            objects: Vec::new(),
            changes,
            open: HashMap::new(),
            last: 0,
        };
        // Number 0 is nobody's.
        state.add(tree.to_owned(), OsString::new(), ROOT);
        state.add(tree.to_owned(), OsString::new(), ROOT);
        let mut next = ROOT;
        while next < state.objects.len() {
            if state.objects[next].dir.is_some() {
                state.list(next);
            }
            next += 1;
        }
        state
    }

    fn add(&mut self, path: PathBuf, name: OsString, parent: usize) -> usize {
        let meta = fs::symlink_metadata(&path).unwrap();
        let number = self.objects.len();
        self.objects.push(Object {
            attr: file_attr(Node(number as u64), &meta),
            parent,
            name,
            path: Some(path),
            dir: meta.is_dir().then(Dir::default),
        });
        number
    }

    fn list(&mut self, dir: usize) {
        let path = self.objects[dir].path.clone().unwrap();
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().flatten().collect();
        entries.sort_by_key(|entry| !entry.file_type().unwrap().is_dir());
        for entry in entries {
            let name = entry.file_name();
            let child = self.add(entry.path(), name.clone(), dir);
            self.objects[dir].dir.as_mut().unwrap().put(&name, child);
        }
    }

    fn object(&self, node: Node) -> Option<&Object> {
        self.objects.get(node.0 as usize)
    }

    fn child(&self, parent: Node, name: &OsStr) -> Option<usize> {
        let dir = self.object(parent)?.dir.as_ref()?;
        dir.by_name.get(name).map(|(_, child)| *child)
    }

    /// The names of a directory after a cookie, each with its own cookie and the object.
    fn listed(&self, ino: Node, after: u64) -> Option<impl Iterator<Item = (u64, &OsStr, usize)>> {
        let object = self.object(ino)?;
        let dots = [
            (1, OsStr::new("."), ino.0 as usize),
            (2, OsStr::new(".."), object.parent),
        ];
        let dots = dots.into_iter().filter(move |(next, ..)| *next > after);
        let names = object.dir.as_ref()?.names.range(after.max(2) - 1..);
        let names = names.map(|(cookie, (name, child))| (cookie + 2, &**name, *child));
        Some(dots.chain(names))
    }

    /// The object as a file that can be read.
    fn file(&self, node: Node, fh: Fh) -> io::Result<Arc<fs::File>> {
        if let Some(file) = self.open.get(&fh.0) {
            return Ok(file.clone());
        }
        let path = self.object(node).and_then(|object| object.path.as_ref());
        let path = path.ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))?;
        fs::File::open(path).map(Arc::new)
    }
}

impl Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config, true);
        if self.names {
            config
                .add_capabilities(InitFlags::FUSE_READDIRPLUS_AUTO)
                .unwrap();
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: Node, name: &OsStr, reply: ReplyEntry) {
        let _busy = self.receivers.enter();
        let state = self.state.read();
        match state.child(parent, name) {
            Some(child) => reply.entry(&FOREVER, &state.objects[child].attr, GENERATION),
            None => reply.entry(&FOREVER, &absent(), GENERATION),
        }
    }

    fn getattr(&self, _: &Request, ino: Node, _: Option<Fh>, reply: ReplyAttr) {
        let _busy = self.receivers.enter();
        match self.state.read().object(ino) {
            Some(object) => reply.attr(&FOREVER, &object.attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, _: &Request, ino: Node, reply: ReplyData) {
        let _busy = self.receivers.enter();
        match self.state.read().target(ino) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(e) => reply.error(e.into()),
        }
    }

    fn open(&self, _: &Request, ino: Node, flags: OpenFlags, reply: ReplyOpen) {
        let _busy = self.receivers.enter();
        match self.open_file(ino, flags.0) {
            Ok(fh) => reply.opened(Fh(fh), FopenFlags::FOPEN_KEEP_CACHE),
            Err(e) => reply.error(e.into()),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: Node,
        fh: Fh,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _busy = self.receivers.enter();
        if fh.0 != 0 {
            let file = self.state.write().open.remove(&fh.0);
            drop(file);
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: Node, _: Fh, _: LockOwner, reply: ReplyEmpty) {
        let _busy = self.receivers.enter();
        reply.error(Errno::ENOSYS);
    }

    /// What is not in memory: the programs that work in the tree come out of it.
    fn read(
        &self,
        _: &Request,
        ino: Node,
        fh: Fh,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _busy = self.receivers.enter();
        let file = self.state.read().file(ino, fh);
        let read = file.and_then(|file| {
            let mut data = vec![0; size as usize];
            let len = file.read_at(&mut data, offset)?;
            data.truncate(len);
            Ok(data)
        });
        match read {
            Ok(data) => reply.data(&data),
            Err(e) => reply.error(e.into()),
        }
    }

    fn opendir(&self, _: &Request, _: Node, _: OpenFlags, reply: ReplyOpen) {
        let _busy = self.receivers.enter();
        reply.error(Errno::ENOSYS);
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: Node,
        _: Fh,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _busy = self.receivers.enter();
        let state = self.state.read();
        let Some(names) = state.listed(ino, offset) else {
            return reply.error(Errno::ESTALE);
        };
        for (next, name, child) in names {
            let object = &state.objects[child];
            if self.names && offset == 0 && object.dir.is_none()
                || reply.add(
                    object.attr.ino,
                    next,
                    name,
                    &FOREVER,
                    &object.attr,
                    GENERATION,
                )
            {
                break;
            }
        }
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: Node, _: Fh, offset: u64, mut reply: ReplyDirectory) {
        let _busy = self.receivers.enter();
        let state = self.state.read();
        let Some(names) = state.listed(ino, offset) else {
            return reply.error(Errno::ESTALE);
        };
        for (next, name, child) in names {
            let attr = &state.objects[child].attr;
            if reply.add(attr.ino, next, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: Node, _: &OsStr, _: u32, reply: ReplyXattr) {
        let _busy = self.receivers.enter();
        reply.error(Errno::NO_XATTR);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: Node,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<Fh>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _busy = self.receivers.enter();
        let change = Change {
            mode,
            owner: (uid, gid),
            size,
            times: (atime, mtime),
        };
        match self.set(ino, fh.map(|fh| fh.0), &change) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(e) => reply.error(e.into()),
        }
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: Node,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _busy = self.receivers.enter();
        answer(
            self.make_dir(parent, name, mode & !umask, owner(req)),
            reply,
        );
    }

    fn symlink(&self, req: &Request, parent: Node, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _busy = self.receivers.enter();
        let made = self.make_link(parent, name, target.as_os_str(), owner(req));
        answer(made, reply);
    }

    fn link(&self, _: &Request, ino: Node, to: Node, name: &OsStr, reply: ReplyEntry) {
        let _busy = self.receivers.enter();
        answer(self.link_to(ino, (to, name)), reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: Node,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let _busy = self.receivers.enter();
        match self.make_file(parent, name, mode & !umask, owner(req)) {
            Ok((attr, fh)) => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.created(&FOREVER, &attr, GENERATION, Fh(fh), flags);
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: Node,
        fh: Fh,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _busy = self.receivers.enter();
        match self.write_file(ino, fh.0, offset, data) {
            Ok(count) => reply.written(count as u32),
            Err(e) => reply.error(e.into()),
        }
    }

    fn unlink(&self, _: &Request, parent: Node, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.receivers.enter();
        done(self.remove(parent, name, UnlinkatFlags::NoRemoveDir), reply);
    }

    fn rmdir(&self, _: &Request, parent: Node, name: &OsStr, reply: ReplyEmpty) {
        let _busy = self.receivers.enter();
        done(self.remove(parent, name, UnlinkatFlags::RemoveDir), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: Node,
        name: &OsStr,
        to: Node,
        to_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _busy = self.receivers.enter();
        done(self.move_to((parent, name), (to, to_name)), reply);
    }

    fn fsync(&self, _: &Request, ino: Node, fh: Fh, _: bool, reply: ReplyEmpty) {
        let _busy = self.receivers.enter();
        let file = self.state.read().file(ino, fh);
        done(file.and_then(|file| file.sync_all()), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: Node, _: Fh, _: bool, reply: ReplyEmpty) {
        let _busy = self.receivers.enter();
        done(self.sync_dir(ino), reply);
    }
}

fn owner(req: &Request) -> (u32, u32) {
    (req.uid(), req.gid())
}

fn answer(made: io::Result<FileAttr>, reply: ReplyEntry) {
    match made {
        Ok(attr) => reply.entry(&FOREVER, &attr, GENERATION),
        Err(e) => reply.error(e.into()),
    }
}

fn done(result: io::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e.into()),
    }
}
