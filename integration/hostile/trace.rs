//! The daemon under strace: each name that it gives to the kernel is one component in a directory that it
//! has open, and no link is followed but the user's and its own in `/proc/self/fd`.

use std::path::Path;
use std::process::Command;

use super::{Daemon, Expect, Hostile, change, dirs, file, walk};
use crate::support::{isolated, sys, tool};

/// Where programs look at their start, and the kernel's files that are named whole.
const KNOWN: [&str; 9] = [
    "/etc/ld.so",
    "/lib",
    "/usr",
    "/proc/self/",
    "/proc/sys/",
    "/sys/",
    "/dev/fuse",
    "/dev/null",
    "/proc/",
];

#[test]
fn names_are_single_components() {
    let fill = |layers: &[std::path::PathBuf], canary: &crate::support::canary::Canary| {
        for (i, target) in canary.targets().iter().enumerate() {
            dirs(layers[1].join(format!("dir{i}/sub")));
            file(layers[1].join(format!("dir{i}/file")), "data");
            sys::setxattr(layers[1].join(format!("dir{i}/file")), "user.a", b"a", 0).unwrap();
            sys::symlink(target, layers[1].join(format!("dir{i}/link"))).unwrap();
            sys::symlink(target, layers[0].join(format!("link{i}"))).unwrap();
        }
    };
    let Some(h) = Hostile::new("trace", 2, fill) else {
        return;
    };
    let strace = tool("strace").expect("scripts/test installs strace");
    let log = h.fixture.scratch().join("trace");
    let inner = h.fixture.mount_command();
    let mut traced = Command::new(strace);
    traced
        .args(["-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o"])
        .arg(&log);
    // Set by cargo, and none of the daemon's business.
    traced.env_remove("LD_LIBRARY_PATH");
    traced.arg(inner.get_program()).args(inner.get_args());
    let daemon = Daemon::of(
        traced.arg("--foreground").arg(&h.fixture.mnt),
        &h.fixture.mnt,
    );
    let tree = walk(&h.fixture.mnt);
    isolated(|| change(&h.fixture.mnt, &tree, Expect::Success));
    walk(&h.fixture.mnt);
    daemon.end();
    h.canary.check();
    let trace = std::fs::read(&log).unwrap();
    let trace = String::from_utf8_lossy(&trace);
    let calls: Vec<_> = trace
        .lines()
        .filter(|line| line.contains('(') && !line.contains("execve("))
        .collect();
    assert!(calls.len() > 200, "{trace}");
    for call in calls {
        if let Err(why) = judge(call, h.fixture.scratch()) {
            panic!("{why}: {call}");
        }
    }
}

/// What is wrong with a system call.
fn judge(line: &str, stack: &Path) -> Result<(), &'static str> {
    let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
    let (name, args) = call.split_once('(').unwrap_or((call, ""));
    let mut quoted = args.split('"').skip(1).step_by(2);
    let Some(mut path) = quoted.next() else {
        return Ok(());
    };
    if name == "symlinkat" {
        // The target is text.
        path = quoted.next().ok_or("a symlink without a name")?;
    }
    if let Some(rest) = path.strip_prefix("/proc/self/fd/") {
        return match rest.split_once('/') {
            None => Ok(()),
            Some((_, name)) if name.contains('/') => Err("a path below a descriptor"),
            Some(_) if name.starts_with('l') => Ok(()),
            Some(_) => Err("a name below a descriptor that is followed"),
        };
    }
    if path.starts_with('/') {
        let ours = Path::new(path).starts_with(stack) || stack.starts_with(path);
        let known = KNOWN.iter().any(|known| path.starts_with(known)) || path == "/";
        return if ours && is_part(path, stack) || known {
            Ok(())
        } else {
            Err("a path from elsewhere")
        };
    }
    if path.is_empty() && args.contains("AT_EMPTY_PATH") {
        return Ok(());
    }
    if path.contains('/') || path == ".." {
        return Err("more than one component");
    }
    let follows = match name {
        "open" | "stat" | "creat" | "access" | "chdir" => true,
        "openat" => !args.contains("O_NOFOLLOW"),
        "newfstatat" | "fchownat" | "utimensat" => !args.contains("AT_SYMLINK_NOFOLLOW"),
        "linkat" => args.contains("AT_SYMLINK_FOLLOW"),
        _ => false,
    };
    if follows || args.starts_with("AT_FDCWD") {
        Err("a link would be followed")
    } else {
        Ok(())
    }
}

/// The directories of the stack are named whole, and nothing in them.
fn is_part(path: &str, stack: &Path) -> bool {
    Path::new(path)
        .strip_prefix(stack)
        .map_or(true, |inside| inside.components().count() <= 1)
}
