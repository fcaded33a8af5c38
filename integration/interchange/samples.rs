//! Uppers that earlier versions wrote, kept in the repository: a file system with the layers and, for
//! each way to write deletions, an upper and its work directory. Beside it stands what was seen.
//!
//! A new sample is made by `CVMFS_UNION_SAMPLES=integration/samples/VERSION cargo test --test
//! integration make_samples -- --ignored`; then its version is added to the list. Old ones stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::work;
use crate::support::files::file;
use crate::support::sys;
use crate::support::volume::succeed;
use crate::support::{
    Compare, Fixture, Mounted, Node, Scratch, Tree, isolated, require_all, run, text,
};

const VERSIONS: [&str; 1] = ["0.1.0"];
const STYLES: [&str; 2] = ["overlay", "wh"];
const IMAGE_SIZE: u64 = 4 << 20;
/// Attributes have room in the inodes; and nothing that makes the image large.
const MKFS: &str =
    "-q -b 1024 -I 256 -N 1024 -m 0 -O ^has_journal,^resize_inode -E lazy_itable_init=0";

/// A file system in a file, and what is made of it.
struct Image {
    // Unmounted first, removed then.
    _mounted: Mounted,
    root: PathBuf,
    _scratch: Scratch,
}

impl Image {
    fn mount(scratch: Scratch) -> Image {
        let root = scratch.dir("mnt");
        succeed(
            Command::new("mount")
                .args(["-o", "loop,noatime"])
                .arg(scratch.path().join("image"))
                .arg(&root),
        );
        Image {
            _mounted: Mounted(root.clone()),
            root,
            _scratch: scratch,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The thin image with the upper of this style, not mounted yet.
    fn fixture(&self, style: &str) -> Fixture {
        let mut f = Fixture::new(style);
        f.upper = self.at(style).join("upper");
        f.work = self.at(style).join("work");
        let option = |path: &str| self.at(path).to_str().unwrap().to_owned();
        f.options = vec!["--cvmfs-root".into(), option("cvmfs"), option("thin.json")];
        if style == "wh" {
            f.options.splice(0..0, ["--whiteouts".into(), style.into()]);
        }
        f
    }
}

/// The layers' directories, topmost first, and the descriptor that names them.
fn make_layers(image: &Image) -> [PathBuf; 2] {
    let digests = ["1", "0"].map(|digit| digit.repeat(64));
    let folder = |digest: &String| format!(".layers/{}/{digest}/layerfs", &digest[..2]);
    let entry = |digest: &String| {
        let url = format!("cvmfs://images.example.org/{}", folder(digest));
        format!(r#"{{"digest":"{digest}","url":"{url}"}}"#)
    };
    let json = format!(
        r#"{{"version":"1.0","origin":"test","layers":[{},{}]}}"#,
        entry(&digests[1]),
        entry(&digests[0])
    );
    fs::write(image.at("thin.json"), json).unwrap();
    digests.map(|digest| {
        let dir = image.at("cvmfs/images.example.org").join(folder(&digest));
        fs::create_dir_all(&dir).unwrap();
        dir
    })
}

/// Names, devices and attributes that are marks, but the users' here.
fn make_marker_names(f: &Fixture) {
    for path in [".wh.mine", "keep/.wh.one", "files/.wh..wh..opq"] {
        file(f.at(path), "mine");
    }
    sys::mknod(f.at("keep/device zero"), libc::S_IFCHR | 0o600, 0).unwrap();
    for key in [
        "trusted.overlay.opaque",
        "user.overlay.x",
        "trusted.cvmfs-union.ino",
    ] {
        sys::setxattr(f.at("keep"), key, b"mine", 0).unwrap();
    }
}

fn line(path: &[u8], node: &Node) -> String {
    let dir = node.mode & libc::S_IFMT == libc::S_IFDIR;
    let xattrs: Vec<_> = node
        .xattrs
        .iter()
        .map(|(key, value)| (text(key), text(value)))
        .collect();
    format!(
        "{:?} mode {:o} owner {}:{} links {} size {} device {} number {:x} mtime {:?} as {:?} content {:?} xattrs {xattrs:?}",
        text(path),
        node.mode,
        node.uid,
        node.gid,
        node.nlink,
        if dir { 0 } else { node.size },
        node.rdev,
        node.ino,
        node.mtime,
        text(&node.same_as),
        text(&node.content),
    )
}

/// What is seen, a line for each object.
fn listing(f: &Fixture) -> String {
    let lines: Vec<_> = Tree::read(&f.mnt)
        .0
        .iter()
        .map(|(path, node)| line(path, node))
        .collect();
    lines.join("\n") + "\n"
}

/// That the sample is about what it is to be about.
fn check_marks(f: &Fixture, style: &str) {
    let found = work::marks(&f.upper);
    let mut expected = vec![
        "trusted.overlay.metacopy",
        "trusted.overlay.redirect absolute",
    ];
    expected.extend(match style {
        "wh" => [".wh.NAME", ".wh..wh..opq"],
        _ => ["device 0:0", "trusted.overlay.opaque y"],
    });
    for mark in expected {
        assert!(found.contains(mark), "no {mark} in {found:?}");
    }
    assert_eq!(sys::names(f.work.join("index")).unwrap().len(), 1);
}

#[test]
#[ignore = "writes a sample"]
fn make_samples() {
    let to = PathBuf::from(std::env::var_os("CVMFS_UNION_SAMPLES").unwrap());
    fs::create_dir_all(&to).unwrap();
    let scratch = Scratch::new("sample");
    let disk = scratch.path().join("image");
    fs::File::create(&disk)
        .unwrap()
        .set_len(IMAGE_SIZE)
        .unwrap();
    succeed(Command::new("mkfs.ext4").args(MKFS.split(' ')).arg(&disk));
    let image = Image::mount(scratch);
    let [top, base] = make_layers(&image);
    work::fill(&top, &base);
    for style in STYLES {
        let mut f = image.fixture(style);
        fs::create_dir_all(&f.upper).unwrap();
        fs::create_dir_all(&f.work).unwrap();
        f.mount();
        isolated(|| {
            work::day(&f);
            make_marker_names(&f);
        });
        f.remount();
        fs::write(to.join(format!("{style}.txt")), listing(&f)).unwrap();
        f.umount();
        check_marks(&f, style);
    }
    succeed(Command::new("umount").arg(&image.root));
    let packed = run(Command::new("gzip").args(["-9nc"]).arg(&disk));
    fs::write(to.join("image.gz"), packed.stdout).unwrap();
    succeed(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&disk)
            .arg(&image.root),
    );
}

fn unpack(from: &Path) -> Image {
    let scratch = Scratch::new("sample");
    let unpacked = run(Command::new("gzip").arg("-dc").arg(from.join("image.gz")));
    fs::write(scratch.path().join("image"), unpacked.stdout).unwrap();
    Image::mount(scratch)
}

fn readable(style: &str) {
    if !require_all(&["root", "fuse", "loop"]) {
        return;
    }
    for version in VERSIONS {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("integration/samples")
            .join(version);
        let image = unpack(&from);
        let mut f = image.fixture(style);
        check_marks(&f, style);
        f.mount();
        let expected = fs::read_to_string(from.join(format!("{style}.txt"))).unwrap();
        let found = listing(&f);
        for (expected, found) in expected.lines().zip(found.lines()) {
            assert_eq!(expected, found, "{version}");
        }
        assert_eq!(expected.lines().count(), found.lines().count(), "{version}");
        // It can be gone on with.
        isolated(|| {
            work::next_day(&f);
            fs::write(f.at("links/untouched"), "changed again").unwrap();
            assert_eq!(fs::read(f.at("links/one")).unwrap(), b"changed again");
        });
        let before = Tree::read(&f.mnt);
        f.remount();
        assert_eq!(before.difference(&Tree::read(&f.mnt), Compare::BYTES), None);
    }
}

#[test]
fn uppers_of_earlier_versions_in_overlay_style() {
    readable("overlay");
}

#[test]
fn uppers_of_earlier_versions_in_wh_style() {
    readable("wh");
}
