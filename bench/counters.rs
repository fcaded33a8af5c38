//! Requests to FUSE daemons and system calls of processes, counted by the kernel's tracepoints: the same way for
//! every union, from outside, and without slowing them down as a tracer would.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use crate::support::{Mounted, Scratch, sys};

/// Requests of the file system, as numbered by the kernel.
const KINDS: [(u32, &str); 27] = [
    (1, "lookup"),
    (3, "getattr"),
    (4, "setattr"),
    (5, "readlink"),
    (6, "symlink"),
    (8, "mknod"),
    (9, "mkdir"),
    (10, "unlink"),
    (11, "rmdir"),
    (12, "rename"),
    (13, "link"),
    (14, "open"),
    (15, "read"),
    (16, "write"),
    (17, "statfs"),
    (18, "release"),
    (20, "fsync"),
    (21, "setxattr"),
    (22, "getxattr"),
    (23, "listxattr"),
    (25, "flush"),
    (27, "opendir"),
    (28, "readdir"),
    (29, "releasedir"),
    (35, "create"),
    (44, "readdirplus"),
    (45, "rename2"),
];

/// The kernel's tracepoints, mounted for us if they are not.
pub struct Tracing {
    dir: PathBuf,
    _mounted: Option<(Mounted, Scratch)>,
}

impl Tracing {
    pub fn new() -> Result<Tracing, String> {
        let usual = PathBuf::from("/sys/kernel/tracing");
        if usual.join("events").is_dir() {
            return Ok(Tracing {
                dir: usual,
                _mounted: None,
            });
        }
        let scratch = Scratch::new("tracing");
        let dir = scratch.dir("mnt");
        nix::mount::mount(
            Some("bench"),
            &dir,
            Some("tracefs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|e| format!("tracefs: {e}"))?;
        Ok(Tracing {
            dir: dir.clone(),
            _mounted: Some((Mounted(dir), scratch)),
        })
    }

    fn id(&self, event: &str) -> Result<u64, String> {
        let path = self.dir.join("events").join(event).join("id");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        text.trim().parse().map_err(|_| format!("{event}: no id"))
    }

    /// Counts the requests to the daemon behind a mountpoint from now on.
    pub fn requests(&self, mnt: &Path) -> Result<Requests, String> {
        let id = self.id("fuse/fuse_request_send")?;
        let device = sys::stat(mnt).map_err(|e| e.to_string())?.st_dev;
        let connection = format!("connection == {}", libc::minor(device));
        let all = Counter::everywhere(id, &connection)?;
        let kind = |(number, name): (u32, &'static str)| {
            let filter = format!("{connection} && opcode == {number}");
            Counter::everywhere(id, &filter).map(|counter| (name, counter))
        };
        let kinds = KINDS.into_iter().map(kind).collect::<Result<_, _>>()?;
        Ok(Requests { all, kinds })
    }

    /// Counts the system calls of a process, of all its threads, from now on.
    pub fn calls(&self, pid: u32) -> Result<Counter, String> {
        let id = self.id("raw_syscalls/sys_enter")?;
        let mut counter = Counter(Vec::new());
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| e.to_string())?;
        for task in tasks.flatten() {
            let name = task.file_name();
            let tid = name.to_str().and_then(|name| name.parse().ok());
            counter.0.push(open(id, tid.ok_or("no thread")?, -1)?);
        }
        Ok(counter)
    }
}

/// Counted requests.
pub struct Requests {
    all: Counter,
    kinds: Vec<(&'static str, Counter)>,
}

impl Requests {
    pub fn all(&self) -> u64 {
        self.all.get()
    }

    /// Those kinds that there were, the commonest first.
    pub fn by_kind(&self) -> Vec<(&'static str, u64)> {
        let mut found: Vec<_> = self
            .kinds
            .iter()
            .map(|(name, c)| (*name, c.get()))
            .collect();
        found.retain(|(_, n)| *n > 0);
        found.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        found
    }
}

/// A tracepoint's counters: one for each processor or thread.
pub struct Counter(Vec<OwnedFd>);

impl Counter {
    fn everywhere(id: u64, filter: &str) -> Result<Counter, String> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        let filter = CString::new(filter).map_err(|e| e.to_string())?;
        let mut counter = Counter(Vec::new());
        for cpu in numbers(online.trim()) {
            let event = open(id, -1, cpu)?;
            // SAFETY: the filter ends with a NUL.
            let done = unsafe { libc::ioctl(event.as_raw_fd(), SET_FILTER, filter.as_ptr()) };
            if done != 0 {
                return Err(format!("{filter:?}: {}", sys::Errno::last()));
            }
            counter.0.push(event);
        }
        Ok(counter)
    }

    pub fn get(&self) -> u64 {
        let one = |event: &OwnedFd| {
            let mut value = [0; 8];
            let read = nix::unistd::read(event, &mut value);
            assert_eq!(read, Ok(8));
            u64::from_ne_bytes(value)
        };
        self.0.iter().map(one).sum()
    }
}

/// `PERF_EVENT_IOC_SET_FILTER`.
const SET_FILTER: libc::c_ulong = 0x4008_2406;
const TYPE_TRACEPOINT: u32 = 2;
/// Threads that the thread will start count with it.
const INHERIT: u64 = 1 << 1;

/// The first version of `struct perf_event_attr`, which all kernels take.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    config1: u64,
}

fn open(id: u64, pid: i32, cpu: i32) -> Result<OwnedFd, String> {
    let attr = Attr {
        kind: TYPE_TRACEPOINT,
        size: size_of::<Attr>() as u32,
        config: id,
        flags: if pid == -1 { 0 } else { INHERIT },
        ..Attr::default()
    };
    let (none, cloexec) = (-1, 8);
    // SAFETY: the structure has the size that it says, and the call only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            pid,
            cpu,
            none,
            cloexec,
        )
    };
    if fd < 0 {
        return Err(format!("perf_event_open: {}", sys::Errno::last()));
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `0-3,5` as 0, 1, 2, 3, 5.
fn numbers(list: &str) -> Vec<i32> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        from.parse().unwrap_or(0)..=to.parse().unwrap_or(0)
    };
    list.split(',').flat_map(range).collect()
}
