//! Random operations on a union and on a plain directory that began with the same tree. After each,
//! both have said the same and both trees are the same, whatever was copied up, hidden or reopened.
//!
//! `PROPTEST_CASES` asks for more cases, `PROPTEST_RNG_SEED` for those of a failed run.

mod initial;
mod ops;

use std::collections::BTreeMap;
use std::fmt::Write;

use cvmfs_union::union::Union;
use cvmfs_union::union::api::{Kind, UnionConfig, Whiteouts};
use cvmfs_union::union::view::{Kind as Change, View};
use nix::errno::Errno;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseResult};

use crate::support::fs::{Entry, difference};
use crate::support::{Disk, Fs, Merged, Stack, Tree, temp_dir};
use initial::Initial;
use ops::{Files, Op, Step};

/// The cases of a run that nobody asked more of.
const CASES: u32 = 400;

/// How the union is opened.
#[derive(Clone, Debug)]
struct Mode {
    whiteouts: Whiteouts,
    portable: bool,
    /// Hardly anything is kept in memory.
    little: bool,
}

fn mode() -> impl Strategy<Value = Mode> {
    let whiteouts = prop_oneof![Just(Whiteouts::Auto), Just(Whiteouts::Wh)];
    let parts = (
        whiteouts,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.3),
    );
    parts.prop_map(|(whiteouts, portable, little)| Mode {
        whiteouts,
        portable,
        little,
    })
}

/// A union and its reference, and what was done to both.
struct Pair {
    stack: Stack,
    merged: Option<Merged>,
    /// Holds the reference directory.
    _reference: tempfile::TempDir,
    disk: Disk,
    tree: Tree,
    files: Files,
    script: String,
}

impl Pair {
    fn new(initial: &Initial, mode: &Mode) -> Pair {
        let reference = temp_dir();
        let disk = Disk::new(reference.path());
        let mut stack = Stack::with(initial.lowers(), mode.whiteouts);
        stack.portable = mode.portable;
        if mode.little {
            stack.keep_little();
        }
        let mut script = initial.build(&stack, &disk);
        writeln!(script, "mount {mode:?}").unwrap();
        let (merged, tree) = (Some(stack.mount()), disk.tree());
        let files = Files::default();
        Pair {
            stack,
            merged,
            _reference: reference,
            disk,
            tree,
            files,
            script,
        }
    }

    fn merged(&self) -> &Merged {
        self.merged.as_ref().unwrap()
    }

    fn fail(&self, why: &str) -> TestCaseError {
        TestCaseError::fail(format!("{why}\nafter:\n{}", self.script))
    }

    fn compare(&self, what: &str) -> TestCaseResult {
        let got = self
            .merged()
            .try_tree()
            .map_err(|e| self.fail(&format!("{what}: {e}")))?;
        match difference(&got, &self.tree) {
            Some(text) => Err(self.fail(&format!("{what}:\n{text}"))),
            None => Ok(()),
        }
    }

    fn apply(&mut self, op: &Op) -> TestCaseResult {
        for step in op.steps(&self.tree, &self.files) {
            self.step(&step)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> TestCaseResult {
        write!(self.script, "{step:?}").unwrap();
        match step {
            Step::Forget => self.merged().forget(),
            Step::Reopen => {
                std::mem::take(&mut self.files).close_all(self.merged());
                self.disk.close_all();
                self.merged = self.merged.take().map(|merged| self.stack.reopen(merged));
            }
            _ => return self.both(step),
        }
        writeln!(self.script).unwrap();
        self.compare("tree")
    }

    /// What is told of the changes, without a mount, is what has become of the layers' tree.
    fn check_changes(&self) -> TestCaseResult {
        let config = self.stack.config();
        let before = match config.lowers.is_empty() {
            true => Tree::default(),
            false => Merged::new(
                Union::new(&UnionConfig {
                    upper: None,
                    ..self.stack.config()
                })
                .unwrap(),
            )
            .tree(),
        };
        let upper = config.upper.as_ref().map(|upper| &*upper.upper);
        let read = View::open(&config.lowers, upper)
            .and_then(|view| view.changes(true).map(|changes| (view, changes)));
        let (view, changes) = read.map_err(|e| self.fail(&format!("changes: {e}")))?;
        let told: BTreeMap<String, Change> = changes
            .into_iter()
            .map(|of| (String::from_utf8(of.path).unwrap(), of.kind))
            .collect();
        let text = |path: &str| format!("/{path}");
        let now = self.tree.settled();
        for (path, change) in &told {
            let path = path.trim_start_matches('/');
            let stands = (before.0.contains_key(path), now.0.contains_key(path));
            let right = match change {
                Change::Added => stands == (false, true),
                Change::Changed => stands == (true, true),
                Change::Deleted => stands == (true, false),
            };
            if !right {
                return Err(self.fail(&format!("{path:?} is told to be {change:?}: {told:?}")));
            }
        }
        for (path, entry) in now.0.iter().filter(|(path, _)| !path.is_empty()) {
            let shown = view.explain(text(path).as_bytes());
            let shown = shown.map_err(|e| self.fail(&format!("explain {path:?}: {e}")))?;
            if shown.shown.is_none() {
                return Err(self.fail(&format!("{path:?} is told not to be there")));
            }
            let old = before.0.get(path);
            // Another name of the file may have been changed.
            let one_name = |of: &Entry| of.kind == Kind::Dir || of.nlink == 1;
            let alone = one_name(entry) && old.is_none_or(one_name);
            let same = |old: &Entry| {
                let of = |e: &Entry| (e.kind, e.mode, e.uid, e.gid, e.data.clone());
                of(old) == of(entry)
            };
            if alone && !old.is_some_and(same) && !told.contains_key(&text(path)) {
                return Err(self.fail(&format!("nothing is told of {path:?}: {told:?}")));
            }
        }
        for path in before.0.keys().filter(|path| !now.0.contains_key(*path)) {
            // Or what it lay in is gone, or no directory any more.
            let mut above = path.as_str();
            while !told.contains_key(&text(above)) {
                let Some((parent, _)) = above.rsplit_once('/') else {
                    return Err(self.fail(&format!("{path:?} is gone, and {told:?}")));
                };
                above = parent;
            }
        }
        Ok(())
    }

    fn both(&mut self, step: &Step) -> TestCaseResult {
        let got = step.run(self.merged(), self.files.of_union());
        writeln!(self.script, " -> {got:?}").unwrap();
        if got == Err(Errno::EXDEV) && self.stack.portable {
            return self.compare("tree after EXDEV");
        }
        let want = step.run(&self.disk, self.files.of_disk());
        self.tree = self.disk.tree();
        let same = match (step, &got, &want) {
            // Both are handles, each of its own.
            (Step::Open(slot, _, flags), Ok(got), Ok(want)) => {
                self.files.set(*slot, got.handle(), want.handle(), *flags);
                true
            }
            (Step::Close(slot), ..) => {
                self.files.unset(*slot);
                got == want
            }
            _ => got == want,
        };
        if !same {
            return Err(self.fail(&format!("said {got:?}, not {want:?}")));
        }
        self.compare("tree")
    }
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(fresh_seed()),
        fixed => fixed,
    };
    eprintln!("seed of the run: {rng_seed:?}");
    ProptestConfig {
        cases: if asked { default.cases } else { CASES },
        failure_persistence: None,
        max_shrink_iters: 4000,
        rng_seed,
        ..default
    }
}

pub fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::from(now.subsec_nanos()) ^ now.as_secs()
}

fn run(initial: &Initial, mode: &Mode, ops: &[Op]) -> TestCaseResult {
    let mut pair = Pair::new(initial, mode);
    pair.compare("the merged tree to begin with")?;
    for op in ops {
        pair.apply(op)?;
    }
    pair.step(&Step::Reopen)?;
    pair.check_changes()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_union_is_a_plain_directory(
        initial in initial::any(),
        mode in mode(),
        ops in prop::collection::vec(ops::op(), 1..40),
    ) {
        run(&initial, &mode, &ops)?;
    }
}

/// The kinds of which users see data or set attributes.
fn is_plain(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Dir)
}
