//! Lists of mount options as overlayfs reads them: a backslash takes the meaning from what follows it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One option, still escaped.
#[derive(Debug, PartialEq, Eq)]
pub struct Word {
    pub name: OsString,
    /// What follows the first `=`.
    pub value: Option<OsString>,
}

impl Word {
    fn new(text: &OsStr) -> Word {
        let mut parts = text.as_bytes().splitn(2, |&b| b == b'=');
        let part = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        Word {
            name: parts.next().map(part).unwrap_or_default(),
            value: parts.next().map(part),
        }
    }

    /// Whether the value is a security label of which the second quote is still to come: between the two
    /// commas do not separate. Other values have quotes as names of files have them.
    pub fn is_half_quoted(&self) -> bool {
        let label = self.name.as_bytes().ends_with(b"context");
        let value = self.value.as_ref().map(|value| value.as_bytes());
        label && value.is_some_and(|v| v.starts_with(b"\"") && (v.len() < 2 || !v.ends_with(b"\"")))
    }

    /// As it was given.
    pub fn text(&self) -> OsString {
        let mut text = self.name.clone();
        if let Some(value) = &self.value {
            text.push("=");
            text.push(value);
        }
        text
    }
}

/// The options of all lists. Empty ones are left out, and a comma between the ranges of `uidmapping`
/// and `gidmapping`, which the manual of fuse-overlayfs shows, is a colon.
pub fn of(lists: &[OsString]) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    for part in lists.iter().flat_map(|list| split(list, b',')) {
        let is_range = |part: &OsStr| {
            let mut bytes = part.as_bytes().iter();
            bytes.all(|&b| b.is_ascii_digit() || b == b':')
        };
        match words.last_mut() {
            Some(last) if last.is_half_quoted() => {
                let value = last.value.get_or_insert_default();
                value.push(",");
                value.push(part);
            }
            _ if part.is_empty() => {}
            Some(Word {
                name,
                value: Some(value),
            }) if (name == "uidmapping" || name == "gidmapping") && is_range(part) => {
                value.push(":");
                value.push(part);
            }
            _ => words.push(Word::new(part)),
        }
    }
    words
}

/// The parts between separators that no backslash stands before, still escaped.
pub fn split(text: &OsStr, separator: u8) -> impl Iterator<Item = &OsStr> {
    let mut escaped = false;
    let parts = text.as_bytes().split(move |&b| {
        let here = b == separator && !escaped;
        escaped = b == b'\\' && !escaped;
        here
    });
    parts.map(OsStr::from_bytes)
}

/// Without the backslashes that escape; one at the end stands for itself.
pub fn unescape(text: &OsStr) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes().iter().copied();
    while let Some(b) = bytes.next() {
        plain.push(match b {
            b'\\' => bytes.next().unwrap_or(b),
            b => b,
        });
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &str) -> Vec<String> {
        let words = of(&[list.into()]);
        let text = |word: &Word| word.text().to_string_lossy().into_owned();
        words.iter().map(text).collect()
    }

    #[test]
    fn empty_options_and_escaped_commas() {
        assert_eq!(texts("a,,b=1,"), ["a", "b=1"]);
        assert_eq!(texts(r"upperdir=/a\,b,ro"), [r"upperdir=/a\,b", "ro"]);
        // A backslash that is escaped escapes nothing.
        assert_eq!(texts(r"upperdir=/a\\,ro"), [r"upperdir=/a\\", "ro"]);
        assert_eq!(texts("context=a=b"), ["context=a=b"]);
        assert_eq!(texts(""), Vec::<String>::new());
    }

    #[test]
    fn commas_in_a_quoted_label() {
        let label = r#"context="system_u:object_r:container_file_t:s0:c1,c2""#;
        assert_eq!(texts(&format!("{label},ro")), [label, "ro"]);
        assert_eq!(
            texts(r#"context="a",ro,b="#),
            [r#"context="a""#, "ro", "b="]
        );
        // Names may have quotes.
        assert_eq!(texts(r#"upperdir="a,ro"#), [r#"upperdir="a"#, "ro"]);
    }

    #[test]
    fn ranges_of_a_mapping_may_be_separated_by_commas() {
        let mapping = "uidmapping=0:1000:1,1:110000:65536";
        assert_eq!(texts(mapping), ["uidmapping=0:1000:1:1:110000:65536"]);
        let two = "uidmapping=0:1:2,gidmapping=3:4:5,6:7:8,ro";
        assert_eq!(
            texts(two),
            ["uidmapping=0:1:2", "gidmapping=3:4:5:6:7:8", "ro"]
        );
    }

    #[test]
    fn colons_and_backslashes() {
        let list = OsStr::new(r"/a\:b:/c\\:/d\");
        let dirs: Vec<_> = split(list, b':').map(unescape).collect();
        assert_eq!(dirs, [r"/a:b", r"/c\", r"/d\"]);
    }
}
