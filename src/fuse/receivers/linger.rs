//! A receiver that has answered looks for the next request a little before it sleeps: whoever got the answer often
//! asks again at once, and to be woken for that takes longer than most requests do. It costs processor time where nobody
//! asks, so who waits in vain a few times does it ever more seldom.

use std::hint;
use std::time::{Duration, Instant};

/// How long it is looked for: what a client takes to be woken, and to ask.
const PATIENCE: Duration = Duration::from_micros(50);
/// How long between two looks, each of which is a system call.
const PAUSE: Duration = Duration::from_micros(2);
/// After so many in vain one in `2^LOSSES` is tried.
const LOSSES: u32 = 6;

/// The waits of a receiver.
#[derive(Debug, Default)]
pub struct Linger {
    /// How many were in vain, one after the other.
    lost: u32,
    /// So many are left out.
    rest: u32,
    won: u64,
}

impl Linger {
    /// Waits until a request is there, or it takes too long.
    pub fn wait(&mut self, is_there: impl FnMut() -> bool) {
        self.wait_for(PATIENCE, is_there);
    }

    /// How many waits have ended with a request.
    pub fn won(&self) -> u64 {
        self.won
    }

    fn wait_for(&mut self, patience: Duration, mut is_there: impl FnMut() -> bool) {
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        if is_there() {
            return;
        }
        let begun = Instant::now();
        let mut next = PAUSE;
        loop {
            let now = begun.elapsed();
            if now >= patience {
                break;
            }
            if now < next {
                hint::spin_loop();
            } else if is_there() {
                self.won += 1;
                self.lost = 0;
                return;
            } else {
                next = now + PAUSE;
            }
        }
        self.lost = (self.lost + 1).min(LOSSES);
        self.rest = (1 << self.lost) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// How often it is looked for in each of so many waits, all in vain.
    fn in_vain(linger: &mut Linger, waits: usize) -> Vec<usize> {
        let one = |_| {
            let mut looks = 0;
            linger.wait_for(Duration::ZERO, || {
                looks += 1;
                false
            });
            looks
        };
        (0..waits).map(one).collect()
    }

    #[test]
    fn it_ends_when_a_request_is_there() {
        let mut linger = Linger::default();
        let mut looks = 0;
        linger.wait_for(LONG, || {
            looks += 1;
            looks == 3
        });
        assert_eq!((looks, linger.won()), (3, 1));
    }

    #[test]
    fn what_is_there_already_was_not_waited_for() {
        let mut linger = Linger::default();
        linger.wait_for(LONG, || true);
        assert_eq!(linger.won(), 0);
    }

    #[test]
    fn who_waits_in_vain_does_so_ever_more_seldom() {
        let mut linger = Linger::default();
        assert_eq!(in_vain(&mut linger, 6), [1, 0, 1, 0, 0, 0]);
        let looks = in_vain(&mut linger, 10_000);
        let tried = looks.iter().sum::<usize>();
        assert!((150..200).contains(&tried), "{tried} of 10,000");
    }

    #[test]
    fn one_that_is_not_in_vain_makes_it_as_before() {
        let mut linger = Linger::default();
        in_vain(&mut linger, 2);
        let mut looks = 0;
        linger.wait_for(LONG, || {
            looks += 1;
            looks > 1
        });
        assert_eq!(linger.won(), 1);
        assert_eq!(in_vain(&mut linger, 2), [1, 0]);
    }
}
