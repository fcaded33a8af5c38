//! The attributes of an object of a layer, kept in few bytes: there is one of these for each object
//! that is known. What is out of the ordinary (a time after 2446, a device, 256 names) is kept whole.

use std::num::NonZeroU8;

use crate::sys::meta::{self, Stat};

/// What a stat said, but for `st_dev` and `st_ino`, which are 0 when it comes back.
#[derive(Clone, Debug)]
pub struct Attrs(Kept);

#[derive(Clone, Debug)]
enum Kept {
    Usual {
        size: u64,
        /// Of access, modification and change.
        times: [PackedTime; 3],
        uid: u32,
        gid: u32,
        blocks: u32,
        /// As in `st_mode`, with the kind.
        mode: u16,
        nlink: NonZeroU8,
        /// The block size is this power of two.
        block_bits: u8,
    },
    Odd(Box<Stat>),
}

/// Seconds since [`FIRST`] in the upper 34 bits, nanoseconds in the lower 30.
#[derive(Clone, Copy, Debug)]
struct PackedTime(u64);

/// The first time that ext4 can store. 34 bits reach as far as it can.
const FIRST: i64 = -(1 << 31);
const NANOS_BITS: u32 = 30;

impl PackedTime {
    fn new(sec: i64, nsec: i64) -> Option<PackedTime> {
        let sec = u64::try_from(sec.checked_sub(FIRST)?).ok()?;
        let nsec = u64::try_from(nsec).ok()?;
        let fits = sec < 1 << (64 - NANOS_BITS) && nsec < 1 << NANOS_BITS;
        fits.then_some(PackedTime(sec << NANOS_BITS | nsec))
    }

    fn sec(self) -> i64 {
        (self.0 >> NANOS_BITS).cast_signed() + FIRST
    }

    fn nsec(self) -> i64 {
        (self.0 & ((1 << NANOS_BITS) - 1)).cast_signed()
    }
}

/// None if something does not fit.
fn usual(stat: &Stat) -> Option<Kept> {
    let block = u64::try_from(stat.st_blksize).ok()?;
    if stat.st_rdev != 0 || !block.is_power_of_two() {
        return None;
    }
    Some(Kept::Usual {
        size: u64::try_from(stat.st_size).ok()?,
        times: [
            PackedTime::new(stat.st_atime, stat.st_atime_nsec)?,
            PackedTime::new(stat.st_mtime, stat.st_mtime_nsec)?,
            PackedTime::new(stat.st_ctime, stat.st_ctime_nsec)?,
        ],
        uid: stat.st_uid,
        gid: stat.st_gid,
        blocks: u32::try_from(stat.st_blocks).ok()?,
        mode: u16::try_from(stat.st_mode).ok()?,
        nlink: NonZeroU8::new(u8::try_from(stat.st_nlink).ok()?)?,
        block_bits: u8::try_from(block.trailing_zeros()).ok()?,
    })
}

impl From<&Stat> for Attrs {
    fn from(stat: &Stat) -> Attrs {
        Attrs(usual(stat).unwrap_or_else(|| Kept::Odd(Box::new(*stat))))
    }
}

impl Attrs {
    /// As it was put in.
    pub fn stat(&self) -> Stat {
        match &self.0 {
            Kept::Odd(stat) => {
                let mut stat = **stat;
                (stat.st_dev, stat.st_ino) = (0, 0);
                stat
            }
            Kept::Usual {
                size,
                times: [atime, mtime, ctime],
                uid,
                gid,
                blocks,
                mode,
                nlink,
                block_bits,
            } => {
                let mut stat = meta::blank();
                stat.st_mode = u32::from(*mode);
                stat.st_nlink = u64::from(nlink.get());
                (stat.st_uid, stat.st_gid) = (*uid, *gid);
                stat.st_size = size.cast_signed();
                stat.st_blocks = i64::from(*blocks);
                stat.st_blksize = 1i64.checked_shl(u32::from(*block_bits)).unwrap_or(0);
                (stat.st_atime, stat.st_atime_nsec) = (atime.sec(), atime.nsec());
                (stat.st_mtime, stat.st_mtime_nsec) = (mtime.sec(), mtime.nsec());
                (stat.st_ctime, stat.st_ctime_nsec) = (ctime.sec(), ctime.nsec());
                stat
            }
        }
    }

    /// How many names the object has.
    pub fn nlink(&self) -> u64 {
        match &self.0 {
            Kept::Usual { nlink, .. } => nlink.get().into(),
            Kept::Odd(stat) => stat.st_nlink,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbtest::arbtest;

    /// All but the fields that are not kept.
    fn facts(s: &Stat) -> impl PartialEq + std::fmt::Debug {
        (
            (s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev),
            (s.st_size, s.st_blocks, s.st_blksize),
            [
                (s.st_atime, s.st_atime_nsec),
                (s.st_mtime, s.st_mtime_nsec),
                (s.st_ctime, s.st_ctime_nsec),
            ],
        )
    }

    #[test]
    fn attributes_come_back() {
        arbtest(|u| {
            let mut stat = meta::blank();
            // From small to any, so that both sides of each limit are met.
            macro_rules! any {
                ($type:ty) => {{
                    let bits = u.int_in_range(0..=<$type>::BITS - 1)?;
                    u.arbitrary::<$type>()? >> bits
                }};
            }
            stat.st_mode = any!(u32);
            stat.st_nlink = any!(u64);
            stat.st_uid = any!(u32);
            stat.st_gid = any!(u32);
            stat.st_rdev = if u.ratio(1, 4)? { any!(u64) } else { 0 };
            stat.st_size = any!(i64);
            stat.st_blocks = any!(i64);
            stat.st_blksize = if u.arbitrary()? { 4096 } else { any!(i64) };
            stat.st_atime = any!(i64);
            stat.st_mtime = any!(i64);
            stat.st_ctime = any!(i64);
            for nsec in [
                &mut stat.st_atime_nsec,
                &mut stat.st_mtime_nsec,
                &mut stat.st_ctime_nsec,
            ] {
                *nsec = u.int_in_range(0..=999_999_999)?;
            }
            assert_eq!(facts(&Attrs::from(&stat).stat()), facts(&stat));
            Ok(())
        });
    }

    #[test]
    fn limits_of_time_come_back() {
        let last = FIRST + (1 << 34) - 1;
        for sec in [i64::MIN, FIRST - 1, FIRST, -1, 0, last, last + 1, i64::MAX] {
            let mut stat = meta::blank();
            (stat.st_nlink, stat.st_blksize, stat.st_mtime) = (1, 4096, sec);
            let attrs = Attrs::from(&stat);
            assert_eq!(facts(&attrs.stat()), facts(&stat));
            let usual = matches!(attrs.0, Kept::Usual { .. });
            assert_eq!(usual, (FIRST..=last).contains(&sec));
        }
        assert_eq!(size_of::<Attrs>(), 48);
    }
}
