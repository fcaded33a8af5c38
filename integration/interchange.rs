//! Uppers that change hands: written by one union, read by another, and by later versions of ours.
//!
//! What travels is the upper. The work directory stays behind, since each union keeps its own notes
//! there, and the reader gets a new one. So what stands only in a work directory is lost:
//! a name of a hard-linked lower file that was never touched itself shows the lower's data again.

mod samples;
pub mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::support::process::{Ended, answer, in_a_process, input, message};
use crate::support::{Compare, Fixture, System, Tree, isolated, now, require_all};

const LIMIT: Duration = Duration::from_secs(240);

/// A user namespace with a mount namespace, where one is root of nothing else.
const ROOTLESS: &[&str] = &["unshare", "-Urm"];

macro_rules! pairs {
    ($($name:ident: $writer:ident => $reader:ident;)*) => {
        mod root {
            $(#[test] fn $name() { super::handed_over(super::System::$writer, super::System::$reader, &[], ""); })*
        }
        mod rootless {
            $(#[test] fn $name() { super::handed_over(super::System::$writer, super::System::$reader, super::ROOTLESS, ""); })*
        }
    };
}

pairs! {
    ours_to_ours: Ours => Ours;
    ours_to_overlayfs: Ours => OverlayfsDefault;
    ours_to_overlayfs_with_all_features: Ours => Overlayfs;
    ours_to_fuse_overlayfs_1: Ours => FuseOverlayfs1;
    ours_to_fuse_overlayfs_2: Ours => FuseOverlayfs2;
    overlayfs_to_ours: OverlayfsDefault => Ours;
    overlayfs_with_all_features_to_ours: Overlayfs => Ours;
    fuse_overlayfs_1_to_ours: FuseOverlayfs1 => Ours;
    fuse_overlayfs_2_to_ours: FuseOverlayfs2 => Ours;
}

/// Deletions as `.wh.` files, which kernel overlayfs does not know.
#[test]
fn wh_files_to_fuse_overlayfs_1() {
    handed_over(System::Ours, System::FuseOverlayfs1, &[], "wh");
}

#[test]
fn wh_files_to_fuse_overlayfs_2() {
    handed_over(System::Ours, System::FuseOverlayfs2, &[], "wh");
}

/// `style` is how ours writes deletions, or nothing.
fn handed_over(writer: System, reader: System, wrapper: &[&str], style: &str) {
    let needs = [writer.needs(), reader.needs(), &["root", "userns"]].concat();
    if !require_all(&needs) {
        return;
    }
    let words = [writer, reader].map(|system| system.number().to_string());
    let words = [words[0].as_str(), words[1].as_str(), style];
    match in_a_process("interchange::one_pair", &words, wrapper, LIMIT) {
        Ended::Answered(said) if said.is_empty() => {}
        other => panic!("{} to {}: {other:?}", writer.name(), reader.name()),
    }
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn one_pair() {
    let Some(words) = input() else { return };
    let [writer, reader] = [&words[0], &words[1]].map(|word| System::numbered(word));
    let result = catch_unwind(AssertUnwindSafe(|| {
        isolated(|| hand_over(writer, reader, &words[2]))
    }));
    answer(&result.map_or_else(|cause| message(&*cause), |()| String::new()));
}

/// The reader is to see what the writer itself would see at its next mount.
fn hand_over(writer: System, reader: System, style: &str) {
    let how = Compare {
        now: now() - 1,
        ino: false,
        dir_nlink: false,
        dir_size: false,
    };
    let same = |what: &str, a: &Tree, b: &Tree| {
        let [a, b] = [a, b].map(|tree| work::comparable(writer, reader, tree));
        if let Some(difference) = a.difference(&b, how) {
            panic!("{what}: {difference}");
        }
    };
    let mut f = Fixture::on(writer, "interchange");
    work::layers(&mut f);
    if writer == System::Ours {
        f.options = vec!["--portable-upper".into()];
        if !style.is_empty() {
            f.options.extend(["--whiteouts".into(), style.into()]);
        }
    }
    f.mount();
    work::day(&f);
    let live = Tree::read(&f.mnt);
    f.remount();
    let written = Tree::read(&f.mnt);
    f.umount();
    work::check_marks(writer, &f);
    if writer == System::Ours {
        same("the writer's next mount", &live, &written);
    }

    f.system = reader;
    f.options.clear();
    f.work = f.scratch().join("work of the reader");
    std::fs::create_dir(&f.work).unwrap();
    f.mount();
    same("the reader", &written, &Tree::read(&f.mnt));
    // The reader may also go on with it.
    work::next_day(&f);
    let changed = Tree::read(&f.mnt);
    f.remount();
    same("the reader's next mount", &changed, &Tree::read(&f.mnt));
}
