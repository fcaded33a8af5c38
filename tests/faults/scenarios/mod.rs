//! Every operation in every situation that makes it take another way: the one list that faults and
//! crashes share.

mod attributes;
mod contents;
mod names;
mod renames;

use cvmfs_union::union::api::RenameKind;

use crate::support::faults::Scenario;
use crate::support::fs::Res;
use crate::support::{Fs, Merged, is_root};
use crate::union::sample;

pub fn all() -> Vec<Scenario> {
    let families = [
        names::creating(),
        contents::data(),
        names::removing(),
        renames::renaming_files(),
        renames::renaming_directories(),
        renames::exchanging(),
        renames::leaving_whiteouts(),
        renames::without_whiteout_renames(),
        names::linking(),
        attributes::attributes(),
        attributes::xattrs(),
        contents::metadata_copies(),
        portable(),
        contents::unlinked_and_open(),
    ];
    families.into_iter().flatten().collect()
}

fn on(
    name: impl Into<String>,
    act: impl Fn(&Merged) -> Res<()> + Send + Sync + 'static,
) -> Scenario {
    Scenario::new(name, sample, act)
}

fn rename(from: &'static str, to: &'static str, kind: RenameKind) -> Scenario {
    on(format!("rename {from} to {to}, {kind:?}"), move |m| {
        m.rename(from, to, kind)
    })
}

fn create(merged: &Merged, path: &str) -> Res<()> {
    merged.create(path, 0o640).map(|fh| merged.close(fh))
}

fn with_handle<T>(
    merged: &Merged,
    path: &str,
    flags: i32,
    act: impl FnOnce(u64) -> Res<T>,
) -> Res<()> {
    let fh = merged.open(path, flags)?;
    let done = act(fh);
    merged.close(fh);
    done.map(drop)
}

fn write(merged: &Merged, path: &str, offset: u64, data: &[u8]) -> Res<()> {
    with_handle(merged, path, libc::O_WRONLY, |fh| {
        merged.pwrite(fh, offset, data)
    })
}

/// A directory that merges, and is in the upper already.
fn removed_dir(merged: &Merged) -> Res<()> {
    merged.unlink("dir/sub/deep")?;
    merged.rmdir("dir/sub")
}

/// Of `struct posix_acl_xattr`: version 2, then owner rwx, group r-x, others ---.
fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in [(1u16, 7u16), (4, 5), (32, 0)] {
        acl.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        acl.extend(u32::MAX.to_le_bytes());
    }
    acl
}

/// To an ordinary user the kernel takes set-id bits away with the first change of the data, so that a
/// file which has them changes in two steps.
fn set_id_file() -> &'static str {
    if is_root() {
        "dir/file"
    } else {
        "dir/sub/deep"
    }
}

fn set_id() -> u32 {
    if is_root() { 0o4711 } else { 0o711 }
}

fn portable() -> Vec<Scenario> {
    let mut all = vec![
        on("chmod", |m| m.chmod("dir/sub/deep", 0o600)),
        on("chmod one of two names", |m| m.chmod("first", 0o600)),
        on("link", |m| m.link("plain", "new")),
        on("unlink", |m| m.unlink("dir/file")),
        rename("plain", "dir/new", RenameKind::Replace),
        on("rmdir", |m| m.rmdir("shallow")),
    ];
    for scenario in &mut all {
        scenario.name += ", portable";
    }
    all.into_iter().map(Scenario::portable).collect()
}
