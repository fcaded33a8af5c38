//! The random operations. An [`Op`] picks its paths by position, so that it fits any tree; a [`Step`]
//! is what becomes of it in the tree at hand.

use std::fmt;

use cvmfs_union::union::api::{Kind, RenameKind};
use proptest::prelude::*;
use proptest::sample::Index;

use super::is_plain;
use crate::support::fs::{Res, join, split};
use crate::support::{Fs, Merged, Tree, is_root};

const NAMES: [&str; 7] = ["a", "b", "c", "d", "l0", ".wh.a", ".wh..wh..opq"];
const MODES: [u32; 5] = [0o644, 0o600, 0o755, 0o4755, 0o2775];
const SIZES: [u64; 4] = [0, 3, 5000, 12_000];
const KEYS: [&str; 4] = [
    "user.a",
    "user.b",
    "user.overlay.x",
    "trusted.overlay.opaque",
];
const SLOTS: usize = 3;

/// Which path.
#[derive(Clone, Debug)]
pub enum Pick {
    /// One that is there.
    Known(Index),
    /// A name in one of the directories.
    In(Index, usize),
    /// A name in anything.
    Below(Index, usize),
}

#[derive(Clone, Debug)]
pub enum Op {
    Create(Pick, usize),
    Write(Pick, u64, u8),
    Rewrite(Pick, u8),
    Truncate(Pick, usize),
    Mkdir(Pick, usize),
    Symlink(Pick),
    Mknod(Pick, usize),
    Unlink(Pick),
    Rmdir(Pick),
    /// Removes what a directory holds, as far as that is one level.
    Empty(Pick),
    Rename(Pick, Pick, RenameKind),
    Link(Pick, Pick),
    Chmod(Pick, usize),
    Chown(Pick, u32),
    Setxattr(Pick, usize, u8, i32),
    Removexattr(Pick, usize),
    Open(usize, Pick, i32),
    ReadOpen(usize),
    WriteOpen(usize, u64, u8),
    Close(usize),
    Forget,
    Reopen,
}

fn pick() -> impl Strategy<Value = Pick> {
    let index = any::<Index>;
    prop_oneof![
        8 => index().prop_map(Pick::Known),
        5 => (index(), 0..NAMES.len()).prop_map(|(i, n)| Pick::In(i, n)),
        1 => (index(), 0..NAMES.len()).prop_map(|(i, n)| Pick::Below(i, n)),
    ]
}

/// A path that is likely free.
fn fresh() -> impl Strategy<Value = Pick> {
    prop_oneof![
        6 => (any::<Index>(), 0..NAMES.len()).prop_map(|(i, n)| Pick::In(i, n)),
        1 => pick(),
    ]
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => names(),
        8 => attributes(),
        6 => data(),
        2 => Just(Op::Reopen),
        1 => Just(Op::Forget),
    ]
}

fn names() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        5 => Just(RenameKind::Replace),
        1 => Just(RenameKind::NoReplace),
        2 => Just(RenameKind::Exchange),
        1 => Just(RenameKind::Whiteout),
    ];
    let mode = 0..MODES.len();
    prop_oneof![
        2 => (fresh(), mode.clone()).prop_map(|(p, m)| Op::Create(p, m)),
        2 => (fresh(), mode).prop_map(|(p, m)| Op::Mkdir(p, m)),
        1 => fresh().prop_map(Op::Symlink),
        1 => (fresh(), 0..3usize).prop_map(|(p, k)| Op::Mknod(p, k)),
        3 => pick().prop_map(Op::Unlink),
        2 => pick().prop_map(Op::Rmdir),
        2 => pick().prop_map(Op::Empty),
        7 => (pick(), pick(), kind).prop_map(|(a, b, k)| Op::Rename(a, b, k)),
        3 => (pick(), fresh()).prop_map(|(a, b)| Op::Link(a, b)),
    ]
}

fn attributes() -> impl Strategy<Value = Op> {
    let flags =
        prop_oneof![4 => Just(0), 1 => Just(libc::XATTR_CREATE), 1 => Just(libc::XATTR_REPLACE)];
    prop_oneof![
        3 => (pick(), 0..MODES.len()).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (pick(), 0..3u32).prop_map(|(p, u)| Op::Chown(p, u)),
        2 => (pick(), 0..KEYS.len(), any::<u8>(), flags)
            .prop_map(|(p, k, v, f)| Op::Setxattr(p, k, v, f)),
        1 => (pick(), 0..KEYS.len()).prop_map(|(p, k)| Op::Removexattr(p, k)),
    ]
}

fn data() -> impl Strategy<Value = Op> {
    let offset = || prop_oneof![Just(0u64), 0..6000u64];
    let flags = prop_oneof![
        2 => Just(libc::O_RDONLY),
        2 => Just(libc::O_RDWR),
        1 => Just(libc::O_RDWR | libc::O_TRUNC),
    ];
    prop_oneof![
        3 => (pick(), offset(), any::<u8>()).prop_map(|(p, o, b)| Op::Write(p, o, b)),
        1 => (pick(), any::<u8>()).prop_map(|(p, b)| Op::Rewrite(p, b)),
        2 => (pick(), 0..SIZES.len()).prop_map(|(p, s)| Op::Truncate(p, s)),
        3 => (0..SLOTS, pick(), flags).prop_map(|(s, p, f)| Op::Open(s, p, f)),
        3 => (0..SLOTS).prop_map(Op::ReadOpen),
        2 => (0..SLOTS, offset(), any::<u8>()).prop_map(|(s, o, b)| Op::WriteOpen(s, o, b)),
        1 => (0..SLOTS).prop_map(Op::Close),
    ]
}

/// The files that are open in both.
#[derive(Debug, Default)]
pub struct Files {
    union: [Option<u64>; SLOTS],
    disk: [Option<u64>; SLOTS],
    flags: [i32; SLOTS],
}

impl Files {
    pub fn of_union(&self) -> &[Option<u64>] {
        &self.union
    }

    pub fn of_disk(&self) -> &[Option<u64>] {
        &self.disk
    }

    pub fn set(&mut self, slot: usize, union: u64, disk: u64, flags: i32) {
        (self.union[slot], self.disk[slot], self.flags[slot]) = (Some(union), Some(disk), flags);
    }

    pub fn unset(&mut self, slot: usize) {
        (self.union[slot], self.disk[slot]) = (None, None);
    }

    pub fn close_all(self, merged: &Merged) {
        for fh in self.union.iter().flatten() {
            merged.close(*fh);
        }
    }

    fn is_open(&self, slot: usize) -> bool {
        self.union[slot].is_some()
    }

    fn writes(&self, slot: usize) -> bool {
        self.is_open(slot) && self.flags[slot] & libc::O_ACCMODE != libc::O_RDONLY
    }
}

/// One call.
#[derive(Clone, Debug)]
pub enum Step {
    Create(String, u32),
    Write(String, u64, u8),
    Rewrite(String, u8),
    Truncate(String, u64),
    Mkdir(String, u32),
    Symlink(String),
    Mknod(String, u32, u64),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, RenameKind),
    Link(String, String),
    Chmod(String, u32),
    Chown(String, u32),
    Setxattr(String, &'static str, u8, i32),
    Removexattr(String, &'static str),
    Open(usize, String, i32),
    ReadOpen(usize),
    WriteOpen(usize, u64, u8),
    Close(usize),
    Forget,
    Reopen,
}

/// What a call returned.
#[derive(Clone, PartialEq, Eq)]
pub enum Out {
    Done,
    Handle(u64),
    Data(Vec<u8>),
}

impl fmt::Debug for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Out::Done => write!(f, "done"),
            Out::Handle(fh) => write!(f, "handle {fh}"),
            Out::Data(data) => {
                let runs = data
                    .chunk_by(|a, b| a == b)
                    .take(20)
                    .map(|r| (r[0], r.len()));
                write!(f, "{} bytes: {:?}", data.len(), runs.collect::<Vec<_>>())
            }
        }
    }
}

impl Out {
    pub fn handle(&self) -> u64 {
        match self {
            Out::Handle(fh) => *fh,
            other => panic!("{other:?} is no handle"),
        }
    }
}

fn known(tree: &Tree) -> Vec<&str> {
    tree.paths().into_iter().filter(|p| !p.is_empty()).collect()
}

fn kind(tree: &Tree, path: &str) -> Option<Kind> {
    tree.0.get(path).map(|e| e.kind)
}

impl Pick {
    fn path(&self, tree: &Tree) -> String {
        let all = known(tree);
        let dirs: Vec<&str> = tree
            .paths()
            .into_iter()
            .filter(|p| kind(tree, p) == Some(Kind::Dir))
            .collect();
        match self {
            Pick::Known(i) if !all.is_empty() => (*i.get(&all)).to_owned(),
            Pick::Known(_) => NAMES[0].to_owned(),
            Pick::In(i, name) => join(i.get::<&str>(&dirs), NAMES[*name]),
            Pick::Below(i, name) => join(i.get::<&str>(&tree.paths()), NAMES[*name]),
        }
    }
}

impl Op {
    /// The calls that this means in a tree. The kernel refuses some before a file system is asked:
    /// those are not made.
    pub fn steps(&self, tree: &Tree, files: &Files) -> Vec<Step> {
        if let Op::Empty(p) = self {
            return empty(tree, &p.path(tree));
        }
        self.on_names(tree)
            .or_else(|| self.on_object(tree, files))
            .into_iter()
            .collect()
    }

    fn on_names(&self, tree: &Tree) -> Option<Step> {
        Some(match self {
            Op::Create(p, m) => Step::Create(p.path(tree), MODES[*m]),
            Op::Mkdir(p, m) => Step::Mkdir(p.path(tree), MODES[*m] & 0o777 | 0o700),
            Op::Symlink(p) => Step::Symlink(p.path(tree)),
            Op::Mknod(p, k) => {
                let device = (libc::S_IFCHR | 0o600, [0, 0, libc::makedev(1, 3)][*k]);
                let (mode, rdev) = if *k == 0 || !is_root() {
                    (libc::S_IFIFO | 0o600, 0)
                } else {
                    device
                };
                Step::Mknod(p.path(tree), mode, rdev)
            }
            Op::Unlink(p) => Step::Unlink(p.path(tree)),
            Op::Rmdir(p) => Step::Rmdir(p.path(tree)),
            Op::Rename(a, b, k) => rename(&a.path(tree), &b.path(tree), *k)?,
            Op::Link(a, b) => {
                let from = a.path(tree);
                if kind(tree, &from) == Some(Kind::Dir) {
                    return None;
                }
                Step::Link(from, b.path(tree))
            }
            Op::Forget => Step::Forget,
            Op::Reopen => Step::Reopen,
            _ => return None,
        })
    }

    fn on_object(&self, tree: &Tree, files: &Files) -> Option<Step> {
        let file = |p: &Pick| {
            let path = p.path(tree);
            matches!(kind(tree, &path), None | Some(Kind::File)).then_some(path)
        };
        let plain = |p: &Pick| {
            let path = p.path(tree);
            kind(tree, &path).is_none_or(is_plain).then_some(path)
        };
        Some(match self {
            Op::Write(p, o, b) => Step::Write(file(p)?, *o, *b),
            Op::Rewrite(p, b) => Step::Rewrite(file(p)?, *b),
            Op::Truncate(p, s) => Step::Truncate(file(p)?, SIZES[*s]),
            Op::Chmod(p, m) => Step::Chmod(plain(p)?, MODES[*m] | 0o700),
            Op::Chown(p, id) if is_root() => Step::Chown(p.path(tree), *id * 500),
            Op::Setxattr(p, k, v, f) => Step::Setxattr(plain(p)?, key(*k), *v, *f),
            Op::Removexattr(p, k) => Step::Removexattr(plain(p)?, key(*k)),
            Op::Open(slot, p, f) if !files.is_open(*slot) => Step::Open(*slot, file(p)?, *f),
            Op::ReadOpen(slot) if files.is_open(*slot) => Step::ReadOpen(*slot),
            Op::WriteOpen(slot, o, b) if files.writes(*slot) => Step::WriteOpen(*slot, *o, *b),
            Op::Close(slot) if files.is_open(*slot) => Step::Close(*slot),
            _ => return None,
        })
    }
}

fn key(index: usize) -> &'static str {
    let key = KEYS[index];
    if key.starts_with("trusted.") && !is_root() {
        KEYS[0]
    } else {
        key
    }
}

/// None where one path leads through the other: the kernel answers that itself.
fn rename(from: &str, to: &str, kind: RenameKind) -> Option<Step> {
    let within = |a: &str, b: &str| a.starts_with(&format!("{b}/"));
    let kind = if kind == RenameKind::Whiteout && !is_root() {
        RenameKind::Replace
    } else {
        kind
    };
    let apart = !within(from, to) && !within(to, from);
    apart.then(|| Step::Rename(from.to_owned(), to.to_owned(), kind))
}

fn empty(tree: &Tree, path: &str) -> Vec<Step> {
    let inside = |p: &&str| split(p).is_ok_and(|(dir, _)| dir == path);
    let step = |p: &str| match kind(tree, p) {
        Some(Kind::Dir) => Step::Rmdir(p.to_owned()),
        _ => Step::Unlink(p.to_owned()),
    };
    known(tree).into_iter().filter(inside).map(step).collect()
}

impl Step {
    pub fn run(&self, fs: &dyn Fs, files: &[Option<u64>]) -> Res<Out> {
        let handle = |slot: &usize| files[*slot].unwrap();
        match self {
            Step::Create(p, mode) => {
                let fh = fs.create(p, *mode)?;
                fs.close(fh);
                Ok(())
            }
            Step::Write(p, offset, byte) => {
                let fh = fs.open(p, libc::O_WRONLY)?;
                let done = fs.pwrite(fh, *offset, &[*byte; 100]);
                fs.close(fh);
                done.map(drop)
            }
            Step::Rewrite(p, byte) => fs.write(p, &[*byte; 10]),
            Step::Truncate(p, size) => fs.truncate(p, *size),
            Step::Mkdir(p, mode) => fs.mkdir(p, *mode),
            Step::Symlink(p) => fs.symlink("to/nowhere", p),
            Step::Mknod(p, mode, rdev) => fs.mknod(p, *mode, *rdev),
            Step::Unlink(p) => fs.unlink(p),
            Step::Rmdir(p) => fs.rmdir(p),
            Step::Rename(a, b, kind) => fs.rename(a, b, *kind),
            Step::Link(a, b) => fs.link(a, b),
            Step::Chmod(p, mode) => fs.chmod(p, *mode),
            Step::Chown(p, id) => fs.chown(p, *id, *id),
            Step::Setxattr(p, key, byte, flags) => fs.setxattr(p, key, &[*byte], *flags),
            Step::Removexattr(p, key) => fs.removexattr(p, key),
            Step::Open(_, p, flags) => return fs.open(p, *flags).map(Out::Handle),
            Step::ReadOpen(slot) => return fs.pread(handle(slot), 0, 20_000).map(Out::Data),
            Step::WriteOpen(slot, offset, byte) => {
                fs.pwrite(handle(slot), *offset, &[*byte; 50]).map(drop)
            }
            Step::Close(slot) => {
                fs.close(handle(slot));
                Ok(())
            }
            Step::Forget | Step::Reopen => Ok(()),
        }
        .map(|()| Out::Done)
    }
}
