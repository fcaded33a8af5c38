//! A mount in a user namespace, and one through fusermount3: by an ordinary user's means.

use std::fs;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::{Fixture, Mounted, PROGRAM, require_all, run, sys, text};

/// `daemon`, which every Debian system has: fusermount3 insists on a name for its user.
pub const USER: u32 = 1;
pub const STRANGER: u32 = 12346;

/// The script's work is done inside the namespace, where the mount is.
const SCRIPT: &str = r#"
set -eu
"$PROGRAM" mount --owner squash --lower "$LOWER" --upper "$UPPER" --work "$WORK" "$MNT"
cd "$MNT"
[ "$(cat dir/file)" = content ]
[ "$(stat -c %u:%g dir/file)" = 0:0 ]
[ ! -e gone ]
echo more >> dir/file
mkdir -p new/deep
echo new > new/deep/file
ln dir/file dir/link
mv dir renamed
chmod 600 renamed/file
rm renamed/other
ln -s renamed/file symlink
[ "$(cat symlink)" = "content
more" ]
[ "$(stat -c %h renamed/file)" = 2 ]
cd /
"$PROGRAM" umount "$MNT"
"$PROGRAM" mount --owner squash --lower "$LOWER" --upper "$UPPER" --work "$WORK" "$MNT"
cd "$MNT"
[ "$(stat -c %a:%h renamed/file)" = 600:2 ]
[ ! -e renamed/other ]
[ ! -e dir ]
[ ! -e gone ]
[ "$(cat new/deep/file)" = new ]
rm -r renamed new symlink
[ -z "$(ls -A)" ]
cd /
"$PROGRAM" umount "$MNT"
"#;

fn lower_of(fixture: &mut Fixture) {
    let top = fixture.lower();
    sys::make(top.join(".wh.gone"), b"").unwrap();
    let base = fixture.lower();
    sys::mkdir(base.join("dir"), 0o755).unwrap();
    sys::make(base.join("dir/file"), b"content\n").unwrap();
    sys::make(base.join("dir/other"), b"other\n").unwrap();
    sys::make(base.join("gone"), b"").unwrap();
}

#[test]
fn user_namespace() {
    if !require_all(&["fuse", "userns"]) {
        return;
    }
    let mut fixture = Fixture::new("rootless");
    lower_of(&mut fixture);
    let before = crate::support::Tree::read(&fixture.lowers[1]);
    let script = SCRIPT.replace("--lower \"$LOWER\"", "--lower \"$TOP\" --lower \"$LOWER\"");
    let output = run(Command::new("unshare")
        .args(["-Urm", "sh", "-c", &script])
        .env("PROGRAM", PROGRAM)
        .env("TOP", &fixture.lowers[0])
        .env("LOWER", &fixture.lowers[1])
        .env("UPPER", &fixture.upper)
        .env("WORK", &fixture.work)
        .env("MNT", &fixture.mnt));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}", output.status);
    let after = crate::support::Tree::read(&fixture.lowers[1]);
    assert_eq!(
        before.difference(&after, crate::support::Compare::BYTES),
        None
    );
}

const PRELUDE: &str = r#"
set -eux
mount() { "$PROGRAM" mount --lower "$TOP" --lower "$LOWER" --upper "$UPPER" --work "$WORK" "$MNT"; }
umount() { cd /; "$PROGRAM" umount "$MNT"; }
fails() { ! "$@"; }
"#;

/// The user owns the mountpoint, the upper, and some of the lowers' files.
const USER_SCRIPT: &str = r#"
mount
cd "$MNT"
[ "$(cat dir/file)" = content ]
[ ! -e gone ]
[ "$(stat -c %u open/theirs)" = "$STRANGER" ]
echo more >> dir/file
chmod 600 dir/file
mkdir -p new/deep
echo new > new/deep/file
mv dir renamed
echo late > renamed/late
fails rm -f protected/file
fails sh -c 'echo no >> protected/file'
# Copied up, though the copies cannot be given to whom the originals belong to.
echo mine >> open/theirs
mv open/moved open/here
ln open/linked open/linked2
mv renamed/link open/link
[ "$(cat open/theirs)" = "theirs
mine" ]
[ "$(cat open/here)" = moved ]
[ "$(readlink open/link)" = target ]
umount

mount
cd "$MNT"
[ "$(cat renamed/file)" = "content
more" ]
[ "$(stat -c %a:%u renamed/file)" = "600:$USER" ]
[ "$(cat renamed/late)" = late ]
[ "$(cat new/deep/file)" = new ]
[ "$(cat renamed/sub/below)" = below ]
[ "$(cat open/theirs)" = "theirs
mine" ]
[ "$(cat open/here)" = moved ]
[ ! -e open/moved ]
[ ! -e dir ]
[ "$(stat -c %h open/linked)" = 2 ]
[ "$(readlink open/link)" = target ]
[ "$(echo *)" = "new open protected renamed" ]
rm -r renamed new
[ "$(echo *)" = "open protected" ]
umount
"#;

/// A symlink has no `user.` attributes, so its copy cannot keep the number there.
const SYMLINK_SCRIPT: &str = r#"
mount
cd "$MNT"
link=$(stat -c %i dir/link)
mv dir/link open/link
[ "$(stat -c %i open/link)" = "$link" ]
ls -l open
[ "$(stat -c %i open/link)" = "$link" ]
umount
"#;

/// What needs privileges is refused, or stays behind at a copy-up.
const PRIVILEGES_SCRIPT: &str = r#"
mount
cd "$MNT"
getfattr -n security.capability open/capable
mv open/capable open/copied
fails getfattr -n security.capability open/copied
fails mknod open/null c 1 3
mknod open/whiteout c 0 0
[ "$(stat -c %t:%T open/whiteout)" = 0:0 ]
umount
mount
cd "$MNT"
[ "$(stat -c %t:%T open/whiteout)" = 0:0 ]
[ "$(cat open/copied)" = capable ]
umount
"#;

/// Lowers with files of the user, of another one, and of root.
fn users_lower(fixture: &mut Fixture) {
    let top = fixture.lower();
    fs::write(top.join(".wh.gone"), "").unwrap();
    let base = fixture.lower();
    let owned = |path: &str, uid: u32, mode: u32| {
        sys::lchown(base.join(path), uid, uid).unwrap();
        sys::chmod(base.join(path), mode).unwrap();
    };
    for dir in ["dir", "dir/sub", "open", "protected"] {
        sys::mkdir(base.join(dir), 0o755).unwrap();
    }
    for (file, content) in [
        ("dir/file", "content\n"),
        ("dir/sub/below", "below\n"),
        ("open/theirs", "theirs\n"),
        ("open/moved", "moved\n"),
        ("open/linked", "linked\n"),
        ("protected/file", "protected\n"),
        ("gone", ""),
    ] {
        fs::write(base.join(file), content).unwrap();
    }
    fs::write(base.join("open/capable"), "capable\n").unwrap();
    sys::symlink("target", base.join("dir/link")).unwrap();
    sys::lchown(base.join("dir/link"), USER, USER).unwrap();
    for path in ["", "dir", "dir/sub"] {
        owned(path, USER, 0o755);
    }
    owned("dir/file", USER, 0o644);
    owned("dir/sub/below", USER, 0o644);
    owned("open", STRANGER, 0o777);
    for path in ["open/theirs", "open/moved", "open/linked"] {
        owned(path, STRANGER, 0o666);
    }
    owned("open/capable", USER, 0o755);
    // Revision 2 of the format, CAP_NET_RAW permitted (linux/capability.h).
    let capability = [&[1, 0, 0, 2, 0, 0x20][..], &[0; 14]].concat();
    let key = "security.capability";
    sys::setxattr(base.join("open/capable"), key, &capability, 0).unwrap();
}

/// A copy of the program, which may lie where users cannot go.
pub fn program_for_users(fixture: &Fixture) -> PathBuf {
    let program: PathBuf = fixture.scratch().join("cvmfs-union");
    // By cp: had this process it open for writing, children of other tests might hold it busy.
    assert!(
        run(Command::new("cp").arg(PROGRAM).arg(&program))
            .status
            .success()
    );
    program
}

/// Runs a script as the user.
fn run_as_user(fixture: &Fixture, mut shell: Command, script: &str) -> Output {
    run(shell
        .args(["-c", &format!("{PRELUDE}{script}")])
        .uid(USER)
        .gid(USER)
        .current_dir("/")
        .env("LC_ALL", "C")
        .env("PROGRAM", program_for_users(fixture))
        .env("USER", USER.to_string())
        .env("STRANGER", STRANGER.to_string())
        .env("TOP", &fixture.lowers[0])
        .env("LOWER", &fixture.lowers[1])
        .env("UPPER", &fixture.upper)
        .env("WORK", &fixture.work)
        .env("MNT", &fixture.mnt))
}

fn ordinary_user(name: &str, script: &str) {
    as_ordinary_user(name, script, |_| {});
}

/// Runs a script as the user. Once it has made `$WORK.ready`, the body is run, and then `$WORK.go` made.
pub fn as_ordinary_user(name: &str, script: &str, body: impl FnOnce(&Fixture)) {
    if !require_all(&["root", "fuse", "fusermount3"]) {
        return;
    }
    let mut fixture = Fixture::new(name);
    users_lower(&mut fixture);
    fixture.watch_lowers();
    for dir in [&fixture.upper, &fixture.work, &fixture.mnt] {
        sys::lchown(dir, USER, USER).unwrap();
    }
    sys::chmod(fixture.scratch(), 0o1777).unwrap();
    let shell = Command::new("sh");
    let output = with_signals(&fixture, || run_as_user(&fixture, shell, script), body);
    if !output.status.success() {
        drop(Mounted(fixture.mnt.clone()));
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        panic!("{}\n{said}", output.status);
    }
}

/// Runs the body between the script's `$WORK.ready` and its `$WORK.go`.
pub fn with_signals(
    fixture: &Fixture,
    script: impl FnOnce() -> Output + Send,
    body: impl FnOnce(&Fixture),
) -> Output {
    let beside = |end: &str| PathBuf::from(format!("{}.{end}", fixture.work.display()));
    std::thread::scope(|scope| {
        let script = scope.spawn(script);
        while sys::stat(beside("ready")).is_err() && !script.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let done = if script.is_finished() {
            Ok(())
        } else {
            catch_unwind(AssertUnwindSafe(|| body(fixture)))
        };
        fs::write(beside("go"), "").unwrap();
        let output = script.join().unwrap();
        match done {
            Ok(()) => output,
            Err(cause) => resume_unwind(cause),
        }
    })
}

#[test]
fn fusermount() {
    ordinary_user("fusermount", USER_SCRIPT);
}

#[test]
fn fusermount_symlink_numbers() {
    ordinary_user("fusermount-symlink", SYMLINK_SCRIPT);
}

#[test]
fn what_needs_privileges() {
    ordinary_user("fusermount-privileges", PRIVILEGES_SCRIPT);
}

/// Root of a namespace passes the kernel's check, but the daemon is its user outside.
#[test]
fn files_the_daemon_may_not_read() {
    const SCRIPT: &str = r#"
"$PROGRAM" mount --owner squash --lower "$LOWER" --upper "$UPPER" --work "$WORK" "$MNT"
cd "$MNT"
[ "$(cat public)" = public ]
[ "$(stat -c %u:%a secret)" = 0:600 ]
fails cat secret
fails sh -c 'echo more >> secret'
umount
"#;
    if !require_all(&["root", "fuse", "userns"]) {
        return;
    }
    let mut fixture = Fixture::new("unreadable");
    let (_top, lower) = (fixture.lower(), fixture.lower());
    fs::write(lower.join("public"), "public\n").unwrap();
    fs::write(lower.join("secret"), "secret\n").unwrap();
    sys::chmod(lower.join("secret"), 0o600).unwrap();
    for dir in [&fixture.upper, &fixture.work, &fixture.mnt] {
        sys::lchown(dir, USER, USER).unwrap();
    }
    fixture.watch_lowers();
    let mut shell = Command::new("unshare");
    shell.args(["-Urm", "sh"]);
    let output = run_as_user(&fixture, shell, SCRIPT);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}", output.status);
}
