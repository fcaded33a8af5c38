//! Bytes as the marks of an upper that somebody else prepared: whatever they say, all that is shown is of the
//! stack, walking it comes to an end, and nothing but the upper changes.
//!
//! An input is lines `PATH MARK=VALUE`, with a digit for each of the first two.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use cvmfs_union::sys::{file, xattr};
use cvmfs_union::union::Union;
use cvmfs_union::union::api::{Caller, Ino, Kind, ROOT, RenameKind, SetAttr};

use crate::support::{Fs, Stack, mark_space};

const PATHS: [&str; 8] = [
    "", "dir", "dir/sub", "file", "dir/file", "link", "other", "other/in",
];
const MARKS: [&str; 9] = [
    "overlay.redirect",
    "overlay.metacopy",
    "cvmfs-union.ino",
    "cvmfs-union.nlink",
    "cvmfs-union.special",
    "overlay.opaque",
    "overlay.whiteout",
    "cvmfs-union.dialect",
    "fuseoverlayfs.opaque",
];
const TOKENS: &[&[u8]] = &[
    b"\n",
    b" ",
    b"=",
    b"0",
    b"/",
    b"..",
    b"/dir",
    b"/dir/sub",
    b"/file",
    b"dir",
    b"/../",
    b"y",
    b"x",
    b"plain",
    b"c 103",
    b"p 0",
    b"4000000000000001",
    b"ffffffffffffffff",
    b"-1",
    b"2147483647",
    b"\0",
    b"\xff",
    b"outside",
];
/// More objects than that are no walk of these trees.
const MOST: usize = 2000;

#[test]
fn marks() {
    super::run("marks", TOKENS, check);
}

pub fn check(input: &[u8]) {
    let stack = Stack::new(1);
    let outside = stack.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "outside").unwrap();
    stack
        .lower(0)
        .with_file("dir/sub/below", "of the layer")
        .with_file("file", "of the layer")
        .with_symlink("link", "../outside/secret");
    let upper = stack.upper();
    upper
        .with_dir("dir/sub", 0o755)
        .with_file("dir/file", "of the upper")
        .with_file("file", "of the upper")
        .with_symlink("link", outside.join("secret").to_str().unwrap())
        .with_file("other/in", "of the upper");
    let root = file::open_path(&stack.path("upper"), libc::O_PATH).unwrap();
    for line in input.split(|b| *b == b'\n').take(12) {
        let [path, mark, b'=', value @ ..] = line else {
            continue;
        };
        let path = PATHS[usize::from(*path) % PATHS.len()];
        let key = format!(
            "{}.{}",
            mark_space(),
            MARKS[usize::from(*mark) % MARKS.len()]
        );
        let Some((dir, name)) = path.rsplit_once('/') else {
            // What the file system has no place for needs no test.
            drop(xattr::set(
                root.as_fd(),
                path.as_bytes(),
                &CString::new(key).unwrap(),
                value,
                0,
            ));
            continue;
        };
        let dir = file::openat(root.as_fd(), dir.as_bytes(), libc::O_PATH, 0).unwrap();
        drop(xattr::set(
            dir.as_fd(),
            name.as_bytes(),
            &CString::new(key).unwrap(),
            value,
            0,
        ));
    }
    let before = outside_of(&stack);
    for _ in 0..2 {
        // An upper may be refused.
        let Ok(union) = Union::new(&stack.config()) else {
            break;
        };
        let mut seen = 0;
        walk(&union, ROOT, &mut seen, false);
        walk(&union, ROOT, &mut seen, true);
        drop(union);
        assert_eq!(outside_of(&stack), before);
    }
    // The lowers are looked at when the stack goes.
    let merged = stack.lower(0).names("").unwrap();
    assert_eq!(merged, ["dir", "file", "link"]);
    assert_eq!(
        stack.lower(0).read("dir/sub/below").unwrap(),
        b"of the layer"
    );
    assert_eq!(stack.lower(0).read("file").unwrap(), b"of the layer");
}

fn outside_of(stack: &Stack) -> (Vec<u8>, u32, usize) {
    use std::os::unix::fs::MetadataExt;
    let dir = stack.path("outside");
    let mode = std::fs::metadata(dir.join("secret")).unwrap().mode();
    let count = std::fs::read_dir(&dir).unwrap().count();
    (std::fs::read(dir.join("secret")).unwrap(), mode, count)
}

fn walk(union: &Union, dir: Ino, seen: &mut usize, change: bool) {
    let caller = Caller {
        uid: 0,
        gid: 0,
        umask: 0,
    };
    let mut names = Vec::new();
    // A broken mark ends the listing.
    drop(union.readdir(dir, 0, &mut |e| {
        names.push(e.name.to_vec());
        true
    }));
    for (i, name) in names
        .iter()
        .filter(|n| *n != b"." && *n != b"..")
        .enumerate()
    {
        *seen += 1;
        assert!(*seen < MOST, "no end");
        let name = OsStr::from_bytes(name);
        let Ok(Some(attr)) = union.lookup(dir, name) else {
            continue;
        };
        for key in union
            .listxattr(attr.ino)
            .unwrap_or_default()
            .split(|b| *b == 0)
        {
            assert!(!key.starts_with(b"trusted.overlay."), "{key:?}");
        }
        match attr.kind {
            Kind::Dir => walk(union, attr.ino, seen, change),
            Kind::Symlink => drop(union.readlink(attr.ino)),
            _ => {
                if let Ok(fh) = union.open(&caller, attr.ino, libc::O_RDONLY) {
                    if let Ok(data) = union.read(fh, 0, 4096) {
                        let known = [&b""[..], b"of the layer", b"of the upper", b"of the upper!"];
                        let data = data.as_slice();
                        assert!(
                            known
                                .iter()
                                .any(|k| k.starts_with(data) || data.starts_with(k)),
                            "{data:?}"
                        );
                        assert!(!data.starts_with(b"outside"));
                    }
                    union.release(fh);
                }
            }
        }
        if change {
            let set = SetAttr {
                mode: Some(0o700),
                ..SetAttr::default()
            };
            drop(union.setattr(&caller, attr.ino, None, &set));
            if let Ok(fh) = union.open(&caller, attr.ino, libc::O_WRONLY) {
                drop(union.write(fh, 12, b"!", true));
                union.release(fh);
            }
            let to = OsStr::new("moved");
            drop(union.rename(dir, name, ROOT, to, RenameKind::NoReplace));
            if i % 2 == 0 {
                drop(union.unlink(ROOT, to));
                drop(union.rmdir(ROOT, to));
            }
        }
        union.forget(attr.ino, 1);
    }
}
