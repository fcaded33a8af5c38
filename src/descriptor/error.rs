//! Why a descriptor was refused.

use std::error::Error;
use std::fmt;

use super::MAX_SIZE;

/// The longest piece of the file that a message repeats, in characters.
const MAX_QUOTED: usize = 80;

/// The reason a descriptor was refused.
///
/// The message is complete but for the name of the file, which the caller puts in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DescriptorError {
    /// The file is larger than [`MAX_SIZE`].
    TooLarge {
        /// The size in bytes.
        size: usize,
    },
    /// The file is not JSON.
    Syntax {
        /// The line of the error, from 1.
        line: usize,
        /// The column of the error, in bytes; 0 where the line has only just begun.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The file is JSON, but not an object.
    NotAnObject {
        /// What it is instead: `an array`.
        found: &'static str,
    },
    /// A field is missing or has a wrong value.
    Field {
        /// The field's path in the file, with keys in lower case: `layers[3].url`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl DescriptorError {
    pub(super) fn syntax(error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        let reason = text
            .strip_suffix(&format!(" at line {line} column {column}"))
            .unwrap_or(&text)
            .to_owned();
        Self::Syntax {
            line,
            column,
            reason,
        }
    }
}

impl fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { size } => {
                write!(f, "{size} bytes, more than the limit of {MAX_SIZE}")
            }
            Self::Syntax {
                line,
                column,
                reason,
            } => {
                write!(f, "line {line}, column {column}: {reason}")
            }
            Self::NotAnObject { found } => write!(f, "expected an object, found {found}"),
            Self::Field { field, reason } => write!(f, "{field}: {reason}"),
        }
    }
}

impl Error for DescriptorError {}

/// Quotes a piece of the file for a message: escaped, and cut when it is long.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}
