//! A look through the layers of an image for `.wh.` names, which is remembered.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::layers::Layer;
use crate::backend::known::{Content, Known};
use crate::error::{best_effort, printable};
use crate::layer::markers::holds_markers;

/// So often is a person told how far it is.
const PACE: Duration = Duration::from_millis(200);

/// Looks through the layers that are not known yet, and notes each at once, so that nothing is lost if it is
/// interrupted. What went wrong, a text for each layer that is still not known.
pub fn all(layers: &[Layer]) -> Vec<String> {
    let known = Known::here();
    let mut problems = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let Some(digest) = layer.digest() else {
            continue;
        };
        if known.of(digest, &layer.path).is_some() {
            continue;
        }
        let told = Told::new(format!("layer {} of {}", at + 1, layers.len()));
        let found = holds_markers(&layer.path, |read| told.tell(read));
        told.end();
        let content = |found| {
            if found {
                Content::Markers
            } else {
                Content::NoMarkers
            }
        };
        let noted = found.and_then(|found| Known::add(digest, &layer.path, content(found)));
        if let Err(e) = noted {
            problems.push(format!(
                "layer {digest} is still not known: {}",
                printable(e.to_string())
            ));
        }
    }
    problems
}

/// A line on the terminal that is written again and again; none where a file or a pipe is.
struct Told {
    what: String,
    terminal: bool,
    begun: Instant,
    /// In milliseconds since it began.
    next: AtomicU64,
}

impl Told {
    fn new(what: String) -> Told {
        Told {
            what,
            terminal: io::stderr().is_terminal(),
            begun: Instant::now(),
            next: AtomicU64::new(0),
        }
    }

    fn tell(&self, read: usize) {
        if !self.terminal {
            return;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now = millis(self.begun.elapsed());
        let next = self.next.load(Ordering::Relaxed);
        let to = now.saturating_add(millis(PACE));
        // Of several threads one writes.
        let mine = self
            .next
            .compare_exchange(next, to, Ordering::Relaxed, Ordering::Relaxed);
        if now >= next && mine.is_ok() {
            self.write(&format!("\r{}: {read} directories", self.what));
        }
    }

    /// Takes the line away.
    fn end(&self) {
        if self.terminal {
            self.write("\r\x1b[K");
        }
    }

    fn write(&self, text: &str) {
        let mut err = io::stderr().lock();
        best_effort(
            "tell how far it is",
            err.write_all(text.as_bytes()).and_then(|()| err.flush()),
        );
    }
}
