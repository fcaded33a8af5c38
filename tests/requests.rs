//! What requests are answered and counted as, some of them such that no kernel sends them today: a socket
//! stands for the device, and the test for the kernel.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use cvmfs_union::fuse::{Options, Passthrough, serve_with, stats};
use cvmfs_union::union::Union;
use cvmfs_union::union::api::ROOT;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::Value;

use crate::support::Stack;

// `linux/fuse.h`.
const OPEN: u32 = 14;
const INIT: u32 = 26;
const DESTROY: u32 = 38;
const IOCTL: u32 = 39;
const RENAME2: u32 = 45;
const LSEEK: u32 = 46;
const COPY_FILE_RANGE: u32 = 47;
const WRITEBACK_CACHE: u32 = 1 << 16;
const NO_OPEN_SUPPORT: u32 = 1 << 17;
/// The header of an answer: its length, an error or 0, and the number of the request.
const HEADER: usize = 16;

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.map(u32::to_ne_bytes).concat()
}

fn longs<const N: usize>(longs: [u64; N]) -> Vec<u8> {
    longs.map(u64::to_ne_bytes).concat()
}

struct Kernel {
    socket: OwnedFd,
    last: Cell<u64>,
    session: JoinHandle<io::Result<()>>,
}

impl Kernel {
    /// `offers`: the first flags of the handshake.
    fn of(union: Union, options: Options, offers: u32) -> Kernel {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (socket, device) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let serve = move || serve_with(Arc::new(union), device, options, || ());
        let kernel = Kernel {
            socket,
            last: Cell::new(0),
            session: std::thread::spawn(serve),
        };
        let version = words([7, 36, 1 << 17, offers]);
        kernel.ask(INIT, 0, &[version, vec![0; 48]]).unwrap();
        kernel
    }

    fn ask(&self, opcode: u32, node: u64, request: &[Vec<u8>]) -> Result<Vec<u8>, Errno> {
        let unique = self.last.get() + 1;
        self.last.set(unique);
        let request = request.concat();
        let caller = words([nix::unistd::geteuid().as_raw(), 0, 0, 0]);
        let len = (request.len() + 40) as u32;
        let header = [words([len, opcode]), longs([unique, node]), caller].concat();
        nix::unistd::write(&self.socket, &[header, request].concat()).unwrap();
        let mut answer = vec![0; 1 << 16];
        let got = nix::unistd::read(&self.socket, &mut answer).unwrap();
        let error = i32::from_ne_bytes(*answer[4..].first_chunk().unwrap());
        assert_eq!(&answer[8..HEADER], unique.to_ne_bytes());
        match error {
            0 => Ok(answer[HEADER..got].to_vec()),
            error => Err(Errno::from_raw(-error)),
        }
    }

    /// How often a kind of request was counted, and how many of them run.
    fn counted(&self, kind: &str) -> (u64, u64) {
        const SIZE: usize = 16_000;
        let about = [longs([0]), words([0, stats::ASK]), longs([0])];
        let question = [words([SIZE as u32; 2]), vec![0; SIZE]];
        let answer = self.ask(IOCTL, ROOT, &[about.concat(), question.concat()]);
        // Result and flags, then the number and the length of the text.
        let text = &answer.unwrap()[16 + 16..];
        let counts: Value = serde_json::from_slice(text).unwrap();
        let counts = &counts["requests"][kind];
        let [count, running] = ["count", "running"].map(|key| counts[key].as_u64().unwrap());
        (count, running)
    }

    fn end(self) {
        self.ask(DESTROY, 0, &[]).unwrap();
        self.session.join().unwrap().unwrap();
    }
}

/// Bug: those that were refused at first sight were answered, but not counted.
#[test]
fn what_is_refused_at_once_is_counted() {
    let exchange = libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE;
    let rename = [longs([ROOT]), words([exchange, 0]), b"a\0b\0".to_vec()].concat();
    let seek = [longs([1, 0]), words([libc::SEEK_DATA as u32, 0])].concat();
    let copy = longs([1, 0, ROOT, 2, 0, 1, 1]);
    let open = words([libc::O_RDONLY as u32, 0]);
    let cases = [
        ("rename", RENAME2, rename, Errno::EINVAL),
        ("copy_file_range", COPY_FILE_RANGE, copy, Errno::EINVAL),
        ("lseek", LSEEK, seek, Errno::ENOSYS),
        ("open", OPEN, open, Errno::ENOSYS),
    ];
    for (kind, opcode, request, errno) in cases {
        let mut stack = Stack::new(1);
        // Without an upper the kernel need not tell of opens.
        stack.read_only = kind == "open";
        let options = Options {
            threads: 1,
            clone_fd: false,
            passthrough: Passthrough::Off,
            writeback: true,
            ..Options::default()
        };
        let merged = stack.mount();
        let union = merged.union.share();
        drop(merged);
        let union = Arc::into_inner(union).unwrap();
        let kernel = Kernel::of(union, options, WRITEBACK_CACHE | NO_OPEN_SUPPORT);
        for n in 0..3 {
            assert_eq!(kernel.counted(kind), (n, 0), "{kind}");
            let answer = kernel.ask(opcode, ROOT, std::slice::from_ref(&request));
            assert_eq!(answer, Err(errno), "{kind}");
        }
        kernel.end();
    }
}
