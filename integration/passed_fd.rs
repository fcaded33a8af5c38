//! A mount made by the caller: the program is given a descriptor of `/dev/fuse` and only serves it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::daemon;
use crate::support::sys::{self, Errno};
use crate::support::{Fixture, Mounted, isolated, mount_fuse, require_all, run, text};

const USER: u32 = 12345;

fn fixture(name: &str) -> Fixture {
    let mut fixture = Fixture::new(name);
    let lower = fixture.lower();
    fs::write(lower.join("public"), "public").unwrap();
    fs::write(lower.join("secret"), "secret").unwrap();
    sys::chmod(lower.join("secret"), 0o600).unwrap();
    sys::mkdir(lower.join("closed"), 0o700).unwrap();
    fs::write(lower.join("closed/file"), "closed").unwrap();
    fixture.watch_lowers();
    fixture
}

fn cat_as_user(path: &Path) -> Output {
    run(Command::new("cat")
        .arg(path)
        .uid(USER)
        .gid(USER)
        .current_dir("/")
        .env("LC_ALL", "C"))
}

fn check_rights(fixture: &Fixture) {
    let public = cat_as_user(&fixture.at("public"));
    assert_eq!(text(&public.stdout), "public", "{}", text(&public.stderr));
    for path in ["secret", "closed/file"] {
        let output = cat_as_user(&fixture.at(path));
        let said = text(&output.stderr);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{path} was read"
        );
        assert!(said.contains("Permission denied"), "{path}: {said}");
    }
    isolated(|| {
        sys::as_user(USER, USER, || {
            let denied = |result: sys::Result<()>| assert_eq!(result, Err(Errno::EACCES));
            denied(sys::open(fixture.at("secret"), libc::O_RDONLY, 0).map(drop));
            denied(sys::open(fixture.at("public"), libc::O_WRONLY, 0).map(drop));
            denied(sys::names(fixture.at("closed")).map(drop));
            denied(sys::mkdir(fixture.at("new"), 0o755));
            denied(sys::unlink(fixture.at("public")));
            assert_eq!(sys::chmod(fixture.at("public"), 0o666), Err(Errno::EPERM));
        });
    });
}

#[test]
fn permissions_are_checked() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut fixture = fixture("passed");
    {
        let device = mount_fuse(&fixture.mnt, ",allow_other");
        let _mounted = Mounted(fixture.mnt.clone());
        let output = daemon::serve(&fixture, device);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(
            sys::names(&fixture.mnt).unwrap(),
            ["closed", "public", "secret"]
        );
        assert_eq!(fs::read_to_string(fixture.at("secret")).unwrap(), "secret");
        check_rights(&fixture);
        fs::write(fixture.at("secret"), "changed").unwrap();
        sys::make(fixture.at("new"), b"new").unwrap();
        sys::chmod(fixture.at("closed"), 0o700).unwrap();
        sys::unlink(fixture.at("new")).unwrap();
        check_rights(&fixture);
    }
    // The daemon is gone with the mount, and its upper is free.
    fixture.mount();
    assert_eq!(fs::read_to_string(fixture.at("secret")).unwrap(), "changed");
    check_rights(&fixture);
}

/// The kernel still asks for the ACLs of a file with bits for its group.
#[test]
fn permissions_are_checked_without_acls() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut fixture = fixture("passed-noacl");
    fixture.options.push("--noacl".into());
    let device = mount_fuse(&fixture.mnt, ",allow_other");
    let _mounted = Mounted(fixture.mnt.clone());
    let output = daemon::serve(&fixture, device);
    assert!(output.status.success(), "{}", text(&output.stderr));
    check_rights(&fixture);
    sys::chmod(fixture.at("secret"), 0o664).unwrap();
    let shared = cat_as_user(&fixture.at("secret"));
    assert_eq!(text(&shared.stdout), "secret", "{}", text(&shared.stderr));
}

#[test]
fn other_descriptors_are_refused() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let fixture = fixture("refused");
    let null = sys::open("/dev/null", libc::O_RDWR, 0).unwrap();
    let output = daemon::serve(&fixture, null);
    assert!(!output.status.success(), "/dev/null was served");
    assert!(
        text(&output.stderr).contains("/dev/fuse"),
        "{}",
        text(&output.stderr)
    );
}
