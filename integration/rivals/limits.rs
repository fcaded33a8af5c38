//! What neither we nor the rivals do, and what we do instead.

use crate::support::sys::{self, Errno};
use crate::support::{Fixture, isolated, require_all};

pub fn tmpfile(f: &mut Fixture) {
    let flags = libc::O_TMPFILE | libc::O_RDWR;
    let made = sys::open(f.at("dir"), flags, 0o600);
    made.unwrap();
}

pub fn birth(f: &mut Fixture) {
    sys::make(f.at("dir/new"), b"").unwrap();
    let born = sys::birth(f.at("dir/new")).unwrap();
    let now = crate::support::now();
    assert!(
        born.is_some_and(|born| (now - 60..=now).contains(&born)),
        "{born:?}"
    );
}

/// The handle of a file outlives what the kernel keeps of it.
pub fn handle_after_remount(f: &mut Fixture) {
    let handle = sys::Handle::of(f.at("dir/inside")).unwrap();
    f.remount();
    let root = sys::open(&f.mnt, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    let fd = handle.open(&root, libc::O_RDONLY).unwrap();
    assert_eq!(sys::pread(&fd, 100, 0).unwrap(), b"content");
}

const BLOCK: i64 = 4096;

pub fn collapse_and_insert(f: &mut Fixture) {
    let fd = sys::open(f.at("file"), libc::O_RDWR, 0).unwrap();
    sys::pwrite(&fd, &[7; 16_384], 0).unwrap();
    sys::fallocate(&fd, libc::FALLOC_FL_COLLAPSE_RANGE, 0, BLOCK).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_size, 12_288);
    sys::fallocate(&fd, libc::FALLOC_FL_INSERT_RANGE, BLOCK, BLOCK).unwrap();
    assert_eq!(sys::pread(&fd, 1, BLOCK).unwrap(), [0]);
}

/// Ours on the stock lower.
fn ours(body: fn(&mut Fixture)) {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut f = Fixture::new("limits");
    super::stock(&mut f);
    f.mount();
    isolated(|| body(&mut f));
}

/// S51.
#[test]
fn temporary_files_are_refused() {
    ours(|f| {
        let made = sys::open(f.at("dir"), libc::O_TMPFILE | libc::O_RDWR, 0o600);
        assert_eq!(made.err(), Some(Errno::EOPNOTSUPP));
        assert_eq!(sys::names(f.at("dir")).unwrap(), ["inside", "sub", "sub2"]);
    });
}

/// S52.
#[test]
fn time_of_birth_is_not_shown() {
    ours(|f| {
        sys::make(f.at("dir/new"), b"").unwrap();
        for path in ["dir/new", "file", "dir"] {
            assert_eq!(sys::birth(f.at(path)), Ok(None), "{path}");
        }
    });
}

/// S54.
#[test]
fn file_handles_hold_while_the_file_is_open() {
    ours(|f| {
        let held = sys::open(f.at("dir/inside"), libc::O_RDONLY, 0).unwrap();
        let handle = sys::Handle::of(f.at("dir/inside")).unwrap();
        let root = sys::open(&f.mnt, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        let fd = handle.open(&root, libc::O_RDONLY).unwrap();
        assert_eq!(sys::pread(&fd, 100, 0).unwrap(), b"content");
        drop((held, fd, root));
        f.remount();
        let root = sys::open(&f.mnt, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        let stale = handle.open(&root, libc::O_RDONLY);
        assert_eq!(stale.err(), Some(Errno::ESTALE));
    });
}

/// FUSE refuses them in the kernel; nothing of the file changes.
#[test]
fn collapse_and_insert_range_are_refused() {
    ours(|f| {
        let fd = sys::open(f.at("file"), libc::O_RDWR, 0).unwrap();
        sys::pwrite(&fd, &[7; 16_384], 0).unwrap();
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
            let result = sys::fallocate(&fd, mode, BLOCK, BLOCK);
            assert_eq!(result, Err(Errno::EOPNOTSUPP));
        }
        assert_eq!(sys::pread(&fd, 20_000, 0).unwrap(), [7; 16_384]);
    });
}
