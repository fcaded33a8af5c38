//! Attributes that rootless engines store beside a file, where they could not give it the real ones.
//!
//! A layer has them if its root has one. The value is `uid:gid:mode`, the mode in octal, and perhaps a
//! kind, `char-1-3` of a device, whose place a regular file takes. fuse-overlayfs writes them with
//! `xattr_permissions`, and containers/storage with `force_mask`.

use std::ffi::CStr;
use std::io;

use crate::sys::meta::Stat;

/// The attribute that a layer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrides(&'static CStr);

/// The stronger first.
const KEYS: [&CStr; 3] = [
    c"security.fuseoverlayfs.override_stat",
    c"user.containers.override_stat",
    c"user.fuseoverlayfs.override_stat",
];

impl Overrides {
    /// That of a layer whose root has these attributes, their names ended by NULs.
    pub fn among(keys: &[u8]) -> Option<Overrides> {
        let has = |key: &&CStr| keys.split(|b| *b == 0).any(|k| k == key.to_bytes());
        KEYS.into_iter().find(has).map(Overrides)
    }

    /// That of fuse-overlayfs for root, which it has for `xattr_permissions=1`.
    pub fn of_root() -> Overrides {
        let [key, ..] = KEYS;
        Overrides(key)
    }

    /// That of fuse-overlayfs for users, which it has for `xattr_permissions=2`.
    pub fn of_user() -> Overrides {
        let [.., key] = KEYS;
        Overrides(key)
    }

    /// Whether an upper that has `found` is what is asked for by this. containers/storage begins uppers with its
    /// own attribute and mounts them with `xattr_permissions=2`, and fuse-overlayfs goes on with what it finds.
    pub fn is_met_by(self, found: Overrides) -> bool {
        let [_, engines, _] = KEYS;
        self == found || self == Overrides::of_user() && found == Overrides(engines)
    }

    /// Whether an attribute of this name can be one.
    pub fn is_key(key: &[u8]) -> bool {
        KEYS.iter().any(|known| known.to_bytes() == key)
    }

    /// The name of the attribute.
    pub fn key(self) -> &'static CStr {
        self.0
    }
}

/// Puts what an attribute says in the place of what the file itself says.
///
/// # Errors
///
/// EIO for a value that says nothing.
pub fn apply(value: &[u8], stat: &mut Stat) -> io::Result<()> {
    let broken = || io::Error::from_raw_os_error(libc::EIO);
    let text = std::str::from_utf8(value).map_err(|_| broken())?;
    let text = text.trim_end_matches('\0');
    let mut parts = text.splitn(4, ':');
    let mut number = |radix| {
        let part = parts.next()?;
        u32::from_str_radix(part, radix).ok()
    };
    let (uid, gid, mode) = (number(10), number(10), number(8));
    stat.st_uid = uid.ok_or_else(broken)?;
    stat.st_gid = gid.ok_or_else(broken)?;
    stat.st_mode = stat.st_mode & libc::S_IFMT | mode.ok_or_else(broken)? & 0o7777;
    if stat.st_mode & libc::S_IFMT == libc::S_IFREG
        && let Some((kind, device)) = parts.next().and_then(stands_for)
    {
        stat.st_mode = stat.st_mode & 0o7777 | kind;
        (stat.st_rdev, stat.st_size) = (device, 0);
    }
    Ok(())
}

/// The value that says these.
pub fn value(uid: u32, gid: u32, mode: u32) -> String {
    format!("{uid}:{gid}:{:o}", mode & 0o7777)
}

/// What a regular file may stand for: the kind, and of a device its number.
fn stands_for(kind: &str) -> Option<(u32, u64)> {
    let device = |numbers: &str| {
        let numbers = numbers.trim_start_matches('-');
        let (major, minor) = numbers.split_once(['-', ':'])?;
        Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    match kind {
        "pipe" => Some((libc::S_IFIFO, 0)),
        "socket" => Some((libc::S_IFSOCK, 0)),
        _ => {
            let block = kind.strip_prefix("block").and_then(device);
            let char = || kind.strip_prefix("char").and_then(device);
            block
                .map(|device| (libc::S_IFBLK, device))
                .or_else(|| char().map(|device| (libc::S_IFCHR, device)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::meta;

    fn applied(value: &str, mode: u32) -> Option<(u32, u32, u32, u64)> {
        let mut stat = meta::blank();
        stat.st_mode = mode;
        apply(value.as_bytes(), &mut stat).ok()?;
        Some((stat.st_uid, stat.st_gid, stat.st_mode, stat.st_rdev))
    }

    #[test]
    fn owners_and_modes() {
        let file = libc::S_IFREG | 0o755;
        for value in ["5:6:4600", "5:6:04600", "5:6:4600:file", "5:6:104600"] {
            let wanted = (5, 6, libc::S_IFREG | 0o4600, 0);
            assert_eq!(applied(value, file), Some(wanted), "{value}");
        }
        assert_eq!(
            applied(&value(5, 6, 0o104_600), file),
            Some((5, 6, libc::S_IFREG | 0o4600, 0))
        );
        for value in ["", "5", "5:6", "5:6:x", "-1:0:0", "5:6:888"] {
            assert_eq!(applied(value, file), None, "{value}");
        }
    }

    #[test]
    fn files_that_stand_for_others() {
        let null = libc::makedev(1, 3);
        let file = libc::S_IFREG | 0o644;
        let mode = |value, mode| applied(value, mode).map(|(_, _, mode, rdev)| (mode, rdev));
        for value in ["0:0:666:char-1-3", "0:0:666:char1:3"] {
            assert_eq!(mode(value, file), Some((libc::S_IFCHR | 0o666, null)));
        }
        assert_eq!(
            mode("0:0:600:block-8-0", file).map(|m| m.0),
            Some(libc::S_IFBLK | 0o600)
        );
        assert_eq!(mode("0:0:600:pipe", file), Some((libc::S_IFIFO | 0o600, 0)));
        // A directory stays one, whatever is said.
        let dir = libc::S_IFDIR | 0o755;
        assert_eq!(
            mode("0:0:700:char-1-3", dir),
            Some((libc::S_IFDIR | 0o700, 0))
        );
        assert_eq!(mode("0:0:700:dir", dir), Some((libc::S_IFDIR | 0o700, 0)));
    }

    #[test]
    fn the_root_tells() {
        let keys = b"user.a\0user.containers.override_stat\0";
        let found = Overrides::among(keys).map(Overrides::key);
        assert_eq!(found, Some(c"user.containers.override_stat"));
        assert_eq!(Overrides::among(b"user.override_stat\0"), None);
    }
}
