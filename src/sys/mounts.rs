//! The table of mounts, as proc_pid_mountinfo(5) has it: what is mounted where, and what of it is ours.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::mount::{FSTYPE, NAME};

/// The table of this process's namespace.
const OWN: &str = "/proc/self/mountinfo";
/// The types of mounts that the kernel makes for this program; their source is [`NAME`].
const KERNEL_TYPES: [&str; 2] = ["overlay", "aufs"];

/// The type of the topmost mount at exactly this path; None when it is no mountpoint.
pub fn mounted_type(mountpoint: &Path) -> io::Result<Option<String>> {
    Ok(type_in(&fs::read(OWN)?, mountpoint))
}

/// A line of a table of mounts, as it is there.
struct Line<'a> {
    /// `MAJOR:MINOR`.
    device: &'a [u8],
    mountpoint: &'a [u8],
    fstype: &'a [u8],
    source: &'a [u8],
    options: &'a [u8],
}

impl Line<'_> {
    fn is_at(&self, mountpoint: &Path) -> bool {
        unescape(self.mountpoint) == mountpoint
    }

    /// Whether this program has mounted it, with a daemon or without.
    fn is_ours(&self) -> bool {
        let by_kernel = KERNEL_TYPES.iter().any(|of| of.as_bytes() == self.fstype);
        self.fstype == FSTYPE.as_bytes() || by_kernel && self.source == NAME.as_bytes()
    }

    /// A directory that an option of the file system names.
    fn dir(&self, key: &str) -> Option<PathBuf> {
        let mut options = self.options.split(|b| *b == b',');
        let value = options.find_map(|of| of.strip_prefix(key.as_bytes())?.strip_prefix(b"="));
        value.map(unescape)
    }

    fn ours(&self) -> Ours {
        Ours {
            device: text_of(self.device),
            mountpoint: unescape(self.mountpoint),
            fstype: text_of(self.fstype),
            upper: self.dir("upperdir"),
            work: self.dir("workdir"),
        }
    }
}

/// The lines of a table of mounts (proc_pid_mountinfo(5)).
fn lines_of(mountinfo: &[u8]) -> impl Iterator<Item = Line<'_>> {
    mountinfo.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let (device, mountpoint) = (fields.nth(2)?, fields.nth(1)?);
        // After the separator: type, source, options.
        let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
        Some(Line {
            device,
            mountpoint,
            fstype: fields.next()?,
            source: fields.next()?,
            options: fields.next()?,
        })
    })
}

fn text_of(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn type_in(mountinfo: &[u8], mountpoint: &Path) -> Option<String> {
    let at = lines_of(mountinfo).filter(|line| line.is_at(mountpoint));
    at.last().map(|line| text_of(line.fstype))
}

/// A mount of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// `MAJOR:MINOR`, which no other mount has.
    pub device: String,
    /// Where it is, below the root of the process whose table it is from.
    pub mountpoint: PathBuf,
    /// The type of the file system.
    pub fstype: String,
    /// The upper of kernel overlayfs, as that was told it.
    pub upper: Option<PathBuf>,
    /// And the work directory.
    pub work: Option<PathBuf>,
}

impl Ours {
    /// Whether the kernel makes the union, and no daemon is asked for anything.
    pub fn is_by_kernel(&self) -> bool {
        self.fstype != FSTYPE
    }
}

/// The mounts of this program in a table of mounts.
pub fn ours_in(mountinfo: &[u8]) -> Vec<Ours> {
    let ours = lines_of(mountinfo).filter(Line::is_ours);
    ours.map(|line| line.ours()).collect()
}

/// The topmost mount at exactly this path, if it is one of this program.
pub fn ours_at(mountpoint: &Path) -> io::Result<Option<Ours>> {
    let table = fs::read(OWN)?;
    let at = lines_of(&table).filter(|line| line.is_at(mountpoint));
    Ok(at.last().filter(Line::is_ours).map(|line| line.ours()))
}

/// Whether some overlayfs in a table of mounts has this upper.
pub fn is_upper_in(mountinfo: &[u8], upper: &Path) -> bool {
    let mut overlays = lines_of(mountinfo).filter(|line| line.fstype == b"overlay");
    overlays.any(|line| line.dir("upperdir").is_some_and(|of| of == upper))
}

/// A file system as the table of mounts shows it.
#[derive(Debug, PartialEq, Eq)]
pub struct MountedFs {
    /// The type, for FUSE perhaps with a subtype.
    pub fstype: Vec<u8>,
    /// Its own options.
    pub options: Vec<u8>,
}

impl MountedFs {
    /// Whether it is of FUSE.
    pub fn is_fuse(&self) -> bool {
        self.fstype == b"fuse" || self.fstype.starts_with(b"fuse.")
    }
}

/// The file system of a device, which is not asked for it. None if it is not mounted here.
pub fn mounted_on(device: u64) -> io::Result<Option<MountedFs>> {
    let device = (libc::major(device), libc::minor(device));
    Ok(on_device(&fs::read(OWN)?, device))
}

fn on_device(mountinfo: &[u8], (major, minor): (u32, u32)) -> Option<MountedFs> {
    let device = format!("{major}:{minor}");
    let found = lines_of(mountinfo).find(|line| line.device == device.as_bytes());
    found.map(|line| MountedFs {
        fstype: line.fstype.to_vec(),
        options: line.options.to_vec(),
    })
}

/// The device of the topmost mount at exactly this path, as `MAJOR:MINOR`; None when it is no mountpoint.
pub fn device_of(mountpoint: &Path) -> io::Result<Option<String>> {
    Ok(device_in(&fs::read(OWN)?, mountpoint))
}

fn device_in(mountinfo: &[u8], mountpoint: &Path) -> Option<String> {
    let at = lines_of(mountinfo).filter(|line| line.is_at(mountpoint));
    at.last().map(|line| text_of(line.device))
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let octal = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(value) if byte == b'\\' => {
                out.push(value);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => out.push(byte),
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_topmost_and_escapes() {
        let table = b"22 1 0:21 / /mnt/a\\040b rw shared:1 - ext4 /dev/x rw\n\
            23 22 0:40 / /mnt/a\\040b rw - fuse.cvmfs-union cvmfs-union rw\n\
            24 1 0:41 / /mnt rw - tmpfs none rw\n\
            25 24 0:42 / /mnt/o ro - overlay cvmfs-union rw,lowerdir=/l,upperdir=/u\\054\\040v,workdir=/w\n\
            26 24 0:43 / /mnt/p rw - overlay overlay rw,lowerdir=/l,upperdir=/other,workdir=/x\n";
        assert_eq!(
            type_in(table, Path::new("/mnt/a b")).as_deref(),
            Some(FSTYPE)
        );
        assert_eq!(type_in(table, Path::new("/mnt")).as_deref(), Some("tmpfs"));
        assert_eq!(type_in(table, Path::new("/mnt/a")), None);
        let daemons = Ours {
            device: "0:40".to_owned(),
            mountpoint: "/mnt/a b".into(),
            fstype: FSTYPE.to_owned(),
            upper: None,
            work: None,
        };
        let kernels = Ours {
            device: "0:42".to_owned(),
            mountpoint: "/mnt/o".into(),
            fstype: "overlay".to_owned(),
            upper: Some("/u, v".into()),
            work: Some("/w".into()),
        };
        assert!(kernels.is_by_kernel() && !daemons.is_by_kernel());
        assert_eq!(ours_in(table), [daemons, kernels]);
        // Whoever has mounted it.
        for (upper, is_one) in [
            ("/u, v", true),
            ("/other", true),
            ("/u", false),
            ("/l", false),
        ] {
            assert_eq!(is_upper_in(table, Path::new(upper)), is_one, "{upper}");
        }
        assert_eq!(
            device_in(table, Path::new("/mnt/a b")).as_deref(),
            Some("0:40")
        );
    }

    #[test]
    fn mount_table_by_device() {
        let table = b"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw,data=ordered\n\
            23 22 0:41 / /mnt rw - fuse cvmfs2 ro,allow_other\n\
            24 22 0:42 / /home rw - fuseblk /dev/sdb1 rw\n";
        let of = |device| on_device(table, device);
        let (disk, cvmfs) = (of((8, 1)), of((0, 41)));
        assert!(
            disk.as_ref()
                .is_some_and(|m| m.options == b"rw,data=ordered")
        );
        assert!(
            cvmfs
                .as_ref()
                .is_some_and(|m| m.options == b"ro,allow_other")
        );
        assert!(cvmfs.is_some_and(|m| m.is_fuse()));
        assert!(!disk.is_some_and(|m| m.is_fuse()));
        assert!(!of((0, 42)).is_some_and(|m| m.is_fuse()));
        assert_eq!(of((8, 2)), None);
    }
}
