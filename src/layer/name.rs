//! A name of an object, kept in few bytes: there is one for each object that is known.

use std::fmt;
use std::ops::Deref;

/// Names up to this length need no memory of their own.
const SHORT: usize = 22;

/// Any bytes but `/` and NUL; empty for the root of a layer.
#[derive(Clone)]
pub struct Name(Bytes);

#[derive(Clone)]
enum Bytes {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl From<&[u8]> for Name {
    fn from(name: &[u8]) -> Name {
        let mut bytes = [0; SHORT];
        Name(
            match (u8::try_from(name.len()), bytes.get_mut(..name.len())) {
                (Ok(len), Some(short)) => {
                    short.copy_from_slice(name);
                    Bytes::Short { len, bytes }
                }
                _ => Bytes::Long(name.into()),
            },
        )
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Bytes::Long(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.escape_ascii().to_string(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_lengths_come_back() {
        for len in 0..=255 {
            let name: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(7) | 1).collect();
            assert_eq!(&*Name::from(name.as_slice()), name.as_slice());
        }
        assert_eq!(size_of::<Name>(), 24);
    }
}
