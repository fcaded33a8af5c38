//! Programs that take the mount as their root file system.

use super::script;
use crate::support::require_all;

const SETUP: &str = include_str!("roots.sh");

fn in_root(name: &str, program: &str, work: &str) {
    script(name, &[program], &format!("{SETUP}{work}"));
}

#[test]
fn bwrap() {
    in_root("bwrap", "bwrap", "try bwrap env\n");
}

#[test]
fn bwrap_of_a_user() {
    if require_all(&["userns", "fusermount3"]) {
        in_root("bwrap-user", "bwrap", "try bwrap as_user\n");
    }
}

#[test]
fn ch_run() {
    in_root("ch-run", "ch-run", "try ch-run env USER=root\n");
}

#[test]
fn ch_run_of_a_user() {
    if require_all(&["userns", "fusermount3"]) {
        in_root("ch-run-user", "ch-run", "try ch-run as_user\n");
    }
}

/// Of users who cannot mount: root's mount is open to them.
#[test]
fn users_on_the_mount_of_root() {
    if !require_all(&["userns", "ch-run"]) {
        return;
    }
    in_root(
        "root-for-users",
        "bwrap",
        r#"
own
recipe one-mount-for-all-users
COMMAND='/bin/sh /look.sh fuse.cvmfs-union'
recipe bwrap-on-the-mount-of-root as_user
recipe ch-run-on-the-mount-of-root as_user
COMMAND='touch /shared/new'
if recipe bwrap-on-the-mount-of-root as_user; then exit 1; fi
if recipe ch-run-on-the-mount-of-root as_user; then exit 1; fi
cvmfs-union umount "$ROOT"
# The same on a mount that the kernel makes.
rm "$layers/11aa/dir/.wh.two"
cvmfs-union mount --backend overlay --assume-no-wh --read-only "$IMAGE" "$ROOT"
COMMAND='cat /file /dir/two'
[ "$(recipe bwrap-on-the-mount-of-root as_user)" = 'from the layer
two' ]
[ "$(recipe ch-run-on-the-mount-of-root as_user)" = 'from the layer
two' ]
cvmfs-union umount "$ROOT"
"#,
    );
}

#[test]
fn systemd_nspawn() {
    in_root("nspawn", "systemd-nspawn", "try systemd-nspawn env\n");
}

#[test]
fn runc() {
    in_root("runc", "runc", "try runc env\n");
}

#[test]
fn containerd() {
    in_root(
        "containerd",
        "containerd",
        r#"
cat >containerd.toml <<END
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
root = "/mnt/c/root"
state = "/mnt/c/state"
[grpc]
address = "/mnt/c/socket"
[ttrpc]
address = "/mnt/c/ttrpc"
END
mkdir c
containerd -c containerd.toml &
export CONTAINERD_ADDRESS=/mnt/c/socket
for _ in $(seq 300); do
    ctr version >/dev/null 2>&1 && break
    sleep 0.1
done
try containerd env
"#,
    );
}

/// What apptainer does by default: the kernel's overlayfs takes the mount as a lower.
#[test]
fn overlayfs_upon_the_mount() {
    in_root(
        "overlay-upon",
        "busybox",
        r#"
own
cvmfs-union mount --upper "$UPPER" "$IMAGE" "$ROOT"
mkdir over-it
mount -t tmpfs tmpfs over-it
mkdir over-it/upper over-it/work over-it/root
mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=over-it/upper,workdir=over-it/work" over-it/root
[ "$(cat over-it/root/file)" = 'from the layer' ]
[ "$(ls over-it/root/dir)" = one ]
rm over-it/root/dir/one
echo more >>over-it/root/file
chmod 700 over-it/root/dir
[ "$(cat over-it/root/file)" = 'from the layer
more' ]
[ -z "$(ls over-it/root/dir)" ]
[ "$(cat "$ROOT/file")" = 'from the layer' ]
[ "$(stat -c %a "$ROOT/dir")" = 755 ]
chroot over-it/root sh -c 'rm -r /dir; mkdir /dir; echo >/dir/new; [ "$(ls /dir)" = new ]'
[ "$(ls "$ROOT/dir")" = one ]
umount over-it/root
umount over-it
cvmfs-union umount "$ROOT"
"#,
    );
}
