//! Mounts in user namespaces: what the image holds lends nobody rights, inside or outside.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::CloneFlags;

use super::others::locked_out;
use crate::rootless::{program_for_users, with_signals};
use crate::support::creds::Creds;
use crate::support::daemon;
use crate::support::{Fixture, require_all, run, sys, text};

/// The host's ids of the namespace's 0 and the following.
const BASE: u32 = 100_000;
const COUNT: u32 = 100;

/// Lets the command run as root of a user namespace of its own, with a range of ids.
fn enter_namespace(command: &mut Command) {
    let (mut ready, tell) = std::io::pipe().unwrap();
    let (wait, mut go) = std::io::pipe().unwrap();
    let (tell, wait) = (OwnedFd::from(tell), OwnedFd::from(wait));
    command.uid(BASE).gid(BASE).current_dir("/");
    let enter = move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        let pid = nix::unistd::getpid().as_raw().to_ne_bytes();
        nix::unistd::write(&tell, &pid)?;
        nix::unistd::read(&wait, &mut [0])?;
        Ok(())
    };
    // SAFETY: only system calls are made between fork and exec.
    unsafe { command.pre_exec(enter) };
    std::thread::spawn(move || {
        let mut pid = [0; 4];
        ready.read_exact(&mut pid).unwrap();
        let pid = i32::from_ne_bytes(pid);
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{pid}/{map}"), format!("0 {BASE} {COUNT}")).unwrap();
        }
        go.write_all(b"!").unwrap();
    });
}

const SCRIPT: &str = r#"
set -eux
fails() { ! "$@"; }
as() { id=$1; shift; setpriv --reuid "$id" --regid "$id" --clear-groups -- "$@"; }
fails "$PROGRAM" mount -o dev --lower "$LOWER" --upper "$UPPER" --work "$WORK" "$MNT"
"$PROGRAM" mount --lower "$LOWER" --upper "$UPPER" --work "$WORK" "$MNT"
cd "$MNT"

# Whose the objects are: 65534 is whoever has no id here.
[ "$(stat -c %u:%g . roots own fives)" = "0:0
65534:65534
0:0
5:5" ]

# A set-uid program runs as its caller, also one that is made here.
[ "$(./suid-root -u)" = 0 ]
[ "$(./suid-five -u)" = 0 ]
[ "$(as 5 ./suid-root -u)" = 5 ]
cp suid-five made-suid
chown 5:5 made-suid
chmod 6755 made-suid
[ "$(stat -c %a made-suid)" = 6755 ]
[ "$(./made-suid -u)" = 0 ]

# No device opens, and none can be made.
[ -c null ]
fails cat null
fails sh -c 'echo > null'
fails mknod made-null c 1 3

# Nobody's file of another range can be read by mode, changed, or taken over.
fails cat roots
fails sh -c 'echo >> roots'
fails chmod 777 roots
# The namespace's root may own it here, but its data stay whose they are.
chown 0:0 roots
chmod 666 roots
fails cat roots
fails sh -c 'echo >> roots'
fails as 5 cat own
[ "$(as 5 cat fives)" = fives ]
[ "$(cat fives)" = fives ]
fails chown 200 fives

# What is made belongs to whoever makes it, in the range.
as 5 sh -c 'echo new > shared/new'
as 6 mkdir shared/dir
fails as 6 rm -f shared/new
[ "$(stat -c %u:%g shared/new shared/dir)" = "5:5
6:6" ]
# The kernel lets nobody write to what belongs to somebody without an id, whatever its mode.
fails as 5 sh -c 'echo more >> open/foreign'
fails sh -c 'echo more >> open/foreign'
fails mv open/foreign open/moved
[ "$(as 5 cat open/foreign)" = foreign ]
fails as 5 setfattr -n trusted.x -v y shared/new
touch "$WORK.ready"
while [ ! -e "$WORK.go" ]; do sleep 0.05; done
cd /
"$PROGRAM" umount "$MNT"

# Set-id programs are such if that is wanted, for ids of this range only.
"$PROGRAM" mount -o suid --read-only --lower "$LOWER" "$MNT"
[ "$("$MNT/suid-five" -u)" = 5 ]
[ "$(as 6 "$MNT/suid-root" -u)" = 6 ]
"$PROGRAM" umount "$MNT"
"#;

fn lower_of(fixture: &mut Fixture) {
    let lower = fixture.lower();
    let make = |name: &str, content: &[u8], id: u32, mode: u32| {
        sys::make(lower.join(name), content).unwrap();
        sys::lchown(lower.join(name), id, id).unwrap();
        sys::chmod(lower.join(name), mode).unwrap();
    };
    let program = std::fs::read("/usr/bin/id").unwrap();
    make("suid-root", &program, 0, 0o6755);
    make("suid-five", &program, BASE + 5, 0o6755);
    make("roots", b"roots", 0, 0o600);
    make("own", b"own", BASE, 0o600);
    make("fives", b"fives", BASE + 5, 0o640);
    sys::mkdir(lower.join("dir"), 0o777).unwrap();
    make("dir/file", b"content", BASE, 0o666);
    sys::symlink("file", lower.join("dir/link")).unwrap();
    sys::mkdir(lower.join("shared"), 0o755).unwrap();
    sys::lchown(lower.join("shared"), BASE, BASE).unwrap();
    sys::chmod(lower.join("shared"), 0o1777).unwrap();
    sys::mkdir(lower.join("open"), 0o755).unwrap();
    sys::chmod(lower.join("open"), 0o777).unwrap();
    make("open/foreign", b"foreign\n", 0, 0o666);
    sys::mknod(
        lower.join("null"),
        libc::S_IFCHR | 0o666,
        libc::makedev(1, 3),
    )
    .unwrap();
    sys::chmod(lower.join("null"), 0o666).unwrap();
    sys::lchown(&lower, BASE, BASE).unwrap();
}

#[test]
fn an_image_lends_no_rights() {
    if !require_all(&["root", "fuse", "userns"]) {
        return;
    }
    let mut fixture = Fixture::new("namespace");
    lower_of(&mut fixture);
    fixture.watch_lowers();
    for dir in [&fixture.upper, &fixture.work, &fixture.mnt] {
        sys::lchown(dir, BASE, BASE).unwrap();
    }
    sys::lchown(fixture.scratch(), BASE, BASE).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT])
        .env("LC_ALL", "C")
        .env("PROGRAM", program_for_users(&fixture))
        .env("LOWER", &fixture.lowers[0])
        .env("UPPER", &fixture.upper)
        .env("WORK", &fixture.work)
        .env("MNT", &fixture.mnt);
    enter_namespace(&mut command);
    let output = with_signals(&fixture, || run(&mut command), from_outside);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}", output.status);
    let owner = |path: &str| {
        let stat = sys::lstat(fixture.upper.join(path)).unwrap();
        (stat.st_uid, stat.st_gid)
    };
    assert_eq!(owner("shared/new"), (BASE + 5, BASE + 5));
    assert_eq!(owner("shared/dir"), (BASE + 6, BASE + 6));
    // Nobody in the namespace could have made a file of root's.
    assert_eq!(owner("roots"), (BASE, BASE));
    let made = sys::stat(fixture.upper.join("made-suid")).unwrap();
    assert_eq!((made.st_uid, made.st_mode & 0o7777), (BASE + 5, 0o6755));
}

/// The mount, from where its namespace means nothing: by way of the daemon's root directory.
fn from_outside(fixture: &Fixture) {
    let pid = daemon::of(&fixture.mnt);
    let relative = fixture.mnt.strip_prefix("/").unwrap();
    let mnt = std::path::Path::new(&format!("/proc/{pid}/root")).join(relative);
    locked_out(&mnt, &Creds::root());
    super::unreachable::daemon_is_closed(&fixture.mnt, BASE + 5);
    super::unreachable::daemon_is_closed(&fixture.mnt, 12346);
}
