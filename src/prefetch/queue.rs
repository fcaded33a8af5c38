//! Which file comes next.
//!
//! When many in a row were in the layer's cache already, it is likely that all are. Then only some are tried;
//! if one of them was not, those that were passed over before it are fetched after all.
//!
//! The row is that of their beginnings. One that has to be fetched is long on its way, and others that are there
//! come in meanwhile: they say nothing of it.

use std::collections::HashSet;

/// So many in a row are warm before files are passed over.
const WARM: usize = 64;
/// Of so many one is tried then. A prime, or what is cold in a rhythm might never be met.
const STRIDE: usize = 7;
/// One that so many were begun after is probably not warm. More than readers begin while one reads.
const OVERTAKEN: usize = 16;

/// The numbers from 0 to a length, each at most once.
#[derive(Debug)]
pub struct Queue {
    len: usize,
    next: usize,
    /// How many were begun.
    begun: usize,
    /// The first of these that may be one of a row of warm ones.
    row: usize,
    /// Those on their way, in the order of their beginnings, which are counted.
    running: Vec<(usize, usize)>,
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
            begun: 0,
            row: 0,
            running: Vec::new(),
            again: Vec::new(),
            tried: HashSet::new(),
        }
    }

    /// The one to fetch now.
    pub fn next(&mut self) -> Option<usize> {
        if let Some(at) = self.again.pop() {
            return Some(self.begin(at));
        }
        let oldest = self
            .running
            .first()
            .map_or(self.begun, |(number, _)| *number);
        let passes = oldest.saturating_sub(self.row) >= WARM && self.begun - oldest < OVERTAKEN;
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
        Some(self.begin(at))
    }

    fn begin(&mut self, at: usize) -> usize {
        self.running.push((self.begun, at));
        self.begun += 1;
        at
    }

    /// It is there: whether it was already. None: nobody has looked, as if it had not been begun.
    pub fn was(&mut self, at: usize, warm: Option<bool>) {
        let tried = self.tried.remove(&at);
        let Some(place) = self.running.iter().position(|(_, of)| *of == at) else {
            return;
        };
        let (number, _) = self.running.remove(place);
        match warm {
            Some(true) => {}
            Some(false) => {
                if tried {
                    let first = (at + 1).saturating_sub(STRIDE);
                    self.again.extend((first..at).rev());
                }
                self.row = self.row.max(number + 1);
            }
            None => {
                let later = self.running.iter_mut().skip(place);
                later.for_each(|(number, _)| *number -= 1);
                self.begun -= 1;
                self.row -= usize::from(self.row > number);
            }
        }
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
            queue.was(at, Some(!cold(at)));
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
    fn none_is_passed_over_while_some_here_and_there_are_cold() {
        for one_in in [2, 10, WARM] {
            let tried = run(1000, |at| at % one_in == one_in - 1);
            assert_eq!(tried, (0..1000).collect::<Vec<_>>(), "one in {one_in}");
        }
    }

    #[test]
    fn what_nobody_has_looked_at_says_nothing() {
        let mut queue = Queue::new(1000);
        for n in 0..500 {
            // Every other one is still on its way when the next one is begun.
            let one = queue.next();
            let two = queue.next();
            assert_eq!((one, two), (Some(2 * n), Some(2 * n + 1)));
            let cold = n == 10;
            queue.was(2 * n, (n % 50 == 10).then_some(!cold));
            queue.was(2 * n + 1, None);
        }
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
            queue.was(at, Some(at < 100));
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

    /// Those that so many readers pass over; what is cold takes as long as 500 that are warm.
    fn passed_over(readers: usize, len: usize, cold: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut queue = Queue::new(len);
        let mut left: HashSet<usize> = (0..len).collect();
        let mut begun = std::collections::BTreeSet::new();
        let mut now = 0;
        loop {
            while begun.len() < readers
                && let Some(at) = queue.next()
            {
                left.remove(&at);
                begun.insert((now + if cold(at) { 500 } else { 1 }, at));
            }
            let Some((end, at)) = begun.pop_first() else {
                break;
            };
            now = end;
            queue.was(at, Some(!cold(at)));
        }
        let mut left: Vec<usize> = left.into_iter().filter(|at| cold(*at)).collect();
        left.sort_unstable();
        left
    }

    #[test]
    fn none_is_passed_over_while_others_are_on_their_way() {
        for readers in [1, 8, 16] {
            for one_in in [2, 10, 50] {
                let passed = passed_over(readers, 3000, |at| at % one_in == one_in - 1);
                assert!(
                    passed.is_empty(),
                    "{readers} readers, one in {one_in}: {passed:?}"
                );
            }
        }
    }

    /// Until one of those that are tried is seen to be cold.
    #[test]
    fn few_are_passed_over_where_all_were_warm_before() {
        for readers in [1, 8, 16] {
            let passed = passed_over(readers, 4000, |at| at >= 1000 && at % 10 == 9);
            assert!(passed.len() < 20, "{readers} readers: {passed:?}");
        }
    }
}
