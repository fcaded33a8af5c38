//! The table of mounts, as proc_pid_mountinfo(5) has it: what is mounted where, and what of it is ours.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::iter;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::fcntl::AT_FDCWD;

use super::mount::{FSTYPE, NAME};
use super::{cstr, kernel, meta};

/// The table of this process's namespace.
pub const TABLE: &str = "/proc/self/mountinfo";
/// The types of mounts that the kernel makes for this program; their source is [`NAME`], perhaps with a number.
const KERNEL_TYPES: [&str; 2] = ["overlay", "aufs"];
/// Where aufs shows the branches of its mounts.
const AUFS: &str = "/sys/fs/aufs";

/// The source of a mount that the kernel makes for this program, by which it is known again.
pub fn source_of(number: &str) -> String {
    format!("{NAME}-{number}")
}

/// The number in such a source.
pub fn number_of(source: &str) -> Option<&str> {
    let number = source.strip_prefix(NAME)?.strip_prefix('-')?;
    let digits = number.bytes().all(|b| b.is_ascii_hexdigit());
    (digits && number.len() == 16).then_some(number)
}

/// The tables of all mount namespaces that this process may look at, its own first, each with a process of that
/// namespace; None stands for this one.
pub fn tables() -> io::Result<impl Iterator<Item = (Option<u32>, Vec<u8>)>> {
    let own = (None, fs::read(TABLE)?);
    let mut seen = HashSet::from([fs::read_link("/proc/self/ns/mnt")?]);
    let processes = fs::read_dir("/proc")?.flatten();
    let others = processes.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // Somebody else's, or gone meanwhile.
        let namespace = fs::read_link(entry.path().join("ns/mnt")).ok()?;
        if seen.contains(&namespace) {
            return None;
        }
        let table = fs::read(entry.path().join("mountinfo")).ok()?;
        seen.insert(namespace);
        Some((Some(pid), table))
    });
    Ok(iter::once(own).chain(others))
}

/// The type of the topmost mount at exactly this path; None when it is no mountpoint.
pub fn mounted_type(mountpoint: &Path) -> io::Result<Option<String>> {
    if root_at(mountpoint) == Some(None) {
        return Ok(None);
    }
    Ok(type_in(&fs::read(TABLE)?, mountpoint))
}

/// A line of a table of mounts, as it is there.
struct Line<'a> {
    /// The number of the mount.
    id: &'a [u8],
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
        let named = self.source == NAME.as_bytes() || self.number().is_some();
        self.fstype == FSTYPE.as_bytes() || by_kernel && named
    }

    fn number(&self) -> Option<&str> {
        number_of(str::from_utf8(self.source).ok()?)
    }

    /// The upper of overlayfs or aufs, if the options name it. `aufs`: see [`AUFS`].
    fn upper(&self, aufs: &Path) -> Option<PathBuf> {
        match self.fstype {
            b"overlay" => self.dir("upperdir"),
            b"aufs" => self.first_branch(aufs),
            _ => None,
        }
    }

    /// The topmost branch of aufs, if it can be written. The options have it, or the number under which it is shown.
    fn first_branch(&self, aufs: &Path) -> Option<PathBuf> {
        let mut options = self.options.split(|b| *b == b',');
        let first = options.find_map(|option| {
            let branches = [&b"br:"[..], b"br="].map(|key| option.strip_prefix(key));
            let branches = branches.into_iter().flatten().next();
            branches
                .and_then(|branches| branches.split(|b| *b == b':').next())
                .map(<[u8]>::to_vec)
                .or_else(|| {
                    let id = str::from_utf8(option.strip_prefix(b"si=")?).ok()?;
                    fs::read(aufs.join(format!("si_{id}/br0"))).ok()
                })
        })?;
        let branch = first.trim_ascii_end();
        let equals = branch.iter().rposition(|b| *b == b'=')?;
        let (dir, rights) = (branch.get(..equals)?, branch.get(equals + 1..)?);
        rights.starts_with(b"rw").then(|| unescape(dir))
    }

    /// A directory that an option of the file system names.
    fn dir(&self, key: &str) -> Option<PathBuf> {
        let mut options = self.options.split(|b| *b == b',');
        let value = options.find_map(|of| of.strip_prefix(key.as_bytes())?.strip_prefix(b"="));
        value.map(unescape)
    }

    fn fs(&self) -> MountedFs {
        MountedFs {
            fstype: self.fstype.to_vec(),
            options: self.options.to_vec(),
        }
    }

    fn ours(&self) -> Ours {
        Ours {
            device: text_of(self.device),
            mountpoint: unescape(self.mountpoint),
            fstype: text_of(self.fstype),
            number: self.number().map(str::to_owned),
            upper: self.upper(Path::new(AUFS)),
            work: self.dir("workdir"),
        }
    }
}

/// The lines of a table of mounts (proc_pid_mountinfo(5)).
fn lines_of(mountinfo: &[u8]) -> impl Iterator<Item = Line<'_>> {
    mountinfo.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let (id, device, mountpoint) = (fields.next()?, fields.nth(1)?, fields.nth(1)?);
        // After the separator: type, source, options.
        let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
        Some(Line {
            id,
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
    /// By which a mount of the kernel is known again: see [`source_of`].
    pub number: Option<String>,
    /// The upper of a mount of the kernel, as that was told it.
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
    let table = fs::read(TABLE)?;
    let at = lines_of(&table).filter(|line| line.is_at(mountpoint));
    Ok(at.last().filter(Line::is_ours).map(|line| line.ours()))
}

/// Whether some overlayfs or aufs in a table of mounts has this upper.
pub fn is_upper_in(mountinfo: &[u8], upper: &Path) -> bool {
    let mut uppers = lines_of(mountinfo).filter_map(|line| line.upper(Path::new(AUFS)));
    uppers.any(|of| of == upper)
}

/// A file system as the table of mounts shows it.
#[derive(Debug, PartialEq, Eq)]
pub struct MountedFs {
    /// The type, for FUSE perhaps with a subtype.
    pub fstype: Vec<u8>,
    /// Its own options.
    pub options: Vec<u8>,
}

/// File systems that lie in a disk or the memory of this machine.
const LOCAL: [&[u8]; 12] = [
    b"ext2",
    b"ext3",
    b"ext4",
    b"xfs",
    b"btrfs",
    b"f2fs",
    b"bcachefs",
    b"zfs",
    b"erofs",
    b"squashfs",
    b"tmpfs",
    b"ramfs",
];

/// Those of them whose inodes have the same numbers as long as they live, and whose directories tell these.
const LASTING: [&[u8]; 7] = [
    b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"f2fs", b"tmpfs",
];

impl MountedFs {
    /// Whether an inode has one number for its life, which listings of directories tell too.
    pub fn has_lasting_inodes(&self) -> bool {
        LASTING.contains(&&*self.fstype)
    }

    /// Whether it may have parts that number their inodes apart, and are no mounts.
    pub fn has_volumes(&self) -> bool {
        self.fstype == b"btrfs"
    }

    /// Whether it is known to lie on this machine, so that nothing else has to answer for it.
    pub fn is_local(&self) -> bool {
        LOCAL.contains(&&*self.fstype)
    }

    /// Whether it is of FUSE.
    pub fn is_fuse(&self) -> bool {
        self.fstype == b"fuse" || self.fstype.starts_with(b"fuse.")
    }
}

/// The table of mounts at a moment.
#[derive(Debug)]
pub struct Mounts {
    table: Vec<u8>,
    /// In their order.
    mountpoints: Vec<PathBuf>,
}

impl Mounts {
    /// Those of this process's namespace.
    pub fn read() -> io::Result<Mounts> {
        Ok(Mounts::of(fs::read(TABLE)?))
    }

    fn of(table: Vec<u8>) -> Mounts {
        let mut mountpoints: Vec<PathBuf> = lines_of(&table)
            .map(|line| unescape(line.mountpoint))
            .collect();
        mountpoints.sort_unstable();
        Mounts { table, mountpoints }
    }

    /// The file system of a device, which is not asked for it. None if it is not mounted here, or has other devices than the table
    /// tells, as btrfs for each of its parts.
    fn on_device(&self, device: u64) -> Option<MountedFs> {
        on_device(&self.table, (libc::major(device), libc::minor(device)))
    }

    /// The file system that a directory lies in, whose device that is. None if it is not mounted here.
    pub fn holding(&self, dir: BorrowedFd<'_>, device: u64) -> Option<MountedFs> {
        self.on_device(device).or_else(|| {
            // Since Linux 5.8.
            let found = meta::statx_unasked(dir, c"", libc::STATX_MNT_ID).ok()?;
            let has_id = found.stx_mask & libc::STATX_MNT_ID != 0;
            has_id.then(|| self.with_id(found.stx_mnt_id))?
        })
    }

    fn with_id(&self, id: u64) -> Option<MountedFs> {
        let id = id.to_string();
        let found = lines_of(&self.table).find(|line| line.id == id.as_bytes());
        found.map(|line| line.fs())
    }

    /// Whether something is mounted below a directory.
    pub fn any_below(&self, dir: &Path) -> bool {
        let after = self.mountpoints.partition_point(|p| p.as_path() <= dir);
        let next = self.mountpoints.get(after);
        next.is_some_and(|next| next.starts_with(dir))
    }
}

/// The file system of a device, which is not asked for it. None if it is not mounted here.
pub fn mounted_on(device: u64) -> io::Result<Option<MountedFs>> {
    Ok(Mounts::read()?.on_device(device))
}

fn on_device(mountinfo: &[u8], (major, minor): (u32, u32)) -> Option<MountedFs> {
    let device = format!("{major}:{minor}");
    let found = lines_of(mountinfo).find(|line| line.device == device.as_bytes());
    found.map(|line| line.fs())
}

/// The device of the topmost mount at exactly this path, as `MAJOR:MINOR`; None when it is no mountpoint.
pub fn device_of(mountpoint: &Path) -> io::Result<Option<String>> {
    match root_at(mountpoint) {
        Some(Some(device)) => Ok(Some(device)),
        Some(None) => Ok(None),
        None => Ok(device_in(&fs::read(TABLE)?, mountpoint)),
    }
}

/// The device of the mount whose root is at this path, or that there is none; None where the kernel cannot tell. It
/// does so without the table, which it writes anew for each who reads it, and without asking the file system.
fn root_at(path: &Path) -> Option<Option<String>> {
    // Older ones ask FUSE all the same.
    static TELLS: OnceLock<bool> = OnceLock::new();
    if !TELLS.get_or_init(|| kernel::is_at_least((5, 8))) {
        return None;
    }
    let path = cstr(path.as_os_str().as_bytes()).ok()?;
    let found = meta::statx_unasked(AT_FDCWD, &path, 0).ok()?;
    let is_root = u64::from(libc::STATX_ATTR_MOUNT_ROOT.cast_unsigned());
    if found.stx_attributes_mask & is_root == 0 {
        return None;
    }
    let device = format!("{}:{}", found.stx_dev_major, found.stx_dev_minor);
    Some((found.stx_attributes & is_root != 0).then_some(device))
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
            25 24 0:42 / /mnt/o ro - overlay cvmfs-union-0123456789abcdef rw,lowerdir=/l,upperdir=/u\\054\\040v,workdir=/w\n\
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
            number: None,
            upper: None,
            work: None,
        };
        let kernels = Ours {
            device: "0:42".to_owned(),
            mountpoint: "/mnt/o".into(),
            fstype: "overlay".to_owned(),
            number: Some("0123456789abcdef".to_owned()),
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
    fn numbers_in_sources() {
        assert_eq!(
            number_of(&source_of("0123456789abcdef")),
            Some("0123456789abcdef")
        );
        for other in [
            "cvmfs-union",
            "cvmfs-union-",
            "cvmfs-union-0123456789abcde",
            "cvmfs-union-0123456789abcde/",
        ] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }

    #[test]
    fn uppers_of_aufs() -> io::Result<()> {
        let sys = tempfile::tempdir()?;
        let shown = [("si_a1", "/u\\040v=rw\n"), ("si_b2", "/l=ro+wh\n")];
        for (id, branch) in shown {
            fs::create_dir(sys.path().join(id))?;
            fs::write(sys.path().join(id).join("br0"), branch)?;
        }
        for (options, expected) in [
            ("rw,si=a1", Some("/u v")),
            ("rw,si=b2", None),
            ("rw,si=absent", None),
            ("rw,br:/u=1=rw+nolwh:/l=ro+wh", Some("/u=1")),
            ("rw,br=/u=rw:/l=ro", Some("/u")),
            ("rw,br:/l=ro", None),
            ("rw", None),
        ] {
            let table = format!("26 24 0:43 / /mnt rw - aufs cvmfs-union {options}\n");
            let uppers: Vec<_> = lines_of(table.as_bytes())
                .map(|line| line.upper(sys.path()))
                .collect();
            assert_eq!(uppers, [expected.map(PathBuf::from)], "{options}");
        }
        Ok(())
    }

    #[test]
    fn mounts_below() {
        let line = |at: &str| format!("22 1 8:1 / {at} rw - ext4 /dev/sda1 rw\n");
        let table: String = ["/", "/l/a\\040b", "/l/a-c", "/l/d/e"].map(line).concat();
        let mounts = Mounts::of(table.into_bytes());
        let of = |id| mounts.with_id(id).map(|fs| fs.fstype);
        assert_eq!([of(22), of(2)], [Some(b"ext4".to_vec()), None]);
        for (dir, expected) in [
            ("/", true),
            ("/l", true),
            ("/l/a", false),
            ("/l/a b", false),
            ("/l/d", true),
            ("/l/d/e", false),
            ("/m", false),
        ] {
            assert_eq!(mounts.any_below(Path::new(dir)), expected, "{dir}");
        }
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
        assert!(cvmfs.is_some_and(|m| m.is_fuse() && !m.is_local()));
        assert!(disk.is_some_and(|m| !m.is_fuse() && m.is_local()));
        assert!(!of((0, 42)).is_some_and(|m| m.is_fuse()));
        assert_eq!(of((8, 2)), None);
    }
}
