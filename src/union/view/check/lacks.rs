//! What objects of an upper need of the layers, and these do not have.

use super::{View, meaning};
use crate::error::Result;
use crate::union::marks::Marks;
use crate::union::upper::Stored;

impl View {
    /// What the layers lack of what an object's marks say, in words.
    pub(super) fn lacks(&self, path: &[u8], marks: &Marks) -> Result<Option<String>> {
        let Some(redirect) = marks.redirect.as_ref().filter(|to| to.starts_with(b"/")) else {
            if marks.metacopy && marks.redirect.is_none() && !self.has_data(path)? {
                return Ok(Some(
                    "its data are in no layer: only attributes are left".to_owned(),
                ));
            }
            return Ok(None);
        };
        if self.has_below(redirect)? {
            return Ok(None);
        }
        let to = String::from_utf8_lossy(redirect);
        Ok(Some(match marks.metacopy {
            true => format!("its data are in no layer, where {to} is missing"),
            false => format!("it was renamed from {to}, which no layer has"),
        }))
    }

    /// Whether the layers show a file under the path of a metadata copy, wherever its directory was before.
    fn has_data(&self, path: &[u8]) -> Result<bool> {
        let wh_is_mark = self.upper.as_ref().is_some_and(|upper| upper.wh_is_mark);
        let mut dir = self.root()?;
        let mut names = path
            .split(|b| *b == b'/')
            .filter(|name| !name.is_empty())
            .peekable();
        while let Some(stored) = names.next() {
            let Stored::Name(name) = meaning(stored, wh_is_mark) else {
                return Ok(false);
            };
            if names.peek().is_none() {
                let below = self.below(&dir)?.get(&name);
                return Ok(below.is_some_and(|below| below.kind == libc::DT_REG));
            }
            let entries = self.entries(&dir)?;
            let Some(entry) = entries.get(&*name) else {
                return Ok(false);
            };
            dir = self.child(&dir, &name, entry)?;
        }
        Ok(false)
    }

    /// Whether the layers show something under a path.
    fn has_below(&self, path: &[u8]) -> Result<bool> {
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => path.split_at(at),
            None => return Ok(false),
        };
        let listing = self.listing(&self.below_path(parent)?)?;
        Ok(listing.get(name.get(1..).unwrap_or_default()).is_some())
    }
}
