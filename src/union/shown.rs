//! What users are shown otherwise than it is stored: owners, link counts of directories, ACLs.
//!
//! Owners are mapped at the edge of the union alone: what it reads, compares and copies is as stored.

use super::api::{Caller, Kind, SetAttr};
use crate::error::{Error, Result};
use crate::layer::overrides::Overrides;

/// Whom an object without a shown owner seems to belong to, as in the kernel's user namespaces.
const NOBODY: u32 = 65534;

/// The differences; by default there are none.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Of owners.
    pub uids: IdMap,
    /// Of groups.
    pub gids: IdMap,
    /// Directories have a link count of 1, which needs no listing of them.
    pub static_nlink: bool,
    /// Where the upper keeps owners and modes beside its files, if it does.
    pub beside: Option<Overrides>,
    /// There are no POSIX ACLs; to set one is EOPNOTSUPP.
    pub no_acls: bool,
}

/// Ids from `stored` on are shown as those from `shown` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id in the layers and in the upper.
    pub stored: u32,
    /// The first id that users see and set.
    pub shown: u32,
    /// How many.
    pub count: u32,
}

/// How ids are shown, and stored when users set them.
#[derive(Clone, Debug, Default)]
pub struct IdMap {
    /// The first range that has an id counts; without ranges each id stands for itself.
    pub ranges: Vec<IdRange>,
    /// All ids are shown as this one. Those that users set are stored none the less.
    pub squash: Option<u32>,
}

fn within(id: u32, first: u32, count: u32) -> Option<u32> {
    id.checked_sub(first).filter(|offset| *offset < count)
}

impl IdMap {
    /// What users see; 65534 where no range has the id.
    pub fn shown(&self, id: u32) -> u32 {
        match self.squash {
            Some(all) => all,
            None if self.ranges.is_empty() => id,
            None => {
                let of = |r: &IdRange| r.shown.checked_add(within(id, r.stored, r.count)?);
                self.ranges.iter().find_map(of).unwrap_or(NOBODY)
            }
        }
    }

    /// What is stored for an id of users; None where no range has it.
    pub fn stored(&self, id: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        let of = |r: &IdRange| r.stored.checked_add(within(id, r.shown, r.count)?);
        self.ranges.iter().find_map(of)
    }

    /// Whether this stored id is what the id that it is shown as stands for.
    fn is_exact(&self, id: u32) -> bool {
        self.stored(self.shown(id)) == Some(id)
    }

    fn is_identity(&self) -> bool {
        self.ranges.is_empty() && self.squash.is_none()
    }
}

impl Shown {
    /// Whether all owners are shown as they are stored.
    pub(super) fn owners_are_stored(&self) -> bool {
        self.uids.is_identity() && self.gids.is_identity()
    }

    /// What a caller may change of owner and mode of an object whose stored owner and group are these. The kernel goes by the
    /// shown ones: it lets one who is only shown as the owner set bits by which a program runs as the stored
    /// one, and takes the user 65534 for the owner of what has no shown one, which is EPERM.
    pub(super) fn permitted(
        &self,
        caller: &Caller,
        kind: Kind,
        set: &SetAttr,
        (uid, gid): (u32, u32),
    ) -> Result<SetAttr> {
        let is_nobodys = self.uids.shown(uid) == NOBODY && !self.uids.is_exact(uid);
        if caller.uid == NOBODY && is_nobodys {
            return Err(Error::new(libc::EPERM, "owner outside of the mapping"));
        }
        let mut lost = 0;
        if caller.uid != 0 && kind != Kind::Dir {
            if !self.uids.is_exact(set.uid.unwrap_or(uid)) {
                lost |= libc::S_ISUID;
            }
            if !self.gids.is_exact(set.gid.unwrap_or(gid)) {
                lost |= libc::S_ISGID;
            }
        }
        Ok(SetAttr {
            mode: set.mode.map(|mode| mode & !lost),
            ..*set
        })
    }

    /// The owner and group to store for what a caller makes. EOVERFLOW, as in a user namespace, where
    /// they have no stored ones.
    pub(super) fn maker(&self, caller: &Caller) -> Result<(u32, u32)> {
        let ids = self
            .uids
            .stored(caller.uid)
            .zip(self.gids.stored(caller.gid));
        ids.ok_or_else(|| Error::new(libc::EOVERFLOW, "owner outside of the mapping"))
    }

    /// A change with the ids as they are to be stored. EINVAL where there are none.
    pub(super) fn stored(&self, set: &SetAttr) -> Result<SetAttr> {
        let one = |map: &IdMap, id: Option<u32>| match id {
            None => Ok(None),
            Some(id) => match map.stored(id) {
                None => Err(Error::new(libc::EINVAL, "owner outside of the mapping")),
                stored => Ok(stored),
            },
        };
        Ok(SetAttr {
            uid: one(&self.uids, set.uid)?,
            gid: one(&self.gids, set.gid)?,
            ..*set
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(stored: u32, shown: u32, count: u32) -> IdRange {
        IdRange {
            stored,
            shown,
            count,
        }
    }

    #[test]
    fn nothing_is_changed_by_default() {
        let map = IdMap::default();
        for id in [0, 1000, NOBODY, u32::MAX] {
            assert_eq!((map.shown(id), map.stored(id)), (id, Some(id)));
        }
    }

    #[test]
    fn ranges_go_both_ways() {
        let map = IdMap {
            ranges: vec![range(1000, 0, 1), range(110_000, 1, 65536)],
            squash: None,
        };
        for (stored, shown) in [(1000, 0), (110_000, 1), (175_535, 65536)] {
            assert_eq!(map.shown(stored), shown);
            assert_eq!(map.stored(shown), Some(stored));
        }
        assert_eq!([0, 1001, 175_536].map(|id| map.shown(id)), [NOBODY; 3]);
        assert_eq!(map.stored(65537), None);
    }

    #[test]
    fn ranges_at_the_end_do_not_wrap() {
        let map = IdMap {
            ranges: vec![range(u32::MAX - 1, 5, 10), range(7, u32::MAX, 10)],
            squash: None,
        };
        assert_eq!(map.shown(u32::MAX), 6);
        assert_eq!(map.stored(7), None);
        assert_eq!(map.shown(8), NOBODY);
    }

    #[test]
    fn squashed_ids_are_stored_as_they_are_set() {
        let map = IdMap {
            ranges: Vec::new(),
            squash: Some(5),
        };
        assert_eq!((map.shown(0), map.shown(9), map.stored(9)), (5, 5, Some(9)));
    }
}
