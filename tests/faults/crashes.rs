//! Kills the process at each system call of an operation that changes something, and opens the union
//! again. The disk after one call is the disk before the next, so a point lies before the first change
//! and after every one; the long form takes the calls that only read as well. The calls that are not
//! wrapped change nothing there.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use cvmfs_union::sys::fault;
use cvmfs_union::union::api::Whiteouts;

use super::opening::{OPENING, die_opening};
use super::{Extent, extent, jobs, name_of, play, scenarios};
use crate::support::Fs;
use crate::support::faults::{Ends, Stage, Variant, spread, which};

/// The calls that change nothing on the disk.
const READING: [&str; 13] = [
    "openat",
    "open",
    "pread",
    "lseek",
    "fsync",
    "fdatasync",
    "getflags",
    "fstatat",
    "fstatvfs",
    "getdents",
    "readlinkat",
    "listxattr",
    "getxattr",
];

/// The points: after so many calls.
pub fn points(calls: &[&str]) -> Vec<usize> {
    let matters = |n: &usize| match (extent(), n.checked_sub(1)) {
        (Extent::All, _) | (_, None) => true,
        (_, Some(last)) => !READING.contains(&calls[last]),
    };
    (0..=calls.len()).filter(matters).collect()
}

#[test]
fn every_crash_point() {
    let (extent, scenarios) = (extent(), scenarios::all());
    let mut jobs = jobs(&scenarios);
    if let Extent::Part(seed) = extent {
        // Cold or not, the changes are mostly the same.
        jobs.retain(|(i, _, variant)| !variant.cold || (i / 4 + seed).is_multiple_of(2));
    }
    let crashes = AtomicUsize::new(0);
    spread(&jobs, name_of, |(_, scenario, variant)| {
        let stage = Stage::new(scenario, *variant);
        let ends = stage.ends();
        for after in points(&ends.calls) {
            crash(&stage, &ends, after);
            crashes.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!(
        "crash points: {} in {} scenarios, {} with their variants ({extent:?})",
        crashes.into_inner(),
        scenarios.len(),
        jobs.len()
    );
}

fn crash(stage: &Stage<'_>, ends: &Ends, after: usize) {
    let last = after.checked_sub(1).map_or("nothing", |n| ends.calls[n]);
    let what = format!(
        "{} ({}): killed after {after} calls of {}, the last {last}",
        stage.scenario.name,
        stage.variant,
        ends.calls.len()
    );
    Killed {
        scenario: &stage.scenario.name,
        whiteouts: stage.variant.whiteouts,
        cold: stage.variant.cold,
        after,
        dir: stage.stack.dir(),
    }
    .run(&what);

    let merged = stage.stack.mount();
    let left = stage.left_over();
    assert!(left.is_empty(), "{what}, in the work directory: {left:?}");
    let tree = merged.try_tree().unwrap_or_else(|e| panic!("{what}: {e}"));
    let (old, new) = (ends.old.settled(), ends.new.settled());
    let mut allowed = stage.allowed(ends, true);
    (allowed[0].1, allowed[1].1) = (&new, &old);
    let at = which(&tree, &allowed, &what);
    stage.check_index(ends, at, &what);
    if !stage.scenario.open {
        stage.retry(merged, at, ends, &what);
    }
}

/// Kills a scenario after each call of this name.
pub fn crash_everywhere(name: &str, call: &str) {
    play(name, |stage, ends| {
        for (after, _) in (1..).zip(&ends.calls).filter(|(_, c)| **c == call) {
            crash(stage, ends, after);
        }
    });
}

/// A process that plays a scenario, and is killed after so many calls.
pub struct Killed<'a> {
    pub scenario: &'a str,
    pub whiteouts: Whiteouts,
    pub cold: bool,
    pub after: usize,
    pub dir: &'a Path,
}

impl Killed<'_> {
    pub fn run(&self, what: &str) {
        let mut program = Command::new(env::current_exe().unwrap());
        program
            .args([
                "faults::crashes::killed",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(SCENARIO, self.scenario)
            .env(STYLE, format!("{:?}", self.whiteouts))
            .env(COLD, self.cold.to_string())
            .env(AFTER, self.after.to_string())
            .env(DIRECTORY, self.dir);
        let ran = program.output().unwrap();
        let killed = ran.status.signal() == Some(libc::SIGKILL);
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(killed, "{what}: {}\n{said}", ran.status);
    }
}

const SCENARIO: &str = "CVMFS_UNION_KILL_SCENARIO";
const STYLE: &str = "CVMFS_UNION_KILL_STYLE";
const COLD: &str = "CVMFS_UNION_KILL_COLD";
const AFTER: &str = "CVMFS_UNION_KILL_AFTER";
const DIRECTORY: &str = "CVMFS_UNION_KILL_DIRECTORY";

#[test]
#[ignore = "the process that every_crash_point kills"]
fn killed() {
    let Some(dir) = env::var_os(DIRECTORY) else {
        return;
    };
    let (name, after) = (env::var(SCENARIO).unwrap(), env::var(AFTER).unwrap());
    let variant = Variant {
        whiteouts: match env::var(STYLE).unwrap().as_str() {
            "Wh" => Whiteouts::Wh,
            _ => Whiteouts::Auto,
        },
        cold: env::var(COLD).unwrap() == "true",
    };
    let after = after.parse::<u32>().unwrap();
    if name == OPENING {
        die_opening(variant.whiteouts, dir.as_ref(), after);
        fault::die();
    }
    let scenarios = scenarios::all();
    let scenario = scenarios.iter().find(|s| s.name == name).unwrap();
    let stage = Stage::attach(scenario, variant, dir.as_ref());
    let merged = stage.start();
    fault::kill_nth(after + 1);
    // After the last call there is none to be killed at.
    let done = stage.act(&merged);
    done.unwrap();
    fault::die();
}
