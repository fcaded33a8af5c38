//! What nobody may get at: the upper and the work directory through the mount, the daemon, and what
//! the user who mounts may not read himself.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::ptrace;
use nix::unistd::Pid;

use crate::rootless::{self, USER, as_ordinary_user};
use crate::support::creds::Creds;
use crate::support::daemon;
use crate::support::sys::{self, Errno, Handle};
use crate::support::{Fixture, PROGRAM, Scratch, Tree, isolated, require_all, run, text};

const STRANGER: u32 = 12346;

/// Another user learns nothing from the daemon's entries in /proc, and cannot trace it.
pub fn daemon_is_closed(mnt: &Path, uid: u32) {
    let pid = daemon::of(mnt);
    let held = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let fds: Vec<_> = held.map(|fd| fd.path()).collect();
    assert!(fds.len() > 3);
    Creds::user(uid, uid, &[]).run(|| {
        let closed = |what: &str, result: sys::Result<()>| {
            let said = result.unwrap_err();
            assert!(
                matches!(said, Errno::EACCES | Errno::EPERM),
                "{what}: {said}"
            );
        };
        for name in ["fd", "root", "cwd", "exe", "map_files"] {
            let path = format!("/proc/{pid}/{name}");
            closed(name, sys::names(Path::new(&path).join(".")).map(drop));
            if name.len() > 2 && name != "map_files" {
                closed(name, sys::readlink(&path).map(drop));
            }
        }
        for name in ["maps", "mem", "environ"] {
            let path = format!("/proc/{pid}/{name}");
            closed(name, sys::open(path, libc::O_RDONLY, 0).map(drop));
        }
        for fd in &fds {
            closed("descriptor", sys::open(fd, libc::O_RDONLY, 0).map(drop));
        }
        let traced = ptrace::seize(Pid::from_raw(pid), ptrace::Options::empty());
        assert_eq!(traced, Err(Errno::EPERM));
        // SAFETY: the call takes numbers only.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        // SAFETY: the call takes numbers only.
        let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, 3, 0) };
        assert_eq!((taken, Errno::last()), (-1, Errno::EPERM));
        nix::unistd::close(i32::try_from(pidfd).unwrap()).unwrap();
    });
}

/// As FUSE makes them: the number of a node, and its generation.
fn forged(node: u64) -> Handle {
    let [high, low] = [(node >> 32) as u32, node as u32].map(u32::to_ne_bytes);
    Handle::new(0x81, &[high, low, [0; 4]].concat())
}

fn open_handle(mount: &impl AsRawFd, handle: &Handle) -> sys::Result<()> {
    handle.open(mount, libc::O_RDONLY).map(drop)
}

/// A work directory beside the upper; the upper holds a file that only it knows by number.
fn fixture() -> Fixture {
    let mut fixture = Fixture::new("unreachable");
    let lower = fixture.lower();
    sys::mkdir(lower.join("dir"), 0o755).unwrap();
    fs::write(lower.join("dir/file"), "content").unwrap();
    sys::link(lower.join("dir/file"), lower.join("dir/other")).unwrap();
    fs::write(lower.join("gone"), "gone").unwrap();
    fixture.mount();
    isolated(|| {
        fs::write(fixture.at("dir/file"), "copied up, and in the index").unwrap();
        sys::unlink(fixture.at("gone")).unwrap();
    });
    fixture
}

#[test]
fn the_upper_and_the_work_directory_through_the_mount() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let fixture = fixture();
    let mount = sys::stat(&fixture.mnt).unwrap().st_dev;
    // Whatever can be walked to is on the mount, and has no name of the union's own.
    for path in Tree::read(&fixture.mnt).0.keys() {
        let path = fixture.at(std::ffi::OsStr::from_bytes(path));
        assert_eq!(
            sys::lstat(&path).unwrap().st_dev,
            mount,
            "{}",
            path.display()
        );
    }
    assert_eq!(sys::names(&fixture.mnt).unwrap(), ["dir"]);
    for name in [
        "work",
        "index",
        "upper",
        "#0",
        "#1",
        ".wh.gone",
        ".wh..wh.work",
        ".wh..wh.plnk",
    ] {
        for dir in ["", "dir", "dir/.."] {
            let found = sys::lstat(fixture.at(dir).join(name)).map(drop);
            assert_eq!(found, Err(Errno::ENOENT), "{dir}/{name}");
        }
    }
    // The root's `..` is the mountpoint's parent, not the upper's.
    let above = |path: &Path| sys::stat(path).unwrap().st_ino;
    assert_eq!(above(&fixture.at("..")), above(fixture.scratch()));
    assert_eq!(above(&fixture.at("dir/../..")), above(fixture.scratch()));
}

#[test]
fn handles_of_what_is_beneath() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let fixture = fixture();
    let mount = sys::open(&fixture.mnt, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    let own = Handle::of(fixture.at("dir/file")).unwrap();
    assert_eq!(
        open_handle(&mount, &own),
        Ok(()),
        "a handle of the mount's own"
    );
    let beneath = [
        fixture.work.clone(),
        fixture.work.join("work"),
        fixture.work.join("index"),
        fixture.upper.clone(),
        fixture.upper.join("dir/file"),
        fixture.lowers[0].join("gone"),
    ];
    for path in &beneath {
        let real = open_handle(&mount, &Handle::of(path).unwrap());
        assert_eq!(real, Err(Errno::ESTALE), "{}", path.display());
        let node = sys::stat(path).unwrap().st_ino;
        let guessed = open_handle(&mount, &forged(node));
        assert_eq!(guessed, Err(Errno::ESTALE), "{}", path.display());
        Creds::user(STRANGER, STRANGER, &[]).run(|| {
            let said = open_handle(&mount, &forged(node));
            assert!(said.is_err(), "{}", path.display());
        });
    }
}

#[test]
fn the_daemon_of_root() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let fixture = fixture();
    daemon_is_closed(&fixture.mnt, STRANGER);
    // A work directory that the program made itself is closed.
    for path in [fixture.work.join("work"), fixture.work.join("index")] {
        assert_eq!(sys::stat(&path).unwrap().st_mode & 0o777, 0o700);
    }
}

/// A descriptor gives no more by its entry in /proc than it was opened for.
#[test]
fn descriptors_opened_anew() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let fixture = fixture();
    let plain = Scratch::new("reopened");
    for root in [plain.path(), &fixture.mnt] {
        isolated(|| {
            fs::write(root.join("public"), "public").unwrap();
            fs::write(root.join("secret"), "secret").unwrap();
            sys::chmod(root.join("secret"), 0o600).unwrap();
        });
        let by_root = sys::open(root.join("secret"), libc::O_RDONLY, 0).unwrap();
        Creds::user(STRANGER, STRANGER, &[]).run(|| {
            let again = |fd: &dyn AsRawFd, flags| {
                sys::open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, 0).map(drop)
            };
            let denied = Err(Errno::EACCES);
            for flags in [libc::O_RDONLY, libc::O_PATH] {
                let public = sys::open(root.join("public"), flags, 0).unwrap();
                assert_eq!(again(&public, libc::O_RDONLY), Ok(()));
                assert_eq!(again(&public, libc::O_WRONLY), denied);
                assert_eq!(again(&public, libc::O_RDWR | libc::O_TRUNC), denied);
            }
            let path = sys::open(root.join("secret"), libc::O_PATH, 0).unwrap();
            assert_eq!(again(&path, libc::O_RDONLY), denied);
            assert_eq!(again(&by_root, libc::O_RDONLY), denied);
            assert_eq!(sys::pread(&by_root, 9, 0).unwrap(), b"secret");
            assert_eq!(sys::fchmod(&by_root, 0o666), Err(Errno::EPERM));
            let linked = format!("/proc/self/fd/{}", path.as_raw_fd());
            let (to, follow) = (root.join("link"), AtFlags::AT_SYMLINK_FOLLOW);
            let made = nix::unistd::linkat(AT_FDCWD, linked.as_str(), AT_FDCWD, &to, follow);
            assert!(made.is_err());
        });
        assert_eq!(fs::read(root.join("public")).unwrap(), b"public");
    }
}

/// The user is told which of his directories it is, and nothing is mounted.
#[test]
fn directories_that_the_user_may_not_read() {
    if !require_all(&["root", "fuse", "fusermount3"]) {
        return;
    }
    let fixture = Fixture::new("unreadable");
    let program = rootless::program_for_users(&fixture);
    let dir = |name: &str, uid: u32, mode: u32| {
        let path = fixture.scratch().join(name);
        sys::mkdir(&path, 0o755).unwrap();
        sys::lchown(&path, uid, uid).unwrap();
        sys::chmod(&path, mode).unwrap();
        path
    };
    let (open, closed) = (dir("open", 0, 0o755), dir("closed", 0, 0o700));
    let (upper, work) = (dir("own", USER, 0o755), dir("own.work", USER, 0o755));
    let listed = dir("unsearchable", 0, 0o744);
    sys::lchown(&fixture.mnt, USER, USER).unwrap();
    let foreign = dir("foreign", 0, 0o755);
    for (lower, upper, work, culprit) in [
        (&closed, &upper, &work, &closed),
        (&open, &closed, &work, &closed),
        (&open, &upper, &closed, &closed),
        (&open, &foreign, &work, &foreign),
        (&open, &closed.join("below"), &work, &closed),
        (&closed.join("below"), &upper, &work, &closed),
        (&listed.join("below"), &upper, &work, &listed),
    ] {
        let mut command = Command::new(&program);
        command.arg("mount").arg("--lower").arg(lower);
        command.arg("--upper").arg(upper).arg("--work").arg(work);
        let output = run(command
            .arg(&fixture.mnt)
            .uid(USER)
            .gid(USER)
            .current_dir("/"));
        let said = text(&output.stderr);
        let what = format!("{lower:?} {upper:?} {work:?}: {said}");
        assert!(!output.status.success(), "{what}");
        let refused = said.contains("ermission denied") || said.contains("may not");
        assert!(
            refused && said.contains(culprit.to_str().unwrap()),
            "{what}"
        );
    }
}

/// The umask of who mounts is not that of who creates.
#[test]
fn the_umask_of_the_daemon() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    for mask in ["0777", "0000"] {
        let mut fixture = Fixture::new("umask");
        let lower = fixture.lower();
        sys::mkdir(lower.join("dir"), 0o755).unwrap();
        fs::write(lower.join("dir/file"), "content").unwrap();
        fixture.watch_lowers();
        let mount = fixture.mount_command();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {mask}; exec \"$@\""), "sh", PROGRAM]);
        let output = run(command.args(mount.get_args()).arg(&fixture.mnt));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let _mounted = crate::support::Mounted(fixture.mnt.clone());
        isolated(|| {
            let mode = |name: &str| sys::lstat(fixture.at(name)).unwrap().st_mode & 0o7777;
            sys::open(fixture.at("dir/new"), libc::O_CREAT | libc::O_EXCL, 0o666).unwrap();
            sys::mkdir(fixture.at("dir/made"), 0o777).unwrap();
            sys::mknod(fixture.at("dir/fifo"), libc::S_IFIFO | 0o666, 0).unwrap();
            sys::symlink("x", fixture.at("dir/link")).unwrap();
            fs::write(fixture.at("dir/file"), "changed").unwrap();
            let modes = [
                "dir/new", "dir/made", "dir/fifo", "dir/link", "dir/file", "dir",
            ]
            .map(mode);
            assert_eq!(
                modes,
                [0o644, 0o755, 0o644, 0o777, 0o644, 0o755],
                "umask {mask}"
            );
        });
    }
}

/// What the environment says leads neither the set-uid helper nor the daemon astray; what is kept for
/// a while is closed to others.
#[test]
fn a_hostile_environment() {
    let script = r#"
mkdir -m 1777 "$WORK/tmp"
export LD_PRELOAD=/nonexistent/hostile.so LD_LIBRARY_PATH=/nonexistent LD_AUDIT=/nonexistent/a.so
export TMPDIR="$WORK/tmp" IFS=x _FUSE_COMMFD=0 FUSERMOUNT_PROG=/nonexistent
"$PROGRAM" mount --ephemeral --lower "$TOP" --lower "$LOWER" "$MNT"
unset LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT IFS
[ "$(cat "$MNT/dir/file")" = content ]
echo changed > "$MNT/dir/file"
[ "$(stat -c %a:%u "$WORK"/tmp/*)" = "700:$USER" ]
umount
for i in $(seq 100); do [ -z "$(ls -A "$WORK/tmp")" ] || sleep 0.05; done
[ -z "$(ls -A "$WORK/tmp")" ]
if TMPDIR=/nonexistent "$PROGRAM" mount --ephemeral --lower "$LOWER" "$MNT"; then exit 1; fi
"#;
    as_ordinary_user("environment", script, |_| {});
}
