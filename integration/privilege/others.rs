//! Users for whom the mount is not: without `allow_other`, and from another user namespace.

use std::path::Path;

use crate::rootless::{USER, as_ordinary_user};
use crate::support::creds::Creds;
use crate::support::sys::{self, Errno};

const STRANGER: u32 = 12346;

/// All of it fails before the daemon is asked.
pub fn locked_out(mnt: &Path, who: &Creds) {
    let file = mnt.join("dir/file");
    who.run(|| {
        let denied = |what: &str, result: sys::Result<()>| {
            assert_eq!(result, Err(Errno::EACCES), "{what} as {}", who.name);
        };
        denied("stat", sys::stat(&file).map(drop));
        denied("open", sys::open(&file, libc::O_RDONLY, 0).map(drop));
        denied("list", sys::names(mnt).map(drop));
        denied("readlink", sys::readlink(mnt.join("dir/link")).map(drop));
        denied("make", sys::make(mnt.join("new"), b""));
        denied("mkdir", sys::mkdir(mnt.join("new"), 0o777));
        denied("unlink", sys::unlink(&file));
        denied("rename", sys::rename(&file, mnt.join("x"), 0));
        denied("chmod", sys::chmod(&file, 0o777));
        denied("truncate", sys::truncate(&file, 0));
        denied("xattr", sys::getxattr(&file, "user.x").map(drop));
    });
}

/// Not even root: what a user mounts must not get at others.
#[test]
fn nobody_else_without_allow_other() {
    let wait = r#"
mount
touch "$WORK.ready"
while [ ! -e "$WORK.go" ]; do sleep 0.05; done
[ "$(cat "$MNT/dir/file")" = content ]
umount
"#;
    as_ordinary_user("others", wait, |fixture| {
        let user = Creds::user(USER, USER, &[]);
        user.run(|| {
            assert_eq!(sys::stat(fixture.at("dir/file")).unwrap().st_uid, USER);
        });
        for who in [
            Creds::root(),
            Creds::user(STRANGER, STRANGER, &[]),
            Creds::user(STRANGER, USER, &[USER]),
        ] {
            locked_out(&fixture.mnt, &who);
        }
        super::unreachable::daemon_is_closed(&fixture.mnt, STRANGER);
    });
}
