//! `--bind-points`: mount points that a root file system lacks.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::support::files::file;
use crate::support::{Fixture, Mounted, mount_command, require_all, run, text};

fn fixture(name: &str) -> Option<Fixture> {
    if !require_all(&["root", "fuse"]) {
        return None;
    }
    let mut fixture = Fixture::new(name);
    let lower = fixture.lower();
    file(lower.join("etc/passwd"), "of the image\n");
    symlink("../run/stub", lower.join("etc/resolv.conf")).unwrap();
    Some(fixture)
}

#[test]
fn the_usual_ones() {
    let Some(mut f) = fixture("points") else {
        return;
    };
    f.options = vec!["--bind-points=default,/data/deep,/etc/fstab".to_owned()];
    f.mount();
    for dir in ["proc", "sys", "dev", "tmp", "var/tmp", "data/deep"] {
        assert!(f.at(dir).is_dir(), "{dir}");
    }
    for name in [
        "etc/resolv.conf",
        "etc/hosts",
        "etc/group",
        "etc/fstab",
        "run/stub",
    ] {
        assert!(f.at(name).is_file(), "{name}");
    }
    let mode = |name: &str| fs::metadata(f.at(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("proc"), mode("etc/hosts")), (0o755, 0o644));
    // What is there stays as it is, and a second mount finds all of it.
    assert_eq!(
        fs::read_to_string(f.at("etc/passwd")).unwrap(),
        "of the image\n"
    );
    assert!(!f.upper.join("etc/passwd").exists());
    f.remount();
    assert!(f.at("data/deep").is_dir());
}

#[test]
fn that_cannot_be_made() {
    let Some(mut f) = fixture("points-failing") else {
        return;
    };
    let says = |f: &mut Fixture, options: &[&str], code: i32, what: &str| {
        f.options = options.iter().map(ToString::to_string).collect();
        let output = f.try_mount();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(what), "{said}");
    };
    says(
        &mut f,
        &["--bind-points=/proc,/etc/passwd/below"],
        5,
        "/etc/passwd/below: Not a directory",
    );
    says(
        &mut f,
        &["--bind-points=proc"],
        2,
        "proc is no absolute path",
    );
    f.read_only = true;
    says(&mut f, &["--bind-points=/absent"], 5, "/absent: Read-only");
    // Nothing is mounted, in the foreground either.
    let mut command: Command = mount_command();
    command
        .arg("--lower")
        .arg(&f.lowers[0])
        .args(["--read-only", "-f", "--bind-points=/absent"]);
    let output = run(command.arg(&f.mnt));
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(!f.at("etc").exists());
    drop(Mounted(f.mnt.clone()));
    // What the image has needs no upper.
    f.options = vec!["--bind-points=/etc/passwd".to_owned()];
    f.mount();
    assert!(f.at("etc").exists());
}
