//! The one error of the library: an errno, and the story of where it came from.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What everything above `sys` returns; `sys` itself returns `io::Result`.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation. The errno is chosen where the reason is known, and nowhere else.
#[derive(Debug)]
pub struct Error {
    errno: i32,
    op: &'static str,
    path: Option<PathBuf>,
    layer: Option<String>,
}

impl Error {
    /// An error that the union itself decided on.
    pub fn new(errno: i32, op: &'static str) -> Self {
        Error {
            errno,
            op,
            path: None,
            layer: None,
        }
    }

    /// An error of a system call; one without an errno becomes EIO.
    pub fn io(op: &'static str, source: &io::Error) -> Self {
        Error::new(source.raw_os_error().unwrap_or(libc::EIO), op)
    }

    /// Names the path in the message.
    #[must_use]
    pub fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Names the layer in the message, by its path in the file system.
    #[must_use]
    pub fn in_layer(mut self, layer: impl Into<String>) -> Self {
        self.layer = Some(layer.into());
        self
    }

    /// What the caller of the system call gets.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The layer that failed, if one did.
    pub fn layer(&self) -> Option<&str> {
        self.layer.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.op)?;
        if let Some(path) = &self.path {
            write!(f, " {}", printable(path))?;
        }
        if let Some(layer) = &self.layer {
            write!(f, " (layer {})", printable(layer))?;
        }
        write!(f, ": {}", io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for Error {}

/// Attaches the operation to a failed system call.
pub trait Context<T> {
    /// `op` begins the message; the errno stays, and an error without one becomes EIO.
    fn op(self, op: &'static str) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn op(self, op: &'static str) -> Result<T> {
        self.map_err(|e| Error::io(op, &e))
    }
}

/// The text of a path for a message: names come from images, and must neither control a terminal nor
/// make up lines of a log.
pub fn printable(path: impl AsRef<Path>) -> String {
    let mut text = String::new();
    for c in path.as_ref().to_string_lossy().chars() {
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

/// A step whose failure must not fail the operation is logged and forgotten.
pub fn best_effort<T, E: fmt::Display>(what: &str, result: std::result::Result<T, E>) {
    if let Err(e) = result {
        tracing::debug!("{what}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_control_no_terminal() {
        let e = Error::new(libc::EIO, "read")
            .at("/a\nb\u{1b}[2J\u{9b}é")
            .in_layer("l\r");
        let text = e.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(
            text.starts_with(r"read /a\nb\u{1b}[2J\u{9b}é (layer l\r): "),
            "{text}"
        );
    }
}
