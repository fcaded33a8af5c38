//! Layers with links, names, kinds and attributes that are as bad as they can be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Daemon, Hostile, bytes, dirs, file, shapes, walk};
use crate::support::sys::{self, Errno};
use crate::support::{text, within};

const S_IFMT: u32 = libc::S_IFMT;

fn links(layers: &[std::path::PathBuf], canary: &crate::support::canary::Canary) {
    let [top, middle, bottom] = layers else {
        panic!()
    };
    for (i, target) in canary.targets().iter().enumerate() {
        // Over a directory of a layer below, under one, and beside a file of the same name.
        dirs(bottom.join(format!("over{i}/sub")));
        file(bottom.join(format!("over{i}/sub/file")), "hidden");
        sys::symlink(target, top.join(format!("over{i}"))).unwrap();
        dirs(top.join(format!("under{i}")));
        file(top.join(format!("under{i}/mine")), "mine");
        sys::symlink(target, middle.join(format!("under{i}"))).unwrap();
        dirs(bottom.join(format!("under{i}/never")));
        // As a marker: it is the name that counts.
        file(bottom.join(format!("gone{i}")), "gone");
        sys::symlink(target, top.join(format!(".wh.gone{i}"))).unwrap();
        // Deep in a directory that merges.
        for layer in [top, middle] {
            dirs(layer.join("deep/deeper"));
        }
        sys::symlink(target, middle.join(format!("deep/deeper/link{i}"))).unwrap();
    }
    dirs(top.join("opaque"));
    sys::symlink(canary.path("fifo"), top.join("opaque/.wh..wh..opq")).unwrap();
    dirs(bottom.join("opaque/hidden"));
    for name in [".cvmfscatalog", ".cvmfsautocatalog"] {
        sys::symlink(canary.path("fifo"), top.join(name)).unwrap();
    }
    for (name, target) in [
        ("self", "self"),
        ("loop1", "loop2"),
        ("loop2", "loop1"),
        ("proc", "/proc/self/root"),
        ("fd", "/proc/self/fd/0"),
        ("dots", ".."),
        ("root", "/"),
        ("long", &"../".repeat(1300)),
    ] {
        sys::symlink(target, middle.join(name)).unwrap();
    }
}

#[test]
fn links_that_lead_out() {
    for style in ["overlay", "wh"] {
        let Some(mut h) = Hostile::new("links", 3, links) else {
            return;
        };
        h.fixture.options = vec!["--whiteouts".into(), style.into()];
        h.run(|h, tree| {
            for (i, target) in h.canary.targets().iter().enumerate() {
                for name in [format!("over{i}"), format!("deep/deeper/link{i}")] {
                    assert_eq!(tree.0[name.as_bytes()].content, bytes_of(target), "{name}");
                }
                assert!(!tree.0.contains_key(format!("gone{i}").as_bytes()));
                assert_eq!(sys::names(h.at(format!("under{i}"))).unwrap(), ["mine"]);
            }
            assert_eq!(sys::names(h.at("opaque")).unwrap(), [""; 0]);
            assert!(!tree.0.contains_key(&b".cvmfscatalog"[..]));
            assert_eq!(sys::stat(h.at("self")).err(), Some(Errno::ELOOP));
        });
    }
}

fn bytes_of(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}

/// Names that are not text, that control terminals, and that are as long as can be.
fn odd_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = (1..32u8).map(|c| vec![c]).collect();
    names.extend([
        b"line\nbreak".to_vec(),
        b"\x1b[2J\x1b]0;title\x07".to_vec(),
        b"\xff\xfe".to_vec(),
        b"cut \xc3".to_vec(),
        b"\xed\xa0\x80".to_vec(),
        b"...".to_vec(),
        b"..x".to_vec(),
        b"-rf".to_vec(),
        b" ".to_vec(),
        b"\\".to_vec(),
        b".wh".to_vec(),
        b".whx".to_vec(),
        b"\x7f".to_vec(),
        b"#0".to_vec(),
        vec![b'n'; 255],
        vec![0xff; 255],
        vec![b'm'; 251],
        vec![b'm'; 252],
    ]);
    names
}

#[test]
fn names_of_any_bytes() {
    for style in ["overlay", "wh"] {
        let fill = |layers: &[std::path::PathBuf], _: &_| {
            for name in odd_names() {
                file(layers[1].join(bytes(&name)), "");
                for dir in ["dirs", "deleted", "links"] {
                    dirs(layers[1].join(dir));
                    dirs(layers[0].join(dir));
                }
                dirs(layers[1].join("dirs").join(bytes(&name)).join(bytes(&name)));
                dirs(layers[0].join("dirs").join(bytes(&name)));
                sys::symlink(bytes(&name), layers[0].join("links").join(bytes(&name))).unwrap();
                if name.len() <= 251 {
                    file(layers[1].join("deleted").join(bytes(&name)), "");
                    let marker = [b".wh.", name.as_slice()].concat();
                    file(layers[0].join("deleted").join(bytes(&marker)), "");
                }
            }
        };
        let Some(mut h) = Hostile::new("names", 2, fill) else {
            return;
        };
        h.fixture.options = vec!["--whiteouts".into(), style.into()];
        h.run(|h, tree| {
            for name in odd_names() {
                let twice = [b"dirs/", name.as_slice(), b"/", &name].concat();
                let link = [b"links/", name.as_slice()].concat();
                assert!(tree.0.contains_key(&name), "{name:?}");
                assert!(tree.0.contains_key(&twice), "{name:?}");
                assert_eq!(tree.0[&link].content, name);
            }
            assert_eq!(sys::names(h.at("deleted")).unwrap(), [""; 0]);
        });
    }
}

/// The things that can stand under a name.
const KINDS: [&str; 7] = ["absent", "file", "dir", "symlink", "fifo", "wh", "device"];

fn put(layer: &Path, name: &str, kind: &str, outside: &Path) {
    let path = layer.join(name);
    match kind {
        "file" => file(path, "data"),
        "dir" => {
            dirs(&path);
            file(path.join(layer.file_name().unwrap()), "");
        }
        "symlink" => sys::symlink(outside, path).unwrap(),
        "fifo" => sys::mknod(path, libc::S_IFIFO | 0o644, 0).unwrap(),
        "wh" => file(layer.join(format!(".wh.{name}")), ""),
        "device" => sys::mknod(path, libc::S_IFCHR, 0).unwrap(),
        _ => {}
    }
}

/// The kind that shows, and for a directory the layers that merge, by the rule stated once more.
fn shown(stack: [&'static str; 3]) -> (&'static str, Vec<usize>) {
    let mut merged = Vec::new();
    for (i, kind) in stack.into_iter().enumerate() {
        match kind {
            "absent" => {}
            "dir" => merged.push(i),
            _ if !merged.is_empty() => break,
            "wh" | "device" => return ("absent", merged),
            other => return (other, merged),
        }
    }
    (if merged.is_empty() { "absent" } else { "dir" }, merged)
}

/// The same name is another thing in each layer.
#[test]
fn kinds_flip_between_layers() {
    let mut cases = BTreeMap::new();
    for a in KINDS {
        for b in KINDS {
            for c in KINDS {
                cases.insert(format!("{a}-{b}-{c}"), [a, b, c]);
            }
        }
    }
    let fill = |layers: &[std::path::PathBuf], canary: &crate::support::canary::Canary| {
        for (name, stack) in &cases {
            for (layer, kind) in layers.iter().zip(stack) {
                put(layer, name, kind, &canary.path("dir"));
            }
        }
    };
    let Some(h) = Hostile::new("flips", 3, fill) else {
        return;
    };
    h.run(|h, tree| {
        for (name, stack) in &cases {
            let (kind, merged) = shown(*stack);
            let mode = match kind {
                "absent" => None,
                "dir" => Some(libc::S_IFDIR),
                "symlink" => Some(libc::S_IFLNK),
                "fifo" => Some(libc::S_IFIFO),
                _ => Some(libc::S_IFREG),
            };
            let found = tree.0.get(name.as_bytes()).map(|node| node.mode & S_IFMT);
            assert_eq!(found, mode, "{name}");
            if kind == "dir" {
                let layers: Vec<_> = merged.iter().map(|i| format!("lower{i}")).collect();
                assert_eq!(sys::names(h.at(name)).unwrap(), layers, "{name}");
            }
        }
    });
}

#[test]
fn special_files_are_content_and_markers() {
    let fill = |layers: &[std::path::PathBuf], canary: &crate::support::canary::Canary| {
        let kinds = [
            ("fifo", libc::S_IFIFO, 0),
            ("socket", libc::S_IFSOCK, 0),
            ("char", libc::S_IFCHR, libc::makedev(1, 3)),
            ("block", libc::S_IFBLK, libc::makedev(7, 250)),
            ("chardev-0-1", libc::S_IFCHR, libc::makedev(0, 1)),
        ];
        for (name, kind, dev) in kinds {
            for (layer, dir) in [(0, "top"), (1, "low")] {
                dirs(layers[layer].join(dir));
                sys::mknod(layers[layer].join(dir).join(name), kind | 0o644, dev).unwrap();
            }
            file(layers[1].join(format!("by-{name}")), "deleted");
            sys::mknod(layers[0].join(format!(".wh.by-{name}")), kind | 0o644, dev).unwrap();
            let opaque = format!("opaque-{name}");
            dirs(layers[1].join(&opaque).join("hidden"));
            dirs(layers[0].join(&opaque));
            sys::mknod(
                layers[0].join(&opaque).join(".wh..wh..opq"),
                kind | 0o644,
                dev,
            )
            .unwrap();
        }
        file(layers[1].join("by-dir"), "deleted");
        dirs(layers[0].join(".wh.by-dir/with/content"));
        dirs(layers[0].join(".wh..wh.plnk/x"));
        for bare in [".wh.", ".wh..", ".wh...", ".wh..wh.x"] {
            sys::symlink(canary.path("fifo"), layers[0].join(bare)).unwrap();
        }
    };
    let Some(h) = Hostile::new("special", 2, fill) else {
        return;
    };
    h.run(|_, tree| {
        let all = ["block%", "char%", "chardev-0-1%", "fifo|", "socket="];
        let mut expected: Vec<String> = all
            .iter()
            .flat_map(|k| [format!("low/{k}"), format!("top/{k}")])
            .collect();
        expected.extend(["low/".into(), "top/".into()]);
        expected.extend(all.iter().map(|k| format!("opaque-{}/", &k[..k.len() - 1])));
        expected.sort();
        let mut found = shapes(tree);
        found.sort();
        assert_eq!(found, expected);
    });
}

/// A FIFO that nobody writes to blocks the program that opens it, and nobody else.
#[test]
fn a_fifo_blocks_only_who_opens_it() {
    let fill = |layers: &[std::path::PathBuf], _: &_| {
        for name in ["fifo", "talk"] {
            sys::mknod(layers[0].join(name), libc::S_IFIFO | 0o644, 0).unwrap();
        }
        file(layers[0].join("file"), "data");
    };
    let Some(h) = Hostile::new("fifo", 1, fill) else {
        return;
    };
    let daemon = Daemon::mount(&h.fixture);
    let mut reader = Command::new("cat")
        .arg(h.at("fifo"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (fifo, mnt) = (h.at("fifo"), h.fixture.mnt.clone());
    let outcome = std::panic::catch_unwind(|| {
        within(
            Duration::from_secs(20),
            "beside a blocked program",
            move || {
                for i in 0..10 {
                    walk(&mnt);
                    sys::chmod(&fifo, 0o600 + i % 2).unwrap();
                    sys::make(mnt.join(format!("new{i}")), b"new").unwrap();
                }
                let flags = libc::O_WRONLY | libc::O_NONBLOCK;
                assert_eq!(
                    sys::open(mnt.join("talk"), flags, 0).err(),
                    Some(Errno::ENXIO)
                );
                sys::rename(&fifo, mnt.join("moved"), 0).unwrap();
                sys::unlink(mnt.join("moved")).unwrap();
            },
        );
        // And it works: what one program writes another reads.
        let mut talker = Command::new("cat")
            .arg(h.at("talk"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let talk = h.at("talk");
        within(Duration::from_secs(20), "writing", move || {
            fs::write(talk, "hello").unwrap()
        });
        let mut said = String::new();
        std::io::Read::read_to_string(&mut talker.stdout.take().unwrap(), &mut said).unwrap();
        talker.wait().unwrap();
        assert_eq!(said, "hello");
    });
    let still_blocked = reader.try_wait().unwrap().is_none();
    reader.kill().and_then(|()| reader.wait()).unwrap();
    outcome.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    assert!(
        still_blocked,
        "a program opened a FIFO that nobody writes to"
    );
    daemon.end();
}

/// Attributes of all namespaces, marks of unions in a layer among them.
#[test]
fn attributes_of_layers() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 57, 5, 0, 0, 4, 0, 4, 0, 255, 255,
        255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];
    let long = "/long".repeat(40);
    let marks = |path: &Path| {
        for space in ["trusted", "user"] {
            for (mark, value) in [
                ("overlay.redirect", "../../../../etc"),
                ("overlay.metacopy", ""),
                ("overlay.origin", "\u{1}garbage"),
                ("overlay.impure", "y"),
                ("overlay.nlink", "U+99"),
                ("overlay.whiteout", ""),
                ("cvmfs-union.ino", "1"),
                ("cvmfs-union.nlink", "x"),
                ("cvmfs-union.special", "b 801"),
                ("cvmfs-union.dialect", "plain"),
                ("fuseoverlayfs.opaque", "n"),
                ("overlay.upper", &long),
            ] {
                sys::setxattr(path, format!("{space}.{mark}"), value.as_bytes(), 0).unwrap();
            }
        }
    };
    let fill = |layers: &[std::path::PathBuf], _: &_| {
        for layer in layers {
            dirs(layer.join("dir"));
            marks(&layer.join("dir"));
        }
        let low = &layers[1];
        file(low.join("dir/file"), "of the layer");
        for name in ["file", "setuid", "capable", "acl"] {
            file(low.join(name), "data");
            sys::setxattr(low.join(name), "user.a", b"a", 0).unwrap();
            sys::setxattr(low.join(name), "user.\n\u{1b}", b"\0\xff", 0).unwrap();
            sys::setxattr(low.join(name), "trusted.a", b"a", 0).unwrap();
            sys::setxattr(low.join(name), "security.any", b"a", 0).unwrap();
        }
        marks(&low.join("file"));
        sys::chmod(low.join("setuid"), 0o6755).unwrap();
        sys::setxattr(low.join("capable"), "security.capability", &capability, 0).unwrap();
        sys::setxattr(low.join("acl"), "system.posix_acl_access", &acl, 0).unwrap();
        sys::setxattr(low.join("dir"), "system.posix_acl_default", &acl, 0).unwrap();
    };
    let Some(h) = Hostile::new("attributes", 2, fill) else {
        return;
    };
    h.run(|_, tree| {
        for (path, node) in &tree.0 {
            for key in node.xattrs.keys() {
                let key = text(key);
                let hidden = ["overlay.", "cvmfs-union.", "fuseoverlayfs."];
                assert!(
                    !hidden.iter().any(|h| key.contains(h)),
                    "{path:?} shows {key}"
                );
            }
        }
        assert_eq!(tree.0[&b"file"[..]].content, b"data");
        assert_eq!(tree.0[&b"dir/file"[..]].content, b"of the layer");
        assert_eq!(tree.0[&b"setuid"[..]].mode & 0o7777, 0o6755);
        assert_eq!(
            tree.0[&b"capable"[..]].xattrs[&b"security.capability"[..]],
            capability
        );
        assert_eq!(
            tree.0[&b"acl"[..]].xattrs[&b"system.posix_acl_access"[..]],
            acl
        );
        assert_eq!(tree.0[&b"acl"[..]].xattrs[&b"user.\n\x1b"[..]], b"\0\xff");
    });
}

#[test]
fn layer_roots() {
    let fill = |layers: &[std::path::PathBuf], _: &_| file(layers[0].join("f"), "");
    let Some(h) = Hostile::new("roots", 1, fill) else {
        return;
    };
    let bad = h.fixture.scratch().join("bad");
    dirs(&bad);
    file(bad.join("file"), "");
    sys::symlink(bad.join("file"), bad.join("link-to-file")).unwrap();
    sys::symlink("nowhere", bad.join("dangling")).unwrap();
    sys::symlink("loop", bad.join("loop")).unwrap();
    sys::mknod(bad.join("fifo"), libc::S_IFIFO | 0o644, 0).unwrap();
    sys::mknod(
        bad.join("device"),
        libc::S_IFCHR | 0o644,
        libc::makedev(1, 3),
    )
    .unwrap();
    for entry in sys::names(&bad).unwrap() {
        let lower = bad.join(&entry);
        let mut command = h.fixture.mount_command();
        command.arg("--lower").arg(&lower).arg(&h.fixture.mnt);
        let output = within(Duration::from_secs(20), &entry, move || {
            crate::support::run(&mut command)
        });
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{entry}: {said}");
        assert!(said.contains("/bad/"), "{entry}: {said}");
    }
    // A link that the user of the program names is the user's.
    let (linked, link) = (
        h.fixture.scratch().join("linked"),
        h.fixture.scratch().join("link"),
    );
    dirs(&linked);
    file(linked.join("g"), "");
    sys::symlink("linked", &link).unwrap();
    let mut command = h.fixture.mount_command();
    command
        .arg("--lower")
        .arg(&link)
        .arg("--foreground")
        .arg(&h.fixture.mnt);
    let daemon = Daemon::of(&mut command, &h.fixture.mnt);
    assert_eq!(sys::names(&h.fixture.mnt).unwrap(), ["f", "g"]);
    daemon.end();
}
