//! Descriptors that are too large, endless, of another kind than a file, or not what they say, given to the
//! program: it ends in time, with the exit code for it, and in bounded memory.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::support::foreground::{Daemon, Ended, run_bounded};
use crate::support::{Mounted, Scratch, mount_command, require_all, sys};

/// What a descriptor of 16 MiB may cost, and one that is not read.
const LARGE: u64 = 1 << 30;
const SMALL: u64 = 128 << 20;

struct Case {
    scratch: Scratch,
    root: PathBuf,
    mnt: PathBuf,
}

impl Case {
    fn new() -> Option<Case> {
        if !require_all(&["root", "fuse"]) {
            return None;
        }
        let scratch = Scratch::new("descriptors");
        let (root, mnt) = (scratch.dir("cvmfs"), scratch.dir("mnt"));
        scratch.dir("upper");
        for layer in ["a", "b"] {
            fs::create_dir_all(root.join("repo.example.org/layers").join(layer)).unwrap();
        }
        fs::write(root.join("repo.example.org/layers/a/file"), "data").unwrap();
        Some(Case { scratch, root, mnt })
    }

    fn json(&self) -> PathBuf {
        self.scratch.path().join("thin.json")
    }

    fn inspect(&self, json: &Path, most: u64) -> Ended {
        let log = self.scratch.path().join("inspect.log");
        run_bounded(
            &[&"inspect", &"--cvmfs-root", &self.root, &json],
            &log,
            most,
        )
    }

    fn mount(&self, json: &Path, most: u64) -> Ended {
        let log = self.scratch.path().join("mount.log");
        let upper = self.scratch.path().join("upper");
        let args: [&dyn AsRef<OsStr>; 8] = [
            &"mount",
            &"-f",
            &"--cvmfs-root",
            &self.root,
            &"--upper",
            &upper,
            &json,
            &self.mnt,
        ];
        run_bounded(&args, &log, most)
    }

    /// Both commands refuse it as no descriptor, and say why.
    fn refused(&self, what: &str, json: &Path, most: u64) {
        self.refused_for(what, json, most, "");
    }

    fn refused_for(&self, what: &str, json: &Path, most: u64, reason: &str) {
        for (command, ended) in [
            ("inspect", self.inspect(json, most)),
            ("mount", self.mount(json, most)),
        ] {
            assert_eq!(
                ended.status.code(),
                Some(3),
                "{command} of {what}: {ended:?}"
            );
            eprintln!("{command} of {what}: {} KiB", ended.memory >> 10);
            let said = ended.log.trim_end();
            assert!(
                said.starts_with(&format!("cvmfs-union: {command}: ")),
                "{what}: {said}"
            );
            assert!(!said.chars().any(char::is_control), "{what}: {said:?}");
            assert!(
                said.contains("thin.json") && said.contains(reason) && said.len() < 1000,
                "{what}: {said}"
            );
        }
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        fs::write(self.json(), bytes).unwrap();
        self.json()
    }
}

impl Drop for Case {
    /// What was to be refused may have been mounted.
    fn drop(&mut self) {
        let device = |path: &Path| sys::stat(path).map(|stat| stat.st_dev);
        if device(&self.mnt) != device(self.scratch.path()) {
            drop(Mounted(self.mnt.clone()));
        }
    }
}

fn layer(digest: &str, folder: &str) -> String {
    format!(r#"{{"digest":"{digest}","url":"cvmfs://repo.example.org/layers/{folder}"}}"#)
}

fn image(layers: &[String]) -> Vec<u8> {
    format!(r#"{{"version":"1.0","layers":[{}]}}"#, layers.join(",")).into_bytes()
}

#[test]
fn what_is_no_file_does_not_block() {
    let Some(case) = Case::new() else { return };
    let json = case.json();
    let again = |make: &dyn Fn(&Path)| {
        make(&json);
        case.refused("no file", &json, SMALL);
        assert!(
            fs::remove_file(&json)
                .or_else(|_| fs::remove_dir(&json))
                .is_ok()
        );
    };
    again(&|at| sys::mknod(at, libc::S_IFIFO | 0o644, 0).unwrap());
    again(&|at| sys::mknod(at, libc::S_IFSOCK | 0o644, 0).unwrap());
    again(&|at| fs::create_dir(at).unwrap());
    for device in [
        "/dev/zero",
        "/dev/full",
        "/dev/tty",
        "/dev/fuse",
        "nowhere",
        "thin.json",
    ] {
        again(&|at| symlink(device, at).unwrap());
    }
    case.refused("nothing", &json, SMALL);
}

#[test]
fn a_gibibyte_of_junk_is_not_read() {
    let Some(case) = Case::new() else { return };
    let mut file = fs::File::create(case.json()).unwrap();
    file.write_all(br#"{"version":"1.0","layers":["#).unwrap();
    file.set_len(1 << 30).unwrap();
    let begun = Instant::now();
    let reason = "more than the limit";
    case.refused_for("a GiB", &case.json(), SMALL, reason);
    file.set_len(1 << 40).unwrap();
    case.refused_for("a TiB", &case.json(), SMALL, reason);
    eprintln!("{:?} for four refusals", begun.elapsed());
}

#[test]
fn junk_below_the_limit() {
    let Some(case) = Case::new() else { return };
    let fill = |begin: &str, piece: &str, end: &str| {
        let times = ((16 << 20) - begin.len() - end.len()) / piece.len();
        [begin, &piece.repeat(times), end].concat().into_bytes()
    };
    for (what, bytes) in [
        ("zeros", vec![0; 16 << 20]),
        ("spaces", vec![b' '; 16 << 20]),
        (
            "numbers",
            fill(r#"{"version":"1.0","layers":["#, "0,", "0]}"),
        ),
        (
            "arrays",
            fill(r#"{"version":"1.0","layers":["#, "[],", "[]]}"),
        ),
        (
            "objects",
            fill(r#"{"version":"1.0","layers":["#, "{},", "{}]}"),
        ),
        ("nested", fill("", "[", "")),
        ("nested objects", fill("", r#"{"a":"#, "")),
        ("a text", fill(r#"{"version":""#, "\\u0001", r#""}"#)),
        (
            "a digest",
            fill(r#"{"version":"1.0","layers":[{"digest":""#, "a", r#""}]}"#),
        ),
    ] {
        let json = case.write(&bytes);
        case.refused(what, &json, LARGE);
    }
    let keys: Vec<_> = (0..1_000_000).map(|i| format!(r#""{i:x}":0"#)).collect();
    let json = case.write(format!("{{{}}}", keys.join(",")).as_bytes());
    let ended = case.inspect(&json, LARGE);
    eprintln!("a million keys: {} MiB", ended.memory >> 20);
    case.refused("keys", &json, LARGE);
}

#[test]
fn texts_that_are_no_descriptor() {
    let Some(case) = Case::new() else { return };
    let deep = [
        r#"{"version":"1.0","layers":"#,
        &"[".repeat(100_000),
        &"]".repeat(100_000),
        "}",
    ]
    .concat();
    let digits = "9".repeat(100_000);
    let good = image(&[layer("aa", "a")]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "a byte order mark",
            [b"\xef\xbb\xbf".as_slice(), &good].concat(),
        ),
        ("UTF-16", good.iter().flat_map(|b| [*b, 0]).collect()),
        (
            "no UTF-8",
            b"{\"version\":\"1.0\",\"layers\":[],\"origin\":\"\xff\"}".to_vec(),
        ),
        (
            "half a surrogate",
            br#"{"version":"1.0","layers":[],"origin":"\ud800"}"#.to_vec(),
        ),
        ("100,000 levels", deep.into_bytes()),
        (
            "a number out of range",
            br#"{"version":1e999999999,"layers":[]}"#.to_vec(),
        ),
        (
            "a long number",
            format!(r#"{{"version":{digits},"layers":[]}}"#).into_bytes(),
        ),
        (
            "a number of layers",
            br#"{"version":"1.0","layers":18446744073709551616}"#.to_vec(),
        ),
        (
            "a control character",
            b"{\"version\":\"1.0\",\"layers\":[],\"origin\":\"\x1b[2J\"}".to_vec(),
        ),
        (
            "an escape in a version",
            br#"{"version":"\u001b[2J\n","layers":[]}"#.to_vec(),
        ),
        ("a NUL in a path", image(&[layer("aa", "a\\u0000b")])),
        ("traversal", image(&[layer("aa", "../../../etc")])),
        (
            "traversal at the end",
            image(&[layer("aa", "a"), layer("bb", "a/..")]),
        ),
        ("an absolute folder", image(&[layer("aa", "/etc")])),
        (
            "keys twice",
            br#"{"version":"1.0","Version":"1.0","layers":[]}"#.to_vec(),
        ),
        ("cut off", good[..50].to_vec()),
        ("two", [good.as_slice(), &good].concat()),
    ];
    for (what, bytes) in cases {
        let json = case.write(&bytes);
        case.refused(what, &json, SMALL);
    }
}

/// serde_json takes the last of two equal keys, as the format's first readers did. It may not lead out.
#[test]
fn equal_keys_are_no_way_out() {
    let Some(case) = Case::new() else { return };
    let text = r#"{"version":"1.0","layers":[{"digest":"aa","url":"cvmfs://repo.example.org/layers/a","url":"cvmfs://repo.example.org/../etc"}]}"#;
    let json = case.write(text.as_bytes());
    case.refused("two urls", &json, SMALL);
}

#[test]
fn names_in_messages_control_no_terminal() {
    let Some(case) = Case::new() else { return };
    let json = case.write(&image(&[layer("aa", "a\\u001b[2J\\nfake line")]));
    let (inspect, mount) = (case.inspect(&json, LARGE), case.mount(&json, LARGE));
    assert_eq!(
        (inspect.status.code(), mount.status.code()),
        (Some(1), Some(4))
    );
    assert!(
        !mount.log.contains('\x1b') && !mount.log.contains("\nfake"),
        "{}",
        mount.log
    );
    let output = crate::support::run(
        std::process::Command::new(crate::support::PROGRAM)
            .args(["inspect", "--cvmfs-root"])
            .args([&case.root, &json]),
    );
    let said = crate::support::text(&output.stdout);
    assert!(
        !said.contains('\x1b') && !said.contains("\nfake"),
        "{said:?}"
    );
}

#[test]
fn a_hundred_thousand_layers() {
    let Some(case) = Case::new() else { return };
    // All missing: each is named, and nothing is mounted.
    let layers: Vec<_> = (0..100_000)
        .map(|i| layer(&format!("{i:x}"), &format!("{i:x}-")))
        .collect();
    let json = case.write(&image(&layers));
    let begun = Instant::now();
    for (command, ended, code) in [
        ("inspect", case.inspect(&json, LARGE), 1),
        ("mount", case.mount(&json, LARGE), 4),
    ] {
        assert_eq!(ended.status.code(), Some(code), "{command}");
        assert!(
            ended.log.contains("100000 of 100000 layers cannot be used"),
            "{command}"
        );
        assert!(ended.memory < LARGE, "{command}: {} bytes", ended.memory);
        eprintln!(
            "{command}: {} MiB, {:?}",
            ended.memory >> 20,
            begun.elapsed()
        );
    }
    // One too many.
    let layers = vec![layer("aa", "a"); 100_001];
    let json = case.write(&image(&layers));
    case.refused("100,001 layers", &json, LARGE);
    // The same two over and over.
    let layers: Vec<_> = (0..100_000)
        .map(|i| {
            if i % 2 == 0 {
                layer("aa", "a")
            } else {
                layer("bb", "b")
            }
        })
        .collect();
    let json = case.write(&image(&layers));
    assert!(case.inspect(&json, LARGE).status.success());
    let mut command = mount_command();
    command
        .args(["-f", "--cvmfs-root"])
        .arg(&case.root)
        .arg("--upper")
        .arg(case.scratch.path().join("upper"));
    let daemon = Daemon::of(command.arg(&json).arg(&case.mnt), &case.mnt);
    assert_eq!(sys::names(&case.mnt).unwrap(), ["file"]);
    sys::unlink(case.mnt.join("file")).unwrap();
    assert_eq!(sys::names(&case.mnt).unwrap(), [""; 0]);
    let ended = daemon.end();
    assert!(ended.memory < LARGE, "{} bytes", ended.memory);
    eprintln!(
        "mounted: {} MiB, {:?} in all",
        ended.memory >> 20,
        begun.elapsed()
    );
}

/// The directory of a layer is in its repository, wherever links lead.
#[test]
fn layers_do_not_lead_out_of_their_repository() {
    let Some(case) = Case::new() else { return };
    let layers = case.root.join("repo.example.org/layers");
    symlink("/etc", layers.join("out")).unwrap();
    symlink("../..", layers.join("up")).unwrap();
    symlink("..", layers.join("way")).unwrap();
    symlink("/", layers.join("root")).unwrap();
    fs::create_dir_all(case.root.join("other.example.org/layers/x")).unwrap();
    symlink("../../other.example.org/layers/x", layers.join("other")).unwrap();
    fs::write(layers.join("file"), "").unwrap();
    for folder in ["out", "up", "root/etc", "other", "file"] {
        let json = case.write(&image(&[layer("aa", folder)]));
        let (inspect, mount) = (case.inspect(&json, LARGE), case.mount(&json, LARGE));
        assert_eq!(
            (inspect.status.code(), mount.status.code()),
            (Some(1), Some(4)),
            "{folder}"
        );
        let said = mount.log;
        assert!(
            said.contains("leads out of the repository") || folder == "file",
            "{said}"
        );
    }
    // A link within the repository is the publisher's affair.
    let json = case.write(&image(&[layer("aa", "way/layers/a")]));
    assert!(case.inspect(&json, LARGE).status.success());
}
