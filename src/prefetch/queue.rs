//! Which file comes next.
//!
//! When many in a row were in the layer's cache already, it is likely that all are. Then only some are tried;
//! if one of them was not, those that were passed over before it are fetched after all.
//!
//! The row is that of their beginnings. One that has to be fetched is long on its way, and others that are there
//! come in meanwhile: they say nothing of it.

use std::collections::HashSet;
use std::time::Instant;

/// So many in a row are warm before files are passed over.
const WARM: usize = 64;
/// Of so many one is tried then. A prime, or what is cold in a rhythm might never be met.
const STRIDE: usize = 7;
/// One that so many were begun after is probably not warm. More than readers begin while one reads.
const OVERTAKEN: usize = 16;
/// After so many in a row that seem not to be warm, only one of so many is made sure of.
const COLD: usize = 16;

/// The numbers from 0 to a length, each at most once.
#[derive(Debug)]
pub struct Queue {
    len: usize,
    next: usize,
    /// How many were begun.
    begun: usize,
    /// The first of these that may be one of a row of warm ones.
    row: usize,
    /// Those on their way, in the order of their beginnings.
    running: Vec<Running>,
    again: Vec<usize>,
    /// Those that are being tried, before which others were passed over.
    tried: HashSet<usize>,
    /// So many in a row were not warm.
    cold: usize,
}

/// One that is on its way.
#[derive(Debug)]
struct Running {
    /// So many had begun before it.
    number: usize,
    at: usize,
    since: Instant,
    /// Whether [`Queue::overtaken`] has named it.
    named: bool,
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
            cold: COLD,
        }
    }

    /// Whether it is worth to make sure of one that seems not to be warm.
    pub fn is_doubtful(&self) -> bool {
        self.cold < COLD || self.cold.is_multiple_of(COLD)
    }

    /// One on its way, and since when, of which it is worth to know whether it is fetched: nothing is passed over
    /// as it has been overtaken by others. Each is named once.
    pub fn overtaken(&mut self) -> Option<(usize, Instant)> {
        let oldest = self.running.first_mut()?;
        let row = oldest.number.saturating_sub(self.row) >= WARM;
        let overtaken = self.begun - oldest.number >= OVERTAKEN;
        if !row || !overtaken || oldest.named {
            return None;
        }
        oldest.named = true;
        Some((oldest.at, oldest.since))
    }

    /// One on its way is known to be there already, whatever it waits for.
    pub fn was_there(&mut self, at: usize) {
        self.running.retain(|running| running.at != at);
    }

    /// The one to fetch now.
    pub fn next(&mut self) -> Option<usize> {
        if let Some(at) = self.again.pop() {
            return Some(self.begin(at));
        }
        let oldest = self
            .running
            .first()
            .map_or(self.begun, |oldest| oldest.number);
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
        self.running.push(Running {
            number: self.begun,
            at,
            since: Instant::now(),
            named: false,
        });
        self.begun += 1;
        at
    }

    /// It is there: whether it was already. None: nobody has looked, as if it had not been begun.
    pub fn was(&mut self, at: usize, warm: Option<bool>) {
        if self.tried.remove(&at) && warm == Some(false) {
            let first = (at + 1).saturating_sub(STRIDE);
            self.again.extend((first..at).rev());
        }
        let Some(place) = self.running.iter().position(|of| of.at == at) else {
            return;
        };
        let number = self.running.remove(place).number;
        match warm {
            Some(warm) => {
                self.cold = if warm { 0 } else { self.cold + 1 };
                if !warm {
                    self.row = self.row.max(number + 1);
                }
            }
            None => {
                let later = self.running.iter_mut().skip(place);
                later.for_each(|of| of.number -= 1);
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
    fn where_nothing_is_warm_few_are_doubted() {
        let mut queue = Queue::new(100);
        let mut doubted = |len: usize, warm: Option<bool>| {
            let doubted = (0..len).filter(|_| {
                let at = queue.next().unwrap_or_default();
                let doubtful = queue.is_doubtful();
                queue.was(at, warm);
                doubtful
            });
            doubted.count()
        };
        assert_eq!(doubted(48, Some(false)), 3, "from the first on");
        assert_eq!(doubted(10, None), 10, "not told yet");
        assert_eq!(doubted(2, Some(true)), 2);
        assert_eq!(doubted(20, Some(false)), COLD + 1);
    }

    /// Goes on with others while the first is on its way: those that are begun, and those that were named.
    fn overtake(queue: &mut Queue, others: usize) -> (Vec<usize>, Vec<usize>) {
        let mut named = Vec::new();
        let mut begun = Vec::new();
        for _ in 0..others {
            let at = queue.next().unwrap_or_default();
            begun.push(at);
            queue.was(at, Some(true));
            named.extend(queue.overtaken().map(|(at, _)| at));
        }
        (begun, named)
    }

    #[test]
    fn one_that_waits_for_something_else_stands_in_nobodys_way() {
        for known in [true, false] {
            let mut queue = Queue::new(1000);
            overtake(&mut queue, 2 * WARM);
            let slow = queue.next().unwrap_or_default();
            let (begun, named) = overtake(&mut queue, 100);
            assert_eq!(named, [slow], "once");
            let last = begun.last().copied().unwrap_or_default();
            if known {
                queue.was_there(slow);
            }
            let (begun, _) = overtake(&mut queue, 3);
            let stride = if known { STRIDE } else { 1 };
            assert_eq!(begun, [1, 2, 3].map(|n| last + n * stride));
            // What was passed over before it is fetched if it was not there after all.
            queue.was(slow, Some(false));
            let again = overtake(&mut queue, STRIDE - 1).0;
            let before: Vec<usize> = (slow + 1 - STRIDE..slow).collect();
            assert_eq!(again, before, "{known}");
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
