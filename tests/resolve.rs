//! Which layer owns a name: every stack of up to four layers against the rule, stated once more.
//!
//! Each stack is one name in the same few directories. What a layer says about the name is written in
//! every dialect. The rule is stated from the bottom up, as an archive is extracted, where the union
//! goes from the top down.

use cvmfs_union::union::api::Kind;
use nix::errno::Errno;

use crate::support::fs::join;
use crate::support::{Disk, Fs, Merged, Stack};

/// What a layer says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Nothing,
    Wh,
    Device,
    File,
    Dir,
    /// Opaque by `.wh..wh..opq`.
    DirOpq,
    /// Opaque by the attribute.
    DirAttr,
    /// A whiteout hides what is below and never what its own layer holds.
    FileAndWh,
    DirAndWh,
}

/// The five answers of the rule, written in one dialect or the other.
const FIVE: [[Says; 5]; 2] = [
    [Says::Nothing, Says::Wh, Says::File, Says::Dir, Says::DirOpq],
    [
        Says::Nothing,
        Says::Device,
        Says::File,
        Says::Dir,
        Says::DirAttr,
    ],
];

/// All the ways to say something.
const ALL: [Says; 9] = [
    Says::Nothing,
    Says::Wh,
    Says::Device,
    Says::File,
    Says::Dir,
    Says::DirOpq,
    Says::DirAttr,
    Says::FileAndWh,
    Says::DirAndWh,
];

/// Of at most so many names each is asked for alone: the layers are listed anew for each.
const ALONE: usize = 125;

/// What the merged tree holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Merge {
    None,
    File(usize),
    /// The layers whose names show, topmost first.
    Dir(Vec<usize>),
}

/// The rule: the layers are laid over each other, the lowest first.
fn rule(stack: &[Says]) -> Merge {
    let mut merged = Merge::None;
    for (layer, says) in stack.iter().enumerate().rev() {
        merged = match (says, merged) {
            (Says::Nothing, merged) => merged,
            (Says::Wh | Says::Device, _) => Merge::None,
            (Says::File | Says::FileAndWh, _) => Merge::File(layer),
            (Says::Dir, Merge::Dir(below)) => Merge::Dir([vec![layer], below].concat()),
            (Says::Dir | Says::DirOpq | Says::DirAttr | Says::DirAndWh, _) => {
                Merge::Dir(vec![layer])
            }
        };
    }
    merged
}

/// All the sequences of that length, the name of each made of the positions.
fn stacks(answers: &[Says], layers: usize) -> Vec<(String, Vec<Says>)> {
    let mut all = vec![("n".to_owned(), Vec::new())];
    for _ in 0..layers {
        let longer = |(name, stack): &(String, Vec<Says>)| {
            let one = |(i, says): (usize, &Says)| {
                (format!("{name}{i}"), [stack.as_slice(), &[*says]].concat())
            };
            answers.iter().enumerate().map(one).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

fn say(disk: &Disk, layer: usize, name: &str, says: Says) {
    match says {
        Says::Nothing => {}
        Says::Wh => drop(disk.with_wh(name)),
        Says::Device => drop(disk.with_whiteout(name)),
        Says::File => drop(disk.with_file(name, &format!("{layer}"))),
        Says::FileAndWh => drop(disk.with_file(name, &format!("{layer}")).with_wh(name)),
        Says::Dir => say_dir(disk.with_dir(name, 0o755), layer, name),
        Says::DirOpq => say_dir(disk.with_opq(name), layer, name),
        Says::DirAttr => say_dir(disk.with_opaque(name), layer, name),
        Says::DirAndWh => say_dir(disk.with_dir(name, 0o755).with_wh(name), layer, name),
    }
}

/// One file that only this layer has, and one that all layers have.
fn say_dir(disk: &Disk, layer: usize, name: &str) {
    disk.with_file(&join(name, &format!("layer{layer}")), "");
    disk.with_file(&join(name, "same"), &format!("{layer}"));
}

/// What the union says, if the layers of a directory are found out by `layers_of`.
fn asked(merged: &Merged, name: &str, layers_of: impl Fn() -> Vec<usize>) -> Merge {
    match merged.stat(name) {
        Err(Errno::ENOENT) => Merge::None,
        Err(e) => panic!("{name}: {e}"),
        Ok(attr) if attr.kind == Kind::File => Merge::File(number(merged, name)),
        Ok(_) => Merge::Dir(layers_of()),
    }
}

fn number(merged: &Merged, path: &str) -> usize {
    let data = merged.read(path).unwrap();
    String::from_utf8(data).unwrap().parse().unwrap()
}

/// What it says when directories are listed.
fn listed(merged: &Merged, name: &str) -> Merge {
    asked(merged, name, || layers_listed(merged, name))
}

/// What it says when each name is looked for by itself. Where one layer alone holds a directory, that is
/// asked for the name.
fn looked_up(merged: &Merged, name: &str, layers: usize) -> Merge {
    let shows = |layer: &usize| merged.exists(&join(name, &format!("layer{layer}")));
    asked(merged, name, || (0..layers).filter(shows).collect())
}

fn layers_listed(merged: &Merged, name: &str) -> Vec<usize> {
    let names = merged.names(name).unwrap();
    let layers: Vec<usize> = names
        .iter()
        .filter_map(|n| n.strip_prefix("layer")?.parse().ok())
        .collect();
    assert_eq!(names.len(), layers.len() + 1, "{name} shows {names:?}");
    assert_eq!(
        layers.first(),
        Some(&number(merged, &join(name, "same"))),
        "{name}: who owns `same`"
    );
    layers
}

/// Builds the stacks in a directory of all layers, and asks for each of them.
fn check(answers: &[Says], layers: usize, top_is_upper: bool, within: &str) {
    let mut stack = Stack::new(layers - usize::from(top_is_upper));
    stack.read_only = !top_is_upper;
    let upper = stack.upper();
    let mut disks: Vec<&Disk> = stack.lowers().iter().collect();
    if top_is_upper {
        disks.insert(0, &upper);
    }
    let all = stacks(answers, layers);
    for (layer, disk) in disks.iter().enumerate() {
        if !within.is_empty() {
            disk.with_dir(within, 0o755);
        }
        for (name, says) in &all {
            say(disk, layer, &join(within, name), says[layer]);
        }
    }
    let merged = stack.mount();
    let merges = all.iter().map(|(name, says)| (name, rule(says)));
    let mut shown: Vec<_> = merges.filter(|(_, want)| *want != Merge::None).collect();
    shown.sort_by_key(|(name, _)| *name);
    let shown: Vec<_> = shown.into_iter().map(|(name, _)| name).collect();
    // Each name is the first that is asked for, and then its directory is listed; the names are asked for
    // one after the other; all is listed before.
    for order in ["alone", "in turn", "when listed"] {
        if order == "alone" && all.len() > ALONE {
            continue;
        }
        merged.start_over();
        let names = || merged.names(within).unwrap();
        if order == "when listed" {
            assert_eq!(names().iter().collect::<Vec<_>>(), shown);
        }
        for (name, says) in &all {
            if order == "alone" {
                merged.start_over();
            }
            let (path, want) = (join(within, name), rule(says));
            let what = format!("{says:?}, the topmost first; asked {order}");
            assert_eq!(looked_up(&merged, &path, layers), want, "{what}");
            assert_eq!(listed(&merged, &path), want, "{what}");
            assert_eq!(looked_up(&merged, &path, layers), want, "{what}");
        }
        assert_eq!(
            names().iter().collect::<Vec<_>>(),
            shown,
            "the names of {layers} layers"
        );
    }
}

#[test]
fn every_stack_of_five_answers() {
    for answers in FIVE {
        for layers in 1..=4 {
            check(&answers, layers, false, "");
        }
    }
}

#[test]
fn every_stack_under_an_upper() {
    for answers in FIVE {
        for layers in 2..=4 {
            check(&answers, layers, true, "");
        }
    }
}

#[test]
fn every_stack_in_a_directory_of_all_layers() {
    for answers in FIVE {
        for layers in 1..=4 {
            check(&answers, layers, false, "some/where");
        }
        for layers in 2..=4 {
            check(&answers, layers, true, "some/where");
        }
    }
}

#[test]
fn every_mix_of_dialects() {
    for layers in 1..=3 {
        check(&ALL, layers, false, "");
        check(&ALL, layers, false, "some/where");
    }
    for layers in 2..=3 {
        check(&ALL, layers, true, "");
        check(&ALL, layers, true, "some/where");
    }
}
