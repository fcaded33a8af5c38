//! What holds in a plain directory: every case is run on one, on kernel overlayfs and on ours, there with
//! each way that data can take, and with the kernel in the daemon's place.

pub mod attributes;
pub mod data;
pub mod directories;
pub mod names;

use std::path::Path;

use self::attributes::*;
use self::data::*;
use self::directories::*;
use self::names::*;
use crate::support::sys;
use crate::support::{Fixture, Scratch, System, isolated, mode, require, require_all};

/// What kernel overlayfs is known not to do, and why.
const OVERLAYFS_FAILS: &[(&str, &str)] = &[(
    "link_counts_of_directories",
    "merged directories always have a link count of 1",
)];

/// What `--writeback=on` is known not to do, and why.
const WRITEBACK_FAILS: &[(&str, &str)] = &[(
    "sizes_and_holes",
    "holes are not told, as the kernel does not say what it has collected",
)];

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod plain { $(#[test] fn $name() { super::on_plain(super::$name); })* }
        mod overlayfs { $(#[test] fn $name() { super::on_overlayfs(stringify!($name), super::$name); })* }
        mod ours {
            $(#[test] fn $name() { super::on_ours(stringify!($name), super::$name); })*
        }
        mod ours_without_passthrough {
            $(#[test] fn $name() { super::on_ours_without_passthrough(super::$name); })*
        }
        mod ours_with_writeback {
            $(#[test] fn $name() { super::on_ours_with_writeback(stringify!($name), super::$name); })*
        }
        mod ours_by_overlayfs {
            $(#[test] fn $name() { super::on_ours_by_overlayfs(stringify!($name), super::$name); })*
        }
    };
}

cases!(
    creation_modes,
    exclusive_and_truncating_open,
    append,
    rename_matrix,
    rename_noreplace,
    rename_exchange,
    rename_directories,
    unlinked_open_file,
    removed_open_directory,
    hardlinks,
    link_counts_of_directories,
    readdir_numbers,
    seekdir,
    readdir_while_removing,
    times,
    sizes,
    sizes_and_holes,
    fallocate_modes,
    xattrs,
    mapping_shared,
    mapping_private,
    long_names,
    deep_paths,
    setuid_cleared_by_write,
    setuid_cleared_by_chown,
    setgid_directory,
    sticky_directory,
    permissions,
    default_acl,
    symlinks,
    special_files,
    locks,
    temporary_file,
    copy_range,
    execute,
    many_entries,
    inode_flags,
);

fn on_plain(case: fn(&Path)) {
    if !require("root") {
        return;
    }
    let scratch = Scratch::new("plain");
    let dir = scratch.dir("case");
    isolated(|| case(&dir));
}

fn mounted(system: System, options: &[&str], case: fn(&Path)) {
    let mut fixture = Fixture::on(system, "conformance");
    fixture.options = options.iter().map(ToString::to_string).collect();
    // The case's directory comes from a lower, so that its first change copies it up.
    let lower = fixture.lower();
    sys::mkdir(lower.join("case"), 0o755).unwrap();
    fixture.mount();
    let dir = fixture.at("case");
    isolated(|| case(&dir));
    fixture.umount();
}

fn on_overlayfs(name: &str, case: fn(&Path)) {
    if !require_all(&["root", "overlayfs"]) {
        return;
    }
    unless_known(name, OVERLAYFS_FAILS, || {
        mounted(System::Overlayfs, &[], case);
    });
}

fn unless_known(name: &str, fails: &[(&str, &str)], run: impl FnOnce() + std::panic::UnwindSafe) {
    let known = fails.iter().find(|(case, _)| *case == name);
    match (std::panic::catch_unwind(run), known) {
        (Ok(()), None) => {}
        (Ok(()), Some((_, reason))) => eprintln!("passes, though it was known to fail: {reason}"),
        (Err(_), Some((_, reason))) => eprintln!("known to fail: {reason}"),
        (Err(cause), None) => std::panic::resume_unwind(cause),
    }
}

/// As the run says.
fn on_ours(name: &str, case: fn(&Path)) {
    if require_all(&["root", "fuse"]) {
        let fails = if mode::collects_writes() {
            WRITEBACK_FAILS
        } else {
            &[]
        };
        unless_known(name, fails, || mounted(System::Ours, &[], case));
    }
}

fn on_ours_without_passthrough(case: fn(&Path)) {
    if require_all(&["root", "fuse"]) {
        mounted(
            System::Ours,
            &["--passthrough=off", "--writeback=off"],
            case,
        );
    }
}

fn on_ours_with_writeback(name: &str, case: fn(&Path)) {
    if require_all(&["root", "fuse"]) {
        unless_known(name, WRITEBACK_FAILS, || {
            mounted(System::Ours, &["--passthrough=off", "--writeback=on"], case);
        });
    }
}

fn on_ours_by_overlayfs(name: &str, case: fn(&Path)) {
    if require_all(&["root", "overlayfs"]) {
        unless_known(name, OVERLAYFS_FAILS, || {
            let options = [
                "--backend=overlay",
                "--assume-no-wh",
                "--passthrough=auto",
                "--writeback=off",
            ];
            mounted(System::Ours, &options, case);
        });
    }
}

fn mode(path: impl AsRef<Path>) -> u32 {
    sys::lstat(path).unwrap().st_mode & 0o7777
}

fn create(path: impl AsRef<Path>, mode: u32) {
    sys::open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, mode).unwrap();
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}
