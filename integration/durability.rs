//! `--durability`: what reaches the disk and when, and which uppers a crash makes unusable.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use crate::support::sys;
use crate::support::{Fixture, Mounted, daemon, mode, mount_fuse, require_all, text};

/// The exit code of an upper that cannot be used.
const UPPER: i32 = 5;

fn fixture(name: &str, durability: &str) -> Option<Fixture> {
    if !require_all(&["root", "fuse"]) {
        return None;
    }
    let mut fixture = Fixture::new(name);
    let lower = fixture.lower();
    sys::make(lower.join("file"), b"lower").unwrap();
    sys::make(lower.join("other"), b"lower").unwrap();
    set(&mut fixture, durability);
    Some(fixture)
}

fn set(fixture: &mut Fixture, durability: &str) {
    fixture.options = vec!["--durability".into(), durability.into()];
}

fn change(fixture: &Fixture) {
    fs::write(fixture.at("file"), "upper").unwrap();
    sys::unlink(fixture.at("other")).unwrap();
}

fn check(fixture: &Fixture) {
    assert_eq!(fs::read_to_string(fixture.at("file")).unwrap(), "upper");
    assert_eq!(sys::names(&fixture.mnt).unwrap(), ["file"]);
}

/// The message names the upper, and says what is wrong and what to do.
fn check_refusal(fixture: &Fixture, output: &Output) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(UPPER), "{said}");
    let upper = fixture.upper.to_str().unwrap();
    for word in ["not synced", "discard", upper] {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

#[test]
fn volatile_upper_is_refused_after_a_kill() {
    let Some(mut f) = fixture("volatile-kill", "volatile") else {
        return;
    };
    f.mount();
    change(&f);
    daemon::kill(&f.mnt);
    // However it is mounted then, and at each further attempt.
    for durability in ["volatile", "auto", "full", "volatile"] {
        set(&mut f, durability);
        let output = f.try_mount();
        check_refusal(&f, &output);
    }
    // Nothing of it is lost for who wants to look.
    assert_eq!(fs::read_to_string(f.upper.join("file")).unwrap(), "upper");
    // What the message says helps.
    for dir in [&f.upper, &f.work] {
        fs::remove_dir_all(dir).unwrap();
        fs::create_dir(dir).unwrap();
    }
    f.mount();
    assert_eq!(fs::read_to_string(f.at("file")).unwrap(), "lower");
}

#[test]
fn volatile_upper_is_not_marked_by_a_mount_that_fails() {
    let Some(mut f) = fixture("volatile-fails", "volatile") else {
        return;
    };
    let absent = f.mnt.join("absent");
    let output = crate::support::run(f.mount_command().arg(&absent));
    assert!(!output.status.success());
    f.mount();
    change(&f);
    f.remount();
    check(&f);
}

#[test]
fn volatile_upper_is_accepted_after_an_orderly_end() {
    let Some(mut f) = fixture("volatile-end", "volatile") else {
        return;
    };
    f.mount();
    change(&f);
    f.remount();
    check(&f);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        end_by(&mut f, signal);
        f.mount();
        check(&f);
    }
    // Also while somebody uses it, who loses it then.
    let held = sys::open(f.at("file"), libc::O_RDWR, 0).unwrap();
    sys::pwrite(&held, b"UPPER", 0).unwrap();
    mode::settle(&held).unwrap();
    end_by(&mut f, libc::SIGTERM);
    f.mount();
    assert_eq!(fs::read_to_string(f.at("file")).unwrap(), "UPPER");
}

fn end_by(f: &mut Fixture, signal: i32) {
    let pid = daemon::of(&f.mnt);
    daemon::signal(pid, signal);
    daemon::wait_for_end(pid);
    f.forget_mount();
}

/// A mount that the caller made cannot be taken down by the daemon; its end is as orderly.
#[test]
fn volatile_upper_of_a_passed_descriptor_is_accepted_after_sigterm() {
    let Some(mut f) = fixture("volatile-passed", "volatile") else {
        return;
    };
    f.watch_lowers();
    for round in 0..2 {
        let device = mount_fuse(&f.mnt, ",allow_other");
        let mounted = Mounted(f.mnt.clone());
        let output = daemon::serve(&f, device);
        assert!(output.status.success(), "{}", text(&output.stderr));
        if round == 0 {
            change(&f);
        }
        check(&f);
        let pid = daemon::with_argument(&f.upper);
        daemon::signal(pid, libc::SIGTERM);
        daemon::wait_for_end(pid);
        drop(mounted);
    }
    f.mount();
    check(&f);
}

#[test]
fn other_uppers_are_accepted_after_a_kill() {
    for durability in ["auto", "full"] {
        let Some(mut f) = fixture(durability, durability) else {
            return;
        };
        f.mount();
        change(&f);
        daemon::kill(&f.mnt);
        f.mount();
        check(&f);
    }
}

/// The system calls of a daemon by which data reach the disk.
struct Trace {
    strace: Child,
    log: PathBuf,
}

impl Trace {
    fn of(pid: i32, log: PathBuf) -> Trace {
        let strace = Command::new("strace")
            .args([
                "-f",
                "-y",
                "-e",
                "trace=fsync,fdatasync,syncfs,sync_file_range",
                "-o",
            ])
            .arg(&log)
            .args(["-p", &pid.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        daemon::wait("strace does not attach", || {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{pid}/status"));
            let status = status.unwrap_or_default();
            let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"));
            tracer.is_some_and(|pid| pid.trim() != "0") && all_traced(pid)
        });
        Trace { strace, log }
    }

    /// The calls so far, and which of them were about this name.
    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let is_call = |line: &&str| line.contains("sync");
        log.lines().filter(is_call).map(str::to_owned).collect()
    }

    fn end(mut self) -> Vec<String> {
        // Strace writes its lines out when it ends.
        daemon::signal(self.strace.id().try_into().unwrap(), libc::SIGTERM);
        self.strace.wait().unwrap();
        self.calls()
    }
}

fn all_traced(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        fs::read_to_string(task.path().join("status"))
            .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
    })
}

/// What a daemon syncs for a copy-up with data and for an fsync by a program.
fn synced(durability: &str) -> Option<[Vec<String>; 2]> {
    if !require_all(&["strace"]) {
        return None;
    }
    let mut f = fixture(&format!("trace-{durability}"), durability)?;
    f.mount();
    let pid = daemon::of(&f.mnt);
    let trace = |name: &str| Trace::of(pid, f.scratch().join(name));

    let copying = trace("copying");
    let fd = sys::open(f.at("file"), libc::O_RDWR, 0).unwrap();
    sys::pwrite(&fd, b"X", 0).unwrap();
    // What the kernel collects leads to a copy-up then.
    sys::flush(&fd).unwrap();
    let copying = copying.end();

    let syncing = trace("syncing");
    sys::fsync(&fd).unwrap();
    let dir = sys::open(&f.mnt, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    sys::fsync(&dir).unwrap();
    Some([copying, syncing.end()])
}

fn count(calls: &[String], call: &str, of: &str) -> usize {
    let is = |line: &&String| line.contains(&format!(" {call}(")) && line.contains(of);
    calls.iter().filter(is).count()
}

#[test]
fn auto_syncs_copies_and_what_programs_ask_for() {
    let Some([copying, syncing]) = synced("auto") else {
        return;
    };
    // Where the file system keeps the order of data and names, the data are only written out.
    let settled = |at| ["fdatasync", "sync_file_range"].map(|call| count(&copying, call, at));
    let once = |at| settled(at) == [1, 0] || settled(at) == [0, 1];
    // A kernel that collects writes may tell of their time first: data come to that copy in its place.
    let in_place = mode::collects_writes() && once("/upper/file>");
    assert!(once("/work/work/") || in_place, "{copying:?}");
    assert_eq!(copying.len(), 1, "{copying:?}");
    assert_eq!(count(&syncing, "fsync", "/upper/file>"), 1, "{syncing:?}");
    assert_eq!(count(&syncing, "fsync", "/upper>"), 1, "{syncing:?}");
}

#[test]
fn full_syncs_the_directories_of_copies_too() {
    let Some([copying, syncing]) = synced("full") else {
        return;
    };
    assert_eq!(
        count(&copying, "fdatasync", "/work/work/"),
        1,
        "{copying:?}"
    );
    assert_eq!(count(&copying, "fsync", "/upper>"), 1, "{copying:?}");
    assert_eq!(count(&syncing, "fsync", "/upper/file>"), 1, "{syncing:?}");
    assert_eq!(count(&syncing, "fsync", "/upper>"), 1, "{syncing:?}");
}

#[test]
fn volatile_syncs_nothing_before_its_end() {
    let Some([copying, syncing]) = synced("volatile") else {
        return;
    };
    assert_eq!([copying, syncing], [[""; 0], [""; 0]]);
}

#[test]
fn volatile_syncs_all_at_its_end() {
    if !require_all(&["strace"]) {
        return;
    }
    let Some(mut f) = fixture("trace-end", "volatile") else {
        return;
    };
    f.mount();
    change(&f);
    let pid = daemon::of(&f.mnt);
    let trace = Trace::of(pid, f.scratch().join("end"));
    f.umount();
    // The mount is gone before the daemon is.
    daemon::wait_for_end(pid);
    let calls = trace.end();
    assert_eq!(count(&calls, "syncfs", "/upper>"), 1, "{calls:?}");
}

/// Bug: what was synced was the layer's file, which holds the data, and the new attributes were not.
#[test]
fn fsync_of_a_metadata_copy_syncs_its_attributes() {
    if !require_all(&["strace"]) {
        return;
    }
    let Some(mut f) = fixture("trace-metadata", "auto") else {
        return;
    };
    f.mount();
    sys::chmod(f.at("file"), 0o600).unwrap();
    let fd = sys::open(f.at("file"), libc::O_RDONLY, 0).unwrap();
    assert_eq!(sys::pread(&fd, 100, 0).unwrap(), b"lower");
    let marks = sys::listxattr(f.upper.join("file")).unwrap();
    let metacopy = b"trusted.overlay.metacopy".as_slice();
    assert!(marks.iter().any(|mark| mark == metacopy), "{marks:?}");
    let trace = Trace::of(daemon::of(&f.mnt), f.scratch().join("syncing"));
    sys::fsync(&fd).unwrap();
    let syncing = trace.end();
    assert_eq!(count(&syncing, "fsync", "/upper/file>"), 1, "{syncing:?}");
    assert_eq!(syncing.len(), 1, "{syncing:?}");
}
