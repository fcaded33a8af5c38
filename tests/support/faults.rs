//! Scenarios for faults and crashes: an operation and what it is done to, in each style of deletions,
//! with the union that was prepared and with one that begins anew. Whatever befalls the operation, users
//! see the tree as it was or as it was to become, and doing it again leads to the new one.

use std::fmt;
use std::path::Path;

use cvmfs_union::sys::fault;
use cvmfs_union::union::api::Whiteouts;

use super::fs::{Fs, Res, Tree, difference};
use super::{Merged, Stack};

type Prepare = Box<dyn Fn(&Merged) + Send + Sync>;
type Act = Box<dyn Fn(&Merged) -> Res<()> + Send + Sync>;

/// Calls that always fail, as on a file system which lacks them.
pub type Lacking = &'static [(&'static str, i32)];

/// An operation, and what it is done to.
pub struct Scenario {
    pub name: String,
    build: fn(&Stack),
    prepare: Prepare,
    act: Act,
    portable: bool,
    lacking: Lacking,
    /// It goes on with what `prepare` has open.
    pub open: bool,
    also: Vec<Also>,
}

/// A tree that a clause of SEMANTICS allows besides the old and the new one: as this leaves it.
struct Also {
    clause: &'static str,
    only_crash: bool,
    act: Act,
}

impl Scenario {
    pub fn new(
        name: impl Into<String>,
        build: fn(&Stack),
        act: impl Fn(&Merged) -> Res<()> + Send + Sync + 'static,
    ) -> Scenario {
        Scenario {
            name: name.into(),
            build,
            prepare: Box::new(|_| {}),
            act: Box::new(act),
            portable: false,
            lacking: &[],
            open: false,
            also: Vec::new(),
        }
    }

    /// What is done before the operation.
    pub fn after<T>(mut self, prepare: impl Fn(&Merged) -> Res<T> + Send + Sync + 'static) -> Self {
        self.prepare = Box::new(move |m| drop(prepare(m).unwrap()));
        self
    }

    /// The same, and the operation uses the handles that it leaves in `kept`.
    pub fn with_open(
        self,
        prepare: impl Fn(&Merged) -> Res<()> + Send + Sync + 'static,
    ) -> Scenario {
        let open = true;
        Scenario {
            open,
            ..self.after(prepare)
        }
    }

    pub fn variants(&self) -> impl Iterator<Item = Variant> {
        // What is open is not there any more when the union begins anew.
        let open = self.open;
        let all = Variant::ALL.into_iter();
        all.filter(move |v| !(v.cold && open))
    }

    pub fn portable(mut self) -> Scenario {
        self.portable = true;
        self
    }

    pub fn lacking(mut self, calls: Lacking) -> Scenario {
        self.lacking = calls;
        self
    }

    /// After a crash the tree may also be what `act` makes of the old one.
    pub fn or_crashed(
        mut self,
        clause: &'static str,
        act: impl Fn(&Merged) -> Res<()> + Send + Sync + 'static,
    ) -> Scenario {
        self.also.push(Also {
            clause,
            only_crash: true,
            act: Box::new(act),
        });
        self
    }

    /// The same after a fault, too.
    pub fn or(
        mut self,
        clause: &'static str,
        act: impl Fn(&Merged) -> Res<()> + Send + Sync + 'static,
    ) -> Scenario {
        self.also.push(Also {
            clause,
            only_crash: false,
            act: Box::new(act),
        });
        self
    }
}

/// How a scenario is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    pub whiteouts: Whiteouts,
    /// The operation is the first in its union.
    pub cold: bool,
}

impl Variant {
    pub const ALL: [Variant; 4] = [
        Variant::new(Whiteouts::Auto, false),
        Variant::new(Whiteouts::Auto, true),
        Variant::new(Whiteouts::Wh, false),
        Variant::new(Whiteouts::Wh, true),
    ];

    const fn new(whiteouts: Whiteouts, cold: bool) -> Variant {
        Variant { whiteouts, cold }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cold = if self.cold { "cold" } else { "warm" };
        write!(f, "{:?} {cold}", self.whiteouts)
    }
}

/// A scenario in one variant, with its directories.
pub struct Stage<'a> {
    pub scenario: &'a Scenario,
    pub stack: Stack,
    pub variant: Variant,
}

/// The trees between which there is nothing.
pub struct Ends {
    pub old: Tree,
    pub new: Tree,
    also: Vec<(&'static str, Tree)>,
    /// The entries in the index of hard links: before and after.
    index: [Vec<String>; 2],
    /// The calls that the operation makes.
    pub calls: Vec<&'static str>,
}

/// Which of them a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Old,
    New,
    /// The one that this clause allows.
    Also(&'static str),
}

impl<'a> Stage<'a> {
    const LOWERS: usize = 2;

    pub fn new(scenario: &'a Scenario, variant: Variant) -> Stage<'a> {
        let stack = Stack::new(Stage::LOWERS);
        (scenario.build)(&stack);
        Stage::on(scenario, variant, stack)
    }

    /// On directories that another process has built.
    pub fn attach(scenario: &'a Scenario, variant: Variant, dir: &Path) -> Stage<'a> {
        Stage::on(scenario, variant, Stack::attach(dir, Stage::LOWERS))
    }

    fn on(scenario: &'a Scenario, variant: Variant, mut stack: Stack) -> Stage<'a> {
        fault::disarm();
        fault::lack(scenario.lacking);
        stack.whiteouts = variant.whiteouts;
        stack.portable = scenario.portable;
        stack.times = true;
        Stage {
            scenario,
            stack,
            variant,
        }
    }

    /// A union that is ready for the operation.
    pub fn start(&self) -> Merged {
        self.stack.reset();
        let merged = self.stack.mount();
        (self.scenario.prepare)(&merged);
        if self.variant.cold {
            self.stack.reopen(merged)
        } else {
            merged.tree();
            merged
        }
    }

    pub fn act(&self, merged: &Merged) -> Res<()> {
        (self.scenario.act)(merged)
    }

    /// How the operation begins and ends when nothing befalls it.
    pub fn ends(&self) -> Ends {
        let merged = self.start();
        let old = merged.tree();
        let before = self.index();
        drop(merged);
        let merged = self.start();
        fault::record();
        let done = self.act(&merged);
        let calls = fault::recorded();
        done.unwrap();
        let new = merged.tree();
        let after = self.index();
        assert!(!calls.is_empty(), "the operation makes no system call");
        let next = self.stack.reopen(merged);
        super::assert_same(&next.tree(), &new.settled(), "without a fault, reopened");
        drop(next);
        let also = self.scenario.also.iter().map(|also| {
            let merged = self.start();
            (also.act)(&merged).unwrap();
            (also.clause, merged.tree())
        });
        Ends {
            old,
            new,
            also: also.collect(),
            index: [before, after],
            calls,
        }
    }

    /// The trees that are allowed after a crash, or after a fault.
    pub fn allowed<'e>(&self, ends: &'e Ends, crash: bool) -> Vec<(End, &'e Tree)> {
        let also = self.scenario.also.iter().zip(&ends.also);
        let also = also.filter(|(a, _)| crash || !a.only_crash);
        let mut all = vec![(End::New, &ends.new), (End::Old, &ends.old)];
        all.extend(also.map(|(_, (clause, tree))| (End::Also(clause), tree)));
        all
    }

    /// Does the operation once more, after which everything must be as if it had worked at once.
    pub fn retry(&self, merged: Merged, at: End, ends: &Ends, what: &str) {
        if at == End::New && ends.old != ends.new {
            return;
        }
        let again = self.act(&merged);
        if again.is_err() && matches!(at, End::Also(_)) {
            return;
        }
        if let Err(e) = again {
            panic!("{what}, the retry from {at:?}: {e}");
        }
        super::assert_same(&merged.tree(), &ends.new, &format!("{what}, tried again"));
        let next = self.stack.reopen(merged);
        let tree = next.tree();
        super::assert_same(
            &tree,
            &ends.new.settled(),
            &format!("{what}, tried again, reopened"),
        );
        assert_eq!(
            self.index(),
            ends.index[1],
            "{what}, tried again, the index"
        );
    }

    pub fn index(&self) -> Vec<String> {
        self.stack.work().names("index").unwrap()
    }

    /// What stands in the work directory.
    pub fn left_over(&self) -> Vec<String> {
        self.stack.work().names("work").unwrap()
    }

    /// The index of hard links holds what it should, once it was swept at the start of a union.
    pub fn check_index(&self, ends: &Ends, at: End, what: &str) {
        let got = self.index();
        let fits = match at {
            // The entry of a copy that has no name yet changes nothing for users.
            End::Old => ends.index.contains(&got),
            End::New => got == ends.index[1],
            End::Also(_) => true,
        };
        assert!(fits, "{what}, the index: {got:?} of {:?}", ends.index);
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        fault::disarm();
        fault::lack(&[]);
    }
}

/// Which of the trees it is; a panic with all of them if none.
pub fn which(got: &Tree, allowed: &[(End, &Tree)], what: &str) -> End {
    if let Some((end, _)) = allowed.iter().find(|(_, tree)| *tree == got) {
        return *end;
    }
    let mut text = String::new();
    for (end, tree) in allowed {
        text += &format!("{end:?}:\n{}", tree.against(got));
    }
    let got = difference(got, allowed[0].1).unwrap_or_default();
    panic!("{what}: none of the trees that may be\n{got}{text}");
}

/// Does all the jobs, on as many threads as there are processors; then says which failed.
pub fn spread<T: Sync>(jobs: &[T], name: impl Fn(&T) -> String + Sync, work: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    super::at_once((0..threads).map(|_| {
        || {
            while let Some(job) = jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
            {
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(job)));
                if done.is_err() {
                    failed.lock().unwrap().push(name(job));
                }
            }
        }
    }));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
}
