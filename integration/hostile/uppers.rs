//! Uppers that somebody else prepared: marks that lead out, lie, or are garbage. What they show may be an
//! error. It is never something outside, and never the end of the daemon.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{Expect, Hostile, PATIENCE, bytes, change, chmod, dirs, file};
use crate::support::canary::Canary;
use crate::support::foreground::Daemon;
use crate::support::sys::{self, Errno};
use crate::support::{Tree, isolated, within};

/// All that can be reached, whatever else is an error. Returns the paths.
fn visit(mnt: &Path) -> BTreeSet<Vec<u8>> {
    fn below(mnt: &Path, path: &[u8], found: &mut BTreeSet<Vec<u8>>) {
        let full = mnt.join(bytes(path));
        let Ok(stat) = sys::lstat(&full) else { return };
        assert!(
            path.len() < 4096 && found.insert(path.to_vec()),
            "no end: {path:?}"
        );
        for key in sys::listxattr(&full).unwrap_or_default() {
            drop(sys::getxattr(&full, bytes(&key)));
        }
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => drop(std::fs::read(&full)),
            libc::S_IFLNK => drop(sys::readlink(&full)),
            libc::S_IFDIR => {
                for entry in sys::readdir(&full).unwrap_or_default() {
                    if entry.name != b"." && entry.name != b".." {
                        let sep: &[u8] = if path.is_empty() { b"" } else { b"/" };
                        below(mnt, &[path, sep, &entry.name].concat(), found);
                    }
                }
            }
            _ => {}
        }
    }
    let mnt = mnt.to_owned();
    within(PATIENCE, "a walk", move || {
        let mut found = BTreeSet::new();
        below(&mnt, b"", &mut found);
        found
    })
}

fn fill_lowers(layers: &[std::path::PathBuf], canary: &Canary) {
    for layer in layers {
        dirs(layer.join("dir/sub"));
        file(layer.join("dir/sub/file"), "below");
        file(layer.join("file"), "lower");
        symlink(canary.path("dir"), layer.join("link")).unwrap();
        sys::mknod(layer.join("fifo"), libc::S_IFIFO | 0o644, 0).unwrap();
        sys::mknod(
            layer.join("null"),
            libc::S_IFCHR | 0o644,
            libc::makedev(1, 3),
        )
        .unwrap();
    }
}

/// One value for one mark, on a directory, a file, a link, a FIFO and a device of the upper.
fn prepare(upper: &Path, canary: &Canary, number: usize, mark: &str, value: &[u8]) {
    let dir = upper.join(format!("{number}"));
    dirs(dir.join("in"));
    file(dir.join("file"), "upper");
    file(dir.join("meta"), "1234");
    symlink(canary.path("file"), dir.join("link")).unwrap();
    symlink(canary.path("dir"), dir.join("dirlink")).unwrap();
    sys::mknod(dir.join("fifo"), libc::S_IFIFO | 0o644, 0).unwrap();
    sys::mknod(dir.join("null"), libc::S_IFCHR | 0o644, libc::makedev(1, 3)).unwrap();
    sys::setxattr(dir.join("meta"), "trusted.overlay.metacopy", b"", 0).unwrap();
    for name in ["in", "file", "meta", "link", "dirlink", "fifo", "null"] {
        // What the file system cannot hold needs no test.
        for space in ["trusted", "user"] {
            let key = format!("{space}.{mark}");
            let _ = sys::setxattr(dir.join(name), key, value, 0);
        }
    }
}

fn values(canary: &Canary) -> Vec<(&'static str, Vec<u8>)> {
    let mut all: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut add = |mark, values: &[&[u8]]| all.extend(values.iter().map(|v| (mark, v.to_vec())));
    let long = [b"/".as_slice(), &b"dir/".repeat(900)].concat();
    add(
        "overlay.redirect",
        &[
            b"",
            b"/",
            b".",
            b"..",
            b"../..",
            b"/..",
            b"/dir/../..",
            b"/link",
            b"/link/sub",
            b"link",
            b"/fifo",
            b"/null",
            b"/dir",
            b"/dir/sub",
            b"/dir\n",
            b"\xff",
            b"a\0b",
            b"/file/x",
            &long,
        ],
    );
    add(
        "cvmfs-union.ino",
        &[
            b"",
            b"0",
            b"1",
            b"2",
            b"-1",
            b"ffffffffffffffff",
            b"4000000000000001",
            b"4000000000000002",
            b"\xff",
            b"1 ",
        ],
    );
    add(
        "cvmfs-union.nlink",
        &[
            b"",
            b"9223372036854775807",
            b"-9223372036854775808",
            b"-5",
            b"5",
            b"\0",
        ],
    );
    add(
        "cvmfs-union.special",
        &[
            b"",
            b"c 0",
            b"b 801",
            b"p 0",
            b"s 0",
            b"c ffffffffffffffff",
            b"d 0",
            b"c",
        ],
    );
    add("overlay.opaque", &[b"", b"y", b"x", b"maybe"]);
    add("overlay.whiteout", &[b"", b"y"]);
    add("overlay.origin", &[b"", b"\0\xfb\x1d\x01garbage"]);
    add("fuseoverlayfs.opaque", &[b"y", b""]);
    add("cvmfs-union.dialect", &[b"plain", b"\0"]);
    for target in canary.targets() {
        all.push(("overlay.redirect", target.into_os_string().into_vec()));
    }
    all
}

#[test]
fn marks_that_somebody_made_up() {
    let Some(h) = Hostile::new("made-up", 2, fill_lowers) else {
        return;
    };
    let upper = h.fixture.upper.clone();
    isolated(|| {
        for (number, (mark, value)) in values(&h.canary).iter().enumerate() {
            prepare(&upper, &h.canary, number, mark, value);
        }
    });
    use_it(&h);
}

/// Walks, changes, walks; twice. Each walk ends, and nobody was outside.
fn use_it(h: &Hostile) {
    for _ in 0..2 {
        let daemon = Daemon::mount(&h.fixture);
        let mnt = h.fixture.mnt.clone();
        let found = visit(&mnt);
        assert!(found.len() > 5, "{found:?}");
        h.canary.check();
        within(PATIENCE, "changes", {
            let mnt = mnt.clone();
            let tree = Tree(found.iter().filter_map(|path| node(&mnt, path)).collect());
            move || isolated(|| change(&mnt, &tree, Expect::Answer))
        });
        visit(&mnt);
        h.canary.check();
        // And it serves still.
        sys::make(mnt.join("alive"), b"").unwrap();
        sys::unlink(mnt.join("alive")).unwrap();
        daemon.end();
        h.canary.check();
    }
}

fn node(mnt: &Path, path: &[u8]) -> Option<(Vec<u8>, crate::support::Node)> {
    let stat = sys::lstat(mnt.join(bytes(path))).ok()?;
    let node = crate::support::Node {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: 0,
        size: 0,
        rdev: 0,
        ino: 0,
        mtime: (0, 0),
        content: Vec::new(),
        xattrs: std::collections::BTreeMap::new(),
        same_as: Vec::new(),
    };
    Some((path.to_vec(), node))
}

/// With a mark that called it a device, a link of the upper was followed by chmod.
#[test]
fn a_link_that_is_marked_as_a_device_is_not_followed() {
    let Some(h) = Hostile::new("marked-link", 1, fill_lowers) else {
        return;
    };
    let link = h.fixture.upper.join("secret");
    symlink(h.canary.path("file"), &link).unwrap();
    sys::setxattr(&link, "trusted.cvmfs-union.special", b"c 103", 0).unwrap();
    let daemon = Daemon::mount(&h.fixture);
    let stat = sys::lstat(h.at("secret")).unwrap();
    assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFLNK);
    // By descriptor, so that the program itself follows nothing.
    let fd = sys::open(h.at("secret"), libc::O_PATH | libc::O_NOFOLLOW, 0).unwrap();
    assert!(chmod(&h.at("secret"), 0o777).is_err());
    assert!(sys::fchmod(&fd, 0o777).is_err());
    drop(fd);
    sys::lchown(h.at("secret"), 7, 7).unwrap();
    daemon.end();
    h.canary.check();
}

/// Many directories that redirect to each other's places, and all have one number.
#[test]
fn redirects_in_cycles() {
    let Some(h) = Hostile::new("cycles", 1, fill_lowers) else {
        return;
    };
    let upper = &h.fixture.upper;
    for (name, to) in [
        ("a", "/b"),
        ("b", "/a"),
        ("c", "/c"),
        ("dir", "/dir/sub"),
        ("dir/sub", "/dir"),
        ("x", "/dir"),
        ("x/sub", "/"),
    ] {
        dirs(upper.join(name));
        sys::setxattr(
            upper.join(name),
            "trusted.overlay.redirect",
            to.as_bytes(),
            0,
        )
        .unwrap();
        sys::setxattr(
            upper.join(name),
            "trusted.cvmfs-union.ino",
            b"4123456789abcdef",
            0,
        )
        .unwrap();
    }
    use_it(&h);
}

/// The work directory, and links and FIFOs where the upper and its notes should be.
#[test]
fn work_directories_of_others() {
    type Make = fn(&Path, &Canary);
    let things: [(&str, Make); 8] = [
        ("work", |at, c| symlink(c.path("dir"), at).unwrap()),
        ("index", |at, c| symlink(c.path("dir"), at).unwrap()),
        ("work", |at, _| {
            sys::mknod(at, libc::S_IFIFO | 0o644, 0).unwrap()
        }),
        ("abilities", |at, c| symlink(c.path("file"), at).unwrap()),
        ("abilities", |at, _| {
            sys::mknod(at, libc::S_IFIFO | 0o644, 0).unwrap()
        }),
        ("volatile", |at, c| symlink(c.path("file"), at).unwrap()),
        ("adopted", |at, c| symlink(c.path("file"), at).unwrap()),
        ("work", |at, c| {
            dirs(at.join("d/d/d"));
            symlink(c.path("dir"), at.join("link")).unwrap();
            symlink(c.path("dir"), at.join("d/link")).unwrap();
            sys::mknod(at.join("d/fifo"), libc::S_IFIFO | 0o644, 0).unwrap();
        }),
    ];
    for (name, make) in things {
        let Some(h) = Hostile::new("work", 1, fill_lowers) else {
            return;
        };
        make(&h.fixture.work.join(name), &h.canary);
        let mut command = h.fixture.mount_command();
        command.arg(&h.fixture.mnt);
        let output = within(PATIENCE, name, move || crate::support::run(&mut command));
        if output.status.success() {
            crate::support::umount(crate::support::System::Ours, &h.fixture.mnt).unwrap();
        } else {
            let said = crate::support::text(&output.stderr);
            assert_eq!(output.status.code(), Some(5), "{name}: {said}");
            assert!(!said.contains("panic"), "{said}");
        }
        h.canary.check();
    }
}

/// The entries of the index of hard links, by whose numbers an object of a layer can be taken for another.
#[test]
fn an_index_of_others() {
    let fill = |layers: &[std::path::PathBuf], _: &_| {
        for name in ["link", "fifo", "dir", "file", "gone"] {
            file(layers[0].join(name), name);
            sys::link(layers[0].join(name), layers[0].join(format!("{name}2"))).unwrap();
        }
    };
    let Some(h) = Hostile::new("index", 1, fill) else {
        return;
    };
    let daemon = Daemon::mount(&h.fixture);
    let names = sys::names(&h.fixture.mnt).unwrap();
    for name in ["link", "fifo", "dir", "file", "gone"] {
        sys::chmod(h.at(name), 0o600).unwrap();
    }
    let number = |name| format!("{:016x}", sys::lstat(h.at(name)).unwrap().st_ino);
    let numbers: Vec<_> = ["link", "fifo", "dir", "file", "gone"].map(number).to_vec();
    daemon.end();
    let index = h.fixture.work.join("index");
    for number in &numbers {
        sys::unlink(index.join(number)).unwrap();
    }
    symlink(h.canary.path("file"), index.join(&numbers[0])).unwrap();
    sys::mknod(index.join(&numbers[1]), libc::S_IFIFO | 0o644, 0).unwrap();
    dirs(index.join(&numbers[2]).join("in"));
    file(index.join(&numbers[3]), "another");
    sys::symlink(h.canary.path("dir"), index.join("x\n")).unwrap();
    let daemon = Daemon::mount(&h.fixture);
    assert_eq!(sys::names(&h.fixture.mnt).unwrap(), names);
    for name in &names {
        drop(sys::open(
            h.at(name),
            libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK,
            0,
        ));
        assert_ne!(sys::lchown(h.at(name), 7, 7).err(), Some(Errno::ENOTCONN));
    }
    visit(&h.fixture.mnt);
    daemon.end();
    h.canary.check();
}
