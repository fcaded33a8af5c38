//! Renames of all kinds.

use cvmfs_union::union::api::RenameKind::{Exchange, NoReplace, Replace, Whiteout};

use super::{on, rename};
use crate::support::faults::{Lacking, Scenario};
use crate::support::fs::Res;
use crate::support::{Fs, Merged};

pub fn renaming_files() -> Vec<Scenario> {
    vec![
        rename("dir/sub/deep", "dir/new", Replace),
        rename("plain", "dir/file", Replace),
        rename("plain", "dir/gone", Replace),
        rename("fifo", "plain", Replace),
        rename("symlink", "dir/symlink", Replace),
        rename("plain", "dir/new", NoReplace),
        rename("plain", "fifo", NoReplace).after(|m| m.unlink("fifo")),
        on("rename a file of the upper", |m| {
            m.rename("plain", "new", Replace)
        })
        .after(|m| m.write("plain", b"x")),
        on("rename a file of the upper only", |m| {
            m.rename("new", "newer", Replace)
        })
        .after(|m| m.write("new", b"x")),
        on("rename a file of the upper over a layer", |m| {
            m.rename("new", "plain", Replace)
        })
        .after(|m| m.write("new", b"x")),
        on("rename a file over one of the upper", |m| {
            m.rename("plain", "new", Replace)
        })
        .after(|m| m.write("new", b"x")),
        on("rename a file over a whiteout", |m| {
            m.rename("symlink", "plain", Replace)
        })
        .after(|m| m.unlink("plain")),
        on("rename a metadata copy", |m| {
            m.rename("plain", "new", Replace)
        })
        .after(|m| m.chmod("plain", 0o600)),
        rename("second", "dir/new", Replace),
        rename("plain", "second", Replace),
        on("rename one of two names, one copied up", |m| {
            m.rename("second", "dir/new", Replace)
        })
        .after(|m| m.chmod("first", 0o600)),
    ]
}

fn new_and_deleted(merged: &Merged) -> Res<()> {
    merged.mkdir("new", 0o755)?;
    merged.rmdir("empty")
}

/// In `.wh.` style a target in the upper is gone for a moment.
fn target_removed(scenario: Scenario, target: &'static str) -> Scenario {
    scenario.or_crashed("S62", move |m| m.rmdir(target))
}

pub fn renaming_directories() -> Vec<Scenario> {
    vec![
        rename("dir/sub", "moved", Replace),
        rename("dir/sub", "empty", Replace),
        rename("dir", "shallow", Replace),
        rename("dir/sub", "shallow", Replace),
        rename("dir/sub", "moved", NoReplace),
        on("rename a directory of the upper over a layer", |m| {
            m.rename("new", "shallow", Replace)
        })
        .after(new_and_deleted),
        on("rename a directory of the upper over a whiteout", |m| {
            m.rename("new", "empty", Replace)
        })
        .after(new_and_deleted),
        on("rename a merged directory over a whiteout", |m| {
            m.rename("dir/sub", "empty", Replace)
        })
        .after(new_and_deleted),
        on("rename a directory over a whiteout, NOREPLACE", |m| {
            m.rename("dir/sub", "empty", NoReplace)
        })
        .after(new_and_deleted),
        target_removed(
            on("rename a directory over a merged one", |m| {
                m.rename("dir/sub", "shallow", Replace)
            })
            .after(|m| m.chmod("shallow", 0o700)),
            "shallow",
        ),
        target_removed(
            on("rename a directory over one with whiteouts", |m| {
                m.rename("new", "dir/sub", Replace)
            })
            .after(|m| {
                m.mkdir("new", 0o755)?;
                m.unlink("dir/sub/deep")
            }),
            "dir/sub",
        ),
        target_removed(
            on("rename a directory over one of the upper", |m| {
                m.rename("dir/sub", "new", Replace)
            })
            .after(|m| m.mkdir("new", 0o755)),
            "new",
        ),
        on("rename a directory of the upper only", |m| {
            m.rename("new", "newer", Replace)
        })
        .after(|m| {
            m.mkdir("new", 0o755)?;
            m.write("new/file", b"x")
        }),
        on("rename a directory again", |m| {
            m.rename("moved", "dir/again", Replace)
        })
        .after(|m| m.rename("dir/sub", "moved", Replace)),
        on("rename a directory back", |m| {
            m.rename("moved", "dir/sub", Replace)
        })
        .after(|m| m.rename("dir/sub", "moved", Replace)),
    ]
}

pub fn exchanging() -> Vec<Scenario> {
    vec![
        rename("plain", "dir", Exchange),
        rename("plain", "dir/file", Exchange),
        rename("plain", "second", Exchange),
        rename("dir/sub", "covered", Exchange),
        on("exchange two of the upper", |m| {
            m.rename("new", "newdir", Exchange)
        })
        .after(|m| {
            m.write("new", b"x")?;
            m.mkdir("newdir", 0o755)
        }),
        on("exchange a new directory with one of a layer", |m| {
            m.rename("new", "dir", Exchange)
        })
        .after(|m| m.mkdir("new", 0o755)),
    ]
}

/// Without the device that is to be left behind.
fn device_missing(from: &'static str, to: &'static str) -> impl Fn(&Merged) -> Res<()> {
    move |m| m.rename(from, to, Replace)
}

pub fn leaving_whiteouts() -> Vec<Scenario> {
    let leave = |from, to| rename(from, to, Whiteout);
    vec![
        leave("plain", "new").or_crashed("S65", device_missing("plain", "new")),
        leave("dir", "new").or_crashed("S65", device_missing("dir", "new")),
        leave("plain", "dir/file").or("S65", device_missing("plain", "dir/file")),
        leave("new", "dir/sub/new")
            .after(|m| m.write("new", b"x"))
            .or_crashed("S65", device_missing("new", "dir/sub/new")),
        on("leave a whiteout, onto another", |m| {
            m.rename("symlink", "plain", Whiteout)
        })
        .after(|m| m.unlink("plain"))
        .or_crashed("S65", device_missing("symlink", "plain")),
    ]
}

/// As on a file system without RENAME_WHITEOUT, where an exchange stands in for it.
pub fn without_whiteout_renames() -> Vec<Scenario> {
    const LACKING: Lacking = &[("renameat with whiteout", libc::EINVAL)];
    let target_goes = |from, to, target_removed: fn(&Merged) -> Res<()>| {
        rename(from, to, Replace)
            .lacking(LACKING)
            .or_crashed("S62", target_removed)
            // What was replaced is at the old name.
            .or_crashed("S62", move |m| m.rename(from, to, Exchange))
    };
    let mut all = vec![
        rename("plain", "dir/new", Replace).lacking(LACKING),
        rename("dir/sub", "moved", Replace).lacking(LACKING),
        rename("plain", "dir/gone", Replace).lacking(LACKING),
        target_goes("plain", "dir/file", |m| m.unlink("dir/file")),
        target_goes("dir/sub", "shallow", |m| m.rmdir("shallow")),
    ];
    for scenario in &mut all {
        scenario.name += ", without RENAME_WHITEOUT";
    }
    all
}
