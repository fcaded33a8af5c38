//! The counts of a mount, and how they are asked for: by an `ioctl` on its root directory, so that
//! nothing of it shows in the tree.
//!
//! An answer of the kernel's "restricted" kind has at most 16,383 bytes. The text, which is JSON, goes
//! over in pieces: each question names the text that it wants more of, and an offset in it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Errno, ReplyIoctl, Request};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::layer::ahead;
use crate::meter::{Meter, Reading};
use crate::sys::{file, process};
use crate::union::Union;
use crate::union::api::{Ino, ROOT};

/// The size of a question, and the most that one answer holds.
const SIZE: usize = 16_000;
/// `_IOWR('U', 1, char[SIZE])`.
pub const ASK: u32 = 0xc000_5501 | (SIZE as u32) << 16;
/// Two numbers: of a question the text (0: a new one) and the offset in it, of an answer the text and
/// its length.
const HEADER: usize = 16;
/// So many texts are kept, for as many who ask at the same time.
const TOLD: usize = 16;
/// How long a repository may take to tell its revision.
const LOOK: Duration = Duration::from_millis(200);
/// How often a text is asked for anew when too many others have asked meanwhile.
const TRIES: usize = 10;

/// The kinds of requests. `forget` counts nodes, not requests.
const KINDS: [&str; 34] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "create",
    "open",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "fallocate",
    "lseek",
    "copy_file_range",
    "ioctl",
    "opendir",
    "readdir",
    "readdirplus",
    "releasedir",
    "fsyncdir",
    "statfs",
    "getxattr",
    "setxattr",
    "listxattr",
    "removexattr",
    "other",
];

/// Counts the requests.
#[derive(Debug)]
pub struct Requests {
    meters: [Meter; KINDS.len()],
    since: Instant,
    /// What the mount is.
    mount: Value,
    /// The texts that were asked for last, by number, the newest first.
    told: Mutex<VecDeque<(u64, Arc<str>)>>,
}

impl Default for Requests {
    fn default() -> Self {
        Requests {
            meters: std::array::from_fn(|_| Meter::default()),
            since: Instant::now(),
            mount: Value::Null,
            told: Mutex::default(),
        }
    }
}

impl Requests {
    /// None so far, of the mount that is described.
    pub fn about(mount: Value) -> Requests {
        Requests {
            mount,
            ..Requests::default()
        }
    }

    /// The meter of a kind.
    pub fn of(&self, op: &str) -> &Meter {
        let at = KINDS.iter().position(|kind| *kind == op);
        let [.., other] = &self.meters;
        at.and_then(|at| self.meters.get(at)).unwrap_or(other)
    }

    /// Answers a question for the counts. They are the business of root and of the daemon's user.
    pub fn tell(
        &self,
        req: &Request,
        ino: Ino,
        union: &Union,
        question: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        if ino != ROOT {
            return reply.error(Errno::ENOTTY);
        }
        if req.uid() != 0 && req.uid() != process::user() {
            return reply.error(Errno::EPERM);
        }
        let Some(&header) = question.first_chunk().filter(|_| out_size as usize >= SIZE) else {
            return reply.error(Errno::EINVAL);
        };
        let (number, offset) = numbers(header);
        let (number, text) = {
            let new = (number == 0).then(|| self.text(union));
            let mut told = self.told.lock();
            if let Some(text) = new {
                let last = told.front().map_or(0, |(number, _)| *number);
                told.push_front((last + 1, text.into()));
                told.truncate(TOLD);
            }
            let wanted = |(of, _): &&(u64, _)| number == 0 || number == *of;
            match told.iter().find(wanted) {
                Some(found) => found.clone(),
                None => return reply.error(Errno::EAGAIN),
            }
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = text.as_bytes().get(offset..).unwrap_or_default();
        let piece = rest.get(..SIZE - HEADER).unwrap_or(rest);
        let header = bytes(number, text.len() as u64);
        reply.ioctl(0, &[&header, piece].concat());
    }

    fn text(&self, union: &Union) -> String {
        let requests = KINDS.iter().zip(&self.meters);
        let requests: Map<String, Value> = requests
            .map(|(kind, meter)| ((*kind).to_owned(), reading(&meter.read())))
            .collect();
        let counts = union.counts();
        let layers: Vec<Value> = counts
            .layers
            .iter()
            .map(|layer| {
                let asked = layer.asked.iter();
                let asked: Map<String, Value> = asked
                    .map(|(ask, seen)| (ask.name().to_owned(), reading(seen)))
                    .collect();
                json!({ "layer": layer.path, "requests": asked })
            })
            .collect();
        let repositories: Vec<Value> = union
            .revisions()
            .seen(LOOK)
            .iter()
            .map(|of| {
                json!({
                    "repository": of.repository,
                    "revision_at_mount": of.at_mount,
                    "revision": of.now,
                })
            })
            .collect();
        json!({
            "version": 1,
            "mount": self.mount,
            "pid": std::process::id(),
            "seconds": self.since.elapsed().as_secs(),
            "requests": requests,
            "lowers": layers,
            "repositories": repositories,
            "copy_ups": {
                "objects": counts.copied_objects,
                "files": counts.copied_files,
                "bytes": counts.copied_bytes,
            },
            "prefetch": counts.learned.as_ref().map(prefetched),
            "kept": {
                "nodes": counts.nodes,
                "handles": counts.handles,
                "listings": counts.listings,
                "listed_names": counts.listed_names,
                "lower_directories": counts.lower_directories,
                "upper_directories": counts.upper_directories,
                "descriptors": descriptors(),
                "memory_bytes": memory(),
            },
        })
        .to_string()
    }
}

fn prefetched((seen, recorded): &(ahead::Counts, usize)) -> Value {
    json!({
        "wanted": seen.wanted,
        "files": seen.files,
        "bytes": seen.bytes,
        "took_ms": seen.took.as_millis() as u64,
        "used": seen.used,
        "late": seen.late,
        "failed": seen.failed,
        "saved_ms": seen.saved.as_millis() as u64,
        "recorded": recorded,
    })
}

fn reading(seen: &Reading) -> Value {
    json!({
        "count": seen.count,
        "running": seen.running,
        "total_us": seen.nanos / 1000,
        "max_us": seen.longest / 1000,
    })
}

/// How many descriptors this process has open; None where that cannot be seen.
fn descriptors() -> Option<usize> {
    // One is that of the directory itself.
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(open.saturating_sub(1))
}

/// The memory of this process that is in use, in bytes.
fn memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

fn numbers(header: [u8; HEADER]) -> (u64, u64) {
    let both = u128::from_le_bytes(header);
    (both as u64, (both >> 64) as u64)
}

fn bytes(first: u64, second: u64) -> [u8; HEADER] {
    (u128::from(first) | u128::from(second) << 64).to_le_bytes()
}

/// Asks for the counts of the mount whose root directory is open there. ENOTTY: it is no mount of
/// ours; EPERM: they are not for this user.
pub fn fetch(root: BorrowedFd<'_>) -> io::Result<String> {
    for _ in 0..TRIES {
        match fetch_one(root) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// EAGAIN: the text is not kept any more.
fn fetch_one(root: BorrowedFd<'_>) -> io::Result<String> {
    let (mut number, mut text) = (0, Vec::new());
    loop {
        let mut buf = [0; SIZE];
        let question = bytes(number, text.len() as u64);
        buf.split_at_mut(HEADER).0.copy_from_slice(&question);
        file::ask(root, ASK, &mut buf)?;
        let Some((header, piece)) = buf.split_first_chunk() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let (of, len) = numbers(*header);
        number = of;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let rest = len.saturating_sub(text.len());
        if rest == 0 {
            return String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into());
        }
        text.extend_from_slice(piece.get(..rest).unwrap_or(piece));
    }
}
