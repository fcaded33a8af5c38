//! One question to many, of whom some may take their time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// So many are asked at a time. The CVMFS client answers ten at a time by default.
const MOST: usize = 16;

/// Asks all, several at a time, and returns the answers in the order of the asked.
pub fn ask<T: Sync, A: Send>(of: &[T], question: impl Fn(&T) -> A + Sync) -> Vec<A> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut answers = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(asked) = of.get(at) else {
                return answers;
            };
            answers.push((at, question(asked)));
        }
    };
    let mut answers = thread::scope(|scope| {
        let helpers: Vec<_> = (1..of.len().min(MOST))
            // Where there can be no more threads, those that are there do it all.
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut answers = work();
        for helper in helpers {
            match helper.join() {
                Ok(more) => answers.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        answers
    });
    answers.sort_unstable_by_key(|(at, _)| *at);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn all_are_asked_once_and_answer_in_their_order() {
        for len in [0, 1, 2, MOST, 100] {
            let of: Vec<usize> = (0..len).collect();
            let asked = AtomicUsize::new(0);
            let answers = ask(&of, |n| {
                asked.fetch_add(1, Ordering::Relaxed);
                n * 2
            });
            assert_eq!(answers, of.iter().map(|n| n * 2).collect::<Vec<_>>());
            assert_eq!(asked.into_inner(), len);
        }
    }

    /// Each thread answers twice, and the second time after all have answered once.
    #[test]
    fn none_waits_for_another() {
        let of: Vec<usize> = (0..2 * MOST).collect();
        let (begun, asked) = (Instant::now(), AtomicUsize::new(0));
        let answers = ask(&of, |n| {
            asked.fetch_add(1, Ordering::Relaxed);
            let met = || asked.load(Ordering::Relaxed) >= MOST * (n / MOST + 1);
            while !met() && begun.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(1));
            }
            met().then_some(*n)
        });
        assert_eq!(answers, of.into_iter().map(Some).collect::<Vec<_>>());
    }
}
