//! Namespaces of a process, and what is mounted in them.
//!
//! All of it is about the calling process alone, which must have one thread. What is mounted once more
//! comes with all that is mounted below it: in a user namespace the kernel allows nothing else.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::{EMPTY, check, file};

/// A user namespace of its own in which one user and one group are known: `from` outside is `to` inside.
/// The process has all capabilities in it.
pub fn enter_user(from: (u32, u32), to: (u32, u32)) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // The kernel wants it for the map of groups; a namespace within another has it already.
    match fs::write("/proc/self/setgroups", "deny") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    fs::write("/proc/self/uid_map", format!("{} {} 1", to.0, from.0))?;
    fs::write("/proc/self/gid_map", format!("{} {} 1", to.1, from.1))
}

/// Whether this process may mount: it has `CAP_SYS_ADMIN` in its user namespace.
pub fn can_mount() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let caps = caps.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok());
    caps.is_some_and(|caps| caps & 1 << CAP_SYS_ADMIN != 0)
}

/// A mount namespace of its own: what is mounted outside shows in it from now on, too, and not the other way.
pub fn enter_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    Ok(mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
}

/// An empty file system in memory.
pub fn mount_tmpfs(at: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        flags,
        Some("mode=755"),
    )?)
}

/// What a directory or file of the host shows at this moment, with all that is mounted below it, to be
/// mounted once more. Linux 5.2.
pub fn copy_of(path: &Path) -> io::Result<OwnedFd> {
    let from = file::open_path(path, libc::O_PATH)?;
    let recursive = (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as u32;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | recursive;
    // SAFETY: the descriptor is open and the path NUL-terminated.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_open_tree, from.as_raw_fd(), EMPTY.as_ptr(), flags) as i32
    })?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Mounts such a copy.
pub fn attach(copy: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both descriptors are open and the paths NUL-terminated.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            copy.as_raw_fd(),
            EMPTY.as_ptr(),
            to.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
        ) as i32
    })
    .map(drop)
}

/// Makes the mount whose root is open there read-only; `below`: with all that is mounted below it.
/// Linux 5.12.
pub fn make_read_only(root: BorrowedFd<'_>, below: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let recursive = if below { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path NUL-terminated, and the structure lives as long as the
    // call and has the size that is said.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        ) as i32
    })
    .map(drop)
}

/// Opens a path below a directory as if that were the root: no symlink and no `..` leads out of it. Linux 5.6.
pub fn open_below(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::from_bits_retain(flags | libc::O_CLOEXEC))
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, path, how)?)
}

/// The mount of a directory becomes the root of this process; the old root is let go of.
pub fn pivot(root: &Path) -> io::Result<()> {
    nix::unistd::chdir(root)?;
    // The old root comes to lie over the new one, where it can be taken away: see pivot_root(2).
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}
