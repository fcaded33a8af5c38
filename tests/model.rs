//! Random operations on a union and on a plain directory that began with the same tree. After each,
//! both have said the same and both trees are the same, whatever was copied up, hidden or reopened.
//!
//! `PROPTEST_CASES` asks for more cases, `PROPTEST_RNG_SEED` for those of a failed run.

mod initial;
mod ops;

use std::fmt::Write;

use cvmfs_union::union::api::{Kind, Whiteouts};
use nix::errno::Errno;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseResult};

use crate::support::fs::difference;
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
    pair.step(&Step::Reopen)
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
