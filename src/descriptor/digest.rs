//! What a layer's digest may look like.

use super::error::quote;

/// The longest digest, in hex digits: that of SHA-512.
const MAX_DIGITS: usize = 128;

/// Checks that a digest is bare lower-case hex, as the format writes it.
///
/// The length is not tied to one algorithm, since the format does not name it.
pub(super) fn check(digest: &str) -> Result<(), String> {
    if digest.is_empty() {
        return Err("empty".to_owned());
    }
    if !digest
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(format!("{} is not lower-case hex", quote(digest)));
    }
    if digest.len() > MAX_DIGITS {
        return Err(format!(
            "{} digits, more than the limit of {MAX_DIGITS}",
            digest.len()
        ));
    }
    Ok(())
}
