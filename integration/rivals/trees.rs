//! Whole trees: after much work, and as layers say.

use crate::differential::{self, Lacks};
use crate::support::sys;
use crate::support::{Compare, Fixture, System, Tree, mode};

const SEED: u64 = 7;

pub fn operations() -> usize {
    std::env::var("CVMFS_UNION_RIVALS_OPS").map_or(1200, |value| value.parse().unwrap())
}

/// Random operations; what they answer is no matter, what is there afterwards is to stay.
pub fn stress_then_remount(f: &mut Fixture) {
    differential::stress(&f.mnt, SEED, operations());
    let before = Tree::read(&f.mnt);
    f.remount();
    let how = Compare {
        dir_size: false,
        ..Compare::BYTES
    };
    assert_eq!(before.difference(&Tree::read(&f.mnt), how), None);
}

pub fn random_operations(f: &mut Fixture) {
    let plain = f.scratch().join("plain");
    assert!(
        crate::support::run(
            std::process::Command::new("cp")
                .arg("-a")
                .arg(f.mnt.join("."))
                .arg(&plain)
        )
        .status
        .success()
    );
    let mnt = f.mnt.clone();
    let lacks = Lacks {
        // They have a test of their own.
        dir_nlink: true,
        time_of_no_change: f.system == System::Ours && mode::collects_writes(),
    };
    differential::compared(SEED, operations(), &plain, &mnt, lacks, || f.remount());
}

pub fn oci_layers(f: &mut Fixture) {
    if f.system == System::Plain {
        let root = f.lower();
        sys::make(root.join("kept"), b"base").unwrap();
        sys::mkdir(root.join("opaque"), 0o755).unwrap();
        sys::make(root.join("opaque/top"), b"top").unwrap();
        return;
    }
    let (top, base) = (f.lower(), f.lower());
    for name in ["kept", "deleted"] {
        sys::make(base.join(name), b"base").unwrap();
    }
    sys::make(top.join(".wh.deleted"), b"").unwrap();
    for lower in [&top, &base] {
        sys::mkdir(lower.join("opaque"), 0o755).unwrap();
    }
    sys::make(base.join("opaque/base"), b"base").unwrap();
    sys::make(top.join("opaque/top"), b"top").unwrap();
    sys::make(top.join("opaque/.wh..wh..opq"), b"").unwrap();
}

pub fn oci_whiteouts(f: &mut Fixture) {
    assert_eq!(sys::names(&f.mnt).unwrap(), ["kept", "opaque"]);
    assert_eq!(sys::names(f.at("opaque")).unwrap(), ["top"]);
}
