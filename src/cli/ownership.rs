//! Options about owners, by the names that fuse-overlayfs gave them.

use std::num::ParseIntError;

use super::{Code, Failure, Outcome};
use crate::layer::overrides::Overrides;
use crate::union::shown::{IdMap, IdRange, Shown};

/// What is shown otherwise than it is stored.
#[derive(Debug, clap::Args)]
pub struct Ownership {
    /// Owners: STORED:SHOWN:COUNT, more such triples after another colon
    #[arg(long, value_name = "RANGES")]
    uidmapping: Option<String>,
    /// Groups, likewise
    #[arg(long, value_name = "RANGES")]
    gidmapping: Option<String>,
    /// Show root as the owner and group of all
    #[arg(long)]
    squash_to_root: bool,
    /// Show this owner of all
    #[arg(long, value_name = "UID")]
    squash_to_uid: Option<u32>,
    /// Show this group of all
    #[arg(long, value_name = "GID")]
    squash_to_gid: Option<u32>,
    /// Show 1 as the link count of all directories
    #[arg(long)]
    static_nlink: bool,
    /// Keep owners and modes of what is changed in an attribute beside each file, as fuse-overlayfs does: 1 for
    /// root in security.fuseoverlayfs.override_stat, 2 for all in user.fuseoverlayfs.override_stat, or in
    /// user.containers.override_stat if an engine has begun the upper with that, 0 not. An upper stays with what
    /// it was begun with
    #[arg(long, value_name = "0|1|2", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    xattr_permissions: u8,
    /// Have no POSIX ACLs; there are none with mapped ids or with owners beside the files either
    #[arg(long)]
    noacl: bool,
}

impl Ownership {
    /// One of these options, if any is given.
    pub fn given(&self) -> Option<&'static str> {
        let options = [
            (self.uidmapping.is_some(), "--uidmapping"),
            (self.gidmapping.is_some(), "--gidmapping"),
            (self.squash_to_root, "--squash-to-root"),
            (self.squash_to_uid.is_some(), "--squash-to-uid"),
            (self.squash_to_gid.is_some(), "--squash-to-gid"),
            (self.static_nlink, "--static-nlink"),
            (self.xattr_permissions != 0, "--xattr-permissions"),
            (self.noacl, "--noacl"),
        ];
        let given = options.into_iter().find(|(given, _)| *given);
        given.map(|(_, name)| name)
    }

    pub fn shown(&self) -> Outcome<Shown> {
        let map = |name: &str, ranges: &Option<String>, squash: Option<u32>| {
            let text = ranges.as_deref().unwrap_or_default();
            let ranges = ranges_of(text).map_err(|why| {
                let text = format!("{name}={text}: {why}");
                Failure::new(Code::Usage, text)
            })?;
            let root = self.squash_to_root.then_some(0);
            Ok(IdMap {
                ranges,
                squash: squash.or(root),
            })
        };
        let beside = match self.xattr_permissions {
            0 => None,
            1 => Some(Overrides::of_root()),
            _ => Some(Overrides::of_user()),
        };
        // The ids in an ACL are not mapped, and setting one changes the mode of the file itself.
        let no_acls = self.uidmapping.is_some() || self.gidmapping.is_some() || beside.is_some();
        Ok(Shown {
            beside,
            uids: map("uidmapping", &self.uidmapping, self.squash_to_uid)?,
            gids: map("gidmapping", &self.gidmapping, self.squash_to_gid)?,
            static_nlink: self.static_nlink,
            no_acls: self.noacl || no_acls,
        })
    }
}

/// Triples of numbers between colons; empty parts count for nothing, as in the kernel's `uid_map`
/// that is written on one line.
fn ranges_of(text: &str) -> Result<Vec<IdRange>, String> {
    let parts = text.split(':').filter(|part| !part.is_empty());
    let numbers: Vec<u32> = parts
        .map(str::parse)
        .collect::<Result<_, ParseIntError>>()
        .map_err(|e| e.to_string())?;
    let (triples, rest) = numbers.as_chunks::<3>();
    if !rest.is_empty() {
        return Err("not STORED:SHOWN:COUNT".to_owned());
    }
    let range = |&[stored, shown, count]: &[u32; 3]| IdRange {
        stored,
        shown,
        count,
    };
    Ok(triples.iter().map(range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triples_and_nothing_else() {
        let ranges = |text| ranges_of(text).map(|ranges| ranges.len());
        assert_eq!(ranges(""), Ok(0));
        assert_eq!(ranges("0:1000:1:1:110000:65536"), Ok(2));
        assert_eq!(ranges(":0:100:10000"), Ok(1));
        for wrong in ["0:1", "0:1:2:3", "a:1:2", "0:-1:2", "0:1:4294967296"] {
            assert!(ranges(wrong).is_err(), "{wrong}");
        }
    }
}
