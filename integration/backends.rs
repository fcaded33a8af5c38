//! Unions that the kernel makes in place of the daemon: when, and what then is as ever.
//!
//! Most are scripts in a mount namespace of their own, in which nothing is known of any layer yet.

mod ahead;
mod told;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::interchange::work;
use crate::rootless::USER;
use crate::support::files::file;
use crate::support::{
    Compare, Fixture, PROGRAM, Scratch, System, Tree, isolated, now, require_all, run, sys, text,
};

/// An image of two layers, `bb` on `aa`, in a directory that is also the working directory of scripts.
struct Image {
    scratch: Scratch,
}

const PRELUDE: &str = r#"
set -eux
# What is known of layers and of mounts is root's, and of this host.
for dir in /var/cache /run; do /bin/mount -t tmpfs tmpfs $dir; done
mount() { "$PROGRAM" mount --cvmfs-root cvmfs "$@" thin.json mnt; }
umount() { "$PROGRAM" umount mnt; }
scan() { "$PROGRAM" inspect --cvmfs-root cvmfs --scan thin.json; }
# Who makes the union at mnt.
backend() { "$PROGRAM" status | awk -v mnt="$PWD/mnt" '$NF == mnt { print $3 }'; }
# What is told of the mount at mnt, beneath its line: others have mounts too.
told() { "$PROGRAM" status | awk -v mnt="$PWD/mnt" '/^[^ ]/ { here = $0 ~ mnt "($| \\(of)" } here { print }'; }
# Ends with that code, and says why.
fails() { code=$1 said=$2; shift 2
    "$@" 2> said && exit 99 || [ $? = "$code" ]
    grep -q -- "$said" said || { cat said; exit 98; }; }
"#;

impl Image {
    fn new(name: &str) -> Image {
        let scratch = Scratch::new(name);
        let layers = scratch.dir("cvmfs/repo.example.org/layers");
        file(layers.join("aa/dir/file"), "below\n");
        file(layers.join("aa/dir/other"), "other\n");
        file(layers.join("aa/gone"), "");
        file(layers.join("bb/dir/top"), "above\n");
        let of = |digest: &str| json!({ "digest": digest, "url": format!("cvmfs://repo.example.org/layers/{digest}") });
        let thin = json!({ "version": "1.0", "layers": [of("aa"), of("bb")] });
        fs::write(scratch.path().join("thin.json"), thin.to_string()).unwrap();
        scratch.dir("mnt");
        Image { scratch }
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.scratch.path().join(path)
    }

    fn shell(&self, script: &str, unshare: &[&str]) -> Command {
        let mut shell = Command::new("unshare");
        shell
            .args(unshare)
            .args(["--propagation", "private", "sh", "-c"])
            .arg(format!("{PRELUDE}{script}"))
            .current_dir(self.scratch.path())
            .env("LC_ALL", "C")
            .env("PROGRAM", PROGRAM);
        shell
    }

    fn succeeds(&self, mut shell: Command) {
        let output = run(&mut shell);
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{}\n{said}", output.status);
    }
}

/// As root, where the kernel can make unions.
fn as_root(name: &str, script: &str, prepare: impl FnOnce(&Path)) {
    if !require_all(&["root", "fuse", "overlayfs"]) {
        return;
    }
    let image = Image::new(name);
    prepare(&image.at("cvmfs/repo.example.org/layers"));
    image.succeeds(image.shell(script, &["-m"]));
}

/// One layer was not looked through; then all were.
const AFTER_A_SCAN: &str = r#"
mount --upper upper
[ "$(backend)" = fuse ]
umount
[ "$(scan | grep -c ' none ')" = 2 ]
mount --upper upper
[ "$(backend)" = overlay ]
[ "$(cat mnt/dir/file mnt/dir/top)" = "below
above" ]
rm mnt/gone
mkdir mnt/new
echo more >> mnt/dir/file
[ "$("$PROGRAM" diff mnt)" = "C /dir
C /dir/file
D /gone
A /new" ]
"$PROGRAM" explain mnt /gone | grep -q "nothing is shown"
fails 6 "the kernel makes this union" "$PROGRAM" stats mnt
fails 7 "mounted by the kernel" "$PROGRAM" check upper
fails 5 "in use by another mount" mount --upper upper
umount
[ -z "$(ls mnt)" ]
fails 6 "not a mountpoint" umount
"$PROGRAM" check upper
mount --upper upper
[ "$(backend)" = overlay ]
[ "$(ls mnt)" = "dir
new" ]
umount
# Who calls it by the words of fuse-overlayfs wants FUSE, unless they say otherwise.
for list in upperdir=fuse upperdir=upper,backend=auto; do
    "$PROGRAM" overlay -o "cvmfs_root=cvmfs,$list" thin.json mnt
    backend
    umount
done > backends
[ "$(cat backends)" = "fuse
overlay" ]
"#;

#[test]
fn overlayfs_after_a_scan() {
    as_root("backend-scan", AFTER_A_SCAN, |_| {});
}

#[test]
fn the_daemon_where_a_layer_holds_markers() {
    let script = r#"
scan > found
[ "$(grep -c ' wh ' found)" = 1 ]
[ "$(grep -c ' none ' found)" = 1 ]
mount --upper upper
[ "$(backend)" = fuse ]
[ ! -e mnt/dir/other ]
umount
mount --assume-no-wh --upper upper
[ "$(backend)" = fuse ]
umount
fails 1 "layer bb holds .wh. names" mount --backend overlay --assume-no-wh --upper other
[ ! -e other ]
"#;
    as_root("backend-markers", script, |layers| {
        file(layers.join("bb/dir/.wh.other"), "");
    });
}

#[test]
fn what_only_the_daemon_can_do() {
    let script = r#"
scan
for option in --ephemeral "--upper upper --owner squash" "--upper upper --xattr-permissions 2" "--upper upper --squash-to-uid 7" \
    "--upper upper --writeback on" "--upper upper --passthrough off" "--upper upper --durability full" \
    "--upper upper --whiteouts wh" "--upper upper --job tag" "--read-only --foreground" "--upper upper -o sync"; do
    fails 2 "cannot be had with --backend overlay" mount --backend overlay $option
    case $option in *foreground) continue ;; esac
    mount $option
    [ "$(backend)" = fuse ]
    umount
    rm -rf upper upper.work
done
# These it can do as well.
mount --upper upper --portable-upper --bind-points /made/file,/dev -o noexec
[ "$(backend)" = overlay ]
[ -d mnt/dev ]
grep " $PWD/mnt " /proc/self/mountinfo | grep -q noexec
umount
"#;
    as_root("backend-options", script, |_| {});
}

#[test]
fn an_upper_stays_with_what_has_written_it() {
    let script = r#"
mount --upper fuse
echo mine > mnt/file
umount
scan
mount --upper fuse
[ "$(backend)" = fuse ]
umount
fails 5 "written with --backend fuse, not overlay" mount --backend overlay --upper fuse

mount --upper overlay
rm mnt/gone mnt/dir/other
rm -r mnt/dir
mkdir mnt/dir
echo mine > mnt/dir/mine
echo no marker > mnt/.wh.dir
umount
fails 5 "written with --backend overlay, not fuse; .*--take-over" mount --backend fuse --upper overlay
fails 5 "not aufs" mount --backend aufs --upper overlay
fails 2 "writeback=on.*leave it out" mount --writeback on --upper overlay
fails 5 "written with --backend overlay" "$PROGRAM" run --cvmfs-root cvmfs --upper overlay thin.json true
# One that is mounted is nobody else's, with nothing in it either.
mkdir other
mount --upper empty
fails 5 "in use" "$PROGRAM" mount --cvmfs-root cvmfs --writeback on --upper empty thin.json other
umount
mount --writeback on --upper empty
[ "$(backend)" = fuse ]
umount
mount --upper overlay
fails 5 "in use" "$PROGRAM" mount --cvmfs-root cvmfs --take-over --upper overlay thin.json other
umount
mount --take-over --upper overlay
[ "$(backend)" = fuse ]
[ "$(ls -A mnt mnt/dir)" = "mnt:
.wh.dir
dir

mnt/dir:
mine" ]
umount
fails 5 "written with --backend fuse" mount --backend overlay --upper overlay
# Somebody else's: by overlayfs, and by nobody knows what.
mkdir theirs theirs.work unknown
/bin/mount -t overlay o -o lowerdir=cvmfs/repo.example.org/layers/aa,upperdir=theirs,workdir=theirs.work mnt
echo theirs > mnt/theirs
/bin/umount mnt
cp -a theirs theirs2
cp -a theirs.work theirs2.work
mount --upper theirs
[ "$(backend)" = overlay ]
[ "$(cat mnt/theirs)" = theirs ]
umount
mount --backend fuse --upper theirs2
[ "$(cat mnt/theirs)" = theirs ]
umount
echo text > unknown/file
fails 5 "written by nobody knows what" mount --backend overlay --upper unknown
mount --upper unknown
[ "$(backend)" = fuse ]
umount
"#;
    as_root("backend-memory", script, |_| {});
}

/// The upper and the work directory change hands together, so nothing of a day's work is lost.
#[test]
fn the_daemon_goes_on_with_a_days_work() {
    if !require_all(&["root", "fuse", "overlayfs"]) {
        return;
    }
    isolated(|| {
        let how = Compare {
            now: now() - 1,
            ino: false,
            dir_nlink: false,
            dir_size: false,
        };
        let same = |a: &Tree, b: &Tree| {
            let [a, b] =
                [a, b].map(|tree| work::comparable(System::OverlayfsDefault, System::Ours, tree));
            assert_eq!(a.difference(&b, how), None);
        };
        let mut f = Fixture::new("backend-day");
        work::layers(&mut f);
        f.options = ["--backend=overlay", "--assume-no-wh"]
            .map(String::from)
            .into();
        f.mount();
        work::day(&f);
        f.remount();
        let written = Tree::read(&f.mnt);
        f.umount();
        f.options = vec!["--take-over".to_owned()];
        f.mount();
        same(&written, &Tree::read(&f.mnt));
        work::next_day(&f);
        let changed = Tree::read(&f.mnt);
        f.options.clear();
        f.remount();
        same(&changed, &Tree::read(&f.mnt));
    });
}

/// Its root is that of the image, and `.wh.` names in it are the users', whoever goes on with it.
#[test]
fn a_new_upper_begins_as_the_daemons() {
    let script = r#"
chmod 1750 cvmfs/repo.example.org/layers/bb
chown 7:8 cvmfs/repo.example.org/layers/bb
scan
mount --upper upper
[ "$(backend)" = overlay ]
[ "$(stat -c %a:%u:%g mnt)" = 1750:7:8 ]
echo text > mnt/dir/.wh.file
umount
mount --take-over --upper upper
[ "$(backend)" = fuse ]
[ "$(stat -c %a:%u:%g mnt)" = 1750:7:8 ]
[ "$(cat mnt/dir/.wh.file mnt/dir/file)" = "text
below" ]
umount
"#;
    as_root("backend-new", script, |_| {});
}

#[test]
fn without_an_upper() {
    let script = r#"
scan
mount --read-only
[ "$(backend)" = overlay ]
[ "$(ls mnt)" = "dir
gone" ]
fails 1 "Read-only" touch mnt/new
umount
# overlayfs wants two directories; and one that is there twice counts once.
one=cvmfs/repo.example.org/layers/aa
for lowers in "--lower $one" "--lower $one --lower $one"; do
    "$PROGRAM" mount --read-only --assume-no-wh $lowers mnt
    [ "$(backend)" = overlay ]
    [ "$(cat mnt/dir/file)" = below ]
    umount
done
echo '{"version": "1.0", "layers": []}' > none.json
fails 1 "there is no layer" "$PROGRAM" mount --backend overlay --read-only none.json mnt
"#;
    as_root("backend-read-only", script, |_| {});
}

/// Paths that are longer than an option of the kernel may be, and hold its separators.
#[test]
fn long_and_odd_names() {
    let script = r#"
long=$(printf '%0200d/%0200d' 1 2)
for dir in "$long" 'a:b,c\d=e f'; do
    mkdir -p "lower/$dir" "$dir" other other2
    echo below > "lower/$dir/file"
    "$PROGRAM" mount --backend overlay --assume-no-wh --lower "lower/$dir" --lower other \
        --upper "$dir/upper" --work "$dir/work" mnt
    [ "$(cat mnt/file)" = below ]
    echo new > mnt/new
    # In the table of mounts it has no name that tells.
    fails 5 "in use by another mount" "$PROGRAM" mount --assume-no-wh --lower other --upper "$dir/upper" --work "$dir/work" other2
    umount
    [ "$(cat "$dir/upper/new")" = new ]
    rm -r lower
done
"#;
    as_root("backend-names", script, |_| {});
}

#[test]
fn hundreds_of_layers() {
    let script = r#"
lowers=
for n in $(seq 400); do
    mkdir -p "many/$n"
    echo "$n" > "many/$n/file$n"
    lowers="$lowers --lower many/$n"
done
"$PROGRAM" mount --backend overlay --assume-no-wh $lowers --upper upper mnt
[ "$(cat mnt/file1 mnt/file400)" = "1
400" ]
umount
"#;
    as_root("backend-many", script, |_| {});
}

/// aufs is tried only where it is asked for; no kernel that tests run on has it.
#[test]
fn aufs_says_why_not() {
    if fs::read_to_string("/proc/filesystems")
        .unwrap()
        .contains("aufs")
    {
        eprintln!("skipped: needs a kernel without aufs");
        return;
    }
    let script = r#"
fails 1 "aufs: a trial failed: mount of type aufs" mount --backend aufs --upper upper
fails 2 "portable-upper cannot be had with --backend aufs" mount --backend aufs --portable-upper --upper upper
[ ! -e upper ]
[ -z "$(ls | grep trial)" ]
"#;
    as_root("backend-aufs", script, |_| {});
}

/// What the upper's file system cannot do shows in the trial, and the upper stays as it is.
#[test]
fn an_upper_that_overlayfs_cannot_have() {
    let script = r#"
scan
mkdir ramfs
/bin/mount -t ramfs ramfs ramfs
mkdir ramfs/upper
mount --upper ramfs/upper -v 2> said
grep -q "not by overlay: a trial failed\|overlay: a trial failed" said
[ "$(backend)" = fuse ]
umount
fails 1 "a trial failed" mount --backend overlay --upper ramfs/other
[ ! -e ramfs/other ]
[ "$(ls ramfs)" = "upper
upper.work" ]
"#;
    // A ramfs keeps no attributes at all.
    as_root("backend-ramfs", script, |_| {});
}

/// In a user namespace the marks are in attributes that users may write.
#[test]
fn rootless() {
    if !require_all(&["root", "userns", "overlayfs"]) {
        return;
    }
    let image = Image::new("backend-rootless");
    for dir in ["", "mnt", "home"] {
        let dir = match dir {
            "" => image.scratch.path().to_owned(),
            dir => image.scratch.dir(dir),
        };
        sys::lchown(dir, USER, USER).unwrap();
    }
    let program = image.at("cvmfs-union");
    let copied = run(Command::new("cp").arg(PROGRAM).arg(&program));
    assert!(copied.status.success());
    let script = r#"
scan
[ -f home/.cache/cvmfs-union/layers ]
mount --upper upper
[ "$(backend)" = overlay ]
grep " $PWD/mnt " /proc/self/mountinfo | grep -q userxattr
echo more > mnt/new
mkdir mnt/made
umount
# Directories that hide what is below need a mark, of this user.
mount --upper upper
rmdir mnt/made
umount
mount --backend overlay --read-only
[ "$(stat -c %a:%u "$TMPDIR"/cvmfs-union-*)" = 700:0 ]
told | grep -q "^    image: thin.json$"
"$PROGRAM" explain mnt /dir/top | grep -q "from layer 1"
umount
[ -z "$(ls "$TMPDIR"/cvmfs-union-*)" ]
"$PROGRAM" probe --json > rows || true
"#;
    let mut shell = image.shell(script, &["-Urm"]);
    shell
        .uid(USER)
        .gid(USER)
        .env("PROGRAM", &program)
        .env("HOME", image.at("home"))
        .env("TMPDIR", image.at("home"))
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("XDG_CACHE_HOME");
    image.succeeds(shell);
    let rows: Value = serde_json::from_slice(&fs::read(image.at("rows")).unwrap()).unwrap();
    let overlay = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["feature"] == "overlay");
    assert_eq!(overlay.unwrap()["usable"], true, "{rows:#}");
}
