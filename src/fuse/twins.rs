//! Files that the kernel knows by two numbers.
//!
//! What reads a file of a layer past us goes on with the layer's data, whatever becomes of the file. So a file
//! that is open so, and is opened to be written, becomes a second inode of the kernel, its *twin*. Whoever
//! comes by the file's own number then is told ESTALE, which has the kernel look the path up once more, and only once, and
//! find the twin; the descriptors from before keep the inode that they have. The union knows one object all the time.
//!
//! A file gets a twin once: after that it is handed out no more. It is known by its own number again when the kernel
//! has forgotten the twin. So who has looked it up again is never sent a second time.

use std::collections::{HashMap, HashSet};

use crate::hash::Numbers;
use crate::union::api::Ino;

/// Set in the number of a twin; no object has it in its own.
const TWIN: u64 = 1 << 63;

/// A number by which the kernel knows a file: its own, or that of a twin.
pub type NodeId = u64;

/// A thread, as the kernel numbers those who ask.
pub type Thread = u32;

/// Who is of another namespace of process numbers.
const UNKNOWN: Thread = 0;

/// How one is turned away who comes by a number that the file is not opened by at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// Look the path up again.
    LookAgain,
    /// It has come again without doing so, as it has no path: by a link in `/proc`.
    NoPath,
}

/// The twins, and the files that have one.
#[derive(Debug, Default)]
pub struct Twins {
    last: u64,
    known: HashMap<NodeId, Twin, Numbers>,
    /// The files that are known by a twin at the moment.
    split: HashMap<Ino, Split, Numbers>,
    /// Files that have or had a twin.
    written: HashSet<Ino, Numbers>,
    /// Those of them of which the kernel may keep old data by their own numbers.
    outdated: HashSet<Ino, Numbers>,
}

#[derive(Debug)]
struct Twin {
    of: Ino,
    /// How often the kernel looked it up.
    lookups: u64,
}

#[derive(Debug)]
struct Split {
    twin: NodeId,
    /// Who was told to look again, and has not yet.
    sent: Option<Thread>,
}

impl Twins {
    /// Whether the kernel knows of none.
    pub fn are_none(&self) -> bool {
        self.known.is_empty() && self.split.is_empty()
    }

    /// The file that the kernel means.
    pub fn object(&self, node: NodeId) -> Ino {
        match node & TWIN {
            0 => node,
            _ => self.known.get(&node).map_or(node, |twin| twin.of),
        }
    }

    /// The number that the file is opened by at the moment.
    pub fn current(&self, ino: Ino) -> NodeId {
        self.split.get(&ino).map_or(ino, |split| split.twin)
    }

    /// Whether what is told of a file holds only for the moment, as it has, or is, a second inode.
    pub fn is_passing(&self, node: NodeId) -> bool {
        node & TWIN != 0 || self.split.contains_key(&node)
    }

    /// The file is known by a twin from now on.
    pub fn split(&mut self, ino: Ino) {
        self.last += 1;
        let twin = TWIN | self.last;
        self.known.insert(
            twin,
            Twin {
                of: ino,
                lookups: 0,
            },
        );
        self.split.insert(ino, Split { twin, sent: None });
        self.written.insert(ino);
    }

    /// How to turn away who comes by a number that the file is not opened by.
    pub fn turn_away(&mut self, ino: Ino, who: Thread) -> Away {
        let Some(split) = self.split.get_mut(&ino) else {
            return Away::LookAgain;
        };
        if split.sent.take() == Some(who) && who != UNKNOWN {
            return Away::NoPath;
        }
        split.sent = Some(who);
        Away::LookAgain
    }

    /// Whether the file has or had a twin, so that nothing of its layer may be handed out.
    pub fn was_split(&self, ino: Ino) -> bool {
        self.written.contains(&ino)
    }

    /// The file was looked up, and that is counted. The number for the answer.
    pub fn looked_up(&mut self, ino: Ino) -> NodeId {
        let Some(split) = self.split.get_mut(&ino) else {
            return ino;
        };
        split.sent = None;
        if let Some(twin) = self.known.get_mut(&split.twin) {
            twin.lookups += 1;
        }
        split.twin
    }

    /// The kernel has forgotten so many lookups of the number. The file that they were of. `is_open`: by a number.
    ///
    /// It does so at once when it has looked a path up again and found that to be another: the twin will be wanted.
    pub fn forget(&mut self, node: NodeId, lookups: u64, is_open: impl Fn(NodeId) -> bool) -> Ino {
        let Some(twin) = self.known.get_mut(&node) else {
            return node;
        };
        let ino = twin.of;
        twin.lookups = twin.lookups.saturating_sub(lookups);
        self.rejoin(ino, is_open);
        ino
    }

    /// Sees whether the file is to be known by its own number again: the kernel does not know the twin, and it is not
    /// open by either.
    pub fn rejoin(&mut self, ino: Ino, is_open: impl Fn(NodeId) -> bool) {
        let node = self.current(ino);
        let unknown = self.known.get(&node).is_some_and(|twin| twin.lookups == 0);
        if unknown && !is_open(ino) && !is_open(node) {
            self.known.remove(&node);
            self.split.remove(&ino);
            self.outdated.insert(ino);
        }
    }

    /// Whether the kernel has to let go of what it keeps of the file's data by this number. Asked when that is
    /// opened by it through the page cache.
    pub fn is_outdated(&mut self, node: NodeId) -> bool {
        self.outdated.remove(&node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = 7;
    const ME: Thread = 1;
    const YOU: Thread = 2;

    fn open(_: NodeId) -> bool {
        true
    }

    fn closed(_: NodeId) -> bool {
        false
    }

    #[test]
    fn a_file_has_its_own_number_unless_it_was_split() {
        let mut twins = Twins::default();
        assert_eq!(twins.looked_up(FILE), FILE);
        assert_eq!(twins.forget(FILE, 3, closed), FILE);
        assert!(twins.are_none() && !twins.is_passing(FILE) && !twins.was_split(FILE));
        twins.split(FILE);
        let twin = twins.looked_up(FILE);
        assert_ne!(twin, FILE);
        assert_eq!((twins.current(FILE), twins.object(twin)), (twin, FILE));
        assert!(twins.is_passing(FILE) && twins.is_passing(twin) && twins.was_split(FILE));
        assert!(!twins.is_passing(FILE + 1));
        assert_eq!(twins.current(FILE + 1), FILE + 1);
    }

    #[test]
    fn who_has_no_path_is_known_by_coming_again() {
        let mut twins = Twins::default();
        twins.split(FILE);
        assert_eq!(twins.turn_away(FILE, ME), Away::LookAgain);
        assert_eq!(twins.turn_away(FILE, YOU), Away::LookAgain);
        assert_eq!(twins.turn_away(FILE, YOU), Away::NoPath);
        // The next time it may have a path.
        assert_eq!(twins.turn_away(FILE, YOU), Away::LookAgain);
        twins.looked_up(FILE);
        assert_eq!(twins.turn_away(FILE, YOU), Away::LookAgain);
        // They may be two.
        assert_eq!(twins.turn_away(FILE, UNKNOWN), Away::LookAgain);
        assert_eq!(twins.turn_away(FILE, UNKNOWN), Away::LookAgain);
    }

    /// Bug: the kernel forgets the twin when it finds that a path leads to it, and looks it up once more then.
    #[test]
    fn a_twin_stays_until_it_is_forgotten_and_the_file_is_closed() {
        let mut twins = Twins::default();
        twins.split(FILE);
        let twin = twins.looked_up(FILE);
        for still in [twin, FILE] {
            assert_eq!(twins.forget(twin, 1, |node| node == still), FILE);
            assert_eq!(twins.looked_up(FILE), twin);
        }
        // Nor does it end while somebody may be about to open it.
        twins.rejoin(FILE, closed);
        assert_eq!(twins.current(FILE), twin);
        assert!(!twins.is_outdated(FILE));
        assert_eq!(twins.forget(twin, 1, open), FILE);
        twins.rejoin(FILE, closed);
        assert_eq!(twins.current(FILE), FILE);
        assert!(twins.are_none() && twins.was_split(FILE));
        assert!(twins.is_outdated(FILE));
        assert!(!twins.is_outdated(FILE), "it was let go");
    }

    /// Nobody has looked it up.
    #[test]
    fn a_twin_that_nobody_knows_ends_with_the_readers() {
        let mut twins = Twins::default();
        twins.split(FILE);
        twins.rejoin(FILE, closed);
        assert!(twins.are_none());
        assert_eq!(twins.looked_up(FILE), FILE);
    }
}
