//! Bytes as words of printable text, and paths as text, that lead back to what they were.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Begins the text of a path that is not its own.
const MARK: char = '%';

/// As one word of printable ASCII: what else there is stands as `%` and two digits.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for b in bytes {
        match b {
            b'!'..=b'~' if *b != b'%' => text.push(char::from(*b)),
            _ => text.push_str(&format!("%{b:02x}")),
        }
    }
    text
}

/// The bytes of such a word; None if a `%` has no two digits.
pub fn unescaped(word: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.bytes();
    while let Some(b) = rest.next() {
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push((high * 16 + low) as u8);
    }
    Some(bytes)
}

/// A path as text for records: itself, where it is UTF-8, else `%` and the word of its bytes.
pub fn of_path(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    match path.to_str() {
        Some(text) if !text.starts_with(MARK) => text.to_owned(),
        _ => format!("{MARK}{}", escaped(path.as_os_str().as_bytes())),
    }
}

/// The path of such a text. Any other text is taken for a path too.
pub fn to_path(text: &str) -> PathBuf {
    let bytes = text.strip_prefix(MARK).and_then(unescaped);
    match bytes {
        Some(bytes) => OsString::from_vec(bytes).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::ffi::OsStr;

    #[test]
    fn words_lead_back() {
        let all: Vec<u8> = (0..=255).collect();
        let word = escaped(&all);
        assert!(word.bytes().all(|b| b.is_ascii_graphic()), "{word}");
        assert_eq!(unescaped(&word), Some(all));
        assert_eq!(escaped(b"a b%\xff"), "a%20b%25%ff");
        for broken in ["%", "%f", "a%fg", "%%"] {
            assert_eq!(unescaped(broken), None, "{broken}");
        }
    }

    #[test]
    fn paths_lead_back() {
        for (path, text) in [
            (&b"/plain/50%"[..], "/plain/50%"),
            ("/größe a".as_bytes(), "/größe a"),
            (b"/a\xffb/50%", "%/a%ffb/50%25"),
            (b"%2f", "%%252f"),
        ] {
            let path = Path::new(OsStr::from_bytes(path));
            assert_eq!(of_path(path), text);
            assert_eq!(to_path(text), path);
        }
        // Of no path, but somebody may have written it.
        assert_eq!(to_path("%%"), Path::new("%%"));
    }
}
