//! Layers that are broken when the mount begins: each is named, with its cause.

use std::fs;

use super::*;
use crate::support::{Scratch, mount_command, run, text};

/// It is not mounted: exit code 4, and a message that says which layer and why.
#[track_caller]
fn refused(f: &Fixture, why: &str) {
    let output = run(f.mount_command().arg(&f.mnt));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    let layer = f.lowers[0].display().to_string();
    assert!(said.contains(&layer) && said.contains(why), "{said}");
    assert!(said.contains("1 of 2 layers"), "{said}");
    assert_eq!(names(&f.mnt).unwrap(), [""; 0], "something is mounted");
}

#[test]
fn broken_layers_are_named_at_mount() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let scratch = Scratch::new("broken");
    let (file, dangling) = (scratch.path().join("file"), scratch.path().join("dangling"));
    fs::write(&file, "").unwrap();
    sys::symlink("nowhere", &dangling).unwrap();
    let to_file = scratch.path().join("to-file");
    sys::symlink("file", &to_file).unwrap();
    let missing = scratch.path().join("missing");
    for (layer, why) in [
        (missing, "there is no such directory"),
        (dangling, "there is no such directory"),
        (file.clone(), "not a directory"),
    ] {
        let mut f = Fixture::new("broken");
        f.lowers.push(layer);
        f.lower();
        refused(&f, why);
    }
    // A symlink is followed once, and what it leads to is the layer.
    let mut command = mount_command();
    command.arg("--read-only").arg("--lower").arg(&to_file);
    let output = run(command.arg(scratch.dir("mnt")));
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains(&file.display().to_string()));
}

#[test]
fn failing_layers_are_named_at_mount() {
    for (errno, why) in [
        (fuser::Errno::EACCES, "may not read it"),
        (fuser::Errno::EIO, "cannot fetch the data"),
        (fuser::Errno::ESTALE, "reloaded beneath"),
    ] {
        let Some((slow, mut f)) = Failing::prepare("unlistable", &[], |_, _| ()) else {
            return;
        };
        slow.faults.set_errno(Fault::List, "", errno);
        refused(&f, why);
        slow.faults.lift();
        f.mount();
        assert_eq!(fs::read_to_string(f.at("d/a")).unwrap(), "top");
    }
}

/// Bug: a layer that failed when asked for `user.fqrn` was taken for one that is not on CVMFS.
#[test]
fn a_layer_that_cannot_say_what_it_is_is_not_mounted() {
    let Some((slow, mut f)) = Failing::prepare("nameless", &[], |_, _| ()) else {
        return;
    };
    slow.faults.set(Fault::Repository, "");
    let output = run(f.mount_command().arg(&f.mnt));
    let (said, layer) = (text(&output.stderr), f.lowers[0].display().to_string());
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains(&layer) && said.contains("Input/output error"),
        "{said}"
    );
    assert_eq!(names(&f.mnt).unwrap(), [""; 0], "something is mounted");
    // Whoever knows no attributes has none.
    slow.faults
        .set_errno(Fault::Repository, "", fuser::Errno::ENOTSUP);
    f.mount();
    assert_eq!(fs::read_to_string(f.at("d/a")).unwrap(), "top");
}

#[test]
fn dead_layers_are_named_at_mount() {
    let Some((slow, mut f)) = Failing::prepare("dead", &[], |_, _| ()) else {
        return;
    };
    let held = sys::open(slow.root(), libc::O_PATH, 0).unwrap();
    slow.kill();
    refused(&f, "unmount and mount it again");
    drop(held);
    slow.detach();
    slow.attach();
    f.mount();
    assert_eq!(fs::read_to_string(f.at("d/a")).unwrap(), "top");
}
