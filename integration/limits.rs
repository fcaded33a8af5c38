//! Where the mount differs from a plain directory, as part C of SEMANTICS says.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nix::sys::statvfs::statvfs;

use crate::support::files::{file, gone, names, read, union, union_with};
use crate::support::sys::{self, Errno};
use crate::support::{
    Compare, Fixture, PROGRAM, Scratch, System, Tree, mount_command, require_all,
};
use crate::support::{run, text, umount};

fn keys(path: impl AsRef<Path>) -> Vec<String> {
    let mut keys: Vec<_> = sys::listxattr(path)
        .unwrap()
        .iter()
        .map(|k| text(k))
        .collect();
    keys.sort();
    keys
}

#[test]
fn attributes_that_cvmfs_makes_up() {
    let Some(f) = union("magic", 2, |lower| {
        sys::setxattr(&lower[0], "user.fqrn", b"images.example.org", 0).unwrap();
        for (dir, name) in [(&lower[0], "cvmfs"), (&lower[1], "plain")] {
            file(dir.join(name), "content");
            for key in ["user.hash", "user.mine"] {
                sys::setxattr(dir.join(name), key, b"value", 0).unwrap();
            }
        }
    }) else {
        return;
    };
    for copied in [false, true] {
        assert_eq!(keys(f.at("cvmfs")), ["user.mine"]);
        let hash = sys::getxattr(f.at("cvmfs"), "user.hash");
        assert_eq!(hash.err(), Some(Errno::ENODATA), "copied: {copied}");
        assert_eq!(keys(f.at("plain")), ["user.hash", "user.mine"]);
        for name in ["cvmfs", "plain"] {
            sys::chmod(f.at(name), 0o600).unwrap();
        }
    }
    let stored = sys::getxattr(f.upper.join("cvmfs"), "user.hash");
    assert_eq!(stored.err(), Some(Errno::ENODATA));
}

#[test]
fn names_that_lowers_never_show() {
    let hidden = [
        ".wh.a",
        ".wh..wh.plnk",
        ".wh.",
        ".cvmfscatalog",
        ".cvmfsautocatalog",
    ];
    let Some(f) = union("hidden", 2, |lower| {
        for name in hidden {
            file(lower[0].join(name), "mark");
        }
        file(lower[1].join("a"), "hidden");
        file(lower[1].join("b"), "shown");
    }) else {
        return;
    };
    assert_eq!(names(&f.mnt), ["b"]);
    for name in hidden {
        gone(f.at(name));
        file(f.at(name), "the user's");
        assert_eq!(read(f.at(name)), "the user's");
    }
    gone(f.at("a"));
}

#[test]
fn link_counts_are_the_layers() {
    let Some(f) = union("counts", 2, |lower| {
        file(lower[1].join("shown"), "");
        sys::link(lower[1].join("shown"), lower[1].join("hidden")).unwrap();
        file(lower[0].join(".wh.hidden"), "");
    }) else {
        return;
    };
    assert_eq!(names(&f.mnt), ["shown"]);
    assert_eq!(sys::lstat(f.at("shown")).unwrap().st_nlink, 2);
}

#[test]
fn a_kept_upper_belongs_to_its_image() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let scratch = Scratch::new("kept");
    let (home, mnt, root) = (
        scratch.dir("home"),
        scratch.dir("mnt"),
        scratch.dir("cvmfs"),
    );
    let image = |letter: &str| {
        let digest = letter.repeat(64);
        let folder = format!("images.example.org/.layers/{letter}{letter}/{digest}/layerfs");
        file(root.join(&folder).join("from"), letter);
        let json = scratch.path().join(format!("{letter}.json"));
        let layer = format!(r#"{{"digest":"{digest}","url":"cvmfs://{folder}"}}"#);
        fs::write(&json, format!(r#"{{"version":"1.0","layers":[{layer}]}}"#)).unwrap();
        json
    };
    let mount = |json: &Path| {
        let mut command = mount_command();
        command.env("XDG_STATE_HOME", &home).env("HOME", &home);
        run(command.arg("--cvmfs-root").arg(&root).arg(json).arg(&mnt))
    };
    let (one, two) = (image("a"), image("b"));
    let output = mount(&one);
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::write(mnt.join("change"), "kept").unwrap();
    umount(System::Ours, &mnt).unwrap();

    let output = mount(&two);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("another image"), "{said}");

    let output = mount(&one);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let kept = read(mnt.join("change"));
    umount(System::Ours, &mnt).unwrap();
    assert_eq!(kept, "kept");
}

#[test]
fn a_fresh_file_system_is_an_empty_upper() {
    let Some(mut f) = union("fresh", 1, |lower| file(lower[0].join("f"), "lower")) else {
        return;
    };
    f.umount();
    for dir in [&f.upper, &f.work] {
        fs::remove_dir_all(dir).unwrap();
        fs::create_dir(dir).unwrap();
    }
    fs::create_dir(f.upper.join("lost+found")).unwrap();
    f.mount();
    assert_eq!(names(&f.mnt), ["f", "lost+found"]);
    // Taken as empty: a user's `.wh.` name is stored as it is.
    file(f.at(".wh.f"), "the user's");
    assert_eq!(read(f.upper.join(".wh.f")), "the user's");
    assert_eq!(read(f.at("f")), "lower");
}

#[test]
fn an_upper_as_a_lower() {
    let Some(mut f) = union("as-lower", 1, |lower| {
        for path in ["gone", "kept", "dir/below", "moved/inside"] {
            file(lower[0].join(path), "lower");
        }
    }) else {
        return;
    };
    sys::unlink(f.at("gone")).unwrap();
    fs::remove_dir_all(f.at("dir")).unwrap();
    file(f.at("dir/new"), "upper");
    sys::rename(f.at("moved"), f.at("away"), 0).unwrap();
    file(f.at(".wh.kept"), "the user's");
    f.umount();
    let mut next = Fixture::new("as-lower-next");
    next.lowers = vec![f.upper.clone(), f.lowers[0].clone()];
    next.mount();
    gone(next.at("gone"));
    assert_eq!(names(next.at("dir")), ["new"]);
    gone(next.at("moved"));
    // What is not honoured there: the redirect, and that `.wh.kept` was a user's.
    assert_eq!(names(next.at("away")), [""; 0]);
    gone(next.at("kept"));
    gone(next.at(".wh.kept"));
}

#[test]
fn long_names_cannot_be_deleted_by_files() {
    let name = |len: usize| "n".repeat(len);
    let Some(f) = union_with("long-wh", 1, &["--whiteouts", "wh"], |lower| {
        for len in [251, 252, 255] {
            file(lower[0].join(name(len)), "lower");
        }
    }) else {
        return;
    };
    assert_eq!(sys::unlink(f.at(name(251))), Ok(()));
    for len in [252, 255] {
        assert_eq!(sys::unlink(f.at(name(len))), Err(Errno::ENAMETOOLONG));
        assert_eq!(read(f.at(name(len))), "lower");
    }
}

#[test]
fn reading_a_lower_changes_no_time() {
    let paths = ["d/read", "d/changed", "d"];
    let set_times = |lower: &Path| {
        for path in paths {
            sys::utimens(lower.join(path), (1, 2), (3, 4)).unwrap();
        }
    };
    let Some(f) = union("atime", 1, |lower| {
        for path in &paths[..2] {
            file(lower[0].join(path), "lower");
        }
        set_times(&lower[0]);
    }) else {
        return;
    };
    // Once more: the fixture has read the lowers.
    set_times(&f.lowers[0]);
    assert_eq!(names(f.at("d")), ["changed", "read"]);
    assert_eq!(read(f.at("d/read")), "lower");
    let stat = sys::stat(f.at("d/read")).unwrap();
    assert_eq!((stat.st_atime, stat.st_atime_nsec), (1, 2));
    assert!(fs::metadata(f.at("d/read")).unwrap().created().is_err());
    let changed = sys::open(f.at("d/changed"), libc::O_RDWR, 0).unwrap();
    sys::pwrite(&changed, b"L", 0).unwrap();
    for path in paths {
        let stat = sys::stat(f.lowers[0].join(path)).unwrap();
        assert_eq!((stat.st_atime, stat.st_atime_nsec), (1, 2), "{path}");
    }
}

#[test]
fn blocks_and_ctime_of_a_metadata_copy() {
    let Some(mut f) = union("blocks", 1, |lower| {
        file(lower[0].join("f"), &"data".repeat(25_000));
    }) else {
        return;
    };
    let lower = fs::metadata(f.lowers[0].join("f")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    sys::chmod(f.at("f"), 0o600).unwrap();
    for round in ["before", "after"] {
        let copy = fs::metadata(f.at("f")).unwrap();
        assert_eq!(copy.blocks(), lower.blocks(), "{round} the remount");
        assert_eq!(copy.size(), lower.size());
        let times = |m: &fs::Metadata| (m.ctime(), m.ctime_nsec());
        assert!(times(&copy) > times(&lower));
        f.remount();
    }
}

#[test]
fn rename_flags_combine_as_in_the_kernel() {
    let Some(f) = union("flags", 1, |lower| file(lower[0].join("f"), "lower")) else {
        return;
    };
    let (no, exchange, whiteout) = (
        libc::RENAME_NOREPLACE,
        libc::RENAME_EXCHANGE,
        libc::RENAME_WHITEOUT,
    );
    let rename = |flags| sys::rename(f.at("f"), f.at("g"), flags);
    for flags in [no | exchange, exchange | whiteout, 8] {
        assert_eq!(rename(flags), Err(Errno::EINVAL), "{flags}");
    }
    assert_eq!(rename(no | whiteout), Ok(()));
    assert_eq!(read(f.at("g")), "lower");
    let left = sys::lstat(f.at("f")).unwrap();
    assert_eq!(
        (left.st_mode & libc::S_IFMT, left.st_rdev),
        (libc::S_IFCHR, 0)
    );
}

#[test]
fn direct_io_asks_for_no_alignment() {
    let Some(f) = union("direct", 1, |lower| file(lower[0].join("f"), "lower")) else {
        return;
    };
    let fd = sys::open(f.at("f"), libc::O_RDWR | libc::O_DIRECT, 0).unwrap();
    assert_eq!(sys::pread(&fd, 3, 1).unwrap(), b"owe");
    sys::pwrite(&fd, b"OW", 1).unwrap();
    assert_eq!(read(f.at("f")), "lOWer");
}

#[test]
fn statfs_is_that_of_the_upper() {
    let Some(mut f) = union("statfs", 1, |lower| file(lower[0].join("f"), "lower")) else {
        return;
    };
    let numbers = |path: &Path| {
        let all = statvfs(path).unwrap();
        (all.blocks(), all.files(), all.fragment_size())
    };
    assert_eq!(numbers(&f.mnt), numbers(&f.upper));
    assert_eq!(statvfs(&f.mnt).unwrap().name_max(), 255);
    f.umount();
    // A read-only mount: the topmost layer's, here one on a file system of its own.
    let proc = Path::new("/dev/shm");
    let (mnt, layer) = (f.mnt.clone(), tempfile::tempdir_in(proc).unwrap());
    let output = run(mount_command()
        .args(["--read-only", "--lower"])
        .arg(layer.path())
        .arg("--lower")
        .arg(&f.lowers[0])
        .arg(&mnt));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = numbers(&mnt);
    umount(System::Ours, &mnt).unwrap();
    assert_eq!(found, numbers(layer.path()));
}

#[test]
fn read_only_mounts() {
    let Some(mut f) = union("read-only", 1, |lower| file(lower[0].join("f"), "lower")) else {
        return;
    };
    file(f.at("new"), "upper");
    f.umount();
    let upper = Tree::read(&f.upper);
    let mnt = f.mnt.clone();
    for (args, shown) in [
        (vec!["--read-only"], vec!["f"]),
        (
            vec!["-o", "ro", "--upper", f.upper.to_str().unwrap()],
            vec!["f", "new"],
        ),
    ] {
        let mut command = Command::new(PROGRAM);
        command.arg("mount").args(&args);
        if args.contains(&"--upper") {
            command.arg("--work").arg(&f.work);
        }
        let output = run(command.arg("--lower").arg(&f.lowers[0]).arg(&mnt));
        assert!(
            output.status.success(),
            "{args:?}: {}",
            text(&output.stderr)
        );
        let found = names(&mnt);
        let refused = [
            sys::make(mnt.join("other"), b"").err(),
            sys::chmod(mnt.join("f"), 0o600).err(),
            sys::unlink(mnt.join("f")).err(),
            sys::open(mnt.join("f"), libc::O_WRONLY, 0).err(),
        ];
        umount(System::Ours, &mnt).unwrap();
        assert_eq!(found, shown, "{args:?}");
        assert_eq!(refused, [Some(Errno::EROFS); 4], "{args:?}");
    }
    assert_eq!(
        upper.difference(&Tree::read(&f.upper), Compare::BYTES),
        None
    );
}
