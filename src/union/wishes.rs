//! Whether those who list directories want attributes with the names.
//!
//! A name costs its layer nothing more where the listing tells all, attributes cost a request each. But
//! who wants them and was not given them asks for each name by a lookup. So it is watched how many of
//! the names that are handed out alone are looked up right afterwards, as `ls -l` does and `find` does not.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::api::Ino;

/// So many names are remembered beside those of the last listing; older ones count for less and less.
const WINDOW: u32 = 64;
/// Fewer names say nothing.
const FEW: u32 = 8;
/// After so many directories with attributes at most, one is given without: whether they are still wanted.
const RUN: u32 = 16;
/// Lookups tell of the last listings only.
const RECENT: u32 = 16;

/// The moment of a listing; 0 before the first.
pub type Moment = u32;

/// A shorter listing is not worth a second one.
const LONG: u32 = 256;
/// Of a long one, so many lookups tell that the rest is wanted too: a part of it, within these bounds.
const PART: u32 = 64;
const PART_WITHIN: (u32, u32) = (64, 1024);

/// Whether a listing of `names` without attributes has been one too many, now that `wanted` of them were looked up.
/// True once.
pub fn ends_listing(names: u32, wanted: u32) -> bool {
    let (least, most) = PART_WITHIN;
    names >= LONG && wanted == (names / PART).clamp(least, most)
}

#[derive(Debug, Default)]
pub struct Wishes {
    seen: Mutex<Seen>,
    ended: Mutex<Vec<Ino>>,
    /// There is something in `ended`.
    have_ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    /// Names that were handed out alone.
    names: u32,
    /// Those of them that were looked up.
    wanted: u32,
    /// Directories in a row to be given with attributes, twice as many each time that they prove to be
    /// wanted; 0 if they are not.
    run: u32,
    /// Of those, the ones still to come.
    left: u32,
    /// The directory after them was given without.
    tried: bool,
    now: Moment,
}

impl Wishes {
    /// Some names of a directory are handed out alone.
    pub fn listed(&self, names: u32) -> Moment {
        let mut seen = self.seen.lock();
        // The last listing counts in full, as its lookups are still to come.
        while seen.names > WINDOW {
            seen.names /= 2;
            seen.wanted /= 2;
        }
        seen.names = seen.names.saturating_add(names);
        seen.now = seen.now.wrapping_add(1).max(1);
        seen.now
    }

    /// A name of such a directory, which was listed at that moment, is looked up.
    pub fn looked_up(&self, listed: Moment) {
        let mut seen = self.seen.lock();
        if listed != 0 && seen.now.wrapping_sub(listed) < RECENT {
            seen.wanted = seen.names.min(seen.wanted + 1);
        }
    }

    /// The kernel should forget the listing of this directory.
    pub fn end_listing(&self, dir: Ino) {
        self.ended.lock().push(dir);
        self.have_ended.store(true, Ordering::Release);
    }

    /// Those of [`end_listing`](Self::end_listing) since it was asked last.
    pub fn ended_listings(&self) -> Vec<Ino> {
        match self.have_ended.load(Ordering::Acquire) {
            true => {
                self.have_ended.store(false, Ordering::Relaxed);
                std::mem::take(&mut *self.ended.lock())
            }
            false => Vec::new(),
        }
    }

    /// Whether to give attributes with the names of the next directory.
    pub fn attributes(&self) -> bool {
        let mut seen = self.seen.lock();
        if seen.left > 0 {
            seen.left -= 1;
            return true;
        }
        if seen.run > 0 && !seen.tried {
            seen.tried = true;
            return false;
        }
        seen.tried = false;
        if seen.names < FEW || seen.wanted < seen.names - seen.names / 4 {
            seen.run = 0;
            return false;
        }
        seen.run = (seen.run * 2).clamp(1, RUN);
        seen.left = seen.run - 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists a directory; says whether it was given with attributes.
    fn list(wishes: &Wishes, names: u32, wanted: u32) -> bool {
        if wishes.attributes() {
            return true;
        }
        let moment = wishes.listed(names);
        (0..wanted).for_each(|_| wishes.looked_up(moment));
        false
    }

    fn given(wishes: &Wishes, directories: u32, wanted: u32) -> usize {
        let list = |_| list(wishes, 20, wanted);
        (0..directories).map(list).filter(|given| *given).count()
    }

    #[test]
    fn attributes_are_given_to_those_who_want_them() {
        let wishes = Wishes::default();
        assert_eq!(given(&wishes, 100, 0), 0, "find");
        assert_eq!(given(&wishes, 100, 3), 0, "a program that opens a few");
        assert!(
            !list(&wishes, 1000, 400) && !list(&wishes, 1000, 400),
            "of many"
        );
        assert!(given(&wishes, 100, 20) > 80, "ls -l");
        assert!(given(&wishes, 100, 0) <= 2 * RUN as usize, "find");
        assert_eq!(given(&wishes, 100, 0), 0, "find");
    }

    #[test]
    fn a_long_listing_ends_once_when_much_of_it_is_wanted() {
        let ends = |names| {
            let wanted: Vec<u32> = (1..=names).filter(|n| ends_listing(names, *n)).collect();
            wanted
        };
        assert!(ends(0).is_empty() && ends(LONG - 1).is_empty());
        assert_eq!(
            [ends(LONG), ends(20_000), ends(200_000)],
            [[64], [312], [1024]]
        );
        let wishes = Wishes::default();
        assert!(wishes.ended_listings().is_empty());
        wishes.end_listing(5);
        wishes.end_listing(6);
        assert_eq!(wishes.ended_listings(), [5, 6]);
        assert!(wishes.ended_listings().is_empty());
    }

    /// A few names that are wanted again and again tell nothing of others.
    #[test]
    fn no_more_names_are_wanted_than_there_are() {
        let wishes = Wishes::default();
        assert!(!list(&wishes, FEW, 100 * FEW));
        assert!(!list(&Wishes::default(), FEW - 1, FEW - 1), "too few");
        let moment = wishes.listed(4 * FEW);
        assert!(!wishes.attributes());
        (0..4 * FEW).for_each(|_| wishes.looked_up(moment));
        assert!(wishes.attributes());
    }

    #[test]
    fn what_is_looked_up_long_afterwards_says_nothing() {
        let wishes = Wishes::default();
        let moment = wishes.listed(20);
        for _ in 0..RECENT {
            wishes.listed(0);
        }
        (0..20).for_each(|_| wishes.looked_up(moment));
        assert!(!wishes.attributes());
    }
}
