//! `mount -t cvmfs-union` and a line of fstab, by the helper as `scripts/install` puts it.

use std::fs;
use std::process::Command;

use super::script;
use crate::support::{PROGRAM, Scratch, require_all, run, text};

const INSTALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install");

const SETUP: &str = r#"
mkdir -p cvmfs/r.example.org/layers/11aa root upper work
mv image cvmfs/r.example.org/layers/22bb
echo 'from the layer' >cvmfs/r.example.org/layers/11aa/file
cat >thin.json <<'END'
{"version": "1.0", "layers": [
    {"digest": "22bb", "url": "cvmfs://r.example.org/layers/22bb"},
    {"digest": "11aa", "url": "cvmfs://r.example.org/layers/11aa"}]}
END
fails() { ! "$@"; }
mounts() { awk '$2 == "/mnt/root"' /proc/mounts | wc -l; }
"#;

const WORK: &str = r#"
# Relative paths, no upper: nothing can be changed.
mount -t cvmfs-union thin.json root -o cvmfs_root=cvmfs
[ "$(cat root/file)" = 'from the layer' ]
[ "$(cat root/dir/one)" = one ]
fails touch root/new
[ "$(awk '$2 == "/mnt/root" { print $1, $3 }' /proc/mounts)" = '/mnt/thin.json fuse.cvmfs-union' ]
umount root

# -f of mount(8) is no mount, but mistakes are found.
mount -f -t cvmfs-union thin.json root -o cvmfs_root=cvmfs
[ "$(mounts)" = 0 ]

cat >fstab <<'END'
/mnt/thin.json /mnt/root cvmfs-union cvmfs_root=/mnt/cvmfs,upperdir=/mnt/upper,workdir=/mnt/work,allow_suid,nofail 0 0
END
mount -T fstab -a
[ "$(mounts)" = 1 ]
echo new >root/new
chroot root su user -c 'su root -c "rm /dir/one"'
# It is mounted already.
mount -T fstab -a
[ "$(mounts)" = 1 ]
umount root
[ "$(mounts)" = 0 ]
mount -T fstab root
[ "$(cat root/new)" = new ]
[ ! -e root/dir/one ]
umount root

# What is wrong is said by name, and makes mount(8) fail.
if mount -t cvmfs-union no.json root 2>said; then exit 1; fi
grep -q 'no.json' said
if mount -t cvmfs-union thin.json root -o cvmfs_root=/none 2>said; then exit 1; fi
grep -q '2 of 2 layers cannot be used' said

"$3/scripts/install" --uninstall
[ -z "$(find /usr/local /sbin/ -name '*cvmfs-union*')" ]
"#;

#[test]
fn mount_and_fstab() {
    script("mount-helper", &[], &format!("{SETUP}{WORK}"));
}

/// What the template says is what systemd reads, and names a program that is there.
#[test]
fn the_unit_of_systemd() {
    if !require_all(&["systemd-analyze"]) {
        return;
    }
    let scratch = Scratch::new("unit");
    let prefix = scratch.path().join("prefix");
    let install = |words: &[&str]| {
        let mut command = Command::new(INSTALL);
        command.args(words).env("CVMFS_UNION_BIN", PROGRAM);
        command
            .env("PREFIX", &prefix)
            .env("SBINDIR", prefix.join("sbin"));
        let output = run(&mut command);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    install(&[]);
    let unit = prefix.join("lib/systemd/system/cvmfs-union@.service");
    let output = run(Command::new("systemd-analyze").arg("verify").arg(&unit));
    let said = text(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    // The command of it is one that the program takes.
    let lines = fs::read_to_string(&unit).unwrap();
    let start = lines
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let line = start.unwrap().replace("%f", "\"$MNT\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).env("OPTIONS", "--read-only");
    shell
        .env("IMAGE", "/absent.json")
        .env("MNT", scratch.path());
    let output = run(&mut shell);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("/absent.json"), "{said}");
    install(&["--uninstall"]);
    assert!(!unit.exists());
}
