//! Which file comes next.
//!
//! When many in a row were in the layer's cache already, it is likely that all are. Then only some are tried;
//! if one of them was not, those that were passed over before it are fetched after all.

use std::collections::HashSet;

/// So many in a row are warm before files are passed over.
const WARM: usize = 64;
/// Of so many one is tried then.
const STRIDE: usize = 8;

/// The numbers from 0 to a length, each at most once.
#[derive(Debug)]
pub struct Queue {
    len: usize,
    next: usize,
    warm: usize,
    again: Vec<usize>,
    /// Those that are being tried, before which others were passed over.
    tried: HashSet<usize>,
}

impl Queue {
    /// So many.
    pub fn new(len: usize) -> Queue {
        Queue {
            len,
            next: 0,
            warm: 0,
            again: Vec::new(),
            tried: HashSet::new(),
        }
    }

    /// The one to fetch now.
    pub fn next(&mut self) -> Option<usize> {
        if let Some(at) = self.again.pop() {
            return Some(at);
        }
        let passes = self.warm >= WARM;
        if passes {
            self.next += STRIDE - 1;
        }
        let at = self.next;
        self.next += 1;
        if at >= self.len {
            return None;
        }
        if passes {
            self.tried.insert(at);
        }
        Some(at)
    }

    /// It is there: whether it was already.
    pub fn was(&mut self, at: usize, warm: bool) {
        let tried = self.tried.remove(&at);
        if warm {
            self.warm += 1;
            return;
        }
        if tried {
            let first = (at + 1).saturating_sub(STRIDE);
            self.again.extend((first..at).rev());
        }
        self.warm = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that are fetched if `cold` says which are cold.
    fn run(len: usize, cold: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut queue = Queue::new(len);
        let mut all = Vec::new();
        while let Some(at) = queue.next() {
            all.push(at);
            queue.was(at, !cold(at));
        }
        all
    }

    #[test]
    fn all_that_are_cold_are_fetched_in_their_order() {
        assert_eq!(run(300, |_| true), (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn few_of_many_that_are_warm_are_tried() {
        let tried = run(1000, |_| false);
        assert_eq!(tried.len(), WARM + (1000 - WARM) / STRIDE);
    }

    #[test]
    fn it_is_so_with_several_readers() {
        let mut queue = Queue::new(400);
        let mut fetched = 0;
        let mut begun = std::collections::VecDeque::new();
        loop {
            while begun.len() < 8
                && let Some(at) = queue.next()
            {
                begun.push_back(at);
                fetched += usize::from(at >= 100);
            }
            let Some(at) = begun.pop_front() else { break };
            queue.was(at, at < 100);
        }
        assert_eq!(fetched, 300);
    }

    #[test]
    fn what_was_passed_over_before_a_cold_one_is_fetched_after_all() {
        for begin in [100, 101, 107, 108] {
            let mut tried = run(400, |at| at >= begin);
            tried.sort_unstable();
            tried.dedup();
            let cold = tried.iter().filter(|at| **at >= begin).count();
            assert_eq!(cold, 400 - begin);
        }
    }
}
