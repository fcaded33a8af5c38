//! How many files are fetched at a time.
//!
//! A layer serves so many requests at once, and who asks for more only makes a queue in it, in which programs'
//! own requests stand too. So it begins with few readers, and becomes more as long as that fetches more files
//! in a time.

use std::time::Duration;

/// So many readers come at a time.
const STEP: usize = 4;
/// Files are counted for so many rounds of all readers.
const ROUNDS: usize = 3;
/// More readers are worth it if they fetch at least so much more, in percent.
const GAIN: u32 = 108;

/// The number of readers, as it is found out.
#[derive(Debug)]
pub struct Pace {
    width: usize,
    most: usize,
    /// The width before, and how long a file took with it.
    before: Option<(usize, Duration)>,
    /// Files since the width is what it is.
    files: usize,
    /// When that began, since the beginning.
    since: Duration,
    found: bool,
}

impl Pace {
    /// Begins with so many.
    pub fn new(first: usize, most: usize) -> Pace {
        let first = first.clamp(1, most.max(1));
        Pace {
            width: first,
            most,
            before: None,
            files: 0,
            since: Duration::ZERO,
            found: first >= most,
        }
    }

    /// How many may read at the same time.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A file that the layer had to fetch is there, so long after the beginning.
    pub fn fetched(&mut self, now: Duration) {
        self.files += 1;
        if self.found || self.files < ROUNDS * self.width {
            return;
        }
        let files = u32::try_from(self.files).unwrap_or(u32::MAX);
        let each = now.saturating_sub(self.since) / files;
        match self.before {
            Some((width, before)) if each * GAIN >= before * 100 => {
                self.width = width;
                self.found = true;
            }
            _ if self.width >= self.most => self.found = true,
            _ => {
                self.before = Some((self.width, each));
                self.width = (self.width + STEP).min(self.most);
            }
        }
        (self.files, self.since) = (0, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fetches files from a layer that serves so many at once, each in 100 ms; returns the widths.
    fn run(pace: &mut Pace, served: usize, files: usize) -> Vec<usize> {
        let mut widths = vec![pace.width()];
        let mut ends: Vec<Duration> = Vec::new();
        let mut servers = vec![Duration::ZERO; served];
        for _ in 0..files {
            // One reader more begins; if all are at work, when the first of them is done.
            let mut now = Duration::ZERO;
            while ends.len() >= pace.width() {
                ends.sort();
                now = ends.remove(0);
                pace.fetched(now);
                if widths.last() != Some(&pace.width()) {
                    widths.push(pace.width());
                }
            }
            servers.sort();
            servers[0] = servers[0].max(now) + Duration::from_millis(100);
            ends.push(servers[0]);
        }
        widths
    }

    #[test]
    fn it_grows_as_far_as_the_layer_serves_more() {
        assert_eq!(run(&mut Pace::new(8, 16), 16, 400), [8, 12, 16]);
        assert_eq!(run(&mut Pace::new(8, 16), 10, 400), [8, 12, 16, 12]);
        assert_eq!(run(&mut Pace::new(8, 16), 8, 400), [8, 12, 8]);
        assert_eq!(run(&mut Pace::new(8, 16), 1, 400), [8, 12, 8]);
    }

    #[test]
    fn bounds_are_kept() {
        assert_eq!(run(&mut Pace::new(8, 4), 16, 400), [4]);
        assert_eq!(run(&mut Pace::new(0, 0), 16, 40), [1]);
        assert_eq!(run(&mut Pace::new(3, 5), 16, 400), [3, 5]);
    }
}
