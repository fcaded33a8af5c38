//! `diff`, `explain` and `status`: what is told of mounts and uppers.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::files::{file, union};
use crate::support::stats::Stats;
use crate::support::{
    Fixture, PROGRAM, Scratch, daemon, require, require_all, run, sys, text, wait_for_namespaces,
};

fn ask(words: &[&str], of: &Path, rest: &[&str]) -> Output {
    run(Command::new(PROGRAM).args(words).arg(of).args(rest))
}

fn answer(words: &[&str], of: &Path, rest: &[&str]) -> String {
    let output = ask(words, of, rest);
    let said = text(&output.stderr);
    assert!(
        output.status.success(),
        "{words:?} {}\n{said}",
        output.status
    );
    text(&output.stdout)
}

fn changed(name: &str) -> Option<Fixture> {
    let f = union(name, 2, |lower| {
        file(lower[1].join("dir/file"), "below");
        file(lower[1].join("dir/gone"), "below");
        file(lower[0].join("top"), "above");
    })?;
    fs::write(f.at("dir/file"), "changed").unwrap();
    fs::remove_file(f.at("dir/gone")).unwrap();
    fs::write(f.at("new"), "new").unwrap();
    Some(f)
}

#[test]
fn changes_of_a_mount_and_of_its_upper() {
    let Some(mut f) = changed("diff") else { return };
    let expected = "C /dir\nC /dir/file\nD /dir/gone\nA /new\n";
    assert_eq!(answer(&["diff"], &f.mnt, &[]), expected);
    let work = f.work.display().to_string();
    assert_eq!(answer(&["diff", "--work", &work], &f.upper, &[]), expected);
    f.umount();
    assert_eq!(answer(&["diff", "--work", &work], &f.upper, &[]), expected);
    let json = answer(&["diff", "--json", "--work", &work], &f.upper, &[]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[3], serde_json::json!({ "kind": "A", "path": "/new" }));
    // Without a record the layers are to be told.
    fs::remove_file(f.work.join("mount")).unwrap();
    let output = ask(&["diff", "--work", &work], &f.upper, &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("--image IMAGE"), "{said}");
    let lowers = f
        .lowers
        .iter()
        .map(|lower| format!("--lower={}", lower.display()));
    let lowers: Vec<_> = lowers.collect();
    let words: Vec<&str> = lowers.iter().map(|lower| &**lower).collect();
    assert_eq!(answer(&["diff"], &f.upper, &words), expected);
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let Some(mut f) = changed("diff-ro") else {
        return;
    };
    f.umount();
    f.read_only = true;
    f.mount();
    assert_eq!(answer(&["diff"], &f.mnt, &[]), "");
}

#[test]
fn where_a_path_of_a_mount_comes_from() {
    let Some(f) = changed("explain") else { return };
    let said = answer(&["explain"], &f.mnt, &["/dir/gone"]);
    assert!(said.starts_with("/dir/gone: nothing is shown\n"), "{said}");
    assert!(
        said.contains("hidden: /dir/gone is deleted in the upper"),
        "{said}"
    );
    // By the path that a user has before the eyes, too.
    let top = f.at("top").display().to_string();
    let json: Value =
        serde_json::from_str(&answer(&["explain", "--json"], &f.mnt, &[&top])).unwrap();
    assert_eq!(json["path"], "/top");
    assert_eq!(
        (&json["kind"], &json["layer"]),
        (&"regular file".into(), &1.into())
    );
    assert_eq!(
        json["sources"][1]["identity"],
        f.lowers[0].display().to_string()
    );
}

#[test]
fn an_upper_is_checked_and_repaired() {
    let Some(mut f) = changed("check") else {
        return;
    };
    let work = f.work.display().to_string();
    let check = |f: &Fixture, options: &[&str]| {
        let output = ask(&["check", "--work", &work], &f.upper, options);
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, _, said) = check(&f, &[]);
    assert_eq!(code, Some(7), "{said}");
    f.umount();
    // A namespace that another test has made may keep the daemon for a while.
    wait_for_namespaces(&f.mnt);
    daemon::wait("the upper stays locked", || check(&f, &[]).0 != Some(7));
    assert_eq!(check(&f, &[]), (Some(0), String::new(), String::new()));
    file(f.work.join("work/#left"), "cut off");
    let (code, out, said) = check(&f, &[]);
    let line = "mendable  work/#left: left over by a mount that was cut off\n";
    assert_eq!((code, &*out), (Some(1), line));
    assert!(said.contains("--repair"), "{said}");
    let (code, out, _) = check(&f, &["--repair", "--json"]);
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &out[0]["state"]), (Some(0), &"mended".into()));
    assert_eq!(check(&f, &[]).0, Some(0));
    f.mount();
    assert_eq!(fs::read_to_string(f.at("dir/file")).unwrap(), "changed");
}

#[test]
fn a_check_needs_few_descriptors() {
    if !require_all(&["root"]) {
        return;
    }
    let scratch = Scratch::new("check-many");
    let upper = scratch.dir("upper");
    scratch.dir("upper.work/index");
    for n in 0..200 {
        file(upper.join(n.to_string()).join(".wh.gone"), "");
    }
    sys::mknod(upper.join("gone"), libc::S_IFCHR, 0).unwrap();
    let mut check = Command::new("sh");
    check.args(["-c", "ulimit -n 100; exec \"$@\"", "sh", PROGRAM]);
    let output = run(check.args(["check", "--repair"]).arg(&upper));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(text(&output.stdout).matches("mended").count(), 200);
}

/// In namespaces in which there is nothing else: the command looks at all mounts that there are, and other
/// tests count what theirs are asked.
const ALONE: &str = r#"
set -eu
# One may go by itself meanwhile.
others() { grep fuse.cvmfs-union /proc/self/mountinfo | cut -d ' ' -f 5; }
while [ -n "$(others)" ]; do others | while read -r other; do umount -l "$other" || true; done; done
rows() { "$PROGRAM" status --json > "$OUT/$1"; }
mount() { "$PROGRAM" mount --lower "$LOWER" --read-only "$1"; }
rows none
mount "$MNT"
rows one
"$PROGRAM" status > "$OUT/table"
unshare -m sh -euc '"$PROGRAM" mount --lower "$LOWER" --ephemeral "$OUT"
    : > "$READY"
    while [ ! -e "$READY.go" ]; do sleep 0.02; done
    "$PROGRAM" umount "$OUT"' &
while [ ! -e "$READY" ]; do sleep 0.02; done
rows two
: > "$READY.go"
wait
kill -KILL "$(sed -n 's/^ *"pid": \([0-9]*\).*/\1/p' "$OUT/one")"
while "$PROGRAM" stats "$MNT" > /dev/null 2>&1; do sleep 0.02; done
rows dead
umount -l "$MNT"
"#;

#[test]
fn the_mounts_of_the_host() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut f = Fixture::new("status");
    file(f.lower().join("file"), "below");
    let out = f.scratch().join("out");
    fs::create_dir(&out).unwrap();
    let mut shell = Command::new("unshare");
    shell.args(["-m", "-p", "-f", "--mount-proc", "sh", "-c", ALONE]);
    shell
        .env("PROGRAM", PROGRAM)
        .env("OUT", &out)
        .env("READY", f.scratch().join("ready"));
    shell
        .env("LOWER", &f.lowers[0])
        .env("MNT", &f.mnt)
        .env("TMPDIR", f.scratch());
    let output = run(&mut shell);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows = |name: &str| -> Vec<Value> {
        serde_json::from_slice(&fs::read(out.join(name)).unwrap()).unwrap()
    };
    assert_eq!(rows("none"), [Value::Null; 0]);
    let [one] = &*rows("one") else {
        panic!("{:#?}", rows("one"))
    };
    assert_eq!(one["mountpoint"], f.mnt.display().to_string());
    assert_eq!(
        (&one["state"], &one["backend"]),
        (&"serving".into(), &"fuse".into())
    );
    assert_eq!((&one["layers"], &one["upper"]), (&1.into(), &Value::Null));
    assert_eq!(one["seen_by"], Value::Null);
    assert!(
        one["pid"].is_u64() && one["uptime_seconds"].is_u64(),
        "{one:#}"
    );
    let table = fs::read_to_string(out.join("table")).unwrap();
    assert!(table.contains(&f.mnt.display().to_string()), "{table}");
    // A mount in another namespace is found by a process that is there.
    let [again, elsewhere] = &*rows("two") else {
        panic!("{:#?}", rows("two"))
    };
    assert_eq!(again["pid"], one["pid"]);
    assert_eq!(elsewhere["mountpoint"], out.display().to_string());
    assert!(
        elsewhere["seen_by"].is_u64() && elsewhere["state"] == "serving",
        "{elsewhere:#}"
    );
    let upper = elsewhere["upper"].as_str().unwrap();
    assert!(
        upper.starts_with(&f.scratch().display().to_string()),
        "{upper}"
    );
    let [dead] = &*rows("dead") else {
        panic!("{:#?}", rows("dead"))
    };
    assert_eq!(dead["state"], "dead");
}

/// The rows of `probe`, by feature, in a mount namespace after this script.
fn probed(script: &str) -> impl Fn(&str) -> (bool, String) {
    probed_at(script, "")
}

fn probed_at(script: &str, options: &str) -> impl Fn(&str) -> (bool, String) {
    let whole = format!("{script}\nexec \"$PROGRAM\" probe --json {options}");
    let mut shell = Command::new("unshare");
    shell.args(["-m", "--propagation", "private", "sh", "-euc", &whole]);
    let output = run(shell.env("PROGRAM", PROGRAM));
    let rows: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)));
    move |feature| {
        let row = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["feature"] == feature);
        let row = row.unwrap_or_else(|| panic!("no {feature} in {rows:#}"));
        assert_eq!(row["usable"] == true, row["reason"].is_null(), "{row:#}");
        assert_eq!(row["usable"] == true, row["remedy"].is_null(), "{row:#}");
        (row["usable"] == true, row["reason"].to_string())
    }
}

#[test]
fn what_this_host_can_do() {
    if !require_all(&["root", "fuse", "userns", "overlayfs"]) {
        return;
    }
    let of = probed("");
    for feature in ["fuse", "userns", "run", "overlay", "writeback"] {
        assert_eq!(of(feature), (true, "null".to_owned()), "{feature}");
    }
    assert!(!require("passthrough") || of("passthrough").0);
    assert!(!require_all(&["fusermount3", "fuse-for-users"]) || of("fusermount3").0);
    if !fs::read_to_string("/proc/filesystems")
        .unwrap()
        .contains("aufs")
    {
        let (usable, reason) = of("aufs");
        assert!(!usable && reason.contains("mount of type aufs"), "{reason}");
    }
    let of = probed("mount --bind /dev/null /dev/fuse");
    for feature in ["fuse", "writeback", "passthrough", "fusermount3"] {
        assert!(!of(feature).0, "{feature}");
    }
    assert!(of("fuse").1.contains("mount"), "{}", of("fuse").1);
    assert!(of("overlay").0);
    // The upper is to be on a file system that overlayfs can write to.
    let of = probed_at("mount -t ramfs ramfs /mnt", "--upper /mnt");
    assert!(!of("overlay").0 && of("fuse").0);
    // Nothing of it is left on the host.
    assert!(!Path::new("/tmp/lower/cvmfs-union.trial").exists());
}

/// Two layers whose paths are the same but for bytes that are no text, and a file with such a name: what is noted
/// of them leads back to each.
fn is_profile(entry: fs::DirEntry) -> bool {
    entry.path().extension().is_some_and(|end| end == "profile")
}

#[test]
fn names_that_are_no_text() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut f = Fixture::new("no-text");
    for (at, name) in [(0, &b"layer-\xfe"[..]), (1, b"layer-\xff")] {
        let odd = f.scratch().join(OsStr::from_bytes(name));
        fs::rename(f.lower(), &odd).unwrap();
        f.lowers[at] = odd;
    }
    let odd = OsStr::from_bytes(b"file-\xfd");
    file(f.lowers[1].join(odd), "below");
    let profiles = f.scratch().join("profiles");
    f.options = vec![
        "--prefetch=auto".to_owned(),
        format!("--profiles={}", profiles.display()),
    ];
    f.mount();
    assert_eq!(fs::read(f.at(odd)).unwrap(), b"below");
    f.umount();
    // The daemon keeps it when the mount is gone.
    let is_kept = || fs::read_dir(&profiles).is_ok_and(|names| names.flatten().any(is_profile));
    daemon::wait("no profile is kept", is_kept);
    f.mount();
    let prefetched = || Stats::of(&f.mnt).json()["prefetch"].clone();
    daemon::wait("the file is not fetched", || prefetched()["files"] == 1);
    assert_eq!(fs::read(f.at(odd)).unwrap(), b"below");
    let seen = prefetched();
    assert_eq!((&seen["used"], &seen["failed"]), (&1.into(), &0.into()));

    fs::remove_file(f.at(odd)).unwrap();
    f.umount();
    let work = f.work.display().to_string();
    let of_upper = ["--work", &work];
    let json = answer(&["diff", "--json"], &f.upper, &of_upper);
    let json: Value = serde_json::from_str(&json).unwrap();
    let deleted = serde_json::json!([{ "kind": "D", "path": "%/file-%fd" }]);
    assert_eq!(json, deleted);
    answer(&["check"], &f.upper, &of_upper);
}
