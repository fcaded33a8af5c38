//! Layers: what lowers hide and show, what the upper remembers, how a mount lives and dies.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::daemon;
use crate::support::files::{device_zero, file, gone, ino, names, read, union};
use crate::support::sys::{self, Errno};
use crate::support::{Compare, Fixture, Scratch, System, Tree, isolated, mount_command};
use crate::support::{require_all, run, text, umount};

#[test]
fn whiteouts_and_opaque_directories() {
    let Some(mut f) = union("whiteouts", 2, |lower| {
        let (top, base) = (&lower[0], &lower[1]);
        for dir in ["wh", "overlay", "none"] {
            file(base.join(dir).join("below"), "below");
        }
        for name in ["a", "b", "kept", ".cvmfscatalog"] {
            file(base.join(name), "base");
        }
        file(base.join("replaced/inside"), "base");
        file(top.join(".wh.a"), "");
        file(top.join(".wh.absent"), "");
        file(top.join(".cvmfscatalog"), "");
        device_zero(top.join("b"));
        // A whiteout hides lower layers only, not its own.
        file(top.join(".wh.kept"), "");
        file(top.join("kept"), "top");
        file(top.join("wh/.wh..wh..opq"), "");
        file(top.join("wh/above"), "");
        file(top.join("overlay/above"), "");
        sys::setxattr(top.join("overlay"), "trusted.overlay.opaque", b"y", 0).unwrap();
        file(top.join("none/above"), "");
        file(top.join(".wh.replaced"), "");
        file(top.join("replaced/new"), "top");
    }) else {
        return;
    };
    for _ in 0..2 {
        assert_eq!(names(&f.mnt), ["kept", "none", "overlay", "replaced", "wh"]);
        assert_eq!(names(f.at("wh")), ["above"]);
        assert_eq!(names(f.at("overlay")), ["above"]);
        assert_eq!(names(f.at("none")), ["above", "below"]);
        assert_eq!(names(f.at("replaced")), ["new"]);
        for hidden in [
            "a",
            "b",
            ".wh.a",
            ".cvmfscatalog",
            "wh/.wh..wh..opq",
            "wh/below",
        ] {
            gone(f.at(hidden));
        }
        assert_eq!(read(f.at("kept")), "top");
        let shown = sys::getxattr(f.at("overlay"), "trusted.overlay.opaque");
        assert_eq!(shown, Err(Errno::ENODATA));
        f.remount();
    }
}

#[test]
fn deletions_stay() {
    let Some(mut f) = union("deletions", 1, |lower| {
        file(lower[0].join("f"), "lower");
        file(lower[0].join("d/f"), "lower");
        file(lower[0].join("r/f"), "lower");
    }) else {
        return;
    };
    sys::unlink(f.at("f")).unwrap();
    fs::remove_dir_all(f.at("d")).unwrap();
    fs::remove_dir_all(f.at("r")).unwrap();
    sys::mkdir(f.at("r"), 0o755).unwrap();
    for _ in 0..2 {
        assert_eq!(names(&f.mnt), ["r"]);
        assert_eq!(names(f.at("r")), [""; 0]);
        gone(f.at("f"));
        f.remount();
    }
}

#[test]
fn numbers_are_stable() {
    let Some(mut f) = union("numbers", 2, |lower| {
        file(lower[1].join("d/f"), "lower");
        file(lower[0].join("d/g"), "lower");
        file(lower[1].join("e/h"), "lower");
    }) else {
        return;
    };
    let paths = ["", "d", "d/f", "d/g", "e", "e/h"];
    let numbers = |f: &Fixture| paths.map(|path| ino(f.at(path)));
    let before = numbers(&f);
    fs::write(f.at("d/f"), "upper").unwrap();
    sys::chmod(f.at("d/g"), 0o600).unwrap();
    sys::chmod(f.at("d"), 0o700).unwrap();
    assert_eq!(numbers(&f), before, "copy-up");
    f.remount();
    assert_eq!(numbers(&f), before, "remount");
    sys::rename(f.at("d"), f.at("moved"), 0).unwrap();
    sys::rename(f.at("e/h"), f.at("moved/h"), 0).unwrap();
    for _ in 0..2 {
        let after = ["moved", "moved/f", "moved/g", "moved/h"].map(|path| ino(f.at(path)));
        assert_eq!(after, [before[1], before[2], before[3], before[5]]);
        for entry in sys::readdir(f.at("moved")).unwrap() {
            assert_eq!(entry.ino, ino(f.at("moved").join(text(&entry.name))));
        }
        f.remount();
    }
}

#[test]
fn directories_are_renamed() {
    let Some(mut f) = union("rename", 2, |lower| {
        file(lower[1].join("d/sub/f"), "lower");
        file(lower[0].join("d/g"), "top");
        file(lower[1].join("p/q/r"), "lower");
    }) else {
        return;
    };
    sys::rename(f.at("d"), f.at("p/moved"), 0).unwrap();
    file(f.at("d/new"), "new");
    sys::rename(f.at("p/moved/sub"), f.at("sub"), 0).unwrap();
    sys::rename(f.at("p"), f.at("again"), 0).unwrap();
    for _ in 0..2 {
        assert_eq!(names(&f.mnt), ["again", "d", "sub"]);
        assert_eq!(names(f.at("d")), ["new"]);
        assert_eq!(names(f.at("again/moved")), ["g"]);
        assert_eq!(read(f.at("sub/f")), "lower");
        assert_eq!(read(f.at("again/q/r")), "lower");
        f.remount();
    }
}

fn upper_blocks(dir: &Path) -> i64 {
    let mut sum = 0;
    for name in names(dir) {
        let path = dir.join(name);
        let stat = sys::lstat(&path).unwrap();
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => sum += upper_blocks(&path),
            libc::S_IFREG => sum += stat.st_blocks,
            _ => {}
        }
    }
    sum
}

#[test]
fn attributes_copy_no_data() {
    let size = 16 << 20;
    let Some(mut f) = union("metacopy", 1, |lower| {
        sys::make(lower[0].join("big"), &vec![7; size]).unwrap();
    }) else {
        return;
    };
    sys::chmod(f.at("big"), 0o600).unwrap();
    sys::lchown(f.at("big"), 5, 6).unwrap();
    sys::utimens(f.at("big"), (1, 2), (3, 4)).unwrap();
    for _ in 0..2 {
        assert!(upper_blocks(&f.upper) * 512 < 1 << 20, "data was copied");
        let stat = sys::stat(f.at("big")).unwrap();
        assert_eq!(
            (stat.st_uid, stat.st_mtime, stat.st_mode & 0o777),
            (5, 3, 0o600)
        );
        assert!(fs::read(f.at("big")).unwrap() == vec![7; size]);
        f.remount();
    }
    let fd = sys::open(f.at("big"), libc::O_WRONLY, 0).unwrap();
    sys::pwrite(&fd, b"x", 100).unwrap();
    drop(fd);
    f.remount();
    let content = fs::read(f.at("big")).unwrap();
    assert_eq!((content.len(), content[99], content[100]), (size, 7, b'x'));
}

#[test]
fn truncation_copies_nothing() {
    let Some(f) = union("truncation", 1, |lower| {
        sys::make(lower[0].join("big"), &vec![7; 16 << 20]).unwrap();
    }) else {
        return;
    };
    drop(sys::open(f.at("big"), libc::O_WRONLY | libc::O_TRUNC, 0).unwrap());
    assert_eq!(sys::stat(f.at("big")).unwrap().st_size, 0);
    assert!(upper_blocks(&f.upper) * 512 < 1 << 20);
}

#[test]
fn open_descriptors_see_later_writes() {
    let Some(f) = union("descriptors", 1, |lower| {
        file(lower[0].join("f"), "lower content");
    }) else {
        return;
    };
    let reader = sys::open(f.at("f"), libc::O_RDONLY, 0).unwrap();
    let map = sys::Map::new(&reader, 13, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    assert_eq!(map.get(0), b'l');
    let writer = sys::open(f.at("f"), libc::O_RDWR, 0).unwrap();
    sys::pwrite(&writer, b"UPPER", 0).unwrap();
    assert_eq!(sys::pread(&reader, 5, 0).unwrap(), b"UPPER");
    assert_eq!(map.get(0), b'U');
    sys::fchmod(&reader, 0o600).unwrap();
    sys::unlink(f.at("f")).unwrap();
    sys::pwrite(&writer, b"later", 0).unwrap();
    assert_eq!(sys::pread(&reader, 5, 0).unwrap(), b"later");
    assert_eq!(sys::fstat(&reader).unwrap().st_nlink, 0);
}

#[test]
fn users_names_stay_theirs() {
    let Some(mut f) = union("names", 1, |lower| {
        file(lower[0].join("x"), "lower");
        file(lower[0].join("d/below"), "lower");
    }) else {
        return;
    };
    file(f.at(".wh.x"), "mine");
    file(f.at("d/.wh..wh..opq"), "mine");
    file(f.at(".cvmfscatalog2"), "mine");
    device_zero(f.at("zero"));
    let opaque = "trusted.overlay.opaque";
    sys::setxattr(f.at("d"), opaque, b"y", 0).unwrap();
    sys::setxattr(f.at("x"), "user.overlay.whiteout", b"mine", 0).unwrap();
    for _ in 0..2 {
        assert_eq!(names(&f.mnt), [".cvmfscatalog2", ".wh.x", "d", "x", "zero"]);
        assert_eq!(names(f.at("d")), [".wh..wh..opq", "below"]);
        assert_eq!(
            (read(f.at(".wh.x")), read(f.at("x"))),
            ("mine".into(), "lower".into())
        );
        let zero = sys::lstat(f.at("zero")).unwrap();
        assert_eq!(
            (zero.st_mode & libc::S_IFMT, zero.st_rdev),
            (libc::S_IFCHR, 0)
        );
        assert_eq!(sys::getxattr(f.at("d"), opaque).unwrap(), b"y");
        assert_eq!(sys::listxattr(f.at("d")).unwrap(), [opaque.as_bytes()]);
        assert_eq!(
            sys::getxattr(f.at("x"), "user.overlay.whiteout").unwrap(),
            b"mine"
        );
        f.remount();
    }
    sys::unlink(f.at("zero")).unwrap();
    sys::unlink(f.at(".wh.x")).unwrap();
    f.remount();
    assert_eq!(names(&f.mnt), [".cvmfscatalog2", "d", "x"]);
}

#[test]
fn hardlinks_stay_one_file() {
    let Some(mut f) = union("hardlinks", 1, |lower| {
        file(lower[0].join("a"), "lower");
        sys::mkdir(lower[0].join("d"), 0o755).unwrap();
        sys::link(lower[0].join("a"), lower[0].join("d/b")).unwrap();
        sys::link(lower[0].join("a"), lower[0].join("c")).unwrap();
    }) else {
        return;
    };
    let same = |f: &Fixture, paths: &[&str]| {
        for path in paths {
            let stat = sys::lstat(f.at(path)).unwrap();
            assert_eq!(stat.st_ino, ino(f.at(paths[0])), "{path}");
            assert_eq!(stat.st_nlink as usize, paths.len(), "{path}");
        }
    };
    same(&f, &["a", "d/b", "c"]);
    fs::write(f.at("d/b"), "upper").unwrap();
    sys::link(f.at("c"), f.at("e")).unwrap();
    for _ in 0..2 {
        same(&f, &["a", "d/b", "c", "e"]);
        assert_eq!([read(f.at("a")), read(f.at("e"))], ["upper", "upper"]);
        f.remount();
    }
    sys::unlink(f.at("a")).unwrap();
    same(&f, &["d/b", "c", "e"]);
    f.remount();
    same(&f, &["d/b", "c", "e"]);
}

#[test]
fn parents_keep_their_times() {
    let Some(mut f) = union("times", 1, |lower| {
        file(lower[0].join("d/e/f"), "lower");
        for path in ["d/e/f", "d/e", "d", ""] {
            sys::utimens(lower[0].join(path), (1, 0), (1_000_000, 5)).unwrap();
        }
    }) else {
        return;
    };
    sys::chmod(f.at("d/e/f"), 0o600).unwrap();
    let fd = sys::open(f.at("d/e/f"), libc::O_RDWR, 0).unwrap();
    sys::pwrite(&fd, b"x", 0).unwrap();
    drop(fd);
    for _ in 0..2 {
        for path in ["d/e", "d", ""] {
            let stat = sys::stat(f.at(path)).unwrap();
            assert_eq!(
                (stat.st_mtime, stat.st_mtime_nsec),
                (1_000_000, 5),
                "{path:?}"
            );
        }
        f.remount();
    }
}

#[test]
fn implied_directories_and_link_modes() {
    let Some(f) = union("implied", 2, |lower| {
        file(lower[0].join("d/f"), "top");
        for path in ["d", ""] {
            sys::lchown(lower[0].join(path), 65534, 65534).unwrap();
        }
        file(lower[1].join("d/g"), "base");
        sys::lchown(lower[1].join("d"), 3, 4).unwrap();
        sys::chmod(lower[1].join("d"), 0o2750).unwrap();
        sys::symlink("x", lower[1].join("l")).unwrap();
    }) else {
        return;
    };
    let stat = sys::stat(f.at("d")).unwrap();
    assert_eq!(
        (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777),
        (3, 4, 0o2750)
    );
    assert_eq!(sys::stat(&f.mnt).unwrap().st_uid, 0);
    assert_eq!(sys::lstat(f.at("l")).unwrap().st_mode & 0o7777, 0o777);
    assert_eq!(names(f.at("d")), ["f", "g"]);
}

#[test]
fn one_mount_to_an_upper() {
    let Some(mut f) = union("second", 1, |lower| file(lower[0].join("f"), "lower")) else {
        return;
    };
    let first = f.mnt.clone();
    f.mnt = f.scratch().join("second");
    fs::create_dir(&f.mnt).unwrap();
    let output = f.try_mount();
    assert!(!output.status.success(), "two mounts on one upper");
    assert!(!output.stderr.is_empty(), "without a word");
    f.mnt = first;
    assert_eq!(read(f.at("f")), "lower");
}

/// Bug: a daemon whose mount was gone already, and that had its upper for a moment yet, made the next
/// mount fail.
#[test]
fn a_mount_waits_for_the_upper_of_one_that_ends() {
    let Some(mut f) = union("patience", 1, |_| {}) else {
        return;
    };
    f.umount();
    let work = sys::open(&f.work, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    let held = nix::fcntl::Flock::lock(work, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let end = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        drop(held);
    });
    let output = f.try_mount();
    end.join().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn killed_daemon_is_recovered() {
    let Some(mut f) = union("killed", 1, |lower| file(lower[0].join("f"), "lower")) else {
        return;
    };
    fs::write(f.at("new"), "upper").unwrap();
    daemon::kill(&f.mnt);
    f.mount();
    assert_eq!(names(&f.mnt), ["f", "new"]);
}

#[test]
fn sigterm_unmounts() {
    let Some(mut f) = union("sigterm", 1, |lower| file(lower[0].join("f"), "lower")) else {
        return;
    };
    daemon::signal(daemon::of(&f.mnt), libc::SIGTERM);
    daemon::wait("SIGTERM does not unmount", || names(&f.mnt).is_empty());
    f.forget_mount();
    f.mount();
    assert_eq!(names(&f.mnt), ["f"]);
}

#[test]
fn held_directories_stay_busy() {
    let Some(f) = union("busy", 1, |lower| file(lower[0].join("d/f"), "lower")) else {
        return;
    };
    let held = sys::open(f.at("d/f"), libc::O_RDONLY, 0).unwrap();
    let output = run(std::process::Command::new(crate::support::PROGRAM)
        .arg("umount")
        .arg(&f.mnt));
    assert!(!output.status.success(), "a busy mount was unmounted");
    let mut byte = [0u8; 1];
    let got = nix::unistd::read(&held, &mut byte);
    assert_eq!((got, byte), (Ok(1), *b"l"));
}

/// Layers as CVMFS has them, with their `thin.json`; `missing` names one that is not there.
fn thin(scratch: &Scratch, missing: bool) -> (PathBuf, PathBuf, Vec<PathBuf>) {
    let root = scratch.dir("cvmfs");
    let mut layers = Vec::new();
    let mut entries = Vec::new();
    for i in 0..3 {
        let digest = format!("{i:x}").repeat(64);
        let folder = format!(".layers/{}/{digest}/layerfs", &digest[..2]);
        let dir = root.join("images.example.org").join(&folder);
        fs::create_dir_all(&dir).unwrap();
        file(dir.join(".cvmfscatalog"), "");
        file(dir.join(format!("from{i}")), "layer");
        file(dir.join("which"), &i.to_string());
        layers.push(dir);
        let url = format!("cvmfs://images.example.org/{folder}");
        entries.push(format!(r#"{{"digest":"{digest}","url":"{url}"}}"#));
    }
    file(layers[2].join(".wh.from0"), "");
    if missing {
        fs::remove_dir_all(layers.pop().unwrap()).unwrap();
    }
    let json = scratch.path().join("thin.json");
    let text = format!(
        r#"{{"version":"1.0","origin":"test","layers":[{}]}}"#,
        entries.join(",")
    );
    fs::write(&json, text).unwrap();
    (root, json, layers)
}

#[test]
fn thin_image() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let scratch = Scratch::new("thin");
    let (root, json, layers) = thin(&scratch, false);
    let before: Vec<_> = layers.iter().map(|dir| Tree::read(dir)).collect();
    let (upper, mnt) = (scratch.dir("upper"), scratch.dir("mnt"));
    for round in 0..2 {
        let output = run(mount_command()
            .arg("--cvmfs-root")
            .arg(&root)
            .arg("--upper")
            .arg(&upper)
            .arg(&json)
            .arg(&mnt));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let result = std::panic::catch_unwind(|| {
            isolated(|| {
                let expected: &[&str] = if round == 0 {
                    &["from1", "from2", "which"]
                } else {
                    &["from2", "which"]
                };
                assert_eq!(names(&mnt), expected);
                assert_eq!(
                    read(mnt.join("which")),
                    "2",
                    "the last layer is the topmost"
                );
                if round == 0 {
                    sys::unlink(mnt.join("from1")).unwrap();
                }
            });
        });
        umount(System::Ours, &mnt).unwrap();
        result.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    }
    for (before, dir) in before.iter().zip(&layers) {
        assert_eq!(before.difference(&Tree::read(dir), Compare::BYTES), None);
    }
}

#[test]
fn missing_layer_is_named() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let scratch = Scratch::new("missing");
    let (root, json, _) = thin(&scratch, true);
    let (upper, mnt) = (scratch.dir("upper"), scratch.dir("mnt"));
    let output = run(mount_command()
        .arg("--cvmfs-root")
        .arg(&root)
        .arg("--upper")
        .arg(&upper)
        .arg(&json)
        .arg(&mnt));
    let said = text(&output.stderr);
    if output.status.success() {
        umount(System::Ours, &mnt).unwrap();
        panic!("an image with a missing layer was mounted");
    }
    assert!(
        said.contains(&"2".repeat(64)),
        "the missing layer is not named: {said}"
    );
}

/// A listing leaves them out where they cost much.
#[test]
fn link_counts_are_right_after_a_listing() {
    const LAYERS: usize = 9;
    let Some(f) = union("nlink", LAYERS, |lowers| {
        for (i, lower) in lowers.iter().enumerate() {
            file(lower.join(format!("dir/sub{i}/f")), "");
        }
    }) else {
        return;
    };
    for _ in 0..2 {
        assert_eq!(names(&f.mnt), ["dir"]);
        assert_eq!(sys::lstat(f.at("dir")).unwrap().st_nlink, 2 + LAYERS as u64);
    }
    let open = sys::open(f.at("dir"), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    sys::mkdir(f.at("dir/new"), 0o755).unwrap();
    names(&f.mnt);
    assert_eq!(sys::fstat(&open).unwrap().st_nlink, 3 + LAYERS as u64);
}
