//! The longer answers: listings, and the inode flags that `ioctl` reads and sets.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{Errno, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyIoctl};

use super::convert;
use super::{GENERATION, UnionFs, changing, reading};
use crate::union::Union;
use crate::union::api::{Attr, DirEntry, Ino};

// `_IOR('f', 1, long)` and `_IOW('f', 2, long)`, and as 32-bit callers number them. The argument
// is an int in all of them.
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const GETFLAGS_32: u32 = 0x8004_6601;
const SETFLAGS_32: u32 = 0x4004_6602;
/// `_IOR('X', 31, struct fsxattr)`: the kernel asks this before it sets flags.
const FSGETXATTR: u32 = 0x801c_581f;
/// The size of a `struct fsxattr`: flags first, and then what is 0 here.
const FSXATTR_SIZE: usize = 28;
/// The inode flags and the `fsx_xflags` that mean the same (`linux/fs.h`): synchronous, immutable,
/// append only, no dump, no access time.
const XFLAGS: [(u32, u32); 5] = [
    (0x8, 0x20),
    (0x10, 0x8),
    (0x20, 0x10),
    (0x40, 0x80),
    (0x80, 0x40),
];

fn fsxattr(flags: u32) -> [u8; FSXATTR_SIZE] {
    let same = XFLAGS.iter().filter(|(flag, _)| flags & flag != 0);
    let xflags = same.fold(0u32, |all, (_, xflag)| all | xflag);
    let mut bytes = [0; FSXATTR_SIZE];
    bytes[..4].copy_from_slice(&xflags.to_ne_bytes());
    bytes
}

/// Answers with names.
pub fn readdir(union: &Union, ino: Ino, cookie: u64, mut reply: ReplyDirectory) {
    let mut fitted = false;
    let result = union.readdir(ino, cookie, &mut |entry| {
        let (kind, name) = (
            convert::file_type(entry.kind),
            OsStr::from_bytes(entry.name),
        );
        let full = reply.add(INodeNo(entry.ino), entry.cookie, kind, name);
        fitted |= !full;
        !full
    });
    match result.map_err(|e| convert::errno("readdir", ino, &e)) {
        Err(errno) if !fitted => reply.error(errno),
        // What came before a failure is handed out; the next call meets the failure again.
        _ => reply.ok(),
    }
}

/// Answers with names and attributes.
///
/// With `names_first`, the kernel asks so for the beginning of a listing, and then only if it has seen
/// lookups in the directory (`READDIRPLUS_AUTO`). If it is to have names alone, it is given the beginning
/// ([`Union::begin_names`]), and asks for the rest by READDIR. An answer cannot leave out the attributes of an entry: fuser
/// knows no way to say that. `timeout`: how long that of an entry may be kept.
pub fn readdirplus(
    union: &Union,
    ino: Ino,
    cookie: u64,
    names_first: bool,
    timeout: impl Fn(&DirEntry<'_>) -> Duration,
    mut reply: ReplyDirectoryPlus,
) {
    let mut fitted = false;
    let mut each = |entry: &DirEntry<'_>, attr: &Attr| {
        let (name, attr) = (OsStr::from_bytes(entry.name), convert::file_attr(attr));
        let full = reply.add(
            INodeNo(entry.ino),
            entry.cookie,
            name,
            &timeout(entry),
            &attr,
            GENERATION,
        );
        fitted |= !full;
        !full
    };
    let names = match names_first && cookie == 0 {
        true => union.gives_attributes(ino).map(|gives| !gives),
        false => Ok(false),
    };
    let result = names.and_then(|names| match names {
        true => union.begin_names(ino, &mut each),
        false => union.readdirplus(ino, cookie, &mut each),
    });
    match result.map_err(|e| convert::errno("readdirplus", ino, &e)) {
        Err(errno) if !fitted => reply.error(errno),
        // The entries that fitted are counted as looked up: the kernel has to get them.
        _ => reply.ok(),
    }
}

impl UnionFs {
    /// Reads or sets the inode flags; there is no other `ioctl`.
    pub(super) fn inode_flags(
        &self,
        ino: Ino,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        match (cmd, in_data.first_chunk::<4>()) {
            (GETFLAGS | GETFLAGS_32, _) if out_size >= 4 => {
                self.run("ioctl", reading(ino), move |union| {
                    match union.get_flags(ino) {
                        Ok(flags) => reply.ioctl(0, &flags.to_ne_bytes()),
                        Err(e) => reply.error(convert::errno("get_flags", ino, &e)),
                    }
                });
            }
            (FSGETXATTR, _) if out_size as usize >= FSXATTR_SIZE => {
                self.run("ioctl", reading(ino), move |union| {
                    match union.get_flags(ino) {
                        Ok(flags) => reply.ioctl(0, &fsxattr(flags)),
                        Err(e) => reply.error(convert::errno("get_flags", ino, &e)),
                    }
                });
            }
            (SETFLAGS | SETFLAGS_32, Some(&flags)) => {
                let flags = u32::from_ne_bytes(flags);
                self.run("ioctl", changing([(ino, None)]), move |union| {
                    match union.set_flags(ino, flags) {
                        Ok(()) => reply.ioctl(0, &[]),
                        Err(e) => reply.error(convert::errno("set_flags", ino, &e)),
                    }
                });
            }
            _ => self.here("ioctl", || reply.error(Errno::ENOTTY)),
        }
    }
}
