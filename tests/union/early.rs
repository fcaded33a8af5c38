//! Data that go to the kernel before it asks for them.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::support::{Fs, Merged, Stack, ok};

/// Enough to learn from.
const FILES: usize = 40;

fn stack() -> Stack {
    let stack = Stack::new(1);
    for i in 0..FILES {
        stack.lower(0).with_file(&name(i), &content(i));
    }
    stack
        .lower(0)
        .with_file("empty", "")
        .with_file("large", &"l".repeat(128 * 1024 + 1));
    stack
}

fn name(i: usize) -> String {
    format!("f{i}")
}

fn content(i: usize) -> String {
    format!("data {i}")
}

fn open(m: &Merged, path: &str) -> u64 {
    m.open(path, libc::O_RDONLY).unwrap()
}

/// Reads files as one does to whom nothing is sent.
fn read_some(m: &Merged, files: std::ops::Range<usize>) {
    for i in files {
        let fh = open(m, &name(i));
        assert_eq!(m.pread(fh, 0, 100).unwrap(), content(i).as_bytes());
        m.close(fh);
    }
}

/// Whether the next of these files is sent at all; a sample is not.
fn sent(m: &Merged, mut files: std::ops::Range<usize>) -> bool {
    files.any(|i| {
        let fh = open(m, &name(i));
        let sent = m.union.is_read_next(fh);
        m.close(fh);
        sent
    })
}

#[test]
fn only_small_files_of_lowers_that_are_to_be_read_are_sent() {
    let stack = stack();
    let m = stack.mount();
    assert!(!sent(&m, 0..10), "nothing is known yet");
    for i in 10..20 {
        let fh = open(&m, &name(i));
        m.union.is_read_next(fh);
        m.pread(fh, 0, 100).unwrap();
        m.close(fh);
    }
    assert!(sent(&m, 20..22));
    assert!(!sent(&m, 10..12), "the kernel has them");
    for path in ["empty", "large"] {
        for _ in 0..2 {
            let fh = open(&m, path);
            assert!(!m.union.is_read_next(fh), "{path}");
            m.close(fh);
        }
    }
    for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_DIRECT] {
        for i in 22..24 {
            let fh = m.open(&name(i), flags).unwrap();
            assert!(!m.union.is_read_next(fh), "{flags:o}");
            m.close(fh);
        }
    }
    for i in 24..26 {
        m.chmod(&name(i), 0o600).unwrap();
        let fh = open(&m, &name(i));
        assert!(!m.union.is_read_next(fh), "in the upper");
        m.close(fh);
    }
    // Twelve that nobody reads.
    for i in 28..FILES {
        let fh = open(&m, &name(i));
        m.union.is_read_next(fh);
        m.close(fh);
    }
    read_some(&m, 0..2);
}

#[test]
fn all_of_a_file_is_sent_once() {
    let stack = stack();
    let m = stack.mount();
    let fh = open(&m, &name(0));
    assert_eq!(
        ok(m.union.early(fh)).unwrap().unwrap().data,
        content(0).as_bytes()
    );
    assert!(!m.union.is_read_next(fh));
    m.close(fh);
    m.chmod(&name(1), 0o600).unwrap();
    let fh = open(&m, &name(1));
    assert!(ok(m.union.early(fh)).unwrap().is_none(), "in the upper");
    m.close(fh);
}

/// Else the old data would come into the page cache after the change.
#[test]
fn data_do_not_change_while_they_are_sent() {
    let stack = stack();
    let m = stack.mount();
    let fh = open(&m, &name(0));
    let early = ok(m.union.early(fh)).unwrap().unwrap();
    let union = m.union.share();
    let (done, wait) = channel();
    let change = std::thread::spawn(move || {
        let other = Merged::sharing(union);
        other.truncate(&name(0), 3).unwrap();
        other.forget();
        done.send(()).unwrap();
    });
    let early_end = wait.recv_timeout(Duration::from_millis(100));
    assert_eq!(early_end, Err(RecvTimeoutError::Timeout));
    let second = open(&m, &name(0));
    assert!(ok(m.union.early(second)).unwrap().is_none(), "sent already");
    drop(early);
    change.join().unwrap();
    assert_eq!(m.pread(second, 0, 100).unwrap(), b"dat");
    m.close(second);
    m.close(fh);
}
