//! What runs of an image opened in its layers: how one run is added to what is known, and what of it the next
//! run is expected to open.
//!
//! A file is named by the identity of its layer and its path in it, so a profile holds wherever the layers lie.
//! For each file there is a history of the last 32 runs, one bit a run. What one of the last two or a quarter of
//! all of them opened is *expected*, and fetched ahead. The rest is kept for a long time: the files that one run
//! opened last, and no run after it, are called its *trail*. A job that runs seldom is known by the first file
//! of its trail that is opened. What was read of a file has a history of its own ([`parts`]), by the same rules.
//!
//! Nothing here opens a file of a layer; [`store`] reads and writes profiles on the disk.

pub mod format;
pub mod parts;
pub mod store;

use std::collections::{HashMap, HashSet};

use crate::hash::stable_hash;
use format::{MAX_PATH, MAX_SIZE, PART_SIZE, line_size};
use parts::{Part, Parts};

/// The most files of a profile.
pub const MOST_FILES: usize = 20_000;
/// The most layers that one names.
pub const MOST_LAYERS: usize = 1024;
/// A file that so many runs have not opened is dropped.
const KEPT_RUNS: u32 = 4096;
/// Of the runs in the history, one in so many makes a file expected.
const EXPECTED: u32 = 4;
/// What the last two opened is expected in any case, or something new would be late by many runs.
const LATEST: u32 = 0b11;
/// A replay is poor if fewer than one in so many of the fetched files were used.
const POOR: u64 = 4;
/// After so many poor replays in a row other files are expected.
const MOST_POOR: u32 = 3;
/// A replay of fewer files, or a run that opened fewer, says nothing about a profile.
const TELLING: u64 = 16;

/// A file that runs have opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its place in [`Profile::layers`].
    pub layer: usize,
    /// The names from the layer's root on, separated by slashes.
    pub path: Box<[u8]>,
    /// Its length in bytes.
    pub size: u64,
    /// What was read of it.
    pub parts: Parts,
    /// Which of the last runs opened it: bit 0 the last one.
    pub history: u32,
    /// The number of the last run that opened it, from 1 on.
    pub last: u32,
}

/// What one run opened, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The identity of the layer.
    pub layer: String,
    /// As in [`File`].
    pub path: Box<[u8]>,
    /// As in [`File`].
    pub size: u64,
    /// Which 64ths of it were read: bit 0 the first. See [`piece`].
    pub pieces: u64,
}

/// What a replay came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Files fetched ahead.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// From the first to the last, milliseconds.
    pub millis: u64,
    /// Files that programs opened afterwards.
    pub used: u64,
    /// How long these had taken to fetch, less what programs waited for them, milliseconds.
    pub saved: u64,
}

/// What one run was the last to want, of what is not expected. The numbers are those in [`Profile::files`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// Files that no run after it has opened, each with what it read of them.
    pub files: Vec<(usize, u64)>,
    /// Parts of files that others have opened since, or open in any case.
    pub parts: Vec<(usize, u64)>,
}

/// What is known of the runs of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// The identities of the layers, in no order.
    pub layers: Vec<String>,
    /// How many runs were added.
    pub runs: u32,
    /// How many replays in a row were poor.
    pub poor: u32,
    /// The last replay.
    pub replay: Option<Replay>,
    /// In the order in which they are opened.
    pub files: Vec<File>,
}

/// The length of a 64th of a file of that size: the last may be shorter, or missing.
pub fn piece(size: u64) -> u64 {
    size.div_ceil(64).max(1)
}

/// How many bytes the pieces of a file of that size have, at most.
pub fn bytes_of(pieces: u64, size: u64) -> u64 {
    let count = u64::from(pieces.count_ones());
    piece(size).saturating_mul(count).min(size)
}

/// The 64ths that a read of so many bytes touches.
pub fn pieces(size: u64, offset: u64, len: u64) -> u64 {
    if len == 0 || offset >= size {
        return 0;
    }
    let piece = piece(size);
    let last = (offset.saturating_add(len).min(size) - 1) / piece;
    let first = offset / piece;
    let through = |n: u64| u64::MAX >> (63 - n.min(63));
    through(last) & !(through(first) >> 1)
}

/// The name of an image for its profiles: a hash of the identities of its layers in their order.
pub fn image_name<'a>(layers: impl Iterator<Item = &'a str>) -> String {
    let hash = |seed| {
        let add = |hash, layer: &str| stable_hash(stable_hash(hash, layer.as_bytes()), b"\n");
        move |layers: &[&str]| layers.iter().fold(seed, |hash, layer| add(hash, layer))
    };
    let layers: Vec<&str> = layers.collect();
    format!("{:016x}{:016x}", hash(1)(&layers), hash(2)(&layers))
}

impl Profile {
    /// The files that the next run is expected to open.
    pub fn expected(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| self.expects(file))
    }

    /// Whether the next run is expected to open it.
    pub fn expects(&self, file: &File) -> bool {
        self.is_usual(file.history)
    }

    /// What the next run is expected to read of a file.
    pub fn expected_of(&self, file: &File) -> u64 {
        let usual = file.parts.iter().filter(|part| self.is_usual(part.history));
        usual.fold(0, |all, part| all | part.pieces)
    }

    /// Whether runs of that history are such that the next one will be another.
    fn is_usual(&self, history: u32) -> bool {
        let often = history.count_ones() * EXPECTED >= self.runs.min(32);
        history & LATEST != 0 || often && history != 0
    }

    /// Adds what a run opened, and forgets what has not been opened for long.
    pub fn add_run(&mut self, opened: &[Opened]) {
        self.runs = self.runs.saturating_add(1);
        let mut old = std::mem::take(&mut self.files);
        for file in &mut old {
            file.history <<= 1;
            file.parts.age();
        }
        let known: HashMap<Key<'_>, &File> = old.iter().map(|file| (key(file), file)).collect();
        let mut layers = Layers::of(std::mem::take(&mut self.layers));
        let mut new: Vec<File> = Vec::new();
        for one in opened.iter().take(MOST_FILES) {
            let layer = layers.number(&one.layer);
            if layer >= MOST_LAYERS || one.path.len() > MAX_PATH {
                continue;
            }
            let known = known.get(&(layer, &*one.path));
            let same = known.filter(|file| file.size == one.size);
            let mut parts = same.map_or_else(Parts::default, |file| file.parts.clone());
            parts.add(one.pieces, 1, self.runs);
            new.push(File {
                layer,
                path: one.path.clone(),
                size: one.size,
                parts,
                history: 1 | known.map_or(0, |file| file.history),
                last: self.runs,
            });
        }
        self.layers = layers.list;
        self.files = mix(&old, new);
        self.shrink();
    }

    /// Notes how a replay went in a run that opened so many files. True if the profile has been of no use
    /// for some time: then only what the last run opened is expected, and the rest is kept as trails, for
    /// a job that comes again after short ones.
    pub fn add_replay(&mut self, replay: Replay, opened: usize) -> bool {
        if replay.files == 0 {
            return false;
        }
        self.replay = Some(replay);
        if replay.files < TELLING || (opened as u64) < TELLING {
            return false;
        }
        self.poor = match replay.used * POOR < replay.files {
            true => self.poor.saturating_add(1),
            false => 0,
        };
        if self.poor < MOST_POOR {
            return false;
        }
        let last = self.runs;
        for file in &mut self.files {
            file.history = u32::from(file.last == last);
            let of_last = |part: &mut Part| part.history = u32::from(part.last == last);
            file.parts.change(of_last);
        }
        self.poor = 0;
        true
    }

    /// This one and one that somebody else made, which counts as one run more, before all others.
    #[must_use]
    pub fn over(&self, base: &Profile) -> Profile {
        let mut layers = Layers::of(base.layers.clone());
        let renumbered: Vec<usize> = self.layers.iter().map(|l| layers.number(l)).collect();
        let first = 1u32.checked_shl(self.runs).unwrap_or(0);
        let old: Vec<File> = base
            .expected()
            .map(|file| File {
                parts: Parts::new(base.expected_of(file), first, 1),
                history: first,
                last: 1,
                ..file.clone()
            })
            .collect();
        let known: HashMap<Key<'_>, &File> = old.iter().map(|file| (key(file), file)).collect();
        let new = self.files.iter().filter_map(|file| {
            let layer = *renumbered.get(file.layer)?;
            let also = known.get(&(layer, &*file.path));
            let mut parts = file.parts.clone();
            parts.change(|part| part.last = part.last.saturating_add(1));
            if let Some(same) = also.filter(|also| also.size == file.size) {
                parts.add(same.parts.pieces(), first, 1);
            }
            Some(File {
                layer,
                parts,
                history: file.history | also.map_or(0, |_| first),
                last: file.last.saturating_add(1),
                ..file.clone()
            })
        });
        let new = new.collect();
        let mut all = Profile {
            layers: layers.list,
            runs: self.runs.saturating_add(1),
            poor: self.poor,
            replay: self.replay,
            files: mix(&old, new),
        };
        all.shrink();
        all
    }

    /// What others can use: the expected files, as those of one run.
    #[must_use]
    pub fn exported(&self) -> Profile {
        let mut alone = Profile {
            layers: self.layers.clone(),
            files: self.expected().cloned().collect(),
            runs: 1,
            ..Profile::default()
        };
        for file in &mut alone.files {
            file.parts = Parts::new(self.expected_of(file), 1, 1);
            (file.history, file.last) = (1, 1);
        }
        alone.shrink();
        alone
    }

    /// The trails, by the numbers of their runs.
    pub fn trails(&self) -> HashMap<u32, Trail> {
        let mut trails: HashMap<u32, Trail> = HashMap::new();
        for (at, file) in self.files.iter().enumerate() {
            let is_own = !self.expects(file);
            if is_own {
                let own = &mut trails.entry(file.last).or_default().files;
                own.push((at, file.parts.read_by(file.last)));
            }
            let rest = file
                .parts
                .iter()
                .filter(|part| !self.is_usual(part.history));
            for part in rest.filter(|part| !is_own || part.last != file.last) {
                let trail = trails.entry(part.last).or_default();
                trail.parts.push((at, part.pieces));
            }
        }
        trails
    }

    /// Lets go of what was not opened for long, and if there is more than a profile may have, of what was not
    /// for longest.
    fn shrink(&mut self) {
        let oldest = self.runs.saturating_sub(KEPT_RUNS);
        self.files.retain(|file| file.last >= oldest);
        for file in &mut self.files {
            file.parts.retain(|part| part.last >= oldest);
        }
        let mut newest: Vec<(usize, &File)> = self.files.iter().enumerate().collect();
        newest.sort_by_key(|(_, file)| std::cmp::Reverse(file.last));
        let (mut kept, mut layers) = (HashSet::new(), HashSet::new());
        let mut room = MAX_SIZE;
        for (at, file) in newest {
            let name = self.layers.get(file.layer).map_or("", String::as_str);
            let new = !layers.contains(&file.layer);
            let layer = if new { line_size(name.as_bytes()) } else { 0 };
            let parts = file.parts.iter().count() * PART_SIZE;
            let size = line_size(&file.path) + parts + layer;
            let many = kept.len() == MOST_FILES || new && layers.len() == MOST_LAYERS;
            if !many && size <= room {
                room -= size;
                kept.insert(at);
                layers.insert(file.layer);
            }
        }
        let mut at = 0..;
        self.files
            .retain(|_| at.next().is_some_and(|at| kept.contains(&at)));
        let used: HashSet<usize> = self.files.iter().map(|file| file.layer).collect();
        let mut layers = Layers::default();
        let names = self.layers.iter().enumerate();
        let renumbered: HashMap<usize, usize> = names
            .filter(|(at, _)| used.contains(at))
            .map(|(at, name)| (at, layers.number(name)))
            .collect();
        for file in &mut self.files {
            file.layer = renumbered.get(&file.layer).copied().unwrap_or(usize::MAX);
        }
        self.layers = layers.list;
    }
}

/// A file in one profile.
type Key<'a> = (usize, &'a [u8]);

fn key(file: &File) -> Key<'_> {
    (file.layer, &file.path)
}

/// The new files in their order, each once. An old one that is not among them stays behind the one that it
/// was behind.
fn mix(old: &[File], new: Vec<File>) -> Vec<File> {
    let again: HashSet<Key<'_>> = new.iter().map(key).collect();
    let mut behind: HashMap<Option<Key<'_>>, Vec<&File>> = HashMap::new();
    let mut at = None;
    for file in old {
        match again.get(&key(file)) {
            Some(same) => at = Some(*same),
            None => behind.entry(at).or_default().push(file),
        }
    }
    let follow = |at| behind.get(&at).into_iter().flatten().copied().cloned();
    let mut all: Vec<File> = follow(None).collect();
    let mut seen = HashSet::new();
    for file in &new {
        if seen.insert(key(file)) {
            all.push(file.clone());
            all.extend(follow(Some(key(file))));
        }
    }
    all
}

/// Layers, each with a number.
#[derive(Default)]
struct Layers {
    list: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Layers {
    fn of(list: Vec<String>) -> Layers {
        let numbers = list.iter().cloned().zip(0..).collect();
        Layers { list, numbers }
    }

    /// The number of a layer, which may be a new one.
    fn number(&mut self, name: &str) -> usize {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.list.len();
        self.list.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

#[cfg(test)]
mod tests;
