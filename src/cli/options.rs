//! The usual mount options behind `-o`; a later one wins over an earlier one.

use std::ffi::OsStr;
use std::time::Duration;

use nix::mount::MsFlags;

use super::{Code, Failure, Outcome};
use crate::fuse::convert::FOREVER;
use crate::sys::mount::MountFlags;

/// Whether an option is one of those below.
pub fn is_known(option: &OsStr) -> bool {
    let options = MountOptions::parse(&[option.to_string_lossy()]);
    options.unknown.is_empty()
}

/// What the `-o` lists ask for.
#[derive(Debug)]
pub struct MountOptions {
    pub flags: MsFlags,
    allow_other: bool,
    /// Said aloud and ignored.
    pub unknown: Vec<String>,
}

impl MountOptions {
    pub fn parse<S: AsRef<str>>(lists: &[S]) -> Self {
        let mut options = MountOptions {
            flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            allow_other: false,
            unknown: Vec::new(),
        };
        for option in lists.iter().flat_map(|list| list.as_ref().split(',')) {
            options.apply(option);
        }
        options
    }

    fn apply(&mut self, option: &str) {
        match option {
            "ro" => self.flags |= MsFlags::MS_RDONLY,
            "rw" => self.flags -= MsFlags::MS_RDONLY,
            "nosuid" => self.flags |= MsFlags::MS_NOSUID,
            "suid" => self.flags -= MsFlags::MS_NOSUID,
            "nodev" => self.flags |= MsFlags::MS_NODEV,
            "dev" => self.flags -= MsFlags::MS_NODEV,
            "noexec" => self.flags |= MsFlags::MS_NOEXEC,
            "exec" => self.flags -= MsFlags::MS_NOEXEC,
            "noatime" => self.flags |= MsFlags::MS_NOATIME,
            "atime" => self.flags -= MsFlags::MS_NOATIME,
            "nodiratime" => self.flags |= MsFlags::MS_NODIRATIME,
            "diratime" => self.flags -= MsFlags::MS_NODIRATIME,
            "relatime" => self.flags |= MsFlags::MS_RELATIME,
            "strictatime" => self.flags |= MsFlags::MS_STRICTATIME,
            "sync" => self.flags |= MsFlags::MS_SYNCHRONOUS,
            "async" => self.flags -= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => self.flags |= MsFlags::MS_DIRSYNC,
            "allow_other" => self.allow_other = true,
            // Always on, or words of mount(8) and fstab that are not for us.
            ""
            | "default_permissions"
            | "defaults"
            | "auto"
            | "noauto"
            | "user"
            | "nouser"
            | "users"
            | "nofail"
            | "_netdev" => {}
            comment if comment.starts_with("x-") => {}
            unknown => self.unknown.push(unknown.to_owned()),
        }
    }

    pub fn set_read_only(&mut self) {
        self.flags |= MsFlags::MS_RDONLY;
    }

    pub fn read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }

    /// What this user may have of it; root gives access to others without being asked.
    pub fn for_user(&self, root: bool, initial_root: bool) -> Outcome<MountFlags> {
        // Set-id programs of a user namespace's mount give nobody outside of it anything.
        if !self.flags.contains(MsFlags::MS_NOSUID) && !root {
            return Err(Failure::new(Code::Usage, "-o suid is for root only"));
        }
        if !self.flags.contains(MsFlags::MS_NODEV) && !initial_root {
            let text = "-o dev is for root outside of user namespaces only";
            return Err(Failure::new(Code::Usage, text));
        }
        Ok(MountFlags {
            source: None,
            flags: self.flags,
            allow_other: self.allow_other || root,
        })
    }
}

/// A time in seconds, perhaps with a fraction, as fuse-overlayfs reads its `timeout`. What is longer than the
/// kernel can be told is for ever.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if seconds.is_nan() || seconds < 0.0 {
        return Err("not 0 or more".to_owned());
    }
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Ok(time.min(FOREVER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_seconds() {
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(
            seconds("1000000000.0"),
            Ok(Duration::from_secs(1_000_000_000))
        );
        for long in ["1e30", "inf"] {
            assert_eq!(seconds(long), Ok(FOREVER));
        }
        for wrong in ["", "-1", "nan", "1s", "1,5"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn later_options_win_and_unknown_ones_are_kept() {
        let options = MountOptions::parse(&["ro,noexec,frob=1", "rw,dev,x-systemd.automount"]);
        assert!(!options.read_only());
        assert_eq!(options.flags, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC);
        assert_eq!(options.unknown, ["frob=1"]);
    }

    #[test]
    fn who_may_have_devices_and_others() {
        let dev = MountOptions::parse(&["dev"]);
        assert!(dev.for_user(true, true).is_ok());
        assert!(dev.for_user(true, false).is_err());
        assert!(dev.for_user(false, false).is_err());
        let suid = MountOptions::parse(&["suid"]);
        assert!(suid.for_user(true, false).is_ok());
        assert!(suid.for_user(false, false).is_err());
        let plain = MountOptions::parse::<&str>(&[]);
        assert!(plain.for_user(true, false).is_ok_and(|how| how.allow_other));
        assert!(
            plain
                .for_user(false, false)
                .is_ok_and(|how| !how.allow_other)
        );
    }
}
