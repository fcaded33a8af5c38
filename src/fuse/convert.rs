//! Between the vocabulary of fuser and that of the union: attributes, times, device numbers, errors.
//!
//! Everything here is total: what a field cannot hold is clamped, and nothing panics.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};

use crate::error::Error;
use crate::union::api::{Attr, Ino, Kind, RenameKind, SetTime, Time};

/// How long the kernel may keep names and attributes: for ever, as nothing changes behind its back.
pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

const NANOS: u32 = 1_000_000_000;

/// The kind of a file in fuser's words.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}

/// The attributes in fuser's words.
pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system_time(attr.atime),
        mtime: to_system_time(attr.mtime),
        ctime: to_system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: wire_device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The entry that says "no such name": its node id is 0, and the kernel keeps it like any other.
pub fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A time for a reply; fuser writes it to the wire as seconds and a non-negative fraction.
pub fn to_system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nsec.min(NANOS - 1)));
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let second = if time.sec >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    second
        .and_then(|t| t.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// A time out of a request. For times before the epoch fuser subtracts the fraction from the
/// second instead of adding it; here it gets its sign back.
pub fn from_system_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Time {
                sec: 0i64
                    .checked_sub_unsigned(before.as_secs())
                    .unwrap_or(i64::MIN),
                nsec: before.subsec_nanos(),
            }
        }
    }
}

/// A time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(from_system_time(t)),
    }
}

/// A `dev_t` as the kernel's 32-bit `new_encode_dev`: 12 bits of major, 20 bits of minor.
pub fn wire_device(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The `dev_t` of a device number from the wire. It fits in 32 bits, as its major fits in 12.
pub fn device(wire: u32) -> u32 {
    let major = (wire >> 8) & 0xfff;
    let minor = (wire & 0xff) | ((wire >> 12) & 0xf_ff00);
    libc::makedev(major, minor) as u32
}

/// What kind of rename the flags ask for; None for a combination that no file system knows.
pub fn rename_kind(flags: RenameFlags) -> Option<RenameKind> {
    match flags {
        f if f.is_empty() => Some(RenameKind::Replace),
        RenameFlags::RENAME_NOREPLACE => Some(RenameKind::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Some(RenameKind::Exchange),
        RenameFlags::RENAME_WHITEOUT => Some(RenameKind::Whiteout),
        // That nothing is in the way the kernel has seen itself.
        f if f == RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE => {
            Some(RenameKind::Whiteout)
        }
        _ => None,
    }
}

/// Logs the error and picks the errno of the reply. ENOSYS would make the kernel never ask again,
/// for any file, so it leaves as EOPNOTSUPP.
pub fn errno(op: &'static str, ino: Ino, error: &Error) -> Errno {
    if is_answer(error.errno()) || error.is_logged() {
        tracing::debug!("{op} of node {ino}: {error}");
    } else {
        tracing::warn!("{op} of node {ino}: {error}");
    }
    match error.errno() {
        libc::ENOSYS => Errno::EOPNOTSUPP,
        code => Errno::from_i32(code),
    }
}

/// Whether an errno is an ordinary answer of a healthy file system.
fn is_answer(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOENT
            | libc::EEXIST
            | libc::ENOTEMPTY
            | libc::ENOTDIR
            | libc::EISDIR
            | libc::EACCES
            | libc::EPERM
            | libc::EROFS
            | libc::EXDEV
            | libc::ENODATA
            | libc::ERANGE
            | libc::E2BIG
            | libc::EINVAL
            | libc::ENAMETOOLONG
            | libc::ELOOP
            | libc::EMLINK
            | libc::EFBIG
            | libc::ENXIO
            | libc::ENOTTY
            | libc::EBUSY
            | libc::ETXTBSY
            | libc::ENOSPC
            | libc::EDQUOT
            | libc::EOPNOTSUPP
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_out() {
        let t = to_system_time(Time {
            sec: -2,
            nsec: 800_000_000,
        });
        assert_eq!(
            UNIX_EPOCH.duration_since(t).ok(),
            Some(Duration::new(1, 200_000_000))
        );
        let t = to_system_time(Time { sec: 5, nsec: 7 });
        assert_eq!(t.duration_since(UNIX_EPOCH).ok(), Some(Duration::new(5, 7)));
    }

    #[test]
    fn a_fraction_before_the_epoch_gets_its_sign_back() {
        // What fuser hands over for seconds = -2 and nanoseconds = 300.
        let t = UNIX_EPOCH - Duration::new(2, 300);
        assert_eq!(from_system_time(t), Time { sec: -2, nsec: 300 });
    }

    #[test]
    fn extreme_times_do_not_panic() {
        for sec in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            for nsec in [0, NANOS - 1, u32::MAX] {
                to_system_time(Time { sec, nsec });
            }
        }
    }

    #[test]
    fn devices_go_both_ways() {
        for (major, minor) in [(0, 0), (1, 3), (8, 0x1_2345), (0xfff, 0xf_ffff)] {
            let dev = libc::makedev(major, minor);
            assert_eq!(u64::from(device(wire_device(dev))), dev);
        }
    }

    #[test]
    fn enosys_never_leaves() {
        let e = errno("test", 1, &Error::new(libc::ENOSYS, "test"));
        assert_eq!(e.code(), libc::EOPNOTSUPP);
    }
}
