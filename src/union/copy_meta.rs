//! The metadata of a copy-up: owner, mode, attributes, number and times.

use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering;

use super::Union;
use super::api::{Kind, ROOT, SetAttr};
use super::attr::timespec;
use super::marks::{self, Mark, Space};
use super::node::{LowerAt, Mtime, Node};
use super::place::At;
use super::work::Made;
use crate::error::{Context, Error, Result};
use crate::layer::overrides::Overrides;
use crate::sys::meta::{self, Stat};
use crate::sys::xattr;

const CAPABILITY: &CStr = c"security.capability";

impl Union {
    /// Owner, mode, attributes, number and times of a lower object onto its copy. `made`: the owner and
    /// the mode that the copy has, if they are known; `change`: what it is to have instead of the lower's.
    pub(super) fn copy_metadata(
        &self,
        lower: &LowerAt,
        node: &Node,
        to: &At,
        made: Option<(Made, u32)>,
        change: Option<&SetAttr>,
    ) -> Result<()> {
        let upper = self.upper()?;
        let stat = &lower.stat;
        let mut mode = stat.st_mode & 0o7777;
        let owner = (stat.st_uid, stat.st_gid);
        let beside = upper.beside.is_some();
        if !beside && made.is_none_or(|(made, _)| (made.uid, made.gid) != owner) {
            match meta::fchownat(to.fd(), &to.name, Some(owner.0), Some(owner.1)) {
                Err(e) if may_not_chown(&e) => {
                    // What belongs to somebody else now must not lend that somebody's rights.
                    if !node.is_dir() {
                        mode &= !(libc::S_ISUID | libc::S_ISGID);
                    }
                }
                other => other.op("copy up owner")?,
            }
        }
        // What is known of the root's is about the upper.
        let bare = node.ino != ROOT && node.bare.load(Ordering::Acquire);
        let has_xattrs = !bare && self.copy_xattrs(lower, node, to)?;
        if node.ino != ROOT {
            match upper.space {
                Space::None => upper.remember(upper.number(&to.stat()?), node.ino),
                _ => match upper.set_mark(to, Mark::Ino, format!("{:x}", node.ino).as_bytes()) {
                    // `user.` attributes exist on files and directories only.
                    Err(e)
                        if e.errno() == libc::EPERM
                            && !matches!(node.kind, Kind::File | Kind::Dir) =>
                    {
                        upper.remember(upper.number(&to.stat()?), node.ino);
                    }
                    other => other?,
                },
            }
        }
        // Late, as a mode may keep its owner from setting marks. An ACL that was copied agrees with it.
        mode = change.and_then(|set| set.mode).unwrap_or(mode);
        let has = made.map(|(made, mode)| mode & !made.masked);
        if beside {
            upper.keep_beside(to, owner, mode)?;
        } else if node.kind != Kind::Symlink && (has_xattrs || has != Some(mode)) {
            meta::fchmodat(to.fd(), &to.name, mode).op("copy up mode")?;
        }
        let mut times = times_of(stat);
        if let Some(set) = change {
            let [atime, mtime] = &mut times;
            set.atime.inspect(|t| *atime = timespec(Some(*t)));
            set.mtime.inspect(|t| *mtime = timespec(Some(*t)));
        }
        meta::utimensat(to.fd(), &to.name, &times).op("copy up times")
    }

    /// Whether there are any.
    fn copy_xattrs(&self, lower: &LowerAt, node: &Node, to: &At) -> Result<bool> {
        let mut keys = self.lowers.list_xattrs(&lower.dir, &lower.name)?;
        let ours = self.upper()?.beside.map(Overrides::key);
        keys.retain(|k| {
            marks::unescape(k).is_some() && ours.is_none_or(|ours| ours.to_bytes() != k)
        });
        let known = node.ino != ROOT || node.bare.load(Ordering::Acquire);
        node.bare.store(known && keys.is_empty(), Ordering::Release);
        for key in &keys {
            let key = CString::new(key.as_slice())
                .map_err(|_| Error::new(libc::EIO, "attribute name"))?;
            let value = match self.lowers.get_xattr(&lower.dir, &lower.name, &key) {
                Err(e) if e.errno() == libc::ENODATA => continue,
                other => other?,
            };
            match xattr::set(to.fd(), &to.name, &key, &value, 0) {
                // What this file system or this user cannot store stays behind.
                Err(e) if marks::unsupported(&e) || may_not_chown(&e) => {}
                other => other.op("copy up xattr")?,
            }
        }
        Ok(!keys.is_empty())
    }
}

/// The error of a daemon that may not do what only root may, or whose user namespace lacks an id.
fn may_not_chown(e: &std::io::Error) -> bool {
    match e.raw_os_error() {
        Some(libc::EPERM) => true,
        Some(libc::EINVAL) => !crate::sys::process::is_initial_root(),
        _ => false,
    }
}

/// Sets the times back to what they were.
pub fn restore_times(at: &At, stat: &Stat) -> Result<()> {
    meta::utimensat(at.fd(), &at.name, &times_of(stat)).op("copy up times")
}

/// Sets the time of modification back to what it was.
pub fn restore_mtime(at: &At, (tv_sec, tv_nsec): Mtime) -> Result<()> {
    let omit = libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_OMIT,
    };
    let times = [omit, libc::timespec { tv_sec, tv_nsec }];
    meta::utimensat(at.fd(), &at.name, &times).op("copy up times")
}

fn times_of(stat: &Stat) -> [libc::timespec; 2] {
    [
        libc::timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec,
        },
        libc::timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec,
        },
    ]
}

/// Gives an open file the mode and the capabilities back that it had before it was written.
pub fn restore_privileges(at: &At, before: &Stat, capability: Option<&[u8]>) -> Result<()> {
    if at.stat()?.st_mode != before.st_mode {
        meta::fchmodat(at.fd(), b"", before.st_mode & 0o7777).op("copy up mode")?;
    }
    match capability {
        Some(value) => xattr::set(at.fd(), b"", CAPABILITY, value, 0).op("copy up capabilities"),
        None => Ok(()),
    }
}

/// The capabilities of an open file.
pub fn capability(at: &At) -> Result<Option<Vec<u8>>> {
    match xattr::get(at.fd(), b"", CAPABILITY) {
        Err(e) if absent(&e) => Ok(None),
        other => other.op("read capabilities").map(Some),
    }
}

/// The error of an object without the attribute, or of a file system without any.
fn absent(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP))
}
