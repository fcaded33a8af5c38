//! Fails the first system call of an operation, then the second, until none is left to fail. After
//! each, users see the tree as it was or as it was to become, and so does the next mount.

use cvmfs_union::sys::fault;
use cvmfs_union::union::api::Whiteouts;

use super::fs::{Fs, Res, Tree, difference};
use super::{Merged, Stack};

/// EINVAL is what file systems answer that lack a feature, so it leads to the fallbacks. To an
/// ordinary user it also says that there is no such owner, and the copy lacks set-id bits for good.
fn errnos() -> &'static [i32] {
    if super::is_root() {
        &[libc::EIO, libc::EINVAL]
    } else {
        &[libc::EIO]
    }
}

/// Far more calls than any operation makes.
const MANY: u32 = 2000;

/// An operation, and what it is done to.
pub struct Case<'a> {
    pub lowers: usize,
    pub build: &'a dyn Fn(&Stack),
    pub prepare: &'a dyn Fn(&Merged),
    pub act: &'a dyn Fn(&Merged) -> Res<()>,
    pub live: Live,
}

/// What the union that failed must show afterwards.
#[derive(Clone, Copy, Debug)]
pub enum Live {
    OldOrNew,
    /// What is on the disk, so that the operation can be tried again.
    SameAsNext,
}

impl Case<'_> {
    /// In both dialects, with the union that was prepared and with one that begins anew.
    pub fn check(&self) {
        for whiteouts in [Whiteouts::Auto, Whiteouts::Wh] {
            let stack = Stack::with(self.lowers, whiteouts);
            (self.build)(&stack);
            for cold in [false, true] {
                let (old, new) = self.ends(&stack, cold);
                for errno in errnos() {
                    let struck = (1..MANY).take_while(|n| {
                        let what =
                            format!("{whiteouts:?} cold={cold} call {n} failed with {errno}");
                        self.fail(&stack, cold, (*n, *errno), (&old, &new), &what)
                    });
                    assert!(struck.count() > 0, "the operation makes no system call");
                }
            }
        }
    }

    fn start(&self, stack: &Stack, cold: bool) -> Merged {
        stack.reset();
        let merged = stack.mount();
        (self.prepare)(&merged);
        if cold {
            stack.reopen(merged)
        } else {
            merged.tree();
            merged
        }
    }

    /// The tree before and after the operation.
    fn ends(&self, stack: &Stack, cold: bool) -> (Tree, Tree) {
        let old = self.start(stack, cold).tree();
        let merged = self.start(stack, cold);
        (self.act)(&merged).unwrap();
        let new = merged.tree();
        super::assert_same(
            &stack.reopen(merged).tree(),
            &new,
            "without a fault, reopened",
        );
        (old, new)
    }

    /// False if there was no such call.
    fn fail(
        &self,
        stack: &Stack,
        cold: bool,
        (n, errno): (u32, i32),
        ends: (&Tree, &Tree),
        what: &str,
    ) -> bool {
        let merged = self.start(stack, cold);
        fault::fail_nth(n, errno);
        let result = (self.act)(&merged);
        let struck = !fault::disarm();
        let what = format!("{what}, returned {result:?}");
        let live = merged
            .try_tree()
            .unwrap_or_else(|e| panic!("{what}, afterwards: {e}"));
        let next = stack.reopen(merged);
        let tree = next
            .try_tree()
            .unwrap_or_else(|e| panic!("{what}, reopened: {e}"));
        let is_new = one_of(&tree, ends, &format!("{what}, reopened"));
        assert!(is_new || result.is_err(), "{what}, and nothing was done");
        match self.live {
            Live::OldOrNew => drop(one_of(&live, ends, &what)),
            Live::SameAsNext => super::assert_same(&live, &tree, &format!("{what}, not reopened")),
        }
        assert_eq!(
            stack.work().names("work").unwrap(),
            [""; 0],
            "{what}, left in the work directory"
        );
        struck
    }
}

/// Whether it is the new tree.
fn one_of(got: &Tree, (old, new): (&Tree, &Tree), what: &str) -> bool {
    if got == old {
        return old == new;
    }
    if let Some(text) = difference(got, new) {
        panic!(
            "{what}: neither the old tree nor the new one\n{text}old:\n{}",
            old.against(got)
        );
    }
    true
}
