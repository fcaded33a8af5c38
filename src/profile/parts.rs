//! The parts of a file, by the runs that read them. Each has a history as a file has, so that what is read no more
//! is fetched no more, however often the file is opened.

/// Some 64ths of a file that the same runs have read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which: bit 0 the first. See [`piece`](super::piece).
    pub pieces: u64,
    /// Which of the last runs read them: bit 0 the last one.
    pub history: u32,
    /// The number of the last run that read them.
    pub last: u32,
}

/// Distinct parts, the one that was read last first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts(Vec<Part>);

impl Parts {
    /// One part, or none.
    pub fn new(pieces: u64, history: u32, last: u32) -> Parts {
        let mut parts = Parts::default();
        parts.add(pieces, history, last);
        parts
    }

    /// Notes runs that have read so much, the last of them with that number.
    pub fn add(&mut self, mut pieces: u64, history: u32, last: u32) {
        let mut all = Vec::with_capacity(self.0.len() + 1);
        for part in self.0.drain(..) {
            let both = part.pieces & pieces;
            pieces &= !both;
            let kept = Part {
                pieces: part.pieces & !both,
                ..part
            };
            let again = Part {
                pieces: both,
                history: part.history | history,
                last: part.last.max(last),
            };
            all.extend([kept, again]);
        }
        all.push(Part {
            pieces,
            history,
            last,
        });
        self.0 = joined(all);
    }

    /// Makes room in the histories for one run more.
    pub fn age(&mut self) {
        self.change(|part| part.history <<= 1);
    }

    /// Changes runs, and nothing else.
    pub fn change(&mut self, change: impl FnMut(&mut Part)) {
        self.0.iter_mut().for_each(change);
        self.0 = joined(std::mem::take(&mut self.0));
    }

    /// Forgets what that is not true of.
    pub fn retain(&mut self, is: impl FnMut(&Part) -> bool) {
        self.0.retain(is);
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Part> {
        self.0.iter()
    }

    /// What no run after that one has read, but that one.
    pub fn read_by(&self, last: u32) -> u64 {
        let read = self.0.iter().filter(|part| part.last == last);
        read.fold(0, |all, part| all | part.pieces)
    }

    /// What any run has read.
    pub fn pieces(&self) -> u64 {
        self.0.iter().fold(0, |all, part| all | part.pieces)
    }
}

/// Those of the same runs in one, and none that is empty.
fn joined(mut parts: Vec<Part>) -> Vec<Part> {
    parts.retain(|part| part.pieces != 0);
    parts.sort_by_key(|part| std::cmp::Reverse((part.last, part.history)));
    parts.dedup_by(|part, before| {
        let same = (part.last, part.history) == (before.last, before.history);
        if same {
            before.pieces |= part.pieces;
        }
        same
    });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(parts: &Parts) -> Vec<(u64, u32, u32)> {
        let each = parts.iter();
        each.map(|part| (part.pieces, part.history, part.last))
            .collect()
    }

    #[test]
    fn what_the_same_runs_read_is_one_part() {
        let mut parts = Parts::new(0b0111, 1, 1);
        for (run, pieces) in [(2, 0b0011), (3, 0b1011), (4, 0)] {
            parts.age();
            parts.add(pieces, 1, run);
        }
        let all = [
            (0b0011, 0b1110, 3),
            (0b1000, 0b0010, 3),
            (0b0100, 0b1000, 1),
        ];
        assert_eq!(seen(&parts), all);
        assert_eq!(parts.pieces(), 0b1111);
        parts.change(|part| (part.history, part.last) = (1, 1));
        assert_eq!(seen(&parts), [(0b1111, 1, 1)]);
        assert_eq!(seen(&Parts::new(0, 1, 1)), []);
    }
}
