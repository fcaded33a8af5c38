//! The attributes by which the upper remembers what its files cannot say.
//!
//! `overlay.*` are the kernel overlayfs' own (its documentation: "redirect_dir", "metacopy",
//! "whiteouts and opaque directories"); `cvmfs-union.*` are ours. They stand in `trusted.` where the
//! daemon may write that, else in `user.`. A user's attribute of such a name gets its second component
//! doubled, as overlayfs does for a nested overlay.

use std::ffi::CString;
use std::io;

use super::api::{Ino, Kind};
use super::lowers::is_lower_ino;
use super::place::At;
use crate::error::{Context, Error, Result};
use crate::layer::dialect;
use crate::sys::xattr;

/// The namespace that holds the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Trusted,
    User,
    /// The file system has no attributes.
    None,
}

/// A mark on an upper object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Opaque,
    Redirect,
    Metacopy,
    /// The number of an object that was copied up.
    Ino,
    /// A device that cannot stand there as one: mode and device number.
    Special,
    /// What to add to `st_nlink`.
    Nlink,
    /// On the upper's root: how its names are written.
    Dialect,
}

const ALL: [Mark; 7] = [
    Mark::Opaque,
    Mark::Redirect,
    Mark::Metacopy,
    Mark::Ino,
    Mark::Special,
    Mark::Nlink,
    Mark::Dialect,
];

impl Mark {
    fn tail(self) -> &'static str {
        match self {
            Mark::Opaque => "overlay.opaque",
            Mark::Redirect => "overlay.redirect",
            Mark::Metacopy => "overlay.metacopy",
            Mark::Ino => "cvmfs-union.ino",
            Mark::Special => "cvmfs-union.special",
            Mark::Nlink => "cvmfs-union.nlink",
            Mark::Dialect => "cvmfs-union.dialect",
        }
    }
}

/// What the marks of one upper object say.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    pub opaque: bool,
    /// Files in it with `overlay.whiteout` are whiteouts.
    pub xattr_whiteouts: bool,
    pub redirect: Option<Vec<u8>>,
    pub metacopy: bool,
    pub ino: Option<Ino>,
    pub special: Option<(Kind, u64)>,
    pub nlink: Option<i64>,
    pub dialect: Option<Vec<u8>>,
    /// There are attributes that users may see.
    pub others: bool,
}

fn key(space: &str, mark: Mark) -> Result<CString> {
    let key = format!("{space}.{}", mark.tail());
    CString::new(key).map_err(|_| Error::new(libc::EINVAL, "attribute name"))
}

/// The error of an object or a file system that has no attributes.
pub fn unsupported(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EOPNOTSUPP)
}

impl Space {
    fn name(self) -> Option<&'static str> {
        match self {
            Space::Trusted => Some("trusted"),
            Space::User => Some("user"),
            Space::None => None,
        }
    }

    /// Where this user's marks are, as long as the file system has not been asked.
    pub fn of_user() -> Space {
        match nix::unistd::geteuid().is_root() {
            true => Space::Trusted,
            false => Space::User,
        }
    }

    /// Where the marks of an object are, if it has any.
    pub fn on(at: &At) -> Result<Option<Space>> {
        let keys = match xattr::list(at.fd(), &at.name) {
            Err(e) if unsupported(&e) => return Ok(None),
            other => other.op("list xattrs")?,
        };
        let has = |space: &Space| {
            let prefix = space.prefix().unwrap_or_default();
            let mut keys = keys.split(|b| *b == 0);
            keys.any(|key| key.starts_with(prefix.as_bytes()) && unescape(key).is_none())
        };
        Ok([Space::Trusted, Space::User].into_iter().find(has))
    }

    /// What the names of all its attributes begin with.
    pub fn prefix(self) -> Option<String> {
        self.name().map(|name| format!("{name}."))
    }

    /// Writes a mark. Where there is no place for it EOPNOTSUPP.
    pub fn set(self, at: &At, mark: Mark, value: &[u8]) -> Result<()> {
        let Some(space) = self.name() else {
            return Err(Error::new(libc::EOPNOTSUPP, "mark"));
        };
        xattr::set(at.fd(), &at.name, &key(space, mark)?, value, 0).op("mark")
    }

    /// Removes a mark, in whatever namespace it is.
    pub fn clear(self, at: &At, mark: Mark) -> Result<()> {
        for space in ["trusted", "user"] {
            match xattr::remove(at.fd(), &at.name, &key(space, mark)?) {
                // Who may not remove those of the other namespace did not write any there.
                Err(e) if e.raw_os_error() == Some(libc::EPERM) && self.name() != Some(space) => {}
                Err(e) if !is_absent(&e) => return Err(e).op("remove mark"),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP))
}

/// Reads all the marks of an object, those of other unions too.
pub fn read(at: &At) -> Result<Marks> {
    let mut marks = Marks::default();
    let keys = match xattr::list(at.fd(), &at.name) {
        Err(e) if unsupported(&e) => return Ok(marks),
        other => other.op("list xattrs")?,
    };
    for k in keys.split(|b| *b == 0).filter(|k| !k.is_empty()) {
        if !dialect::is_union_xattr(k) || unescape(k).is_some() {
            marks.others = true;
            continue;
        }
        let Some(tail) = k.splitn(2, |b| *b == b'.').nth(1) else {
            continue;
        };
        let mark = if tail == b"fuseoverlayfs.opaque" {
            Some(Mark::Opaque)
        } else {
            ALL.into_iter().find(|m| m.tail().as_bytes() == tail)
        };
        let Some(mark) = mark else { continue };
        let name = CString::new(k).map_err(|_| Error::new(libc::EIO, "attribute name"))?;
        let value = match xattr::get(at.fd(), &at.name, &name) {
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => continue,
            other => other.op("read mark")?,
        };
        marks.take(mark, value)?;
    }
    Ok(marks)
}

impl Marks {
    fn take(&mut self, mark: Mark, value: Vec<u8>) -> Result<()> {
        let text = || std::str::from_utf8(&value).ok();
        let broken = || Error::new(libc::EIO, "broken mark");
        match mark {
            Mark::Opaque => match value.as_slice() {
                b"y" => self.opaque = true,
                b"x" => self.xattr_whiteouts = true,
                _ => {}
            },
            Mark::Redirect => self.redirect = Some(value),
            Mark::Metacopy => self.metacopy = true,
            Mark::Ino => {
                let ino = text().and_then(|t| u64::from_str_radix(t, 16).ok());
                self.ino = Some(ino.filter(|i| is_lower_ino(*i)).ok_or_else(broken)?);
            }
            Mark::Special => {
                let special = text().and_then(|t| {
                    let (kind, rdev) = t.split_once(' ')?;
                    let kind = match kind {
                        "c" => Kind::Char,
                        "b" => Kind::Block,
                        "p" => Kind::Fifo,
                        "s" => Kind::Socket,
                        _ => return None,
                    };
                    Some((kind, u64::from_str_radix(rdev, 16).ok()?))
                });
                self.special = Some(special.ok_or_else(broken)?);
            }
            Mark::Nlink => {
                let nlink = text().and_then(|t| nlink_parts(t)).map(|(nlink, _)| nlink);
                self.nlink = Some(nlink.ok_or_else(broken)?);
            }
            Mark::Dialect => self.dialect = Some(value),
        }
        Ok(())
    }
}

/// How the addition to a link count is written down. It counts a name that is about to be: until that
/// is there, a temporary stands for it.
pub fn nlink_value(nlink: i64, temp: &[u8]) -> Vec<u8> {
    [nlink.to_string().as_bytes(), b" ", temp].concat()
}

/// The reverse; the temporary may be missing. The number is kept small, so that no count overflows
/// whatever somebody wrote there.
fn nlink_parts(text: &str) -> Option<(i64, &str)> {
    let (nlink, temp) = text.split_once(' ').unwrap_or((text, ""));
    Some((nlink.parse::<i32>().ok()?.into(), temp))
}

/// Before a temporary is removed that a crash has left: a count in which it stands for a name is put
/// right, for the names of the object that stay.
pub fn discount(at: &At) -> Result<()> {
    for space in [Space::Trusted, Space::User] {
        let Some(key) = space.name().map(|s| key(s, Mark::Nlink)).transpose()? else {
            continue;
        };
        let value = match xattr::get(at.fd(), &at.name, &key) {
            Err(e) if is_absent(&e) => continue,
            other => other.op("read mark")?,
        };
        let parts = std::str::from_utf8(&value).ok().and_then(nlink_parts);
        if let Some((nlink, temp)) = parts
            && temp.as_bytes() == at.name
        {
            space.set(at, Mark::Nlink, (nlink + 1).to_string().as_bytes())?;
        }
    }
    Ok(())
}

/// How a device is written down.
pub fn special_value(kind: Kind, rdev: u64) -> Vec<u8> {
    let letter = match kind {
        Kind::Char => 'c',
        Kind::Block => 'b',
        Kind::Fifo => 'p',
        _ => 's',
    };
    format!("{letter} {rdev:x}").into_bytes()
}

/// The second components that a union claims.
const CLAIMED: [&[u8]; 3] = [b"overlay.", b"cvmfs-union.", b"fuseoverlayfs."];

fn claimed(key: &[u8]) -> Option<(&[u8], &'static [u8], &[u8])> {
    for space in [&b"trusted."[..], b"user."] {
        if let Some(rest) = key.strip_prefix(space) {
            for word in CLAIMED {
                if let Some(tail) = rest.strip_prefix(word) {
                    return Some((key.get(..space.len())?, word, tail));
                }
            }
        }
    }
    None
}

/// The name under which a user's attribute is stored.
pub fn escape(key: &[u8]) -> Vec<u8> {
    match claimed(key) {
        Some((space, word, tail)) => [space, word, word, tail].concat(),
        None => key.to_vec(),
    }
}

/// The user's name of a stored attribute; None for the unions' own.
pub fn unescape(key: &[u8]) -> Option<Vec<u8>> {
    match claimed(key) {
        Some((space, word, tail)) => tail.starts_with(word).then(|| [space, tail].concat()),
        None => Some(key.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_names_come_back() {
        for key in [
            &b"user.a"[..],
            b"trusted.overlay.opaque",
            b"user.cvmfs-union.ino",
            b"user.overlay.overlay.x",
        ] {
            assert_eq!(unescape(&escape(key)).as_deref(), Some(key));
        }
        assert_eq!(unescape(b"trusted.overlay.opaque"), None);
        assert_eq!(
            escape(b"trusted.overlay.opaque"),
            b"trusted.overlay.overlay.opaque"
        );
    }

    #[test]
    fn counts_are_written_and_read() -> Result<()> {
        for (value, nlink) in [
            (nlink_value(-1, b"#5"), -1),
            (b"-1".to_vec(), -1),
            (b"2".to_vec(), 2),
        ] {
            let mut marks = Marks::default();
            marks.take(Mark::Nlink, value)?;
            assert_eq!(marks.nlink, Some(nlink));
        }
        Ok(())
    }

    #[test]
    fn devices_are_written_and_read() -> Result<()> {
        for special in [
            (Kind::Char, 0),
            (Kind::Block, 0x1234),
            (Kind::Fifo, 0),
            (Kind::Socket, 0),
        ] {
            let mut marks = Marks::default();
            marks.take(Mark::Special, special_value(special.0, special.1))?;
            assert_eq!(marks.special, Some(special));
        }
        Ok(())
    }
}
