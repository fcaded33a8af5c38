//! Mounting and unmounting of FUSE: mount(2) for root, `fusermount3` for everyone else.
//!
//! A mountpoint `/dev/fd/N` is a FUSE descriptor that the caller has mounted already. A mount whose
//! daemon was killed answers ENOTCONN; [`is_dead`] tells it from an absent one.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::statvfs::statvfs;
use nix::unistd::{getegid, geteuid};

use super::mounts;

/// The source and the subtype of our mounts.
pub const NAME: &str = "cvmfs-union";
/// The type as the mount table shows it.
pub const FSTYPE: &str = "fuse.cvmfs-union";

const FUSERMOUNT: &str = "fusermount3";
/// The number of `/dev/fuse`, fixed by the kernel.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// How to mount; permission checks by the kernel are always on.
#[derive(Clone, Debug)]
pub struct MountFlags {
    /// What the table of mounts shows as the source, by which `mount -a` knows that it is mounted; [`NAME`]
    /// if None.
    pub source: Option<PathBuf>,
    /// `MS_*` of mount(2); with `fusermount3` only ro, noexec, noatime, sync and dirsync count.
    pub flags: MsFlags,
    /// Other users may enter; `fusermount3` wants `user_allow_other` in `/etc/fuse.conf` for that.
    pub allow_other: bool,
}

/// Opens the device. It belongs to the user namespace of this moment, and only there it can be mounted.
pub fn open_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match device {
        Ok(device) => Ok(device.into()),
        Err(e) => Err(io::Error::new(e.kind(), format!("/dev/fuse: {e}"))),
    }
}

/// Mounts by mount(2).
pub fn mount_direct(mountpoint: &Path, how: &MountFlags) -> io::Result<OwnedFd> {
    let device = open_device()?;
    mount_device(device.as_fd(), mountpoint, how)?;
    Ok(device)
}

/// Mounts a device that is open.
pub fn mount_device(device: BorrowedFd<'_>, mountpoint: &Path, how: &MountFlags) -> io::Result<()> {
    let rootmode = fs::metadata(mountpoint)?.mode() & libc::S_IFMT;
    let mut data = format!(
        "fd={},rootmode={rootmode:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        geteuid(),
        getegid(),
    );
    if how.allow_other {
        data.push_str(",allow_other");
    }
    nix::mount::mount(
        Some(how.source()),
        mountpoint,
        Some(FSTYPE),
        how.flags,
        Some(data.as_str()),
    )?;
    Ok(())
}

/// Mounts through the set-uid helper, which hands the descriptor over a socket.
pub fn mount_fusermount(mountpoint: &Path, how: &MountFlags) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let raw = theirs.as_raw_fd();
    let mut command = Command::new(FUSERMOUNT);
    command
        .arg("-o")
        .arg(fusermount_options(how))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", raw.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe fcntl call on
    // a descriptor that `theirs` keeps open until after the spawn.
    unsafe {
        command.pre_exec(move || match libc::fcntl(raw, libc::F_SETFD, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let mut helper = command.spawn().map_err(helper_missing)?;
    drop(theirs);
    let received = receive_fd(&ours);
    let mut said = String::new();
    if let Some(stderr) = helper.stderr.as_mut() {
        stderr.read_to_string(&mut said)?;
    }
    let status = helper.wait()?;
    match received? {
        Some(fd) if status.success() => Ok(fd),
        _ => Err(helper_failed(&said, status)),
    }
}

impl MountFlags {
    fn source(&self) -> &Path {
        self.source.as_deref().unwrap_or(Path::new(NAME))
    }
}

fn fusermount_options(how: &MountFlags) -> OsString {
    let mut options = b"fsname=".to_vec();
    for &b in how.source().as_os_str().as_bytes() {
        // As the helper takes them apart.
        if matches!(b, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(b);
    }
    let mut options = OsString::from_vec(options);
    options.push(format!(",subtype={NAME},default_permissions"));
    // nosuid and nodev are what the helper always sets.
    for (flag, name) in [
        (MsFlags::MS_RDONLY, ",ro"),
        (MsFlags::MS_NOEXEC, ",noexec"),
        (MsFlags::MS_NOATIME, ",noatime"),
        (MsFlags::MS_SYNCHRONOUS, ",sync"),
        (MsFlags::MS_DIRSYNC, ",dirsync"),
    ] {
        if how.flags.contains(flag) {
            options.push(name);
        }
    }
    if how.allow_other {
        options.push(",allow_other");
    }
    options
}

/// The descriptor that the helper sends; None when it closed the socket without one.
fn receive_fd(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(None)
}

fn helper_missing(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            e.kind(),
            "fusermount3 is not installed (Debian package fuse3)",
        ),
        kind => io::Error::new(kind, format!("{FUSERMOUNT}: {e}")),
    }
}

fn helper_failed(said: &str, status: std::process::ExitStatus) -> io::Error {
    let said = said.trim();
    let text = if said.is_empty() {
        format!("{FUSERMOUNT}: {status}")
    } else {
        said.to_owned()
    };
    let busy = said.contains("busy");
    io::Error::new(
        if busy {
            io::ErrorKind::ResourceBusy
        } else {
            io::ErrorKind::Other
        },
        text,
    )
}

/// Unmounts by umount2(2); `lazy` detaches a busy mount.
pub fn umount_direct(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if lazy {
        flags |= MntFlags::MNT_DETACH;
    }
    Ok(nix::mount::umount2(mountpoint, flags)?)
}

/// Unmounts through the set-uid helper.
pub fn umount_fusermount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(mountpoint)
        .stdin(Stdio::null())
        .output()
        .map_err(helper_missing)?;
    if output.status.success() {
        return Ok(());
    }
    Err(helper_failed(
        &String::from_utf8_lossy(&output.stderr),
        output.status,
    ))
}

/// Unmounts by the way that this user has.
pub fn umount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    if geteuid().is_root() {
        umount_direct(mountpoint, lazy)
    } else {
        umount_fusermount(mountpoint, lazy)
    }
}

/// Whether the error is that of a mount without a daemon.
pub fn is_disconnected(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Whether the daemon behind the mountpoint is gone.
///
/// The attributes of its root may still be cached, so statfs is asked too, which never is.
pub fn is_dead(mountpoint: &Path) -> bool {
    match fs::metadata(mountpoint) {
        Err(e) => is_disconnected(&e),
        Ok(_) => matches!(
            statvfs(mountpoint),
            Err(Errno::ENOTCONN | Errno::ECONNABORTED)
        ),
    }
}

/// Lets the kernel read so much ahead in files of our mount: by itself it grants no more than it does for
/// disks, however much the program is ready to answer. For root, and where `/sys` is at hand.
pub fn raise_readahead(mountpoint: &Path, bytes: u32) -> io::Result<()> {
    let device =
        mounts::device_of(mountpoint)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    let kib = bytes / 1024;
    let now = fs::read_to_string(&setting)?;
    if now.trim().parse::<u32>().is_ok_and(|now| now >= kib) {
        return Ok(());
    }
    fs::write(&setting, kib.to_string())
}

/// Whether the mount of a FUSE descriptor is gone, or its connection was ended.
pub fn is_over(device: BorrowedFd<'_>) -> bool {
    polled(device, 0) & libc::POLLERR != 0
}

/// Whether a request waits on a FUSE descriptor, or its mount is over.
pub fn has_request(device: BorrowedFd<'_>) -> bool {
    polled(device, libc::POLLIN) != 0
}

/// Which of these events, and of errors, there are now.
fn polled(device: BorrowedFd<'_>, events: i16) -> i16 {
    let mut poll = libc::pollfd {
        fd: device.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one `pollfd`, valid through the call.
    let found = unsafe { libc::poll(&raw mut poll, 1, 0) };
    if found == 1 { poll.revents } else { 0 }
}

/// Takes the FUSE descriptors out of this process, right before its end: the kernel then fails what
/// still waits for it. Else a thread that cannot be killed, as its layer does not answer, keeps them.
pub fn drop_devices() -> io::Result<()> {
    let null = File::open("/dev/null")?;
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|fd| fd.parse::<RawFd>().ok()) else {
            continue;
        };
        let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
        // By name first: attributes of a file of a layer may be what the layer does not answer. The
        // descriptor of this very listing is gone by now, or is no device.
        let named = fs::read_link(&path).is_ok_and(|to| to.ends_with("dev/fuse"));
        let is_fuse = named
            && fs::metadata(&path).is_ok_and(|meta| {
                let (major, minor) = FUSE_DEVICE;
                meta.file_type().is_char_device() && meta.rdev() == libc::makedev(major, minor)
            });
        if is_fuse {
            // SAFETY: both are numbers only; whoever uses the descriptor meets an empty file.
            Errno::result(unsafe { libc::dup2(null.as_raw_fd(), fd) })?;
        }
    }
    Ok(())
}

/// The descriptor that a mountpoint `/dev/fd/N` names.
pub fn passed_fd(mountpoint: &Path) -> Option<RawFd> {
    let number = mountpoint
        .as_os_str()
        .as_bytes()
        .strip_prefix(b"/dev/fd/")?;
    std::str::from_utf8(number)
        .ok()?
        .parse()
        .ok()
        .filter(|&fd| fd >= 0)
}

/// Takes over a descriptor that the caller of the program has passed; call it once for each.
pub fn take_passed_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::other("a standard stream is no FUSE descriptor"));
    }
    let meta = fs::metadata(format!("/proc/self/fd/{fd}"))?;
    let number = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    if !meta.file_type().is_char_device() || number != FUSE_DEVICE {
        return Err(io::Error::other("not a descriptor of /dev/fuse"));
    }
    // SAFETY: the descriptor is open (it was just looked at), it came with the program, and nothing
    // else in this process knows it: the one caller takes it over.
    let owned: File = unsafe { OwnedFd::from_raw_fd(fd) }.into();
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(owned.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_descriptors() {
        assert_eq!(passed_fd(Path::new("/dev/fd/7")), Some(7));
        assert_eq!(passed_fd(Path::new("/dev/fd/-7")), None);
        assert_eq!(passed_fd(Path::new("/mnt/root")), None);
        assert!(take_passed_fd(1).is_err());
        assert!(take_passed_fd(9999).is_err());
    }
}
