//! Marks that no union wrote so: in uppers that were copied, torn or made up.

use cvmfs_union::union::api::Kind;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};

use crate::support::fs::join;
use crate::support::{Fs, Merged, Stack, mark_space};

fn key(mark: &str) -> String {
    format!("{}.{mark}", mark_space())
}

/// Everything that can be asked of all there is must have an answer, be it an error.
fn visit(merged: &Merged, path: &str, depth: usize) {
    assert!(depth < 20, "no end: {path}");
    let Ok(attr) = merged.stat(path) else { return };
    let keys = merged.listxattr(path).unwrap_or_default();
    assert!(keys.iter().all(|k| !k.contains(".overlay.")), "{keys:?}");
    match attr.kind {
        Kind::Dir => {
            for name in names(merged, path) {
                visit(merged, &join(path, &name), depth + 1);
            }
        }
        Kind::File => drop(merged.read(path)),
        Kind::Symlink => drop(merged.readlink(path)),
        _ => {}
    }
}

/// The names, where numbers in a listing need not be those of a later lookup.
fn names(merged: &Merged, path: &str) -> Vec<String> {
    let mut names = Vec::new();
    let dir = merged.walk(path).unwrap();
    let listed = merged.union.readdir(dir, 0, &mut |e| {
        names.push(String::from_utf8(e.name.to_vec()).unwrap());
        true
    });
    // What is broken may end the listing.
    drop(listed);
    names.retain(|name| name != "." && name != "..");
    names
}

/// The number that a path has by its place in the layers.
fn number(stack: &Stack, path: &str) -> String {
    let merged = stack.mount();
    let ino = merged.stat(path).unwrap().ino;
    drop(merged);
    stack.reset();
    format!("{ino:x}")
}

#[test]
fn values_out_of_range_are_errors() {
    for (mark, values) in [
        (
            "cvmfs-union.ino",
            &[
                "",
                "0",
                "1",
                "x",
                "-1",
                "8000000000000001",
                "ffffffffffffffff",
                "42",
            ][..],
        ),
        (
            "cvmfs-union.nlink",
            &[
                "",
                "-9223372036854775808",
                "9223372036854775807",
                "4294967296",
                "1.5",
            ],
        ),
        (
            "cvmfs-union.special",
            &["", "c", "c ", "x 1", "c 10000000000000000", "c\n1", "c -1"],
        ),
    ] {
        for value in values {
            let stack = Stack::new(1);
            stack
                .upper()
                .with_file("f", "")
                .with_xattr("f", &key(mark), value);
            let merged = stack.mount();
            assert_eq!(merged.stat("f"), Err(Errno::EIO), "{mark} {value:?}");
            assert_eq!(
                merged.chmod("f", 0o600),
                Err(Errno::EIO),
                "{mark} {value:?}"
            );
        }
    }
}

/// A count is good only for what the index of hard links in the work directory holds.
#[test]
fn link_counts_without_an_index_are_not_believed() {
    for value in ["2147483647", "-2147483648", "1"] {
        let stack = Stack::new(1);
        stack
            .upper()
            .with_file("f", "x")
            .with_xattr("f", &key("cvmfs-union.nlink"), value);
        let nlink = stack.mount().stat("f").map(|a| a.nlink);
        assert_eq!(nlink, Ok(1), "{value}");
    }
}

#[test]
fn redirects_lead_nowhere_else() {
    let long = format!("/{}", "x/".repeat(16_000));
    for redirect in [
        "",
        "/",
        "//",
        ".",
        "..",
        "/..",
        "../../etc",
        "/../../etc",
        "/etc/passwd",
        "d/..",
        "/d/../d",
        "/file",
        "/link",
        "/link/x",
        "d\n",
        "\u{0}",
        &long,
    ] {
        for metacopy in [false, true] {
            let stack = Stack::new(1);
            stack
                .lower(0)
                .with_file("d/below", "below")
                .with_file("file", "data")
                .with_symlink("link", "/etc")
                .with_node("fifo", libc::S_IFIFO | 0o644, 0);
            let upper = stack.upper();
            upper.with_dir("dir", 0o755).with_file("meta", "1234");
            // A file system may have no place for the longest.
            if upper
                .setxattr("dir", &key("overlay.redirect"), redirect.as_bytes(), 0)
                .is_err()
            {
                continue;
            }
            upper.with_xattr("meta", &key("overlay.redirect"), redirect);
            if metacopy {
                upper.with_xattr("meta", &key("overlay.metacopy"), "");
            }
            let merged = stack.mount();
            visit(&merged, "", 0);
            assert_eq!(merged.names("dir"), Ok(vec![]), "{redirect:?}");
            let want = match (metacopy, redirect) {
                (false, _) => Ok(b"1234".to_vec()),
                (true, "/file") => Ok(b"data".to_vec()),
                (true, _) => Err(Errno::EIO),
            };
            assert_eq!(merged.read("meta"), want, "{redirect:?} {metacopy}");
        }
    }
}

/// Opening a device can do something, opening a FIFO can take for ever.
#[test]
fn a_metadata_copy_of_no_file_opens_nothing() {
    for mode in [libc::S_IFIFO, libc::S_IFSOCK] {
        let stack = Stack::new(1);
        stack.lower(0).with_node("special", mode | 0o644, 0);
        stack
            .upper()
            .with_file("meta", "1234")
            .with_xattr("meta", &key("overlay.redirect"), "/special")
            .with_xattr("meta", &key("overlay.metacopy"), "");
        let merged = stack.mount();
        assert_eq!(merged.stat("meta"), Err(Errno::EIO));
        assert_eq!(merged.open("special", libc::O_RDONLY), Err(Errno::ENXIO));
        merged.chmod("special", 0o600).unwrap();
        assert_eq!(merged.open("special", libc::O_RDONLY), Err(Errno::ENXIO));
        assert_eq!(merged.open("special", libc::O_WRONLY), Err(Errno::ENXIO));
    }
}

/// A directory that had its own number below itself was its own parent: whoever looked for its place
/// went round for ever.
#[test]
fn a_directory_that_stands_in_itself() {
    let stack = Stack::new(1);
    stack.lower(0).with_file("a/b/c/file", "data");
    let ino = number(&stack, "a/b");
    let upper = stack.upper();
    upper
        .with_dir("a/b", 0o755)
        .with_xattr("a/b", &key("overlay.redirect"), "/a")
        .with_xattr("a/b", &key("cvmfs-union.ino"), &ino)
        .with_file("a/b/mine", "");
    let merged = stack.mount();
    visit(&merged, "", 0);
    assert_eq!(merged.stat("a/b/b"), Err(Errno::EIO));
    let kind = cvmfs_union::union::api::RenameKind::Replace;
    merged.rename("a/b", "moved", kind).unwrap();
    assert_eq!(merged.names(""), Ok(vec!["a".into(), "moved".into()]));
    merged.mkdir("moved/new", 0o755).unwrap();
    assert!(merged.rename("moved", "moved/new/in", kind).is_err());
    let merged = stack.reopen(merged);
    visit(&merged, "", 0);
    assert_eq!(merged.stat("moved/new").map(|a| a.kind), Ok(Kind::Dir));
}

/// All objects of an upper with the same number: each is itself nevertheless.
#[test]
fn one_number_for_all() {
    let stack = Stack::new(1);
    stack
        .lower(0)
        .with_file("low", "low")
        .with_file("dir/x", "x");
    for ino in [number(&stack, "low"), number(&stack, "dir")] {
        stack.reset();
        let upper = stack.upper();
        let ino_key = key("cvmfs-union.ino");
        for (dir, file) in [("p", "1"), ("p/q", "2"), ("r", "3")] {
            let path = format!("{dir}/{file}");
            upper
                .with_dir(dir, 0o755)
                .with_file(&path, file)
                .with_mode(&path, 0o600);
            upper
                .with_xattr(dir, &ino_key, &ino)
                .with_xattr(&path, &ino_key, &ino);
        }
        for first in ["", "low", "p/q/2", "r", "dir/x"] {
            let merged = stack.mount();
            visit(&merged, first, 0);
            for (path, data) in [("p/1", "1"), ("p/q/2", "2"), ("r/3", "3")] {
                assert_eq!(merged.read(path), Ok(data.into()), "{path} after {first:?}");
                assert_eq!(
                    merged.stat(path).map(|a| a.mode),
                    Ok(0o600),
                    "{path} after {first:?}"
                );
            }
        }
        let merged = stack.mount();
        visit(&merged, "", 0);
        merged.chmod("p/1", 0o640).unwrap();
        merged.write("r/3", b"three").unwrap();
        assert_eq!(merged.stat("p/q/2").map(|a| a.mode), Ok(0o600));
        let merged = stack.reopen(merged);
        assert_eq!(merged.stat("p/1").map(|a| a.mode), Ok(0o640));
        assert_eq!(merged.read("r/3"), Ok(b"three".to_vec()));
        assert_eq!(merged.read("p/q/2"), Ok(b"2".to_vec()));
    }
}

/// Its files with several names could not be reached without the index of hard links.
#[test]
fn an_upper_without_its_work_directory() {
    let stack = Stack::new(1);
    stack
        .lower(0)
        .with_file("one", "data")
        .with_link("one", "two");
    let merged = stack.mount();
    merged.chmod("one", 0o600).unwrap();
    drop(merged);
    stack.work().remove("index");
    for first in ["one", "two"] {
        let merged = stack.mount();
        merged.stat(first).unwrap();
        assert_eq!(
            merged.stat("one").map(|a| a.mode),
            Ok(0o600),
            "{first} first"
        );
        assert_eq!(merged.read("one"), Ok(b"data".to_vec()));
        assert_eq!(merged.read("two"), Ok(b"data".to_vec()));
    }
    let merged = stack.mount();
    merged.write("one", b"more").unwrap();
    assert_eq!(stack.reopen(merged).read("one"), Ok(b"more".to_vec()));
}

/// Marks of files on what is no file say nothing.
#[test]
fn marks_where_they_do_not_belong() {
    let stack = Stack::new(1);
    stack
        .lower(0)
        .with_file("dir/x", "x")
        .with_file("file", "lower");
    stack
        .upper()
        .with_dir("dir", 0o755)
        .with_xattr("dir", &key("overlay.metacopy"), "")
        .with_xattr("dir", &key("cvmfs-union.special"), "c 103")
        .with_xattr("dir", &key("overlay.opaque"), "maybe")
        .with_file("file", "upper")
        .with_xattr("file", &key("overlay.opaque"), "y")
        .with_xattr("file", &key("overlay.redirect"), "/dir/x")
        .with_xattr("", &key("overlay.metacopy"), "")
        .with_xattr("", &key("overlay.redirect"), "/dir")
        .with_xattr("", &key("cvmfs-union.ino"), "5")
        .with_xattr("", &key("cvmfs-union.dialect"), "\n");
    // The root's number counts for nothing, but it is no number.
    match cvmfs_union::union::Union::new(&stack.config()) {
        Err(e) => assert_eq!(e.errno(), libc::EIO),
        Ok(_) => panic!("a root with a broken mark"),
    }
    stack
        .upper()
        .removexattr("", &key("cvmfs-union.ino"))
        .unwrap();
    let merged = stack.mount();
    visit(&merged, "", 0);
    assert_eq!(merged.names("dir"), Ok(vec!["x".into()]));
    assert_eq!(merged.read("file"), Ok(b"upper".to_vec()));
    merged.chmod("dir", 0o700).unwrap();
    merged.write("dir/x", b"changed").unwrap();
    assert_eq!(stack.reopen(merged).read("dir/x"), Ok(b"changed".to_vec()));
}

/// A layer that stands in the stack many times is one layer.
#[test]
fn duplicate_layers_add_nothing() {
    let stack = Stack::new(2);
    super::sample(&stack);
    let tree = stack.mount().tree();
    stack.reset();
    let mut config = stack.config();
    for _ in 0..100 {
        config.lowers.extend(stack.config().lowers);
    }
    let many = Merged::new(cvmfs_union::union::Union::new(&config).unwrap());
    crate::support::assert_same(&many.tree(), &tree, "each layer a hundred times");
}

/// Neither the stack nor the descriptors suffice for one level after the other.
#[test]
fn a_deep_tree_in_the_work_directory_goes() {
    const DEPTH: usize = 30_000;
    let stack = Stack::new(1);
    stack.work().with_dir("work", 0o700);
    let name = c"d";
    let path = stack.path("work/work");
    let mut at = std::os::fd::OwnedFd::from(std::fs::File::open(path).unwrap());
    for _ in 0..DEPTH {
        mkdirat(&at, name, Mode::S_IRWXU).unwrap();
        mknodat(&at, c"f", SFlag::S_IFREG, Mode::S_IRUSR, 0).unwrap();
        at = openat(&at, name, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    drop(at);
    let merged = stack.mount();
    assert_eq!(stack.work().names("work").unwrap(), [""; 0]);
    drop(merged);
}
