//! Profiles as text: lines of words, the first of which says what the line is. FORMAT describes it.
//!
//! Reading is strict, since a profile may come from anybody: nothing is made of one that is not whole.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::parts::{Part, Parts};
use super::{File, MOST_FILES, MOST_LAYERS, Profile, Replay, key};
use crate::hash::stable_hash;
use crate::text::{self, escaped};

/// The most bytes of a profile.
pub const MAX_SIZE: usize = 8 << 20;
/// The most bytes of a path, as of any path on Linux.
pub const MAX_PATH: usize = 4096;
/// What the first line of a profile of any version begins with.
pub const MARK: &str = "cvmfs-union profile ";
/// How a profile begins.
pub const HEAD: &str = "cvmfs-union profile 2";
/// The same before parts of files had histories: all that was ever read of one was read by the runs that opened it.
const HEAD_OF_1: &str = "cvmfs-union profile 1";

const OTHER_VERSION: &str = "a profile of another version";

/// Why a profile is not one, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    line: usize,
    why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// Whether it is a profile, but one that another version of this program reads.
    pub fn is_of_another_version(&self) -> bool {
        self.why == OTHER_VERSION
    }
}

impl Profile {
    /// The profile as text.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEAD}\nruns {}\npoor {}\n", self.runs, self.poor);
        if let Some(r) = &self.replay {
            let Replay {
                files,
                bytes,
                millis,
                used,
                saved,
            } = r;
            text.push_str(&format!("replay {files} {bytes} {millis} {used} {saved}\n"));
        }
        for layer in &self.layers {
            text.push_str(&format!("layer {}\n", escaped(layer.as_bytes())));
        }
        let mut before: &[u8] = b"";
        for file in &self.files {
            let shared = before
                .iter()
                .zip(&*file.path)
                .take_while(|(a, b)| a == b)
                .count();
            let rest = file.path.get(shared..).unwrap_or_default();
            let File {
                layer,
                size,
                history,
                last,
                ..
            } = file;
            let always = |part: &&Part| (part.history, part.last) == (*history, *last);
            let pieces = file.parts.iter().find(always).map_or(0, |part| part.pieces);
            text.push_str(&format!(
                "file {layer} {size} {pieces:x} {history:x} {last} {shared} {}\n",
                escaped(rest)
            ));
            for part in file.parts.iter().filter(|part| !always(part)) {
                let Part {
                    pieces,
                    history,
                    last,
                } = part;
                text.push_str(&format!("part {pieces:x} {history:x} {last}\n"));
            }
            before = &file.path;
        }
        let sum = stable_hash(0, text.as_bytes());
        text.push_str(&format!("sum {sum:016x}\n"));
        text
    }

    /// Reads a profile. Nothing in it leads out of the layers: no path is absolute, or has an empty
    /// component, `.` or `..`.
    pub fn parse(bytes: &[u8]) -> Result<Profile, Refused> {
        let refuse = |line, why: &str| Refused {
            line,
            why: why.to_owned(),
        };
        if bytes.len() > MAX_SIZE {
            return Err(refuse(
                1,
                &format!("more than the limit of {MAX_SIZE} bytes"),
            ));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| refuse(1, "not a profile"))?;
        let lines = text.lines().count();
        let with_parts = match text.lines().next() {
            Some(HEAD) => true,
            Some(HEAD_OF_1) => false,
            Some(head) if head.starts_with(MARK) => {
                return Err(refuse(1, OTHER_VERSION));
            }
            _ => return Err(refuse(1, "not a profile")),
        };
        let sum = text.rfind("sum ").unwrap_or(0);
        let (summed, end) = text.split_at_checked(sum).unwrap_or_default();
        if end != format!("sum {:016x}\n", stable_hash(0, summed.as_bytes())) {
            return Err(refuse(lines, "the sum is not that of the lines before it"));
        }
        let mut profile = Profile::default();
        let mut before = Vec::new();
        for (line, number) in summed.lines().zip(1..).skip(1) {
            profile
                .take(line, &mut before, with_parts)
                .map_err(|why| refuse(number, &why))?;
        }
        let mut seen = HashSet::new();
        if !profile.files.iter().all(|file| seen.insert(key(file))) {
            return Err(refuse(lines, "a file is there twice"));
        }
        Ok(profile)
    }

    fn take(&mut self, line: &str, before: &mut Vec<u8>, with_parts: bool) -> Result<(), String> {
        let mut words = Words(line.split(' '));
        match words.next()? {
            // Files were read by what these said before.
            word @ ("runs" | "poor" | "replay" | "layer") if !self.files.is_empty() => {
                return Err(format!("the line {} comes after a file", quoted(word)));
            }
            "runs" => self.runs = words.number()?,
            "poor" => self.poor = words.number()?,
            "replay" => {
                self.replay = Some(Replay {
                    files: words.number()?,
                    bytes: words.number()?,
                    millis: words.number()?,
                    used: words.number()?,
                    saved: words.number()?,
                });
            }
            "layer" => {
                if self.layers.len() == MOST_LAYERS {
                    return Err(format!("more than {MOST_LAYERS} layers"));
                }
                let name = String::from_utf8(unescaped(words.next()?)?);
                let name = name.map_err(|_| "a layer that is no text")?;
                if self.layers.contains(&name) {
                    return Err(format!("the layer {} is there twice", quoted(&name)));
                }
                self.layers.push(name);
            }
            "file" => self.files.push(self.file(&mut words, before)?),
            "part" if with_parts => self.part(&mut words)?,
            word => return Err(format!("no line begins with {}", quoted(word))),
        }
        match words.0.next() {
            None => Ok(()),
            Some(word) => Err(format!("{} is too much", quoted(word))),
        }
    }

    fn file(&self, words: &mut Words<'_>, before: &mut Vec<u8>) -> Result<File, String> {
        if self.files.len() == MOST_FILES {
            return Err(format!("more than {MOST_FILES} files"));
        }
        let layer: usize = words.number()?;
        if layer >= self.layers.len() {
            return Err(format!("there is no layer {layer}"));
        }
        let size = words.number()?;
        let pieces = words.hex()?;
        let (history, last) = self.runs_of(words)?;
        let shared: usize = words.number()?;
        if shared > before.len() {
            return Err("a path that goes on from more than the one before it".to_owned());
        }
        before.truncate(shared);
        before.extend(unescaped(words.next()?)?);
        check_path(before)?;
        Ok(File {
            layer,
            path: before.as_slice().into(),
            size,
            parts: Parts::new(pieces, history, last),
            history,
            last,
        })
    }

    /// A part of the last file.
    fn part(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let pieces = words.hex()?;
        let (history, last) = self.runs_of(words)?;
        let file = self.files.last_mut().ok_or("a part of no file")?;
        if pieces == 0 {
            return Err("a part that is empty".to_owned());
        }
        if file.parts.pieces() & pieces != 0 {
            return Err("a part of which something is in another one".to_owned());
        }
        file.parts.add(pieces, history, last);
        Ok(())
    }

    /// Which runs, and the last of them.
    fn runs_of(&self, words: &mut Words<'_>) -> Result<(u32, u32), String> {
        let history = u32::try_from(words.hex()?).map_err(|_| "a history of more than 32 runs")?;
        let last: u32 = words.number()?;
        if last > self.runs || last == 0 {
            return Err(format!("of the runs there is none with the number {last}"));
        }
        Ok((history, last))
    }
}

fn check_path(path: &[u8]) -> Result<(), String> {
    if path.len() > MAX_PATH {
        return Err(format!("a path of more than {MAX_PATH} bytes"));
    }
    let bad = |name: &[u8]| {
        name.is_empty() || name == b"." || name == b".." || name.len() > 255 || name.contains(&0)
    };
    match path.split(|b| *b == b'/').find(|name| bad(name)) {
        None => Ok(()),
        Some(name) => {
            let name = quoted(&String::from_utf8_lossy(name));
            Err(format!("a path with the component {name}"))
        }
    }
}

/// The beginning of a word, for a message.
fn quoted(word: &str) -> String {
    let short: String = word.chars().take(40).collect();
    format!("{short:?}")
}

struct Words<'a>(std::str::Split<'a, char>);

impl<'a> Words<'a> {
    fn next(&mut self) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| "a word is missing".to_owned())
    }

    fn number<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.next()?;
        let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        let number = word.parse().ok().filter(|_| digits);
        number.ok_or_else(|| format!("{} is no number, or too large a one", quoted(word)))
    }

    fn hex(&mut self) -> Result<u64, String> {
        let word = self.next()?;
        let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u64::from_str_radix(word, 16).ok().filter(|_| digits);
        number.ok_or_else(|| format!("{} is no hexadecimal number, or too large", quoted(word)))
    }
}

/// The most bytes of a line about a part.
pub const PART_SIZE: usize = 48;

/// The most bytes of a line with this name in it, and a share of the lines that are there once.
pub fn line_size(name: &[u8]) -> usize {
    const NUMBERS: usize = 128;
    escaped(name).len() + NUMBERS
}

fn unescaped(word: &str) -> Result<Vec<u8>, String> {
    text::unescaped(word).ok_or_else(|| format!("{} has a % without two digits", quoted(word)))
}
