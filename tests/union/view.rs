//! What is told of a merged tree without a mount: changes, and where a path comes from.

use cvmfs_union::union::api::{RenameKind, Whiteouts};
use cvmfs_union::union::view::{Explained, Kind, Source, View, label};

use super::{DIALECTS, sample};
use crate::support::{Fs, Merged, Stack};

fn view(stack: &Stack) -> View {
    let config = stack.config();
    let upper = config.upper.as_ref().map(|upper| &*upper.upper);
    View::open(&config.lowers, upper).unwrap()
}

/// The changes, as the program prints them.
fn changes(stack: &Stack) -> Vec<String> {
    let changes = view(stack).changes(true).unwrap().into_iter();
    let line = |change: cvmfs_union::union::view::Change| {
        let letter = match change.kind {
            Kind::Added => 'A',
            Kind::Changed => 'C',
            Kind::Deleted => 'D',
        };
        format!("{letter} {}", String::from_utf8(change.path).unwrap())
    };
    changes.map(line).collect()
}

/// What is changed by these acts in a new union of the sample.
fn changed(whiteouts: Whiteouts, acts: impl FnOnce(&Merged)) -> (Stack, Vec<String>) {
    let stack = Stack::with(2, whiteouts);
    sample(&stack);
    let merged = stack.mount();
    assert_eq!(changes(&stack), [""; 0]);
    acts(&merged);
    let while_open = changes(&stack);
    drop(merged);
    assert_eq!(changes(&stack), while_open);
    (stack, while_open)
}

#[test]
fn changes_of_all_kinds() {
    for whiteouts in DIALECTS {
        let (_stack, changes) = changed(whiteouts, |merged| {
            merged.write("dir/sub/deep", b"new").unwrap();
            merged.unlink("plain").unwrap();
            merged.unlink("dir/upmost").unwrap();
            merged.mkdir("new", 0o755).unwrap();
            merged.write("new/file", b"x").unwrap();
            merged.unlink("covered/above").unwrap();
            merged.rmdir("covered").unwrap();
            merged.unlink("symlink").unwrap();
            merged.mkdir("symlink", 0o755).unwrap();
            merged.write("symlink/in", b"x").unwrap();
        });
        let expected = [
            "D /covered",
            "C /dir",
            "C /dir/sub",
            "C /dir/sub/deep",
            "D /dir/upmost",
            "A /new",
            "A /new/file",
            "D /plain",
            "C /symlink",
            "A /symlink/in",
        ];
        assert_eq!(changes, expected);
    }
}

#[test]
fn a_renamed_directory_is_new_with_all_in_it() {
    for whiteouts in DIALECTS {
        let (_stack, changes) = changed(whiteouts, |merged| {
            merged.rename("dir", "moved", RenameKind::Replace).unwrap();
        });
        let expected = [
            "D /dir",
            "A /moved",
            "A /moved/file",
            "A /moved/sub",
            "A /moved/sub/deep",
            "A /moved/upmost",
        ];
        assert_eq!(changes, expected);
        let (_stack, changes) = changed(whiteouts, |merged| {
            merged.rename("dir", "away", RenameKind::Replace).unwrap();
            merged.mkdir("dir", 0o755).unwrap();
            merged.write("dir/file", b"another").unwrap();
        });
        let of_dir: Vec<_> = changes.iter().filter(|c| c.contains(" /dir")).collect();
        assert_eq!(
            of_dir,
            ["C /dir", "C /dir/file", "D /dir/sub", "D /dir/upmost"]
        );
    }
}

#[test]
fn what_was_copied_up_and_not_changed() {
    for whiteouts in DIALECTS {
        let (_stack, changes) = changed(whiteouts, |merged| {
            // Nothing is left of it but a copy of the directory, with another time.
            merged.write("dir/sub/new", b"x").unwrap();
            merged.unlink("dir/sub/new").unwrap();
        });
        assert_eq!(changes, ["C /dir", "C /dir/sub"]);
    }
}

fn explain(stack: &Stack, path: &str) -> Explained {
    view(stack).explain(path.as_bytes()).unwrap()
}

/// What each says, from the upper down.
fn stories(of: &Explained) -> Vec<String> {
    let line = |story: &cvmfs_union::union::view::Story| match &story.outcome {
        Some(outcome) => format!("{}: {}: {outcome}", label(story.source), story.says),
        None => format!("{}: {}", label(story.source), story.says),
    };
    of.stories.iter().map(line).collect()
}

#[test]
fn where_a_path_comes_from() {
    for whiteouts in DIALECTS {
        let (stack, _) = changed(whiteouts, |merged| {
            merged.write("dir/file", b"new").unwrap();
            merged.unlink("plain").unwrap();
        });
        let of = explain(&stack, "/dir/file");
        assert_eq!(of.shown, Some(("regular file", Source::Upper)));
        let expected = [
            "the upper: regular file: shown",
            "layer 1: nothing",
            "layer 2: regular file: hidden: the upper has a regular file /dir/file",
        ];
        assert_eq!(stories(&of), expected);
        let of = explain(&stack, "/plain");
        assert_eq!(of.shown, None);
        let expected = [
            "the upper: whiteout of /plain",
            "layer 1: nothing",
            "layer 2: regular file: hidden: /plain is deleted in the upper",
        ];
        assert_eq!(stories(&of), expected);
        let of = explain(&stack, "/dir");
        let expected = [
            "the upper: directory: shown",
            "layer 1: directory: merged",
            "layer 2: directory: merged",
        ];
        assert_eq!(stories(&of), expected);
        let of = explain(&stack, "//dir/./../dir/gone");
        assert_eq!((&*of.path, of.shown), (&b"/dir/gone"[..], None));
        let expected = [
            "the upper: nothing",
            "layer 1: whiteout of /dir/gone",
            "layer 2: regular file: hidden: /dir/gone is deleted in layer 1",
        ];
        assert_eq!(stories(&of), expected);
        let of = explain(&stack, "/covered/below");
        let last = stories(&of).pop().unwrap();
        assert_eq!(
            last,
            "layer 2: directory /covered: hidden: /covered is opaque in layer 1"
        );
        assert_eq!(
            explain(&stack, "/").shown,
            Some(("directory", Source::Upper))
        );
        assert_eq!(explain(&stack, "/absent/path").shown, None);
    }
}

#[test]
fn symlinks_and_renames_on_the_way() {
    for whiteouts in DIALECTS {
        let (stack, _) = changed(whiteouts, |merged| {
            merged.rename("dir", "moved", RenameKind::Replace).unwrap();
            merged.symlink("moved/sub", "way").unwrap();
        });
        let of = explain(&stack, "/way/deep");
        assert_eq!(&*of.path, b"/moved/sub/deep");
        assert_eq!(of.shown, Some(("regular file", Source::Layer(1))));
        assert_eq!(of.notes[0], "/way is a symlink to moved/sub");
        assert!(
            of.notes[1].contains("lies /dir of the layers"),
            "{:?}",
            of.notes
        );
        // The last name is not followed.
        assert_eq!(
            explain(&stack, "/way").shown,
            Some(("symlink", Source::Upper))
        );
    }
}

#[test]
fn symlinks_that_lead_around() {
    let (stack, _) = changed(Whiteouts::Auto, |merged| {
        merged.symlink("loop/x", "loop").unwrap();
    });
    assert!(view(&stack).explain(b"/loop/file").is_err());
}
