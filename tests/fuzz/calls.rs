//! Bytes as calls, as the kernel could make them and as it never would: any names, numbers, flags, modes,
//! sizes, offsets and times. No call panics or waits, lowers and what lies beside them stay as they are, and
//! the union that is opened next shows the tree that this one shows.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use arbtest::arbitrary::{Result, Unstructured};
use cvmfs_union::fuse::convert;
use cvmfs_union::union::Union;
use cvmfs_union::union::api::{
    Attr, Caller, Ino, Kind, ROOT, RenameKind, SetAttr, SetTime, Time, Whiteouts,
};

use crate::support::{Stack, is_root};

const TOKENS: &[&[u8]] = &[
    b"\0",
    b"\x01",
    b"\x02",
    b"\x03",
    b"\x04",
    b"\x05",
    b"\x06",
    b"\x07",
    b"\x08",
    b"\x09",
    b"\x0a",
    b"\x0b",
    b"\x0c",
    b"\x0d",
    b"\x0e",
    b"\x0f",
    b"\x10",
    b"\x11",
    b"\x12",
    b"\x13",
    b"\x14",
    b"\x15",
    b"\x16",
    b"\x17",
    b"\x18",
    b"\xff\xff\xff\xff",
];
const NAMES: [&[u8]; 12] = [
    b"a",
    b"dir",
    b"file",
    b"sub",
    b"link",
    b"fifo",
    b".wh.a",
    b".wh..wh..opq",
    b"new\n",
    b"\xff",
    b"",
    b"..",
];
const KEYS: [&[u8]; 8] = [
    b"user.a",
    b"trusted.overlay.opaque",
    b"user.cvmfs-union.ino",
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"",
    b"nothing",
];
const CALLS: usize = 60;

#[test]
fn calls() {
    super::run("calls", TOKENS, check);
}

pub fn check(input: &[u8]) {
    let u = &mut Unstructured::new(input);
    let style = [Whiteouts::Auto, Whiteouts::Wh][usize::from(u.arbitrary().unwrap_or(false))];
    let stack = Stack::with(2, style);
    let outside = stack.path("outside");
    std::fs::write(&outside, "outside").unwrap();
    stack
        .lower(1)
        .with_file("dir/file", "of the lowest layer")
        .with_file("dir/sub/a", "a")
        .with_file("file", "one of two names")
        .with_link("file", "a")
        .with_symlink("link", "../outside")
        .with_node("fifo", libc::S_IFIFO | 0o644, 0);
    stack
        .lower(0)
        .with_file("dir/a", "above")
        .with_wh("dir/sub");
    let merged = stack.mount();
    let mut caller = Calls {
        union: &merged.union,
        known: vec![ROOT],
        handles: Vec::new(),
    };
    for _ in 0..CALLS {
        if u.is_empty() || caller.call(u).is_err() {
            break;
        }
    }
    for fh in caller.handles {
        merged.union.release(fh);
    }
    let tree = dump(&merged.union);
    let merged = stack.reopen(merged);
    assert_eq!(dump(&merged.union), tree, "after opening it again");
    assert_eq!(std::fs::read(&outside).unwrap(), b"outside");
}

struct Calls<'a> {
    union: &'a Union,
    known: Vec<Ino>,
    handles: Vec<u64>,
}

/// Numbers at the edges, and small ones. What lies between would only fill memory.
fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    const EDGES: [u64; 8] = [
        u64::MAX,
        i64::MAX as u64,
        i64::MIN as u64,
        1 << 62,
        1 << 61,
        (1 << 61) - 1,
        u64::MAX - 4095,
        0,
    ];
    Ok(if u.ratio(1, 4)? {
        *u.choose(&EDGES)?
    } else {
        u64::from(u.arbitrary::<u16>()?)
    })
}

fn name(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    Ok(match u.int_in_range(0..=9)? {
        0 => u.arbitrary()?,
        1 => vec![b'n'; u.int_in_range(245..=256)?],
        _ => u.choose(&NAMES)?.to_vec(),
    })
}

fn one_of(u: &mut Unstructured<'_>, known: &[u64]) -> Result<u64> {
    if u.ratio(1, 16)? {
        number(u)
    } else {
        Ok(known
            .get(u.choose_index(known.len().max(1))?)
            .copied()
            .unwrap_or(7))
    }
}

fn time(u: &mut Unstructured<'_>) -> Result<Option<SetTime>> {
    Ok(match u.int_in_range(0..=2)? {
        0 => None,
        1 => Some(SetTime::Now),
        _ => {
            let (sec, nsec) = (number(u)? as i64, u.arbitrary()?);
            // And the way that times take to the kernel.
            convert::from_system_time(convert::to_system_time(Time { sec, nsec }));
            Some(SetTime::At(Time { sec, nsec }))
        }
    })
}

impl Calls<'_> {
    fn caller(u: &mut Unstructured<'_>) -> Result<Caller> {
        let root = !u.ratio(1, 4)?;
        let id = if root { 0 } else { 1000 };
        Ok(Caller {
            uid: id,
            gid: id,
            umask: u.arbitrary()?,
        })
    }

    fn met(&mut self, attr: Option<Attr>) {
        if let Some(attr) = attr {
            convert::file_attr(&attr);
            self.known.push(attr.ino);
        }
    }

    /// One call. Its answer may be an error; an `Err` of this says that the input is used up.
    fn call(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let union = self.union;
        let which = u.int_in_range(0..=24)?;
        let caller = Self::caller(u)?;
        let ino = one_of(u, &self.known)?;
        let fh = one_of(u, &self.handles)?;
        let named = name(u)?;
        let named = OsStr::from_bytes(&named);
        match which {
            0 | 1 => self.met(union.lookup(ino, named).ok().flatten()),
            2 => self.met(union.getattr(ino, Some(fh)).ok()),
            3 => {
                let set = SetAttr {
                    mode: u.arbitrary::<Option<u32>>()?.map(|mode| mode & 0o7777),
                    uid: u.arbitrary()?,
                    gid: u.arbitrary()?,
                    size: if u.ratio(1, 2)? {
                        Some(number(u)?)
                    } else {
                        None
                    },
                    atime: time(u)?,
                    mtime: time(u)?,
                };
                let handle = if u.arbitrary()? { Some(fh) } else { None };
                self.met(union.setattr(&caller, ino, handle, &set).ok());
            }
            4 => drop(union.readlink(ino)),
            5 => {
                let (mode, rdev) = (u.arbitrary()?, u.arbitrary()?);
                self.met(union.mknod(&caller, ino, named, mode, rdev).ok());
            }
            6 => self.met(
                union
                    .mkdir(&caller, ino, named, u.arbitrary::<u32>()? & 0o7777)
                    .ok(),
            ),
            7 => {
                let target: Vec<u8> = u.arbitrary()?;
                self.met(union.symlink(&caller, ino, named, &target).ok());
            }
            8 => {
                let to = one_of(u, &self.known)?;
                self.met(union.link(to, ino, named).ok());
            }
            9 => drop(union.unlink(ino, named)),
            10 => drop(union.rmdir(ino, named)),
            11 | 12 => {
                let (to, to_name) = (one_of(u, &self.known)?, name(u)?);
                let kinds = [
                    RenameKind::Replace,
                    RenameKind::NoReplace,
                    RenameKind::Exchange,
                    RenameKind::Whiteout,
                ];
                drop(union.rename(
                    ino,
                    named,
                    to,
                    OsStr::from_bytes(&to_name),
                    *u.choose(&kinds)?,
                ));
            }
            13 => {
                let (mode, flags) = (u.arbitrary::<u32>()? & 0o7777, u.arbitrary()?);
                if let Ok((attr, fh)) = union.create(&caller, ino, named, mode, flags) {
                    self.met(Some(attr));
                    self.handles.push(fh);
                }
            }
            14 => self
                .handles
                .extend(union.open(&caller, ino, u.arbitrary()?).ok()),
            15 => drop(union.readdir(ino, number(u)?, &mut |_| true)),
            16 => {
                let size = usize::from(u.arbitrary::<u16>()?);
                let data = union.read(fh, number(u)?, size).unwrap_or_default();
                assert!(data.len() <= size);
            }
            17 => {
                let data: Vec<u8> = u.arbitrary()?;
                drop(union.write(fh, number(u)?, &data, u.arbitrary()?));
            }
            18 => drop(union.fallocate(fh, number(u)?, number(u)?, u.arbitrary()?)),
            19 => drop(union.lseek(fh, number(u)? as i64, u.arbitrary()?)),
            20 => {
                let (to, len) = (
                    one_of(u, &self.handles)?,
                    usize::from(u.arbitrary::<u16>()?),
                );
                drop(union.copy_file_range(fh, number(u)?, to, number(u)?, len));
            }
            21 => {
                let mut left = u.arbitrary::<u8>()?;
                let cookie = number(u)?;
                drop(union.readdirplus(ino, cookie, &mut |_, attr| {
                    convert::file_attr(attr);
                    left = left.saturating_sub(1);
                    left > 0
                }));
            }
            22 => {
                let key = if u.ratio(1, 4)? {
                    u.arbitrary()?
                } else {
                    u.choose(&KEYS)?.to_vec()
                };
                let (key, value): (_, Vec<u8>) = (OsStr::from_bytes(&key), u.arbitrary()?);
                match u.int_in_range(0..=2)? {
                    0 => drop(union.setxattr(&caller, ino, key, &value, u.int_in_range(0..=4)?)),
                    1 => drop(union.removexattr(ino, key)),
                    _ => drop(union.getxattr(ino, key)),
                }
            }
            23 => {
                drop(union.fsync(fh, u.arbitrary()?));
                drop(union.get_flags(ino));
                // Immutable files could not be cleaned up.
                drop(union.set_flags(ino, u.arbitrary::<u32>()? & !0x30));
                drop(union.statfs());
            }
            _ => {
                let n = u64::from(u.arbitrary::<u8>()?);
                self.handles.retain(|known| *known != fh);
                union.release(fh);
                if ino != ROOT {
                    union.forget(ino, n);
                }
            }
        }
        Ok(())
    }
}

/// What can be seen, by path. Times of access are not looked at, sizes of directories neither.
fn dump(union: &Union) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let root = union.getattr(ROOT, None).unwrap();
    add(union, root, Vec::new(), &mut found);
    found
}

fn add(union: &Union, mut attr: Attr, path: Vec<u8>, found: &mut BTreeMap<Vec<u8>, String>) {
    assert!(path.len() < 4096 && found.len() < 1000, "no end");
    let keys = union.listxattr(attr.ino).unwrap();
    // What the file system took as capabilities it may refuse to give back.
    let value = |key: &[u8]| {
        let value = union.getxattr(attr.ino, OsStr::from_bytes(key));
        (key.to_vec(), value.map_err(|e| e.errno()))
    };
    let keys = keys.split(|b| *b == 0).filter(|key| !key.is_empty());
    let xattrs: BTreeMap<_, _> = keys.map(value).collect();
    let content = match attr.kind {
        Kind::File => {
            let caller = Caller {
                uid: 0,
                gid: 0,
                umask: 0,
            };
            let fh = union.open(&caller, attr.ino, libc::O_RDONLY).unwrap();
            let data = union.read(fh, 0, 1000).unwrap();
            union.release(fh);
            data
        }
        Kind::Symlink => union.readlink(attr.ino).unwrap(),
        _ => Vec::new(),
    };
    let ino = attr.ino;
    if attr.kind == Kind::Dir {
        let mut names = Vec::new();
        let listed = union.readdir(ino, 0, &mut |e| {
            names.push(e.name.to_vec());
            true
        });
        listed.unwrap();
        for name in names.iter().filter(|name| *name != b"." && *name != b"..") {
            let child = union.lookup(ino, OsStr::from_bytes(name)).unwrap();
            let child = child.unwrap_or_else(|| panic!("{name:?} is listed and not there"));
            add(union, child, [&path, &b"/"[..], name].concat(), found);
            union.forget(child.ino, 1);
        }
        (attr.size, attr.blocks) = (0, 0);
    }
    (attr.atime, attr.ctime) = (Time::default(), Time::default());
    if !is_root() {
        attr.ino = 0;
    }
    let before = found.insert(path.clone(), format!("{attr:?} {xattrs:?} {content:?}"));
    assert_eq!(before, None, "{path:?} twice");
}
