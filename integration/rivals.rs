//! What the rivals get wrong: every point is a case that a plain directory and ours pass, and at
//! least one of kernel overlayfs (as it comes, and with all features on) and fuse-overlayfs (1.x, 2.0)
//! does not.
//!
//! `cargo test --test integration rivals -- --nocapture | grep '^|'` prints the table: a row for
//! each point, with the columns in the order of `System::ALL`. `CVMFS_UNION_RIVALS_OPS` (1200) is the number of operations on whole trees.
//!
//! Of the points, these are not ours either; `limits` shows what we do instead:
//!
//! | point | clause |
//! |---|---|
//! | `O_TMPFILE` | S51: EOPNOTSUPP |
//! | time of birth | S52: not shown, instead of a wrong one |
//! | file handles | S54: good as long as the kernel keeps the inode |
//! | collapse and insert range | FUSE refuses them before it asks us: EOPNOTSUPP, and the file stays as it was |

mod attributes;
mod data;
mod directories;
mod limits;
mod names;
mod removed;
mod trees;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use self::attributes::*;
use self::data::*;
use self::directories::*;
use self::limits::*;
use self::names::*;
use self::removed::*;
use self::trees::*;
use crate::conformance;
use crate::support::process::{Ended, answer, in_a_process, input, message};
use crate::support::script::all_old;
use crate::support::{Fixture, Scratch, System, daemon, isolated, require, require_all, sys};

/// A case has so long, on a loaded machine too. Most take a tenth of a second.
const LIMIT: Duration = Duration::from_secs(60);

/// What is done on the mount, after what is done before it is mounted.
enum Case {
    /// In an empty directory of the lower, as the conformance tests do.
    Dir(fn(&Path)),
    /// On the lower that [`stock`] makes.
    Stock(fn(&mut Fixture)),
    /// On lowers of its own.
    On(fn(&mut Fixture), fn(&mut Fixture)),
}

use Case::{Dir, On, Stock};

/// Whom a point tells from whom.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// We pass, and not every rival does.
    Point,
    /// The same, where the kernel lets a daemon hand out the files of its layers.
    Passthrough,
    /// We do not pass either.
    Limit,
}

macro_rules! points {
    ($($kind:ident: { $($name:ident = $case:expr,)* })*) => {
        $($(#[test] fn $name() { compare(stringify!($name), Kind::$kind); })*)*
        fn case(name: &str) -> Case {
            match name {
                $($(stringify!($name) => $case,)*)*
                _ => panic!("no case {name}"),
            }
        }
    };
}

points! {
    Point: {
        names_of_252_to_255_bytes = Stock(long_names),
        umask_of_the_daemon = On(closed_umask, umask_is_the_callers),
        special_bits_at_creation = Stock(special_bits),
        creation_modes = Dir(conformance::names::creation_modes),
        setuid_cleared_by_write = Dir(conformance::attributes::setuid_cleared_by_write),
        setuid_cleared_by_write_to_a_lower_file = Stock(setuid_of_lower_file),
        setgid_kept_by_copy_up_of_a_directory = Stock(setgid_of_directory),
        fstat_of_an_unlinked_file = Stock(fstat_unlinked),
        fchmod_of_an_unlinked_file = Stock(fchmod_unlinked),
        fchown_of_an_unlinked_file = Stock(fchown_unlinked),
        fsetxattr_of_an_unlinked_file = Stock(fsetxattr_unlinked),
        fstat_of_a_removed_directory = Stock(fstat_removed),
        fchmod_of_a_removed_directory = Stock(fchmod_removed),
        fchown_of_a_removed_directory = Stock(fchown_removed),
        fsetxattr_of_a_removed_directory = Stock(fsetxattr_removed),
        rename_of_a_lower_directory = Stock(rename_directory),
        exchange_of_lower_files = Stock(exchange_files),
        noreplace_onto_a_whiteout = Stock(noreplace_onto_whiteout),
        rename_whiteout = Stock(rename_leaves_a_device),
        mknod_of_device_zero = Stock(device_zero),
        hardlink_count_after_copy_up = Stock(hardlink_count),
        hardlink_identity_after_copy_up = Stock(hardlink_identity),
        hardlink_group_after_remount = Stock(hardlink_group),
        inode_number_after_remount = Stock(number_after_remount),
        one_device_number = On(two_file_systems, one_device),
        listed_numbers_are_those_of_stat = On(two_file_systems, listed_numbers),
        fstat_on_a_descriptor_from_before_copy_up = Stock(fstat_from_before),
        read_only_mapping_from_before_copy_up = Stock(mapping_from_before),
        times_of_the_parent_at_copy_up = Stock(parent_times),
        times_before_1970 = Stock(negative_times),
        rewinddir_shows_what_is_new = Stock(rewinddir),
        cookies_stay_good_while_names_go = On(many_names, cookies),
        cookies_in_a_new_descriptor = On(many_names, cookies_in_new_descriptor),
        link_counts_of_directories = Stock(directory_counts),
        sparse_copy_up = On(sparse_file, sparse_stays_sparse),
        copy_between_file_systems = On(two_file_systems, copy_range),
        inode_flags = Dir(conformance::attributes::inode_flags),
        paths_longer_than_path_max = Dir(conformance::names::deep_paths),
        wh_names_hide_nothing_after_remount = Stock(wh_names),
        deleted_names_stay_deleted_in_a_directory_made_anew = Stock(directory_made_anew),
        overlay_named_xattrs = Stock(overlay_xattrs),
        oci_whiteouts_in_layers = On(oci_layers, oci_whiteouts),
        tree_is_the_same_after_a_remount = Stock(stress_then_remount),
        random_operations_as_on_a_plain_directory = Stock(random_operations),
    }
    Passthrough: {
        lower_untouched_by_reader_then_writer = Stock(reader_then_writer),
        read_on_a_descriptor_from_before_copy_up = Stock(read_from_before),
    }
    Limit: {
        temporary_files = Stock(tmpfile),
        time_of_birth = Stock(birth),
        file_handles_after_a_remount = Stock(handle_after_remount),
        collapse_and_insert_range = Stock(collapse_and_insert),
    }
}

/// What one system made of a case: None if it passes, else what went wrong.
type Outcome = Option<String>;

/// Runs a case on a system, in a process of its own.
fn outcome(name: &str, system: System, options: &[&str]) -> Outcome {
    let number = system.number().to_string();
    let mut words = vec![name, number.as_str()];
    words.extend(options);
    let limit = LIMIT + Duration::from_millis(20) * u32::try_from(operations()).unwrap();
    match in_a_process("rivals::one_case", &words, &[], limit) {
        Ended::Answered(said) if said.is_empty() => None,
        Ended::Answered(said) => Some(said),
        Ended::TimedOut => Some("hangs".into()),
        Ended::Died(said) => panic!("{name} was not run on {}:\n{said}", system.name()),
    }
}

/// The other side of [`outcome`].
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn one_case() {
    let Some(words) = input() else { return };
    let mut fixture = Fixture::on(System::numbered(&words[1]), "case");
    fixture.options = words[2..].to_vec();
    answer(&match case(&words[0]) {
        Dir(body) => run(&mut fixture, case_dir, |f| body(&f.at("case"))),
        Stock(body) => run(&mut fixture, stock, body),
        On(fill, body) => run(&mut fixture, fill, body),
    });
}

/// What went wrong, or nothing. Before the body any failure is the test's own.
fn run(f: &mut Fixture, fill: fn(&mut Fixture), body: impl FnOnce(&mut Fixture) + Send) -> String {
    fill(f);
    f.mount();
    let result = catch_unwind(AssertUnwindSafe(|| isolated(|| body(f))));
    let after = f.finish();
    match (result, after) {
        (Err(cause), _) => message(&*cause),
        (Ok(()), Err(error)) => error,
        (Ok(()), Ok(())) => String::new(),
    }
}

fn compare(name: &str, kind: Kind) {
    if !System::ALL.iter().all(|s| require_all(s.needs())) || !require_all(&["root"]) {
        return;
    }
    if kind == Kind::Passthrough && !require("passthrough") {
        return;
    }
    let outcomes = System::ALL.map(|system| (system, outcome(name, system, &[])));
    let cells = outcomes.each_ref().map(|(_, outcome)| match outcome {
        None => "yes",
        Some(_) => "no",
    });
    println!("| {name} | {} |", cells.join(" | "));
    for (system, outcome) in &outcomes {
        if let Some(reason) = outcome {
            let reason: String = reason.chars().take(160).collect();
            println!("  {name} on {}: {reason}", system.name());
        }
    }
    let failed = |system: System| outcomes.iter().any(|(s, o)| *s == system && o.is_some());
    assert!(!failed(System::Plain), "the case is wrong: {outcomes:?}");
    assert_eq!(
        failed(System::Ours),
        kind == Kind::Limit,
        "ours: {outcomes:?}"
    );
    assert!(
        System::RIVALS.into_iter().any(failed),
        "every rival passes: {outcomes:?}"
    );
}

/// fuse-overlayfs 2.0 writes into the lower.
#[test]
fn lower_is_written_by_fuse_overlayfs_2() {
    let system = System::FuseOverlayfs2;
    if require_all(&["root", "passthrough"]) && require_all(system.needs()) {
        let outcome = outcome("lower_untouched_by_reader_then_writer", system, &[]);
        let said = outcome.unwrap_or_default();
        assert!(said.contains(LOWER_WRITTEN), "{said}");
    }
}

/// Whatever `--passthrough` says, ours does not do it.
#[test]
fn lower_untouched_with_every_passthrough() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    for value in ["auto", "off", "upper", "all"] {
        let options = ["--passthrough", value];
        let name = "lower_untouched_by_reader_then_writer";
        assert_eq!(outcome(name, System::Ours, &options), None, "{value}");
    }
}

/// That a case which hangs is given up, with nothing left of it.
#[test]
fn what_hangs_is_given_up() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let scratch = Scratch::new("hangs");
    let note = scratch.path().join("note");
    let words = [note.to_str().unwrap()];
    let ended = in_a_process("rivals::hangs", &words, &[], Duration::from_secs(3));
    assert!(matches!(ended, Ended::TimedOut), "{ended:?}");
    let note = std::fs::read_to_string(note).unwrap();
    let (pid, mnt) = note.split_once(' ').unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(mnt), "{mnt} is mounted");
    // What is left until somebody waits for it has no arguments.
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline"));
    assert!(arguments.unwrap_or_default().is_empty(), "{pid} runs");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn hangs() {
    let Some(words) = input() else { return };
    let mut f = Fixture::new("hangs");
    stock(&mut f);
    f.mount();
    let pid = daemon::of(&f.mnt);
    std::fs::write(&words[0], format!("{pid} {}", f.mnt.display())).unwrap();
    daemon::signal(pid, libc::SIGSTOP);
    daemon::wait("the daemon goes on", || daemon::is_stopped(pid));
    sys::stat(f.at("dir/sub/below")).unwrap();
}

fn case_dir(f: &mut Fixture) {
    sys::mkdir(f.lower().join("case"), 0o755).unwrap();
}

/// A lower with something of everything.
fn stock(f: &mut Fixture) {
    let lower = f.lower();
    let dir = |path: &str| sys::mkdir(lower.join(path), 0o755).unwrap();
    let file = |path: &str| sys::make(lower.join(path), b"content").unwrap();
    for path in [
        "dir", "dir/sub", "dir/sub2", "empty", "links", "shared", "long",
    ] {
        dir(path);
    }
    for path in [
        "file",
        "other",
        "setid",
        "dir/inside",
        "dir/sub/below",
        "links/one",
        "shared/f",
    ] {
        file(path);
    }
    sys::link(lower.join("links/one"), lower.join("links/two")).unwrap();
    sys::chmod(lower.join("setid"), 0o6777).unwrap();
    sys::lchown(lower.join("shared"), 0, 500).unwrap();
    sys::chmod(lower.join("shared"), 0o2775).unwrap();
    for size in LONG {
        file(&format!("long/{}", "n".repeat(size)));
    }
    all_old(&lower);
}
