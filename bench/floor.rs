//! The floor: a FUSE daemon that answers from memory and knows everything before the first request. It asks nobody,
//! locks nothing and hands nothing over, with the same crate, threads and flags as ours: what it costs is what the
//! kernel and the crate take, and no daemon upon them can be faster.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cvmfs_union::fuse::convert::{FOREVER, absent};
use cvmfs_union::fuse::{Options, negotiate};
use cvmfs_union::sys::mount::{MountFlags, mount_direct};
use fuser::{
    Config, Errno, FileAttr, FileHandle as Fh, FileType, Filesystem, FopenFlags, Generation,
    INodeNo as Node, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request, Session, SessionACL,
};

use crate::support::slow_fs::file_attr;

const GENERATION: Generation = Generation(0);
const ROOT: usize = 1;

/// The process: `TREE MOUNTPOINT`. Ends when it is unmounted.
pub fn main(args: &[String]) {
    let floor = Floor::read(Path::new(&args[0]));
    let how = MountFlags {
        source: None,
        flags: nix::mount::MsFlags::empty(),
        allow_other: true,
    };
    let fd = mount_direct(Path::new(&args[1]), &how).unwrap();
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(Options::default().threads);
    config.clone_fd = Options::default().clone_fd;
    let session = Session::from_fd(floor, fd, SessionACL::All, config).unwrap();
    session.run().unwrap();
}

struct Object {
    attr: FileAttr,
    path: PathBuf,
    parent: usize,
    names: Vec<(OsString, usize)>,
    by_name: HashMap<OsString, usize>,
}

/// The objects, by their numbers.
struct Floor(Vec<Object>);

impl Floor {
    fn read(tree: &Path) -> Floor {
        let mut floor = Floor(Vec::new());
        // Number 0 is nobody's.
        floor.add(tree.to_owned(), ROOT);
        floor.add(tree.to_owned(), ROOT);
        let mut next = ROOT;
        while next < floor.0.len() {
            if floor.0[next].attr.kind == FileType::Directory {
                floor.list(next);
            }
            next += 1;
        }
        floor
    }

    fn add(&mut self, path: PathBuf, parent: usize) -> usize {
        let meta = fs::symlink_metadata(&path).unwrap();
        let number = self.0.len();
        self.0.push(Object {
            attr: file_attr(Node(number as u64), &meta),
            path,
            parent,
            names: Vec::new(),
            by_name: HashMap::new(),
        });
        number
    }

    fn list(&mut self, dir: usize) {
        let entries = fs::read_dir(&self.0[dir].path).unwrap();
        let names: Vec<_> = entries
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name(), self.add(entry.path(), dir))
            })
            .collect();
        self.0[dir].by_name = names.iter().cloned().collect();
        self.0[dir].names = names;
    }

    fn object(&self, node: Node) -> Option<&Object> {
        self.0.get(node.0 as usize)
    }
}

impl Filesystem for Floor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config, true);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: Node, name: &OsStr, reply: ReplyEntry) {
        let Some(parent) = self.object(parent) else {
            return reply.error(Errno::ESTALE);
        };
        match parent.by_name.get(name) {
            Some(child) => reply.entry(&FOREVER, &self.0[*child].attr, GENERATION),
            None => reply.entry(&FOREVER, &absent(), GENERATION),
        }
    }

    fn getattr(&self, _: &Request, ino: Node, _: Option<Fh>, reply: ReplyAttr) {
        match self.object(ino) {
            Some(object) => reply.attr(&FOREVER, &object.attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, _: &Request, ino: Node, reply: ReplyData) {
        let target = self.object(ino).map(|object| fs::read_link(&object.path));
        match target {
            Some(Ok(target)) => reply.data(target.as_os_str().as_bytes()),
            _ => reply.error(Errno::EIO),
        }
    }

    fn open(&self, _: &Request, _: Node, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(Fh(1), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn release(
        &self,
        _: &Request,
        _: Node,
        _: Fh,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: Node, _: Fh, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// The one thing that is not in memory: the programs that list the tree come out of it.
    fn read(
        &self,
        _: &Request,
        ino: Node,
        _: Fh,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = |object: &Object| {
            let mut data = vec![0; size as usize];
            let len = File::open(&object.path)?.read_at(&mut data, offset)?;
            data.truncate(len);
            Ok::<_, io::Error>(data)
        };
        match self.object(ino).map(read) {
            Some(Ok(data)) => reply.data(&data),
            _ => reply.error(Errno::EIO),
        }
    }

    fn opendir(&self, _: &Request, _: Node, _: OpenFlags, reply: ReplyOpen) {
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
        let Some(dir) = self.object(ino) else {
            return reply.error(Errno::ESTALE);
        };
        let dots = [
            (OsStr::new("."), ino.0 as usize),
            (OsStr::new(".."), dir.parent),
        ];
        let names = dir.names.iter().map(|(name, child)| (&**name, *child));
        let all = dots.into_iter().chain(names).enumerate();
        for (at, (name, child)) in all.skip(offset as usize) {
            let attr = &self.0[child].attr;
            let next = at as u64 + 1;
            if reply.add(attr.ino, next, name, &FOREVER, attr, GENERATION) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: Node, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::NO_XATTR);
    }
}
