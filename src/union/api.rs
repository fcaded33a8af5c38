//! The vocabulary of the union's operations: what callers pass in and get back.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::apart::Apart;
use super::shown::Shown;
use crate::layer::Learning;

/// The number of an object: FUSE node id and `st_ino` in one. 1 is the root.
pub type Ino = u64;

/// The root directory's number.
pub const ROOT: Ino = 1;

/// A kind of file, as `S_IFMT` tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `S_IFREG`.
    File,
    /// `S_IFDIR`.
    Dir,
    /// `S_IFLNK`.
    Symlink,
    /// `S_IFIFO`.
    Fifo,
    /// `S_IFSOCK`.
    Socket,
    /// `S_IFCHR`.
    Char,
    /// `S_IFBLK`.
    Block,
}

/// Seconds since the epoch, negative before it, and nanoseconds in 0..10^9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds, rounded down: -0.5 s is -1 here and 500,000,000 in `nsec`.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

/// What `stat` shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Unchanged by copy-up and rename; S4 says how far by a remount.
    pub ino: Ino,
    /// Does not change while `ino` is in use.
    pub kind: Kind,
    /// Permission bits, with set-id and sticky bits (07777).
    pub mode: u32,
    /// Of directories S6 tells, of files of layers S37; 0 once removed.
    pub nlink: u32,
    /// Owner as stored, or 0 of lowers with [`Owner::Squash`].
    pub uid: u32,
    /// Group as stored, or 0 of lowers with [`Owner::Squash`].
    pub gid: u32,
    /// Device number as the kernel's `dev_t` of this platform.
    pub rdev: u64,
    /// In bytes; of a symlink the length of its target.
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    /// The preferred size of a read or write, in bytes.
    pub blksize: u32,
    /// Last access; reading does not change that of a file in a lower.
    pub atime: Time,
    /// Last change of the data; kept by a copy-up.
    pub mtime: Time,
    /// Last change of the attributes; a copy-up sets it (S53).
    pub ctime: Time,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Owner of what it makes (S48); 0 keeps set-id bits on truncation.
    pub uid: u32,
    /// Group of what it makes; others that it is in are not known (S56).
    pub gid: u32,
    /// Applied to the mode of created objects where the parent has no default ACL.
    pub umask: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// The time of the change, by the kernel's clock.
    Now,
    /// Stored as exactly as the upper's file system can.
    At(Time),
}

/// The attributes to change; with none set, privileges (set-id bits, capabilities) are dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits, with set-id and sticky bits (07777).
    pub mode: Option<u32>,
    /// New owner. Linux clears set-id bits of files with it.
    pub uid: Option<u32>,
    /// New group. Linux clears set-id bits of files with it.
    pub gid: Option<u32>,
    /// New length in bytes; growth is a hole. EISDIR for a directory.
    pub size: Option<u64>,
    /// New time of last access.
    pub atime: Option<SetTime>,
    /// New time of last change of the data.
    pub mtime: Option<SetTime>,
}

/// One name of a directory listing.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// The same as `st_ino` of the object; of `..` in the root the root's.
    pub ino: Ino,
    /// Tells `d_type`.
    pub kind: Kind,
    /// Any bytes but `/` and NUL; also `.` and `..`.
    pub name: &'a [u8],
    /// Pass it to `readdir` to go on after this entry.
    pub cookie: u64,
    /// Of the attributes that come with it the link count is missing: they are to be asked for when they are wanted.
    pub partial: bool,
}

/// Which marks the upper gets for deletions: `auto` takes the best that its file system can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Whiteouts {
    /// `Overlay` where devices 0:0 can be made and exchanged and xattrs be written, else `Wh`.
    #[default]
    Auto,
    /// Devices 0:0 and `overlay.opaque`; EOPNOTSUPP at mount where `Auto` would not take it.
    Overlay,
    /// `.wh.NAME` and `.wh..wh..opq` (aufs, OCI); users' names of that form are stored otherwise.
    Wh,
}

/// Whose the objects of the lowers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Owner {
    /// As the layers store it.
    #[default]
    Keep,
    /// All 0:0, also when copied up.
    Squash,
}

/// When copied-up data reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Data are synced before the copy takes its place, its directory afterwards.
    Full,
    /// Data are synced before the copy takes its place.
    #[default]
    Auto,
    /// fsync is ignored; one syncfs at a clean end. After a crash the upper is refused (S60).
    Volatile,
}

/// A lower directory of the stack.
#[derive(Debug)]
pub struct LowerSpec {
    /// Names the layer for ever (its digest, or its path): inode numbers derive from it.
    pub identity: String,
    /// ENOTDIR if it is no directory; symlinks are followed.
    pub path: PathBuf,
}

/// The read-write part.
#[derive(Debug)]
pub struct UpperSpec {
    /// Holds the changes; must exist. EWOULDBLOCK while another union has it.
    pub upper: PathBuf,
    /// For temporaries and the index of hard links; must exist, EXDEV if on another file system.
    pub work: PathBuf,
}

/// The most directories of one kind that stay open, be ever so many files allowed.
const MOST_DIRECTORIES: usize = 4096;

/// How much is kept in memory of what can be had again.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Descriptors of directories: so many of lowers, and so many of the upper.
    pub directories: NonZeroUsize,
    /// Merged listings of the lower parts of directories.
    pub listings: NonZeroUsize,
    /// Descriptors of files of lowers that nobody has open as far as is known, in a read-only union.
    pub files: NonZeroUsize,
}

impl Limits {
    /// For a process that may have so many files open: the more directories stay open, the fewer are
    /// opened again for each of their names.
    pub fn of(open_files: u64) -> Limits {
        let least = Limits::default();
        let share = usize::try_from(open_files / 8).unwrap_or(usize::MAX);
        let share = NonZeroUsize::new(share.min(MOST_DIRECTORIES));
        Limits {
            directories: share.map_or(least.directories, |n| n.max(least.directories)),
            ..least
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let limit = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        Limits {
            directories: limit(512),
            listings: limit(2048),
            files: limit(256),
        }
    }
}

/// Everything a union is opened from.
#[derive(Debug)]
pub struct UnionConfig {
    /// Topmost first.
    pub lowers: Vec<LowerSpec>,
    /// None: read-only.
    pub upper: Option<UpperSpec>,
    /// These directories lie apart; None: the union looks for itself.
    pub apart: Option<Apart>,
    /// How deletions are written; those of all styles are read.
    pub whiteouts: Whiteouts,
    /// Write neither redirects nor metadata copies (S44): EXDEV and full copies instead.
    pub portable_upper: bool,
    /// Applied to lowers only.
    pub owner: Owner,
    /// What is shown otherwise than it is stored.
    pub shown: Shown,
    /// Without an upper it means nothing.
    pub durability: Durability,
    /// Lower ones cost time, not correctness.
    pub limits: Limits,
    /// Files that are opened ahead, and what is told of those that programs open.
    pub learning: Option<Learning>,
}

/// The layers of a stack, topmost first: one that stands in it once more, further down, has nothing to add.
pub fn distinct(lowers: &[LowerSpec]) -> impl Iterator<Item = &LowerSpec> {
    let mut stand = HashSet::new();
    lowers
        .iter()
        .filter(move |l| stand.insert((&l.identity, &l.path)))
}

/// Flags of `rename`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameKind {
    /// Flags 0: takes the place of a target, if there is one.
    Replace,
    /// EEXIST if there is a target.
    NoReplace,
    /// Both names must be there (else ENOENT) and change places.
    Exchange,
    /// As `Replace`, and leaves a device 0:0 that users see. EINVAL on an upper without xattrs.
    Whiteout,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// The size of the file system, in units of `frsize`.
    pub blocks: u64,
    /// Free, in units of `frsize`.
    pub bfree: u64,
    /// Free to unprivileged users, in units of `frsize`.
    pub bavail: u64,
    /// The number of inodes; 0 where the file system has no such limit.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// The preferred size of a read or write, in bytes.
    pub bsize: u32,
    /// The longest name in bytes, always 255.
    pub namelen: u32,
    /// The unit of the block counts, in bytes.
    pub frsize: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_open_files_are_more_open_directories() {
        let directories = |n| Limits::of(n).directories.get();
        assert_eq!([0, 1024, 1 << 14].map(directories), [512, 512, 2048]);
        assert_eq!([1 << 19, u64::MAX].map(directories), [4096; 2]);
        // Both kinds of directories, and what else is open, have room.
        assert!(
            (1 << 13..1 << 20)
                .step_by(511)
                .all(|n| 4 * directories(n) as u64 <= n)
        );
    }
}
