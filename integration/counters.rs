//! What a mount counts of itself, and who may see it.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use cvmfs_union::fuse::stats::fetch;
use serde_json::Value;

use crate::rootless::{STRANGER, as_ordinary_user, program_for_users};
use crate::support::files::{file, read, union, union_with};
use crate::support::foreground::Daemon;
use crate::support::stats::{Stats, counts};
use crate::support::sys;
use crate::support::{Fixture, PROGRAM, Scratch, daemon, run, text};

fn stats(of: &Path, options: &[&str]) -> Output {
    run(Command::new(PROGRAM).arg("stats").arg(of).args(options))
}

fn three(name: &str) -> Option<Fixture> {
    three_with(name, &[])
}

fn three_with(name: &str, options: &[&str]) -> Option<Fixture> {
    union_with(name, 3, options, |lower| {
        for (i, dir) in lower.iter().enumerate() {
            file(dir.join(format!("both/f{i}")), &"x".repeat(1000 + i));
        }
        file(lower[2].join("only/deep/f"), "below");
        sys::symlink("f", lower[2].join("only/deep/link")).unwrap();
    })
}

#[test]
fn requests_by_kind() {
    // A kernel that collects writes tells of each close.
    let Some(f) = three_with("kinds", &["--writeback=off"]) else {
        return;
    };
    let stats = Stats::of(&f.mnt);
    let lookups = |n| counts([("lookup", n)]);
    let (seen, _) = stats.during(|| sys::lstat(f.at("only/deep/f")));
    assert_eq!(seen, lookups(3));
    let (seen, _) = stats.during(|| sys::lstat(f.at("only/deep/absent")));
    assert_eq!(seen, lookups(1));
    let (seen, _) = stats.during(|| read(f.at("only/deep/f")));
    assert_eq!(seen, counts([("open", 1), ("read", 1)]));
    let (seen, _) = stats.during(|| sys::mkdir(f.at("new"), 0o755).unwrap());
    assert_eq!(seen, counts([("lookup", 1), ("mkdir", 1)]));
    let (seen, _) = stats.during(|| sys::names(f.at("new")).unwrap());
    // Nobody has looked up what the first answer named.
    assert_eq!((seen["readdirplus"], seen["readdir"]), (1, 1));
    let (seen, _) = stats.during(|| sys::chmod(f.at("only/deep/f"), 0o600).unwrap());
    assert_eq!(seen, counts([("setattr", 1)]));
}

#[test]
fn lower_requests_by_layer() {
    let Some(f) = three("layers") else { return };
    let stats = Stats::of(&f.mnt);
    // A new upper takes the attributes of the topmost root.
    let top = counts([("list", 1), ("stat", 1), ("xattr", 1)]);
    let listed = || counts([("list", 1)]);
    assert_eq!(stats.lowers(), [top, listed(), listed()]);
    // The one that owns the name is asked about it.
    let (seen, _) = stats.asked_during(|| sys::lstat(f.at("only")).unwrap());
    assert_eq!(seen, [counts([]), counts([]), counts([("stat", 1)])]);
    let (seen, _) = stats.asked_during(|| sys::lstat(f.at("only/absent")).err());
    let into = counts([("stat", 1), ("walk", 1)]);
    assert_eq!(seen, [counts([]), counts([]), into]);
    sys::lstat(f.at("only/deep/link")).unwrap();
    let (seen, _) = stats.asked_during(|| sys::readlink(f.at("only/deep/link")).unwrap());
    assert_eq!(seen[2], counts([("link", 1)]));
    sys::lstat(f.at("only/deep/f")).unwrap();
    let (seen, _) = stats.asked_during(|| read(f.at("only/deep/f")));
    assert_eq!(seen[2], counts([("open", 1), ("data", 1)]));
}

#[test]
fn copy_ups_and_what_is_kept() {
    let Some(f) = three("copied") else { return };
    let stats = Stats::of(&f.mnt);
    let copied = || {
        let of = stats.json()["copy_ups"].clone();
        ["objects", "files", "bytes"].map(|key| of[key].as_u64().unwrap())
    };
    assert_eq!(copied(), [0, 0, 0]);
    sys::chmod(f.at("both/f1"), 0o600).unwrap();
    assert_eq!(copied(), [2, 0, 0], "the directory, and attributes only");
    fs::write(f.at("both/f0"), "").unwrap();
    assert_eq!(copied(), [3, 0, 0], "of a truncated file no data");
    let append = |name: &str| {
        let fd = sys::open(f.at(name), libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
        sys::write(&fd, b"more").unwrap();
    };
    append("both/f1");
    assert_eq!(copied(), [3, 1, 1001], "the data that were left below");
    append("both/f2");
    assert_eq!(copied(), [4, 2, 2003]);

    let kept = |key: &str| stats.json()["kept"][key].as_u64().unwrap();
    let before = ["handles", "nodes", "listings", "listed_names"].map(kept);
    let open = sys::open(f.at("only/deep/f"), libc::O_RDONLY, 0).unwrap();
    let after = ["handles", "nodes", "listings", "listed_names"].map(kept);
    let more: Vec<_> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    assert_eq!(more, [1, 3, 0, 0]);
    drop(open);
    assert!(kept("memory_bytes") > 1 << 20 && kept("descriptors") > 5);
}

/// The text has more pages than one with so many layers, and they are of one moment also while others
/// ask.
#[test]
fn a_hundred_layers_and_many_who_ask() {
    let Some(f) = union("hundred", 100, |lower| {
        for (i, dir) in lower.iter().enumerate() {
            file(dir.join(format!("f{i}")), "x");
        }
    }) else {
        return;
    };
    let path = |i: usize| f.lowers[i].display().to_string();
    sys::lstat(f.at("f77")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let stats = Stats::of(&f.mnt);
                for _ in 0..20 {
                    let json = stats.json();
                    let lowers = json["lowers"].as_array().unwrap();
                    assert_eq!(lowers.len(), 100);
                    for (i, lower) in lowers.iter().enumerate() {
                        assert_eq!(lower["layer"].as_str(), Some(&*path(i)));
                        let stats = lower["requests"]["stat"]["count"].as_u64();
                        assert_eq!(stats, Some(u64::from(i == 0 || i == 77)));
                    }
                }
            });
        }
    });
}

#[test]
fn the_command_prints_them() {
    let Some(f) = three("command") else { return };
    sys::lstat(f.at("only")).unwrap();
    let output = stats(&f.mnt, &["--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["requests"]["lookup"]["count"], 1);
    assert_eq!(json["pid"], daemon::of(&f.mnt));
    let table = text(&stats(&f.mnt, &[]).stdout);
    assert!(table.contains("lookup"), "{table}");
    let lower = f.lowers[2].display();
    let line = format!("cvmfs_union_lower_requests_total{{layer=\"{lower}\",kind=\"stat\"}} 1");
    let printed = text(&stats(&f.mnt, &["--prometheus"]).stdout);
    assert!(printed.lines().any(|l| l == line), "{line}: {printed}");
}

#[test]
fn what_is_no_mount_of_ours() {
    let Some(mut f) = three("other") else { return };
    let scratch = Scratch::new("plain");
    let says = |path: &Path, what: &str| {
        let output = stats(path, &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert!(said.contains(what), "{said}");
    };
    says(scratch.path(), "not the mountpoint of a cvmfs-union");
    says(&f.at("only"), "not the mountpoint of a cvmfs-union");
    says(Path::new("/proc"), "not the mountpoint of a cvmfs-union");
    says(&f.at("only/deep/f"), "Not a directory");
    says(&f.at("absent"), "No such file");
    let pid = daemon::of(&f.mnt);
    daemon::signal(pid, libc::SIGKILL);
    daemon::wait_for_end(pid);
    says(&f.mnt, "the daemon of this mount is gone");
    f.remount();
}

#[test]
fn strangers_see_nothing() {
    let Some(f) = three("strangers") else { return };
    let root = sys::open(&f.mnt, libc::O_RDONLY, 0).unwrap();
    // Nor by a descriptor that root has opened.
    let denied = sys::as_user(STRANGER, STRANGER, || fetch(root.as_fd()));
    assert_eq!(denied.unwrap_err().raw_os_error(), Some(libc::EPERM));
    let mut command = Command::new(program_for_users(&f));
    let output = run(command.arg("stats").arg(&f.mnt).uid(STRANGER).gid(STRANGER));
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(said.contains("only root and the user"), "{said}");
    // The same question of a file, and another one of the root.
    for (file, size) in [(f.at("only/deep/f"), 16_000), (f.mnt.clone(), 64)] {
        let fd = sys::open(&file, libc::O_RDONLY, 0).unwrap();
        let mut buf = vec![0; size];
        let number = 0xc000_5501 | (size as u32) << 16;
        let unknown = cvmfs_union::sys::file::ask(fd.as_fd(), number, &mut buf);
        let unknown = unknown.unwrap_err().raw_os_error();
        assert_eq!(unknown, Some(libc::ENOTTY), "{}", file.display());
    }
    assert!(stats(&f.mnt, &[]).status.success());
}

#[test]
fn the_user_who_mounted_sees_them() {
    let look = r#"
mount
"$PROGRAM" stats "$MNT" | grep -q '^daemon '
umount
"#;
    as_ordinary_user("stats", look, |_| {});
}

/// A publication in the repository of a layer, by the attribute with which a CVMFS client tells of it.
#[test]
fn revisions_that_have_moved_on() {
    let made = union_with("revisions", 2, &["--log=warn"], |lower| {
        for dir in lower {
            sys::setxattr(dir, "user.fqrn", b"images.example.org", 0).unwrap();
            sys::setxattr(dir, "user.revision", b"41", 0).unwrap();
        }
    });
    let Some(mut f) = made else { return };
    let of_mount = |now: &str| {
        serde_json::json!([{
            "repository": "images.example.org",
            "revision_at_mount": "41",
            "revision": now,
        }])
    };
    assert_eq!(Stats::of(&f.mnt).json()["repositories"], of_mount("41"));
    let said = || text(&stats(&f.mnt, &[]).stdout);
    assert!(!said().contains("images.example.org"), "{}", said());
    publish(&f, "42");
    assert_eq!(Stats::of(&f.mnt).json()["repositories"], of_mount("42"));
    let line = "repository: images.example.org, revision 42 now, 41 at mount\n";
    assert!(said().contains(line), "{}", said());

    let rows = |options: &[&str]| run(Command::new(PROGRAM).arg("status").args(options)).stdout;
    let json: Value = serde_json::from_slice(&rows(&["--json"])).unwrap();
    let of_ours = json.as_array().unwrap().iter();
    let ours = of_ours.filter(|row| row["mountpoint"] == f.mnt.display().to_string());
    let repositories: Vec<_> = ours.map(|row| &row["repositories"]).collect();
    assert_eq!(repositories, [&of_mount("42")]);
    assert!(text(&rows(&[])).contains(&format!("    {line}")));

    // The log tells it once, and is told nothing of it by who asks.
    f.umount();
    let daemon = Daemon::mount(&f);
    publish(&f, "43");
    Stats::of(&f.mnt).json();
    publish(&f, "44");
    assert_eq!(
        Stats::of(&f.mnt).json()["repositories"][0]["revision"],
        "44"
    );
    let log = daemon.end().log;
    let line = "images.example.org: revision 43 now, 42 at mount";
    assert!(log.contains(line) && !log.contains("revision 44"), "{log}");
    publish(&f, "41");
}

/// Any of its layers tells of a repository, but who asks chooses one.
fn publish(f: &Fixture, revision: &str) {
    for dir in &f.lowers {
        sys::setxattr(dir, "user.revision", revision.as_bytes(), 0).unwrap();
    }
}
