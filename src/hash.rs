//! Two hashes. One stays the same for ever. The other is a cheap one for tables of numbers: those of nodes, and such as are hashes already. Who makes an image
//! could choose some with effort, and would slow down its own mount only; tables of names keep the hash that
//! nobody can foresee.

use std::hash::{BuildHasherDefault, Hasher};

/// Odd, and without a pattern: the golden ratio's share of 2^64.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes numbers by multiplication, both halves of the product.
#[derive(Clone, Copy, Debug, Default)]
pub struct NumberHasher(u64);

/// For `HashMap` and the like.
pub type Numbers = BuildHasherDefault<NumberHasher>;

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let number = chunk.iter().fold(0, |all, b| all << 8 | u64::from(*b));
            self.write_u64(number);
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0.rotate_left(5) ^ number) * u128::from(FACTOR);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A hash that stays the same over time and machines (FNV-1a, finished as MurmurHash3 does).
pub fn stable_hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut h = seed ^ 0xcbf2_9ce4_8422_2325;
    for b in bytes {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    /// Numbers that differ only in high bits, only in low ones, or by a stride, fall apart in the bits that a
    /// table of their size uses.
    #[test]
    fn numbers_are_spread() {
        const N: u64 = 1 << 12;
        for shift in [0, 4, 12, 32, 48, 52] {
            let places: HashSet<u64> = (0..N)
                .map(|n| Numbers::default().hash_one(n << shift) % (2 * N))
                .collect();
            // Random places would be 79 of 100.
            assert!(places.len() as u64 > N / 2, "{shift}: {}", places.len());
        }
        let bytes = |bytes: &[u8]| Numbers::default().hash_one(bytes);
        assert_ne!(bytes(b"123456789"), bytes(b"123456780"));
        assert_ne!(bytes(b"123456789"), bytes(b"023456789"));
        let both = |numbers: (u32, u64)| Numbers::default().hash_one(numbers);
        assert_ne!(both((1, 2)), both((2, 1)));
        assert_ne!(both((1, 2)), both((2, 2)));
    }
}
