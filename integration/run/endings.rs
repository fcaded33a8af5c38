//! How a command in an image ends, and all that it has started with it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use nix::pty::openpty;
use nix::sys::stat::Mode;

use super::{BOTH, Image, Who};
use crate::rootless::USER;
use crate::support::daemon::{signal, wait};
use crate::support::files::file;
use crate::support::slow_fs::{Fault, SlowFs};
use crate::support::{Tree, run, sys, text};

#[test]
fn statuses() {
    let Some(image) = Image::new("run-statuses") else {
        return;
    };
    for who in BOTH {
        let code = |options: &[&str], script: &str| image.run(who, options, script).status.code();
        assert_eq!(code(&[], "exit 7"), Some(7));
        assert_eq!(code(&[], "kill -KILL $$"), Some(137));
        // Signals without a name, of the command and of what it has left behind.
        assert_eq!(code(&[], "kill -40 $$"), Some(168));
        let left = "(sh -c 'sleep 0.1; kill -40 $$' &) ; sleep 0.4; exit 7";
        assert_eq!(code(&[], left), Some(7));
        assert_eq!(code(&[], "exec /absent"), Some(127));
        assert_eq!(code(&["--workdir", "/absent"], "true"), Some(2));
        assert_eq!(code(&["--bind", "/absent:/x"], "true"), Some(2));
        assert_eq!(code(&["--bind", "/usr:relative"], "true"), Some(2));
        assert_eq!(code(&["--env", "=x"], "true"), Some(2));
        assert_eq!(code(&["--cvmfs-root", "/absent"], "true"), Some(4));
        image.nothing_is_left();
    }
    let ended = |words: &[&str]| {
        let mut command = Command::new(&image.program);
        command.args(["run", "--prefetch=off", "--cvmfs-root"]);
        command.arg(image.at("cvmfs"));
        command.args(words).env("TMPDIR", image.at("tmp"));
        run(&mut command).status.code()
    };
    let thin = image.at("thin.json").display().to_string();
    assert_eq!(ended(&[&thin, "absent"]), Some(127));
    assert_eq!(ended(&[&thin, "/file"]), Some(126));
    assert_eq!(ended(&[&thin]), Some(2));
    assert_eq!(ended(&["/absent", "true"]), Some(3));
    image.nothing_is_left();
}

#[test]
fn signals_are_passed_on() {
    let Some(image) = Image::new("run-signals") else {
        return;
    };
    let loops = "echo ready; while :; do sleep 0.02; done";
    for who in BOTH {
        for (name, number) in [
            ("USR1", libc::SIGUSR1),
            ("TERM", libc::SIGTERM),
            ("INT", libc::SIGINT),
        ] {
            let script = format!("trap 'exit 5' {name}; {loops}");
            let (mut child, _out) = image.start(who, &["--ephemeral"], &script);
            signal(i32::try_from(child.id()).unwrap(), number);
            assert_eq!(child.wait().unwrap().code(), Some(5), "{name}");
        }
        let (mut child, _out) = image.start(who, &["--ephemeral"], loops);
        signal(i32::try_from(child.id()).unwrap(), libc::SIGTERM);
        assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
        image.nothing_is_left();
    }
}

/// A clock that was set before goes on, and its signal is the command's.
#[test]
fn an_alarm_is_passed_on() {
    let Some(image) = Image::new("run-alarm") else {
        return;
    };
    let inner = image.command(
        Who::User,
        &[],
        "trap 'exit 5' ALRM; echo ready; n=0; \
         while [ $n -lt 1500 ]; do n=$((n+1)); sleep 0.02; done",
    );
    // On a busy machine it may come too early.
    for seconds in ["1", "4", "16", "64"] {
        let mut timed = Command::new("perl");
        timed.args(["-e", "alarm shift; exec @ARGV", seconds]);
        timed.arg(inner.get_program()).args(inner.get_args());
        timed
            .env("HOME", image.at("home"))
            .env("TMPDIR", image.at("tmp"))
            .current_dir("/")
            .uid(USER)
            .gid(USER);
        let output = run(&mut timed);
        if text(&output.stdout) == "ready\n" {
            assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
            return image.nothing_is_left();
        }
    }
    panic!("the command was never ready");
}

/// What a terminal sends reaches the command, and once only.
#[test]
fn a_terminal_is_passed_on() {
    let Some(image) = Image::new("run-terminal") else {
        return;
    };
    // What has been printed and not yet read is kept at a ^C, and a second one is seen whatever it ends.
    let script = "set +e; trap 'echo interrupted; n=x${n:-}' INT; stty noflsh && echo ready; \
                  while [ -z \"${n:-}\" ]; do sleep 0.02; done; sleep 0.2; exec test $n = x";
    for who in BOTH {
        let inner = image.command(who, &[], script);
        let ends = openpty(None, None).unwrap();
        let terminal = || ends.slave.try_clone().unwrap();
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(inner.get_program())
            .args(inner.get_args());
        command
            .env("HOME", image.at("home"))
            .env("TMPDIR", image.at("tmp"))
            .current_dir("/")
            .stdin(terminal())
            .stdout(terminal())
            .stderr(terminal());
        if who == Who::User {
            command.uid(USER).gid(USER);
        }
        let mut child = command.spawn().unwrap();
        // They have the terminal open as well.
        drop((command, ends.slave));
        let mut keys = File::from(ends.master);
        let mut screen = BufReader::new(keys.try_clone().unwrap());
        let mut ready = String::new();
        screen.read_line(&mut ready).unwrap();
        assert_eq!(ready.trim(), "ready");
        keys.write_all(b"\x03").unwrap();
        // A terminal that nobody has open any more fails, and what was read before is there.
        let mut said = Vec::new();
        let closed = screen.read_to_end(&mut said).unwrap_err();
        assert_eq!(closed.raw_os_error(), Some(libc::EIO));
        let (status, said) = (child.wait().unwrap(), text(&said));
        assert!(status.success(), "{who:?}: {status}: {said}");
        assert_eq!(said.matches("interrupted").count(), 1, "{said}");
        image.nothing_is_left();
    }
}

#[test]
fn nothing_outlives_the_runner() {
    let Some(image) = Image::new("run-killed") else {
        return;
    };
    for who in BOTH {
        let script = "echo new > /new; echo ready; exec sleep 1000";
        let (mut child, out) = image.start(who, &["--ephemeral"], script);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        drop(out);
        wait("the upper stays", || {
            sys::names(image.at("tmp")).unwrap().is_empty()
        });
        image.nothing_is_left();
    }
}

/// Leaves a process in a session of its own, and one that its parent has left too. Their command lines name a
/// directory of the test.
const LEAVE: &str = r#"
setsid sh -c 'while :; do sleep 0.1; done' "$HOME" &
(setsid sh -c 'trap "" TERM HUP INT; while :; do sleep 0.1; done' "$HOME" &)
"#;
/// The same, in a mount namespace of its own.
const LEAVE_APART: &str = r#"
setsid unshare -Urm sh -c 'while :; do sleep 0.1; done' "$HOME" &
while [ $(readlink /proc/$!/ns/mnt) = $(readlink /proc/self/ns/mnt) ]; do :; done
"#;

#[test]
fn what_is_left_in_the_background_ends() {
    let Some(image) = Image::new("run-background") else {
        return;
    };
    for who in BOTH {
        for (end, code) in [
            ("exit 3", 3),
            ("kill -KILL $$", 137),
            ("kill -STOP $!; exec true", 0),
        ] {
            let script = format!("{LEAVE}{LEAVE_APART}{end}");
            let output = image.run(who, &["--ephemeral"], &script);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{who:?} {end}: {said}");
            assert_eq!(said, "");
            image.nothing_is_left();
        }
        // A signal to the runner, which the command dies of.
        let waits = "echo ready; while :; do sleep 0.02; done";
        let script = format!("{LEAVE}{LEAVE_APART}{waits}");
        let (mut child, _out) = image.start(who, &["--ephemeral"], &script);
        signal(i32::try_from(child.id()).unwrap(), libc::SIGTERM);
        assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
        image.nothing_is_left();
        // The runner is killed: the kernel ends the command, and the daemon the rest.
        let (mut child, _out) = image.start(who, &["--ephemeral"], &format!("{LEAVE}{waits}"));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        image.nothing_is_left();
    }
}

/// A process that waits in the mount for a layer dies with the mount only, and what it has started itself comes to
/// the runner with its death.
#[test]
fn what_a_hung_layer_holds_ends_too() {
    let Some(image) = Image::new("run-hung") else {
        return;
    };
    file(image.at("cvmfs/repo.example.org/layers/aa/cold/deep"), "");
    let before = Tree::read(&image.at("cvmfs/repo.example.org/layers"));
    let image = Image { before, ..image };
    let slow = SlowFs::showing(&image.at("cvmfs"));
    let pipes = ["hang", "end"].map(|name| {
        let pipe = image.at("home").join(name);
        nix::unistd::mkfifo(&pipe, Mode::from_bits_retain(0o600)).unwrap();
        sys::lchown(&pipe, USER, USER).unwrap();
        pipe
    });
    // Words of the shell alone, once nothing is answered any more.
    let script = r#"
(sh -c 'sleep 0; echo ready; while :; do sleep 0.1; done' "$HOME" &
    read _ <"$HOME/hang"
    [ -e /cold/deep ]) &
read _ <"$HOME/end"
exit 3
"#;
    let root = slow.root().to_str().unwrap();
    for who in BOTH {
        let options = ["--ephemeral", "--cvmfs-root", root];
        let (mut child, _out) = image.start(who, &options, script);
        slow.faults.set(Fault::StallAll, "");
        fs::write(&pipes[0], "\n").unwrap();
        slow.faults.wait_for_stall();
        fs::write(&pipes[1], "\n").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3), "{who:?}");
        image.nothing_is_left();
        slow.faults.lift();
    }
}

/// What a shell has started before it becomes the runner is not the command's.
#[test]
fn children_of_the_caller_stay() {
    let Some(image) = Image::new("run-callers") else {
        return;
    };
    for who in BOTH {
        let inner = image.command(who, &[], &format!("{LEAVE}exit 3"));
        let mut outer = Command::new("sh");
        let script = "sleep 1000 >/dev/null 2>&1 & echo $!; exec \"$@\"";
        outer
            .args(["-c", script, "sh"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .current_dir("/")
            .env("HOME", image.at("home"))
            .env("TMPDIR", image.at("tmp"));
        if who == Who::User {
            outer.uid(USER).gid(USER);
        }
        let output = run(&mut outer);
        // It is there to be killed.
        let child = text(&output.stdout).trim().parse().unwrap();
        signal(child, libc::SIGKILL);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        image.nothing_is_left();
    }
}

/// A program that waits for all its children waits for none of ours.
#[test]
fn the_daemon_is_no_child_of_the_command() {
    let Some(image) = Image::new("run-children") else {
        return;
    };
    let said = image.prints(Who::User, &[], "exec perl -e 'print wait'");
    assert_eq!(said, "-1", "there are none");
    image.nothing_is_left();
}
