//! A file system that is configured step by step and then mounted: fsopen(2), fsconfig(2), fsmount(2).
//!
//! Each option is a call of its own, so none has to fit into a page with the others, and none needs escapes.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::mount::MsFlags;

use super::{check, cstr};

/// The longest value of an option that the kernel takes, in bytes.
pub const LONGEST: usize = 255;

/// The flags of a mount, by their names in mount(2) and in fsmount(2).
const ATTRIBUTES: [(MsFlags, u64); 7] = [
    (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
    (MsFlags::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
    (MsFlags::MS_NODEV, libc::MOUNT_ATTR_NODEV),
    (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    (MsFlags::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
    (MsFlags::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
    (MsFlags::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
];

/// A file system that is not there yet.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Begins with one of a type. Linux 5.2.
    pub fn open(fstype: &CStr) -> io::Result<FsContext> {
        // SAFETY: the type is NUL-terminated.
        let fd = check(unsafe {
            libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), libc::FSOPEN_CLOEXEC) as i32
        })?;
        // SAFETY: the call returned a new descriptor that nobody else owns.
        Ok(FsContext(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Gives an option with a value of at most [`LONGEST`] bytes.
    pub fn set(&self, key: &CStr, value: &OsStr) -> io::Result<()> {
        let value = cstr(value.as_bytes())?;
        self.configure(libc::FSCONFIG_SET_STRING, Some(key), Some(&value))
    }

    /// Gives an option without a value.
    pub fn set_flag(&self, key: &CStr) -> io::Result<()> {
        self.configure(libc::FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// Makes it a mount, which is to be attached somewhere.
    pub fn mount(&self, flags: MsFlags) -> io::Result<OwnedFd> {
        self.configure(libc::FSCONFIG_CMD_CREATE, None, None)?;
        let attributes = ATTRIBUTES
            .iter()
            .filter(|(flag, _)| flags.contains(*flag))
            .fold(0, |all, (_, attribute)| all | attribute);
        // SAFETY: numbers only, the first of an open descriptor.
        let fd = check(unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                libc::FSMOUNT_CLOEXEC,
                attributes,
            ) as i32
        })?;
        // SAFETY: the call returned a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// What the kernel says about the last failure, if it says anything.
    pub fn said(&self) -> Option<String> {
        let mut line = [0; 512];
        let mut said = Vec::new();
        while let Ok(len @ 1..) = nix::unistd::read(self.0.as_fd(), &mut line) {
            let text = String::from_utf8_lossy(line.get(..len).unwrap_or_default());
            // `e` is an error; warnings and remarks are of no use here.
            said.extend(text.strip_prefix("e ").map(|text| text.trim().to_owned()));
        }
        (!said.is_empty()).then(|| said.join("; "))
    }

    fn configure(
        &self,
        command: libc::c_uint,
        key: Option<&CStr>,
        value: Option<&CStr>,
    ) -> io::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the descriptor is open, and both texts are NUL-terminated or null, as the command wants them.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                pointer(key),
                pointer(value),
                0,
            ) as i32
        })
        .map(drop)
    }
}
