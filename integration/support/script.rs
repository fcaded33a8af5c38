//! Random scripts: layers and operations by system calls, made on any directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use super::random::Random;
use super::sys::{self, Errno, Result};
use super::text;

impl Random {
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Few names, so that operations meet.
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", ".wh.a", "long name \u{e4}"];
/// How many files are held open at once.
pub const SLOTS: usize = 4;
const XATTRS: [&str; 4] = ["user.x", "user.y", "trusted.z", "trusted.overlay.opaque"];
pub const USER: u32 = 1000;

fn path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let parts: Vec<_> = (0..depth).map(|_| random.pick(&NAMES)).collect();
    parts.join("/")
}

#[derive(Clone, Debug)]
pub enum Op {
    Create(String, u32),
    Write(String, i64, Vec<u8>),
    Append(String, Vec<u8>),
    OpenTruncate(String),
    Read(String),
    Truncate(String, i64),
    Unlink(String),
    Mkdir(String, u32),
    Rmdir(String),
    Rename(String, String, u32),
    Link(String, String),
    Symlink(String, String),
    Readlink(String),
    Mknod(String, u32, u64),
    Chmod(String, u32),
    Chown(String, u32, u32),
    Utimens(String, (i64, i64)),
    SetXattr(String, &'static str, Vec<u8>, i32),
    RemoveXattr(String, &'static str),
    GetXattrs(String),
    Stat(String),
    Readdir(String),
    Hold(usize, String, i32),
    HeldWrite(usize, i64, Vec<u8>),
    HeldRead(usize),
    HeldStat(usize),
    HeldTruncate(usize, i64),
    HeldChmod(usize, u32),
    HeldTimes(usize, (i64, i64)),
    HeldXattr(usize, Vec<u8>),
    Release(usize),
}

impl Op {
    pub fn random(random: &mut Random) -> Op {
        let r = random;
        let mode = r.pick(&[0o600, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o1777]);
        let time = (
            r.pick(&[0, 1, -5, 1_000_000_000, 1_500_000_000]),
            r.pick(&[0, 1, 999_999_999]),
        );
        let size = r.pick(&[0, 1, 100, 4096, 5000, 70_000]);
        let byte = u8::try_from(r.below(256)).unwrap();
        let data = vec![byte; r.pick(&[0usize, 1, 10, 4096, 9000])];
        let slot = r.below(SLOTS);
        let xattr = r.pick(&XATTRS);
        let p = path(r);
        match r.below(46) {
            0..=2 => Op::Create(p, mode),
            3..=4 => Op::Write(p, size, data),
            5 => Op::Append(p, data),
            6 => Op::OpenTruncate(p),
            7 => Op::Read(p),
            8 => Op::Truncate(p, size),
            9..=10 => Op::Unlink(p),
            11..=13 => Op::Mkdir(p, mode),
            14 => Op::Rmdir(p),
            15..=19 => {
                let flags = [0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE];
                Op::Rename(p, path(r), r.pick(&flags))
            }
            20..=21 => Op::Link(p, path(r)),
            22 => Op::Symlink(path(r), p),
            23 => Op::Readlink(p),
            24 => match r.below(3) {
                0 => Op::Mknod(p, libc::S_IFCHR | mode & 0o777, 0),
                1 => Op::Mknod(p, libc::S_IFCHR | mode & 0o777, libc::makedev(1, 3)),
                _ => Op::Mknod(p, libc::S_IFIFO | mode & 0o777, 0),
            },
            25..=26 => Op::Chmod(p, mode),
            27 => Op::Chown(
                p,
                r.pick(&[0, USER, 77, u32::MAX]),
                r.pick(&[0, USER, 77, u32::MAX]),
            ),
            28 => Op::Utimens(p, time),
            29..=30 => {
                let flags = [0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE];
                Op::SetXattr(
                    p,
                    xattr,
                    data[..data.len().min(10)].to_vec(),
                    r.pick(&flags),
                )
            }
            31 => Op::RemoveXattr(p, xattr),
            32 => Op::GetXattrs(p),
            33..=34 => Op::Stat(p),
            35 => Op::Readdir(p),
            36..=38 => Op::Hold(slot, p, r.pick(&[libc::O_RDONLY, libc::O_RDWR])),
            39 => Op::HeldWrite(slot, size, data),
            40 => Op::HeldRead(slot),
            41 => Op::HeldStat(slot),
            42 => Op::HeldTruncate(slot, size),
            43 => match r.below(3) {
                0 => Op::HeldChmod(slot, mode),
                1 => Op::HeldTimes(slot, time),
                _ => Op::HeldXattr(slot, data[..data.len().min(10)].to_vec()),
            },
            44 => Op::Release(slot),
            _ => Op::Hold(slot, p, libc::O_RDWR),
        }
    }
}

/// A file that is as it was, and what it was.
pub struct Unchanged(OwnedFd, libc::stat);

impl Unchanged {
    pub fn put_times_back(self) {
        let Unchanged(file, stat) = self;
        let mtime = (stat.st_mtime, stat.st_mtime_nsec);
        sys::futimens(&file, (stat.st_atime, stat.st_atime_nsec), mtime).unwrap();
    }
}

/// One of the two sides.
pub struct Side {
    pub root: PathBuf,
    pub held: [Option<OwnedFd>; SLOTS],
    /// Times from then on are "now".
    pub start: i64,
}

/// What an operation answered, comparably: text, since it is for people in the end.
pub type Answer = Result<String>;

impl Side {
    pub fn new(root: PathBuf, start: i64) -> Self {
        Side {
            root,
            held: [const { None }; SLOTS],
            start,
        }
    }

    fn show(&self, s: &libc::stat) -> String {
        let dir = s.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let size = if dir { 0 } else { s.st_size };
        let nlink = if dir && s.st_nlink > 0 { 0 } else { s.st_nlink };
        let mtime = if s.st_mtime >= self.start {
            (i64::MAX, 0)
        } else {
            (s.st_mtime, s.st_mtime_nsec)
        };
        let (mode, uid, gid) = (s.st_mode, s.st_uid, s.st_gid);
        format!(
            "{mode:o} {uid}:{gid} nlink {nlink} size {size} rdev {} {mtime:?}",
            s.st_rdev
        )
    }

    /// The file that the operation is to cut to the size it has. A kernel that collects writes takes that for
    /// no change, and names a time with each other truncation; the file system cannot tell which it is.
    pub fn no_change(&self, op: &Op) -> Option<Unchanged> {
        let Op::Truncate(path, size) = op else {
            return None;
        };
        let flags = libc::O_RDONLY | libc::O_NONBLOCK;
        let file = sys::open(self.root.join(path), flags, 0).ok()?;
        let stat = sys::fstat(&file).unwrap();
        (stat.st_size == *size).then_some(Unchanged(file, stat))
    }

    fn held(&self, slot: usize) -> Result<&OwnedFd> {
        self.held[slot].as_ref().ok_or(Errno::EBADF)
    }

    pub fn apply(&mut self, op: &Op) -> Answer {
        let at = |path: &String| self.root.join(path);
        // Never wait for the other end of a pipe.
        let open = |path: &String, flags| sys::open(at(path), flags | libc::O_NONBLOCK, 0o644);
        let bytes = |bytes: Vec<u8>| {
            let sum = bytes.iter().fold(0u64, |sum, b| {
                sum.wrapping_mul(31).wrapping_add((*b).into())
            });
            format!("{} bytes {sum:x}", bytes.len())
        };
        let regular = |path: &String, flags| {
            let fd = open(path, flags)?;
            let kind = sys::fstat(&fd)?.st_mode & libc::S_IFMT;
            if kind == libc::S_IFREG {
                Ok(fd)
            } else {
                Err(Errno::EINVAL)
            }
        };
        let (create, exclusive) = (libc::O_CREAT | libc::O_WRONLY, libc::O_EXCL);
        match op {
            Op::Create(p, mode) => sys::open(at(p), create | exclusive, *mode).map(drop)?,
            Op::Write(p, offset, data) => {
                let fd = regular(p, libc::O_WRONLY)?;
                let written = sys::pwrite(&fd, data, *offset)?;
                // What was collected has gone wrong only then.
                sys::flush(&fd)?;
                return Ok(written.to_string());
            }
            Op::Append(p, data) => {
                let fd = regular(p, create | libc::O_APPEND)?;
                let written = sys::write(&fd, data)?;
                sys::flush(&fd)?;
                return Ok(written.to_string());
            }
            Op::OpenTruncate(p) => regular(p, libc::O_RDWR | libc::O_TRUNC).map(drop)?,
            Op::Read(p) => {
                let fd = regular(p, libc::O_RDONLY)?;
                return Ok(bytes(sys::pread(&fd, 100_000, 0)?));
            }
            Op::Truncate(p, size) => sys::truncate(at(p), *size)?,
            Op::Unlink(p) => sys::unlink(at(p))?,
            Op::Mkdir(p, mode) => sys::mkdir(at(p), *mode)?,
            Op::Rmdir(p) => sys::rmdir(at(p))?,
            Op::Rename(from, to, flags) => sys::rename(at(from), at(to), *flags)?,
            Op::Link(from, to) => sys::link(at(from), at(to))?,
            Op::Symlink(target, p) => sys::symlink(target, at(p))?,
            Op::Readlink(p) => return Ok(text(&sys::readlink(at(p))?)),
            Op::Mknod(p, mode, dev) => sys::mknod(at(p), *mode, *dev)?,
            Op::Chmod(p, mode) => sys::chmod(at(p), *mode)?,
            Op::Chown(p, uid, gid) => sys::lchown(at(p), *uid, *gid)?,
            Op::Utimens(p, time) => sys::utimens(at(p), *time, *time)?,
            Op::SetXattr(p, name, value, flags) => sys::setxattr(at(p), name, value, *flags)?,
            Op::RemoveXattr(p, name) => sys::removexattr(at(p), name)?,
            Op::GetXattrs(p) => {
                let mut all = BTreeMap::new();
                for name in sys::listxattr(at(p))? {
                    let name = text(&name);
                    let value = sys::getxattr(at(p), &name);
                    all.insert(name, value);
                }
                return Ok(format!("{all:?}"));
            }
            Op::Stat(p) => return Ok(self.show(&sys::lstat(at(p))?)),
            Op::Readdir(p) => return Ok(format!("{:?}", sys::names(at(p))?)),
            Op::Hold(slot, p, flags) => {
                let fd = regular(p, *flags)?;
                self.held[*slot] = Some(fd);
            }
            Op::HeldWrite(slot, offset, data) => {
                return Ok(sys::pwrite(self.held(*slot)?, data, *offset)?.to_string());
            }
            Op::HeldRead(slot) => return Ok(bytes(sys::pread(self.held(*slot)?, 100_000, 0)?)),
            Op::HeldStat(slot) => return Ok(self.show(&sys::fstat(self.held(*slot)?)?)),
            Op::HeldTruncate(slot, size) => sys::ftruncate(self.held(*slot)?, *size)?,
            Op::HeldChmod(slot, mode) => sys::fchmod(self.held(*slot)?, *mode)?,
            Op::HeldTimes(slot, time) => sys::futimens(self.held(*slot)?, *time, *time)?,
            Op::HeldXattr(slot, value) => sys::fsetxattr(self.held(*slot)?, "user.held", value)?,
            Op::Release(slot) => self.held[*slot] = None,
        }
        Ok("done".into())
    }
}

/// One object of a generated layer.
#[derive(Clone)]
pub enum Item {
    Dir(String, u32),
    File(String, Vec<u8>, u32),
    Link(String, String),
    Symlink(String),
    Whiteout(String),
    Opaque(String),
}

/// Hardlinks are in the topmost layer only: elsewhere layers above would hide some of the names.
pub fn layer(random: &mut Random, top: bool, base: bool) -> Vec<Item> {
    let names = ["a", "b", "c", "d", "e"];
    let mut dirs = vec![String::new()];
    let mut files: Vec<String> = Vec::new();
    let mut items = Vec::new();
    let mut taken = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let parent = dirs[random.below(dirs.len())].clone();
        let p = format!("{parent}{}", random.pick(&names));
        if !taken.insert(p.clone()) {
            continue;
        }
        match random.below(if base { 7 } else { 10 }) {
            0..=2 => {
                dirs.push(format!("{p}/"));
                items.push(Item::Dir(p.clone(), random.pick(&[0o755, 0o700, 0o777])));
                if !base && random.chance(20) {
                    items.push(Item::Opaque(p));
                }
            }
            3..=5 if !top || files.is_empty() || !random.chance(20) => {
                let size = random.pick(&[0usize, 5, 5000, 20_000]);
                items.push(Item::File(
                    p.clone(),
                    vec![b'l'; size],
                    random.pick(&[0o644, 0o755]),
                ));
                files.push(p);
            }
            3..=5 => items.push(Item::Link(files[random.below(files.len())].clone(), p)),
            6 => items.push(Item::Symlink(p)),
            _ => items.push(Item::Whiteout(p)),
        }
    }
    items
}

fn old(path: &Path) {
    sys::utimens(path, (1_200_000_000, 5), (1_200_000_000, 123_456_789)).unwrap();
}

pub fn all_old(dir: &Path) {
    for name in sys::names(dir).unwrap() {
        let below = dir.join(name);
        if sys::lstat(&below).unwrap().st_mode & libc::S_IFMT == libc::S_IFDIR {
            all_old(&below);
        } else {
            old(&below);
        }
    }
    old(dir);
}

/// Writes an item as a layer holds it (`plain` is none) or applies it to the merged tree.
pub fn put(root: &Path, item: &Item, plain: bool) {
    let remove = |p: &Path| {
        if p.is_dir() && !p.is_symlink() {
            fs::remove_dir_all(p).unwrap();
        } else if p.is_symlink() || p.exists() {
            fs::remove_file(p).unwrap();
        }
    };
    let clear = |p: &str| {
        let p = root.join(p);
        if plain {
            remove(&p);
        }
        p
    };
    match item {
        Item::Dir(p, mode) => {
            let p = root.join(p);
            if !p.is_dir() || p.is_symlink() {
                remove(&p);
                sys::mkdir(&p, 0o755).unwrap();
            }
            sys::chmod(&p, *mode).unwrap();
        }
        Item::File(p, content, mode) => {
            let p = clear(p);
            sys::make(&p, content).unwrap();
            sys::chmod(&p, *mode).unwrap();
        }
        Item::Link(from, p) => sys::link(root.join(from), clear(p)).unwrap(),
        Item::Symlink(p) => sys::symlink("a/b", clear(p)).unwrap(),
        Item::Whiteout(p) if plain => remove(&root.join(p)),
        Item::Whiteout(p) => {
            let (dir, name) = p.rsplit_once('/').unwrap_or(("", p));
            sys::make(root.join(dir).join(format!(".wh.{name}")), b"").unwrap();
        }
        Item::Opaque(p) if plain => {
            for name in sys::names(root.join(p)).unwrap() {
                remove(&root.join(p).join(name));
            }
        }
        Item::Opaque(p) => sys::make(root.join(p).join(".wh..wh..opq"), b"").unwrap(),
    }
}
