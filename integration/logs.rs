//! Where the lines of a daemon's log arrive once it is in the background.

use std::fs;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::files::file;
use crate::support::{Fixture, PROGRAM, System, daemon, require_all, run, text, umount};

fn fixture(name: &str) -> Option<Fixture> {
    if !require_all(&["root", "fuse"]) {
        return None;
    }
    let mut f = Fixture::new(name);
    file(f.lower().join("file"), "below");
    Some(f)
}

#[test]
fn a_file() {
    let Some(mut f) = fixture("log-file") else {
        return;
    };
    let log = f.scratch().join("log");
    f.options = vec![
        "--log=info".to_owned(),
        format!("--log-to={}", log.display()),
    ];
    f.mount();
    let pid = daemon::of(&f.mnt);
    daemon::signal(pid, libc::SIGTERM);
    daemon::wait_for_end(pid);
    f.forget_mount();
    let lines = fs::read_to_string(&log).unwrap();
    assert!(
        lines.contains("SIGTERM: unmounting") && !lines.contains('\u{1b}'),
        "{lines}"
    );
    f.options[1] = "--log-to=/proc/none/log".to_owned();
    let output = f.try_mount();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

/// The sockets of the two daemons are ours, in a mount namespace. Devices are made for it.
const SCRIPT: &str = r#"
set -eu
mkdir "$DIR/dev"
mount -t tmpfs none "$DIR/dev"
mknod -m 666 "$DIR/dev/fuse" c 10 229
mknod -m 666 "$DIR/dev/null" c 1 3
: > "$DIR/dev/log"
mount --bind "$DIR/syslog" "$DIR/dev/log"
mount --move "$DIR/dev" /dev
mount -t tmpfs none /run
mkdir -p /run/systemd/journal
: > /run/systemd/journal/socket
mount --bind "$DIR/journald" /run/systemd/journal/socket
for to in syslog journald; do
    "$PROGRAM" mount --lower "$LOWER" --read-only --log info --log-to "$to" "$MNT"
    pid=$("$PROGRAM" stats "$MNT" | sed -n 's/^daemon \([0-9]*\),.*/\1/p')
    kill -TERM "$pid"
    while kill -0 "$pid" 2> /dev/null; do sleep 0.02; done
done
"#;

#[test]
fn syslog_and_journald() {
    let Some(f) = fixture("log-daemons") else {
        return;
    };
    let sockets = ["syslog", "journald"].map(|name| {
        let socket = UnixDatagram::bind(f.scratch().join(name)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        (name, socket)
    });
    let mut shell = Command::new("unshare");
    shell.args(["-m", "--propagation", "private", "sh", "-c", SCRIPT]);
    shell.env("PROGRAM", PROGRAM).env("DIR", f.scratch());
    shell.env("LOWER", &f.lowers[0]).env("MNT", &f.mnt);
    let output = run(&mut shell);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for (name, socket) in sockets {
        let begun = Instant::now();
        let mut all = String::new();
        while !all.contains("SIGTERM: unmounting") {
            assert!(begun.elapsed() < Duration::from_secs(20), "{name}: {all}");
            let mut line = vec![0; 1 << 16];
            let length = socket
                .recv(&mut line)
                .unwrap_or_else(|e| panic!("{name}: {e}: {all}"));
            all.push_str(&text(&line[..length]));
        }
        assert!(all.contains("cvmfs-union"), "{name}: {all}");
    }
}

/// As systemd has it for `Type=notify`, by a socket with a path and by one without.
#[test]
fn a_service_manager() {
    let Some(f) = fixture("log-manager") else {
        return;
    };
    let path = f.scratch().join("notify");
    let name = format!("cvmfs-union-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let sockets = [
        (path.display().to_string(), UnixDatagram::bind(&path)),
        (format!("@{name}"), UnixDatagram::bind_addr(&abstract_name)),
    ];
    for (name, socket) in sockets {
        let socket = socket.unwrap();
        let patience = Some(Duration::from_secs(10));
        socket.set_read_timeout(patience).unwrap();
        let told = || {
            let mut lines = [0; 1000];
            let length = socket.recv(&mut lines).unwrap();
            text(&lines[..length])
        };
        let mut command = f.mount_command();
        command.arg("--foreground").arg(&f.mnt);
        let mut child = command.env("NOTIFY_SOCKET", &name).spawn().unwrap();
        let ready = format!("READY=1\nSTATUS={} shows 1 layers", f.mnt.display());
        assert_eq!(told(), ready, "{name}");
        assert_eq!(fs::read_to_string(f.at("file")).unwrap(), "below");
        daemon::signal(i32::try_from(child.id()).unwrap(), libc::SIGTERM);
        assert_eq!(told(), "STOPPING=1\nSTATUS=unmounting", "{name}");
        assert!(child.wait().unwrap().success());

        // In the background it is not the process that was started.
        let mut command = f.mount_command();
        command.arg(&f.mnt);
        socket.set_nonblocking(true).unwrap();
        while socket.recv(&mut [0; 1000]).is_ok() {}
        let output = run(command.env("NOTIFY_SOCKET", &name));
        assert!(output.status.success(), "{}", text(&output.stderr));
        umount(System::Ours, &f.mnt).unwrap();
        let said = socket.recv(&mut [0; 1000]);
        assert_eq!(said.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
