//! Where a layer lies: a repository, and a folder that cannot leave it.

use super::error::quote;

const SCHEME: &str = "cvmfs://";

/// A checked repository and folder.
#[derive(Debug)]
pub(super) struct Location {
    pub(super) repository: String,
    pub(super) folder: String,
}

impl Location {
    /// Splits `cvmfs://<repository>/<folder>`. Nothing is percent-decoded: the format
    /// has the folder as it is.
    pub(super) fn from_url(url: &str) -> Result<Self, String> {
        let rest = url
            .strip_prefix(SCHEME)
            .ok_or_else(|| format!("{} does not begin with {SCHEME}", quote(url)))?;
        let (repository, folder) = rest
            .split_once('/')
            .ok_or_else(|| format!("{} has no folder after the repository", quote(url)))?;
        check_repository(repository)?;
        check_folder(folder)?;
        Ok(Self {
            repository: repository.to_owned(),
            folder: folder.to_owned(),
        })
    }
}

/// Checks a repository against `[a-z0-9][a-z0-9.-]*`: a host name, which can be neither `.` nor `..`.
///
/// # Errors
///
/// What is wrong with it, for a message.
pub fn check_repository(repository: &str) -> Result<(), String> {
    let mut bytes = repository.bytes();
    let first = bytes.next().is_some_and(is_letter_or_digit);
    if first && bytes.all(|b| is_letter_or_digit(b) || matches!(b, b'.' | b'-')) {
        Ok(())
    } else {
        Err(format!(
            "{} is not a repository name ([a-z0-9][a-z0-9.-]*)",
            quote(repository)
        ))
    }
}

/// Checks that a folder stays beneath its repository. An absolute one fails by its empty component.
pub(super) fn check_folder(folder: &str) -> Result<(), String> {
    if folder.contains('\0') {
        return Err(format!("folder {} contains a NUL", quote(folder)));
    }
    let offence = folder.split('/').find_map(|component| match component {
        "" => Some("an empty"),
        "." => Some("a \".\""),
        ".." => Some("a \"..\""),
        _ => None,
    });
    match offence {
        Some(offence) => Err(format!("folder {} has {offence} component", quote(folder))),
        None => Ok(()),
    }
}

fn is_letter_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}
