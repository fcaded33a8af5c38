//! What a mount costs before anybody uses it, and what use leaves behind.

use std::fs;
use std::io::{Read, Write};
use std::process::Command;

use crate::support::foreground::Daemon;
use crate::support::{Fixture, require_all, tool};

const MIB: u64 = 1 << 20;
/// The most memory of a daemon that nobody has asked for anything.
const IDLE: u64 = 8 * MIB;
/// What large requests may add: a MiB for each receiver, and for each that is answered at the time.
const BUFFERS: u64 = 8 * MIB;

#[test]
fn an_idle_daemon_is_small_and_large_requests_add_little() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut f = Fixture::new("idle");
    fs::write(f.lower().join("file"), vec![b'x'; 16 << 20]).unwrap();
    // The daemon is to see the data.
    f.options.extend(["--passthrough", "off"].map(String::from));
    let daemon = Daemon::mount(&f);
    let idle = daemon.memory();
    assert!(idle < IDLE, "{idle} bytes");
    let mut made = fs::File::create(f.at("made")).unwrap();
    for _ in 0..64 {
        made.write_all(&vec![b'y'; 1 << 20]).unwrap();
    }
    drop(made);
    let mut read = Vec::new();
    for name in ["file", "made"] {
        let mut file = fs::File::open(f.at(name)).unwrap();
        file.read_to_end(&mut read).unwrap();
    }
    assert_eq!(read.len(), 80 << 20);
    let used = daemon.memory();
    assert!(used < IDLE + BUFFERS, "{used} bytes after large requests");
    daemon.end();
}

/// The calls about files and descriptors of a daemon that this work is done upon, from its start to its
/// end, as strace shows them.
fn calls(f: &Fixture, work: impl FnOnce(&Fixture)) -> Vec<String> {
    let strace = tool("strace").expect("scripts/test installs strace");
    let log = f.scratch().join("trace");
    let inner = f.mount_command();
    let mut traced = Command::new(strace);
    traced
        .args(["-f", "-qq", "-e", "trace=%file,%desc", "-o"])
        .arg(&log)
        .env_remove("LD_LIBRARY_PATH")
        .arg(inner.get_program())
        .args(inner.get_args());
    let daemon = Daemon::of(traced.arg("--foreground").arg(&f.mnt), &f.mnt);
    work(f);
    daemon.end();
    let trace = fs::read_to_string(&log).unwrap();
    let begun = |line: &&str| line.contains('(') && !line.contains("resumed>");
    // Memory, of which the allocator takes as it likes.
    let begun = |line: &&str| begun(line) && !line.contains("MAP_ANONYMOUS");
    trace.lines().filter(begun).map(str::to_owned).collect()
}

/// What a mount of so many layers does until it is looked at.
fn calls_of_layers(layers: usize) -> usize {
    let mut f = Fixture::new(&format!("layers{layers}"));
    for i in 0..layers {
        fs::write(f.lower().join(format!("file{i}")), "").unwrap();
    }
    calls(&f, |f| assert!(f.at("file0").is_file())).len()
}

/// To resolve its path three times, to look at it, to open it, and to list its root: 14.
#[test]
fn a_layer_costs_few_calls_at_mount() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let (few, many) = (calls_of_layers(2), calls_of_layers(34));
    let each = many.saturating_sub(few) / 32;
    assert!(each <= 14, "{each} calls for each layer: {few}, {many}");
}

/// Calls that ask something of an object in an open directory, or of an open directory itself. What asks of
/// paths is the beginning of a thread or of the daemon.
fn asks(call: &str) -> bool {
    const ASKING: [&str; 6] = [
        "stat",
        "openat",
        "getdents",
        "getxattr",
        "listxattr",
        "readlink",
    ];
    ASKING.iter().any(|name| call.contains(name)) && !call.contains("(AT_FDCWD")
}

#[test]
fn a_fresh_name_of_a_listed_directory_costs_one_call_to_a_layer() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    const NAMES: usize = 64;
    let of_names = |names: usize| {
        let mut f = Fixture::new(&format!("names{names}"));
        for layer in ["top", "bottom"] {
            let dir = f.lower().join("dir");
            fs::create_dir(&dir).unwrap();
            for i in 0..NAMES {
                fs::write(dir.join(format!("{layer}{i}")), "content").unwrap();
            }
        }
        let calls = calls(&f, |f| {
            // What two layers hold is told by their listings, which are read for the first name. With the first file of
            // a layer it is found out how that numbers its files.
            assert!(fs::symlink_metadata(f.at("dir/absent")).is_err());
            for i in 0..names {
                for layer in ["top", "bottom"] {
                    fs::symlink_metadata(f.at(format!("dir/{layer}{i}"))).unwrap();
                }
            }
        });
        calls
            .into_iter()
            .filter(|call| asks(call))
            .collect::<Vec<_>>()
    };
    let (one, all) = (of_names(1), of_names(NAMES));
    assert_eq!(all.len() - one.len(), 2 * (NAMES - 1), "{one:#?}\n{all:#?}");
}

/// Where several threads use the table of descriptors, the kernel waits for milliseconds to make a larger one: so it is
/// large from the beginning.
#[test]
fn the_table_of_descriptors_does_not_grow() {
    const DIRS: usize = 600;
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut f = Fixture::new("descriptors");
    let lower = f.lower();
    for i in 0..DIRS {
        let dir = lower.join(format!("d{i}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f"), "").unwrap();
    }
    let daemon = Daemon::mount(&f);
    let status = |field: &str| -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        value.unwrap().trim().parse().unwrap()
    };
    let open = || {
        fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
            .unwrap()
            .count()
    };
    let (size, before) = (status("FDSize:"), open());
    for i in 0..DIRS {
        assert!(f.at(format!("d{i}/f")).is_file());
    }
    assert!(open() - before > 512, "or this shows nothing");
    assert_eq!(status("FDSize:"), size);
    daemon.end();
}
