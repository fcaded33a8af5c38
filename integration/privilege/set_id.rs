//! Set-id bits and file capabilities go when they go in a plain directory, whatever way the data or the
//! owner are changed, and wherever the file stands. For every value of `--passthrough`.

use std::path::{Path, PathBuf};

use nix::fcntl::SpliceFFlags;

use crate::support::creds::Creds;
use crate::support::sys;
use crate::support::{Fixture, Scratch, isolated, require_all};

const OWNER: u32 = 1000;
const STRANGER: u32 = 2000;
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Where a file stands before it is changed.
const PLACES: [&str; 4] = ["upper", "lower", "metacopy", "linked"];

type Act = fn(&Path) -> sys::Result<()>;

fn writable(path: &Path) -> sys::Result<std::os::fd::OwnedFd> {
    sys::open(path, libc::O_RDWR, 0)
}

fn splice(path: &Path) -> sys::Result<()> {
    let fd = writable(path)?;
    let (from, to) = nix::unistd::pipe()?;
    sys::write(&to, b"splice")?;
    let moved = nix::fcntl::splice(from, None, fd, None, 6, SpliceFFlags::empty())?;
    assert_eq!(moved, 6);
    Ok(())
}

fn copy_into(path: &Path) -> sys::Result<()> {
    let source = sys::open(path.with_file_name("source"), libc::O_RDONLY, 0)?;
    let to = writable(path)?;
    let copied = nix::fcntl::copy_file_range(source, None, to, None, 6)?;
    assert_eq!(copied, 6);
    Ok(())
}

fn set_acl(path: &Path) -> sys::Result<()> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in [(1u16, 7u16), (4, 5), (0x20, 7)] {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(u32::MAX.to_le_bytes());
    }
    sys::setxattr(path, "system.posix_acl_access", &value, 0)
}

/// Those that change data come first.
const ACTS: &[(&str, Act)] = &[
    ("open", |p| writable(p).map(drop)),
    ("write", |p| sys::pwrite(&writable(p)?, b"w", 0).map(drop)),
    ("append", |p| {
        let fd = sys::open(p, libc::O_WRONLY | libc::O_APPEND, 0)?;
        sys::write(&fd, b"a").map(drop)
    }),
    ("splice", splice),
    ("copy", copy_into),
    ("allocate", |p| sys::fallocate(&writable(p)?, 0, 0, 8192)),
    ("punch", |p| {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        sys::fallocate(&writable(p)?, mode, 0, 4096)
    }),
    ("truncate", |p| sys::truncate(p, 3)),
    ("truncate to nothing", |p| sys::truncate(p, 0)),
    ("ftruncate", |p| sys::ftruncate(&writable(p)?, 3)),
    ("ftruncate to the same", |p| {
        sys::ftruncate(&writable(p)?, 7)
    }),
    ("O_TRUNC", |p| {
        sys::open(p, libc::O_WRONLY | libc::O_TRUNC, 0).map(drop)
    }),
    ("chown", |p| sys::lchown(p, STRANGER, u32::MAX)),
    ("chown to the same", |p| sys::lchown(p, OWNER, u32::MAX)),
    ("chown of nothing", |p| sys::lchown(p, u32::MAX, u32::MAX)),
    ("chgrp", |p| sys::lchown(p, u32::MAX, OWNER)),
    ("fchown", |p| sys::fchown(&writable(p)?, u32::MAX, OWNER)),
    ("chmod", |p| sys::chmod(p, 0o6711)),
    ("touch", |p| sys::utimens(p, (1, 0), (1, 0))),
    ("set xattr", |p| sys::setxattr(p, "user.x", b"x", 0)),
    ("set ACL", set_acl),
    ("rename", |p| sys::rename(p, p.with_extension("moved"), 0)),
    ("link", |p| sys::link(p, p.with_extension("more"))),
];

/// How many acts there are on data.
const ON_DATA: usize = 12;

/// Modes, and whether there is a capability too.
const RIGHTS: [(u32, bool); 4] = [
    (0o6777, false),
    (0o4777, true),
    (0o2777, false),
    (0o777, true),
];

fn callers() -> [Creds; 4] {
    [
        Creds::root(),
        Creds::user(OWNER, OWNER, &[]),
        Creds::user(STRANGER, STRANGER, &[]),
        Creds::user(STRANGER, OWNER, &[]),
    ]
}

/// The directory of one case, with the file to change and one to copy from.
fn build(dir: &Path, linked: bool, (mode, capability): (u32, bool)) {
    sys::mkdir(dir, 0o777).unwrap();
    sys::chmod(dir, 0o777).unwrap();
    let file = dir.join("file");
    sys::make(&file, b"content").unwrap();
    sys::make(dir.join("source"), b"source").unwrap();
    if linked {
        sys::link(&file, dir.join("other")).unwrap();
    }
    sys::lchown(&file, OWNER, OWNER).unwrap();
    sys::chmod(&file, mode).unwrap();
    if capability {
        sys::setxattr(&file, "security.capability", &CAPABILITY, 0).unwrap();
    }
}

/// The mode, owner and capability by every name that the file may have.
fn left(dir: &Path) -> Vec<String> {
    let names = ["file", "other", "file.moved", "file.more"];
    let state = |name: &str| {
        let path = dir.join(name);
        let stat = sys::lstat(&path).ok()?;
        let capability = sys::getxattr(&path, "security.capability").is_ok();
        let (mode, uid, gid, size) = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size);
        Some(format!("{name} {mode:o} {uid}:{gid} {size} {capability}"))
    };
    names.iter().filter_map(|name| state(name)).collect()
}

/// S56: where a capability goes, the request is to drop whatever there is. So root's change of the data
/// takes the set-id bits along, and a stranger's chown of nothing the capability, though it fails.
fn is_known(name: &str, want: &str, got: &str) -> bool {
    let both = name.ends_with("-1");
    let by_root = name.contains("-0-") && got == want.replace("104777", "100777");
    let by_stranger = name.contains("chown of nothing") && got == want.replace("true", "false");
    both && (by_root || by_stranger)
}

fn with_passthrough(value: &str, acts: &[(&str, Act)]) {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut fixture = Fixture::new(&format!("set-id-{value}"));
    fixture.options = vec![format!("--passthrough={value}")];
    let plain = Scratch::new("set-id-plain");
    let lower = fixture.lower();
    // Passthrough is about data, and about the bits that go with them.
    let kinds = if value == "auto" { RIGHTS.len() } else { 2 };
    let mut cases = Vec::new();
    for place in PLACES {
        for (who, caller) in callers().iter().enumerate() {
            for (what, act) in acts {
                for (i, rights) in RIGHTS.iter().enumerate().take(kinds) {
                    let name = format!("{place}-{who}-{what}-{i}");
                    cases.push((name, place, caller.clone(), *act, *rights));
                }
            }
        }
    }
    let linked = |place: &str| place == "linked";
    for (name, place, _, _, rights) in &cases {
        build(&plain.path().join(name), linked(place), *rights);
        if *place != "upper" {
            build(&lower.join(name), linked(place), *rights);
        }
    }
    fixture.mount();
    isolated(|| {
        for (name, place, _, _, rights) in &cases {
            let dir = fixture.at(name);
            match *place {
                "upper" => build(&dir, false, *rights),
                "metacopy" => sys::utimens(dir.join("file"), (5, 0), (5, 0)).unwrap(),
                _ => {}
            }
        }
    });
    let mut wrong = Vec::new();
    for (name, place, caller, act, _) in &cases {
        let outcome = |root: &Path| {
            let dir: PathBuf = root.join(name);
            let said = caller.run(|| act(&dir.join("file")));
            format!("{said:?} {:?}", left(&dir))
        };
        let (want, got) = (outcome(plain.path()), outcome(&fixture.mnt));
        if want != got && !is_known(name, &want, &got) {
            let who = &caller.name;
            wrong.push(format!(
                "{place} {name} by {who}:\n  want {want}\n  got  {got}"
            ));
        }
    }
    eprintln!("passthrough {value}: {} cases", cases.len());
    let shown = wrong.len().min(30);
    let count = wrong.len();
    assert!(
        wrong.is_empty(),
        "{count} differ:\n{}",
        wrong[..shown].join("\n")
    );
}

#[test]
fn privileges_go_without_passthrough() {
    with_passthrough("off", &ACTS[..ON_DATA]);
}

#[test]
fn privileges_go_with_passthrough_by_default() {
    with_passthrough("auto", ACTS);
}

#[test]
fn privileges_go_with_passthrough_of_the_upper() {
    with_passthrough("upper", &ACTS[..ON_DATA]);
}

#[test]
fn privileges_go_with_passthrough_of_all() {
    with_passthrough("all", &ACTS[..ON_DATA]);
}

/// A mapping that is written to: capabilities may go, and set-id bits never come back.
#[test]
fn a_shared_mapping_keeps_no_more_than_a_plain_one() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut fixture = Fixture::new("set-id-mapped");
    let plain = Scratch::new("set-id-mapped-plain");
    let lower = fixture.lower();
    for root in [lower.as_path(), plain.path()] {
        build(&root.join("case"), false, (0o6777, true));
    }
    fixture.mount();
    let mapped = |root: &Path| {
        let file = root.join("case/file");
        Creds::user(STRANGER, STRANGER, &[]).run(|| {
            let fd = writable(&file).unwrap();
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let mut map = sys::Map::new(&fd, 7, access, libc::MAP_SHARED).unwrap();
            map.set(0, b'm');
            map.sync().unwrap();
        });
        assert_eq!(std::fs::read(&file).unwrap(), b"montent");
        let capability = sys::getxattr(&file, "security.capability").is_ok();
        (sys::stat(&file).unwrap().st_mode & 0o7777, capability)
    };
    let (want, got) = (mapped(plain.path()), mapped(&fixture.mnt));
    assert_eq!(
        got.0 & !want.0,
        0,
        "more rights than {:o}: {:o}",
        want.0,
        got.0
    );
    assert!(want.1 || !got.1, "the capability stayed");
}
