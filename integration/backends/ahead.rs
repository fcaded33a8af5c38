//! What is fetched ahead for a union of the kernel: by a process that ends by itself, and with the mount.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use nix::mount::{MntFlags, umount2};
use serde_json::json;

use crate::support::daemon::wait;
use crate::support::files::file;
use crate::support::slow_fs::{Fault, SlowFs};
use crate::support::{PROGRAM, Scratch, require_all, run, text, wait_for_namespaces};

/// A layer that tells what it is asked, and the profile of an earlier run beside its image.
struct Known {
    scratch: Scratch,
    slow: SlowFs,
}

impl Known {
    fn new(name: &str) -> Known {
        let scratch = Scratch::new(name);
        let slow = SlowFs::cached(|root| {
            file(root.join("r.example.org/aa/dir/used"), "used");
            file(root.join("r.example.org/aa/dir/other"), "other");
        });
        let thin = json!({ "version": "1.0", "layers": [{ "digest": "aa", "url": "cvmfs://r.example.org/aa" }] });
        fs::write(scratch.path().join("thin.json"), thin.to_string()).unwrap();
        scratch.dir("mnt");
        let known = Known { scratch, slow };
        let profiles = known.scratch.dir("profiles");
        known.mount(&[
            "--backend=fuse",
            "--ephemeral",
            "--profiles",
            profiles.to_str().unwrap(),
        ]);
        assert_eq!(
            fs::read_to_string(known.at("mnt/dir/used")).unwrap(),
            "used"
        );
        known.umount();
        let profile = || {
            let mut entries = fs::read_dir(&profiles)
                .unwrap()
                .map(|entry| entry.unwrap().path());
            entries.find(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'))
        };
        wait("no run is recorded", || profile().is_some());
        fs::copy(profile().unwrap(), known.at("thin.json.profile")).unwrap();
        // The kernel has nothing of the layer any more.
        known.slow.detach();
        known.slow.attach();
        known
    }

    fn at(&self, path: &str) -> PathBuf {
        self.scratch.path().join(path)
    }

    fn mount(&self, options: &[&str]) -> Output {
        let output = run(Command::new(PROGRAM)
            .args(["mount", "--cvmfs-root"])
            .arg(self.slow.root())
            .args(options)
            .arg(self.at("thin.json"))
            .arg(self.at("mnt")));
        assert!(output.status.success(), "{}", text(&output.stderr));
        output
    }

    fn umount(&self) {
        let output = run(Command::new(PROGRAM).arg("umount").arg(self.at("mnt")));
        assert!(output.status.success(), "{}", text(&output.stderr));
        wait_for_namespaces(&self.at("mnt"));
    }

    fn reads(&self, name: &str) -> u64 {
        let path = PathBuf::from("r.example.org/aa/dir").join(name);
        self.slow
            .faults
            .tally_below(&path)
            .get("read")
            .copied()
            .unwrap_or(0)
    }

    /// Waits until no process of this test's mounts is there.
    fn wait_for_end(&self) {
        let here = self.scratch.path().to_string_lossy().into_owned();
        wait("a process stays", || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let mut lines = processes.filter_map(|of| fs::read(of.path().join("cmdline")).ok());
            !lines.any(|line| text(&line).contains(&here))
        });
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if umount2(&self.at("mnt"), MntFlags::MNT_DETACH).is_ok() {
            eprintln!("a test that failed has left its mount");
        }
    }
}

const OVERLAY: [&str; 3] = ["--backend=overlay", "--assume-no-wh", "--upper"];

#[test]
fn what_an_earlier_run_opened_is_read() {
    if !require_all(&["root", "fuse", "overlayfs"]) {
        return;
    }
    let known = Known::new("ahead-kernel");
    let upper = known.at("upper").display().to_string();
    let options = [&OVERLAY[..], &[&upper, "--verbose"]].concat();
    let before = (known.reads("used"), known.reads("other"));
    let said = text(&known.mount(&options).stderr);
    assert!(
        said.contains("1 files of 1 runs are fetched ahead"),
        "{said}"
    );
    assert!(said.contains("this run is not recorded"), "{said}");
    wait("nothing is fetched", || known.reads("used") > before.0);
    // With the mount still there.
    known.wait_for_end();
    assert_eq!(known.reads("other"), before.1);
    known.umount();
    let before = known.reads("used");
    known.slow.detach();
    known.slow.attach();
    known.mount(&[&OVERLAY[..], &[&upper, "--prefetch=off"]].concat());
    known.wait_for_end();
    assert_eq!(known.reads("used"), before);
    known.umount();
}

/// It holds neither the upper nor the mount, and ends though its layer does not answer.
#[test]
fn what_waits_for_a_layer_ends_with_the_mount() {
    if !require_all(&["root", "fuse", "overlayfs"]) {
        return;
    }
    let known = Known::new("ahead-stalled");
    let upper = known.at("upper").display().to_string();
    let options = [&OVERLAY[..], &[&upper]].concat();
    known
        .slow
        .faults
        .set(Fault::Stall, "r.example.org/aa/dir/used");
    known.mount(&options);
    known.slow.faults.wait_for_stall();
    known.umount();
    known.mount(&[&options[..], &["--prefetch=off"]].concat());
    known.wait_for_end();
    known.umount();
}
