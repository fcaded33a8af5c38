//! apptainer, in the Debian that has it; `scripts/test-apptainer` sets that up and runs these tests.

use std::path::Path;

use super::script_in;

const SETUP: &str = include_str!("roots.sh");

fn apptainer(name: &str, work: &str) {
    let tree = std::env::var_os("CVMFS_UNION_APPTAINER");
    let tree = tree.expect("CVMFS_UNION_APPTAINER is a root file system with apptainer");
    script_in(Path::new(&tree), name, &[], &format!("{SETUP}{work}"));
}

/// apptainer lays kernel overlayfs upon the mount, for mount points that the image lacks.
#[test]
#[ignore = "scripts/test-apptainer runs it"]
fn a_user_on_the_mount_of_root() {
    apptainer(
        "apptainer-of-root",
        r#"
own
recipe one-mount-for-all-users
COMMAND='/bin/sh /look.sh overlay'
recipe apptainer-exec as_user
COMMAND='ls -d /home/tester'
recipe apptainer-exec as_user
cvmfs-union umount "$ROOT"
"#,
    );
}

#[test]
#[ignore = "scripts/test-apptainer runs it"]
fn a_user_on_his_own_mount() {
    apptainer(
        "apptainer-own",
        r#"
own as_user
COMMAND='/bin/sh /look.sh overlay'
recipe apptainer-exec-on-a-mount-of-one-s-own as_user
"#,
    );
}

#[test]
#[ignore = "scripts/test-apptainer runs it"]
fn writable_tmpfs() {
    apptainer(
        "apptainer-tmpfs",
        r#"
own as_user
COMMAND='/bin/sh /work.sh fuse.fuse-overlayfs'
recipe apptainer-exec-writable-tmpfs as_user
COMMAND='rm /dir/one'
recipe apptainer-exec-writable-tmpfs as_user
COMMAND='cat /dir/one'
recipe apptainer-exec-writable-tmpfs as_user
[ "$(find "$layers" -name made)" = '' ]
"#,
    );
}

#[test]
#[ignore = "scripts/test-apptainer runs it"]
fn writable() {
    apptainer(
        "apptainer-writable",
        r#"
try apptainer-exec-writable as_user
# What the image lacks was made, and files of the layers can be changed.
[ -d own/upper/var/tmp ]
COMMAND='rm /dir/one'
recipe apptainer-exec-writable as_user
[ -c own/upper/dir/one ] || [ -e own/upper/dir/.wh.one ]
"#,
    );
}

#[test]
#[ignore = "scripts/test-apptainer runs it"]
fn fakeroot() {
    apptainer(
        "apptainer-fakeroot",
        r#"
try apptainer-exec-fakeroot-writable as_user
COMMAND='grep -qw 100000 /proc/self/uid_map'
recipe apptainer-exec-fakeroot-writable as_user
COMMAND='rm /dir/one'
recipe apptainer-exec-fakeroot-writable as_user
[ -c own/upper/dir/one ] || [ -e own/upper/dir/.wh.one ]
"#,
    );
}

/// Debian's apptainer is not setuid; its starter is the same program, and asks itself whether it is.
#[test]
#[ignore = "scripts/test-apptainer runs it"]
fn installed_setuid() {
    apptainer(
        "apptainer-setuid",
        r#"
starter=$(echo /usr/lib/*/apptainer/bin/starter)
cp "$starter" "$starter-suid"
chmod 4755 "$starter-suid"
own as_user
COMMAND='/bin/sh /look.sh overlay'
echo user_allow_other >/etc/fuse.conf
recipe apptainer-exec-installed-setuid as_user
COMMAND='grep -q 4294967295 /proc/self/uid_map'
recipe apptainer-exec-installed-setuid as_user
"#,
    );
}
