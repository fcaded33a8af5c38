//! What layers are asked, counted.

use crate::meter::{Meter, Reading};

/// A kind of question to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A directory is opened by its name, to get at what it holds.
    Walk,
    /// The attributes of a name.
    Stat,
    /// All names of a directory.
    List,
    /// The target of a symlink.
    Link,
    /// An extended attribute, or the names of all.
    Xattr,
    /// A file is opened.
    Open,
    /// Something is done with the data of an open file.
    Data,
    /// Something about the file system.
    Statfs,
}

impl Ask {
    /// All of them, in the order of [`Asked`].
    pub const ALL: [Ask; 8] = [
        Ask::Walk,
        Ask::Stat,
        Ask::List,
        Ask::Link,
        Ask::Xattr,
        Ask::Open,
        Ask::Data,
        Ask::Statfs,
    ];

    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Ask::Walk => "walk",
            Ask::Stat => "stat",
            Ask::List => "list",
            Ask::Link => "link",
            Ask::Xattr => "xattr",
            Ask::Open => "open",
            Ask::Data => "data",
            Ask::Statfs => "statfs",
        }
    }
}

/// The questions to one layer.
#[derive(Debug, Default)]
pub struct Asked([Meter; Ask::ALL.len()]);

impl Asked {
    /// Asks, and counts it.
    pub fn ask<T>(&self, ask: Ask, question: impl FnOnce() -> T) -> T {
        match self.0.get(ask as usize) {
            Some(meter) => meter.time(question),
            None => question(),
        }
    }

    /// How often each was asked.
    pub fn read(&self) -> impl Iterator<Item = (Ask, Reading)> {
        Ask::ALL.into_iter().zip(self.0.iter().map(Meter::read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_meter() {
        for (i, ask) in Ask::ALL.into_iter().enumerate() {
            assert_eq!(ask as usize, i);
            let asked = Asked::default();
            asked.ask(ask, || ());
            let counted: Vec<_> = asked.read().filter(|(_, seen)| seen.count > 0).collect();
            assert!(matches!(counted.as_slice(), [(of, _)] if *of == ask));
        }
    }
}
