//! Programs that use the mount as people do: container engines, sandboxes, mount(8), each the real one.

mod apptainer;
mod mount_helper;
mod personality;
mod podman;
mod recipes;
mod roots;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{PROGRAM, Scratch, require_all, run, text, tool};

/// What comes before each script.
const NAMESPACES: &str = include_str!("consumers/namespaces.sh");

/// Runs a script as root in a directory of its own, `/mnt`, in namespaces of its own: its processes and
/// mounts end with it, and what it changes of the root file system. The directory holds an image of
/// busybox as `image`; the program is installed.
fn script(name: &str, programs: &[&str], text_of_script: &str) {
    script_in(Path::new("/"), name, programs, text_of_script);
}

/// [`script`] with another root file system than this machine's.
fn script_in(tree: &Path, name: &str, programs: &[&str], text_of_script: &str) {
    if !require_all(&["fuse", "root", "overlayfs", "busybox"]) || !require_all(programs) {
        return;
    }
    let scratch = Scratch::new(name);
    for (from, to) in [
        (PathBuf::from(PROGRAM), "cvmfs-union"),
        (tool("busybox").unwrap(), "busybox"),
    ] {
        // By cp: had this process it open for writing, children of other tests might hold it busy.
        let mut copy = Command::new("cp");
        copy.arg(from).arg(scratch.path().join(to));
        assert!(run(&mut copy).status.success());
    }
    recipes::write_to(&scratch.path().join("recipes"));
    let path = scratch.path().join("script.sh");
    fs::write(&path, format!("{NAMESPACES}\n{text_of_script}")).unwrap();
    let output = run(Command::new("timeout")
        .args(["--kill-after=10", "180", "unshare", "-mpf", "--mount-proc"])
        .args(["--kill-child", "sh", "-eux"])
        .arg(path)
        .arg(scratch.path())
        .arg(tree)
        .arg(env!("CARGO_MANIFEST_DIR"))
        .env("LC_ALL", "C"));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}", output.status);
}
