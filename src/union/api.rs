//! The vocabulary of the union's operations: what callers pass in and get back.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The number of an object: FUSE node id and `st_ino` in one. 1 is the root.
pub type Ino = u64;

/// The root directory's number.
pub const ROOT: Ino = 1;

/// A kind of file, as `S_IFMT` tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    Char,
    Block,
}

/// Seconds since the epoch, negative before it, and nanoseconds in 0..10^9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    pub sec: i64,
    pub nsec: u32,
}

/// What `stat` shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    /// Permission bits, with set-id and sticky bits (07777).
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number as the kernel's `dev_t` of this platform.
    pub rdev: u64,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub blksize: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Applied to the mode of created objects where the parent has no default ACL.
    pub umask: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    Now,
    At(Time),
}

/// The attributes to change; with none set, privileges (set-id bits, capabilities) are dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// One name of a directory listing.
#[derive(Debug)]
pub struct DirEntry<'a> {
    pub ino: Ino,
    pub kind: Kind,
    pub name: &'a [u8],
    /// Pass it to `readdir` to go on after this entry.
    pub cookie: u64,
}

/// Which marks the upper gets for deletions: `auto` takes the best that its file system can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Whiteouts {
    #[default]
    Auto,
    Overlay,
    Wh,
}

/// Whose the objects of the lowers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Owner {
    #[default]
    Keep,
    Squash,
}

/// When copied-up data reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    Full,
    #[default]
    Auto,
    Volatile,
}

/// A lower directory of the stack.
#[derive(Debug)]
pub struct LowerSpec {
    /// Names the layer for ever (its digest, or its path): inode numbers derive from it.
    pub identity: String,
    pub path: PathBuf,
}

/// The read-write part.
#[derive(Debug)]
pub struct UpperSpec {
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// Everything a union is opened from.
#[derive(Debug)]
pub struct UnionConfig {
    /// Topmost first.
    pub lowers: Vec<LowerSpec>,
    /// None: read-only.
    pub upper: Option<UpperSpec>,
    pub whiteouts: Whiteouts,
    pub portable_upper: bool,
    pub owner: Owner,
    pub durability: Durability,
}

/// Flags of `rename`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameKind {
    Replace,
    NoReplace,
    Exchange,
    Whiteout,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

/// A file descriptor the union hands out for reading or writing data.
pub type Data = std::sync::Arc<OwnedFd>;
