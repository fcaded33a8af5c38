//! The interface of fuse-overlayfs, as engines use it: the words of their calls, and what comes of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::daemon::wait;
use crate::support::foreground::Daemon;
use crate::support::fuse_overlayfs;
use crate::support::stats::{Stats, counts};
use crate::support::{
    Fixture, Mounted, PROGRAM, System, require_all, run, sys, text, umount, wait_for_namespaces,
};

/// The program under the name of another one.
pub fn called(name: &str, dir: &Path) -> PathBuf {
    let link = dir.join(name);
    if !link.is_symlink() {
        sys::symlink(PROGRAM, &link).unwrap();
    }
    link
}

/// Two lowers: `both` in each, `low` in the lower one, `gone` there and deleted in the upper one.
fn stack(name: &str) -> Fixture {
    let mut f = Fixture::new(name);
    let top = f.lower();
    fs::write(top.join("both"), "top\n").unwrap();
    fs::write(top.join(".wh.gone"), "").unwrap();
    let low = f.lower();
    fs::write(low.join("both"), "low\n").unwrap();
    fs::write(low.join("low"), "low\n").unwrap();
    fs::write(low.join("gone"), "low\n").unwrap();
    fs::create_dir(low.join("dir")).unwrap();
    f.watch_lowers();
    f
}

fn overlay(f: &Fixture, options: &str) -> Output {
    let program = called("fuse-overlayfs", f.scratch());
    let mut command = Command::new(program);
    command.current_dir(f.scratch()).args(["-o", options]);
    run(command.arg(&f.mnt))
}

/// Unmounts by umount2(2) alone; then the daemon lets go of the upper.
fn unmount(system: System, mounted: Mounted) {
    umount(system, &mounted.0).unwrap();
    wait_for_namespaces(&mounted.0);
    std::mem::forget(mounted);
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let said = text(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    said
}

#[test]
fn words_of_podman() {
    if !require_all(&["fuse", "root"]) {
        return;
    }
    let f = stack("personality");
    // Relative lowers, an empty option at the end and one in between.
    let options = format!(
        "lowerdir=lower0:lower1,upperdir={},workdir={},",
        f.upper.display(),
        f.work.display()
    );
    assert_eq!(succeeds(&overlay(&f, &options)), "");
    let mounted = Mounted(f.mnt.clone());
    assert_eq!(fs::read_to_string(f.at("both")).unwrap(), "top\n");
    assert!(!f.at("gone").exists());
    fs::remove_file(f.at("low")).unwrap();
    fs::write(f.at("new"), "new\n").unwrap();
    // Other unions may take the upper over, so there are no redirects in it.
    let renamed = sys::rename(f.at("dir"), f.at("renamed"), 0);
    assert_eq!(renamed, Err(nix::errno::Errno::EXDEV));
    // podman mounts the same upper again at once.
    unmount(System::Ours, mounted);
    let options = format!("{options},volatile,redirect_dir=on");
    assert_eq!(succeeds(&overlay(&f, &options)), "");
    let mounted = Mounted(f.mnt.clone());
    assert_eq!(sys::names(&f.mnt).unwrap(), ["both", "dir", "new"]);
    sys::rename(f.at("dir"), f.at("renamed"), 0).unwrap();
    unmount(System::Ours, mounted);
    // What may be written is as fuse-overlayfs would write it, but for the redirect that was asked for.
    assert_eq!(sys::lstat(f.upper.join("low")).unwrap().st_rdev, 0);
}

#[test]
fn without_an_upper_nothing_can_be_changed() {
    if !require_all(&["fuse", "root"]) {
        return;
    }
    let f = stack("personality-ro");
    succeeds(&overlay(&f, "lowerdir=lower0:lower1"));
    let _mounted = Mounted(f.mnt.clone());
    let made = sys::make(f.at("new"), b"");
    assert_eq!(made, Err(nix::errno::Errno::EROFS));
    assert_eq!(fs::read_to_string(f.at("low")).unwrap(), "low\n");
    // As fuse-overlayfs for root: set-id programs work, devices do not.
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = format!(" {} ", f.mnt.display());
    let line = table.lines().find(|line| line.contains(&at)).unwrap();
    let flags = line.split(' ').nth(5).unwrap();
    assert!(
        flags.contains("nodev") && !flags.contains("nosuid"),
        "{line}"
    );
}

#[test]
fn unknown_options_are_named_and_ignored() {
    if !require_all(&["fuse", "root"]) {
        return;
    }
    let f = stack("personality-unknown");
    let said = succeeds(&overlay(&f, "frob=1,lowerdir=lower1,index=off,rw,wobble"));
    let _mounted = Mounted(f.mnt.clone());
    let warned = |word: &str| said.contains(&format!("warning: -o {word} is not known"));
    assert!(warned("frob=1") && warned("wobble"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
}

/// As of fuse-overlayfs: with 0 all is asked each time, with less than a second for that long.
#[test]
fn the_kernel_keeps_names_for_the_timeout() {
    if !require_all(&["fuse", "root"]) {
        return;
    }
    let f = stack("personality-timeout");
    let mount = |timeout: &str| {
        let options = format!("lowerdir=lower0:lower1,timeout={timeout}");
        let output = overlay(&f, &options);
        let said = succeeds(&output);
        assert_eq!(said, "");
        (Mounted(f.mnt.clone()), Stats::of(&f.mnt))
    };
    let stats_of = |path: &Path| fs::metadata(path).map(|meta| meta.len());
    let look = || {
        assert_eq!(stats_of(&f.at("low")).unwrap(), 4);
        assert!(stats_of(&f.at("absent")).is_err());
    };
    let read = || {
        assert_eq!(fs::read(f.at("low")).unwrap(), b"low\n");
        assert_eq!(sys::names(&f.mnt).unwrap(), ["both", "dir", "low"]);
    };

    let (mounted, stats) = mount("0");
    look();
    let (seen, ()) = stats.during(look);
    // The attributes of the root, too, where the names are looked up.
    assert_eq!((seen["lookup"], seen["getattr"]), (2, 3), "{seen:?}");
    read();
    let (seen, ()) = stats.during(read);
    assert_eq!(seen["open"], 1, "{seen:?}");
    assert_eq!(seen["read"], 1, "{seen:?}");
    assert!(seen["readdirplus"] > 0, "{seen:?}");
    drop(stats);
    unmount(System::Ours, mounted);

    let (mounted, stats) = mount("0.1");
    look();
    wait("the kernel asks no more", || {
        let (seen, ()) = stats.during(look);
        seen.contains_key("lookup")
    });
    drop(stats);
    unmount(System::Ours, mounted);

    let (mounted, stats) = mount("1000");
    look();
    read();
    let (seen, ()) = stats.during(look);
    assert_eq!(seen, counts([]));
    let (seen, ()) = stats.during(read);
    assert_eq!(seen, counts([]));
    drop((stats, mounted));

    let output = overlay(&f, "lowerdir=lower0,timeout=soon");
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(
        said.contains("soon") && said.contains("--timeout"),
        "{said}"
    );
}

#[test]
fn backslashes_in_names() {
    if !require_all(&["fuse", "root"]) {
        return;
    }
    let mut f = stack("personality-escapes");
    let odd = f.scratch().join(r"a:b,c\d");
    fs::rename(&f.lowers[1], &odd).unwrap();
    f.lowers[1] = odd;
    let upper = f.scratch().join("up,per");
    fs::rename(&f.upper, &upper).unwrap();
    let options = format!(
        r"lowerdir=lower0:{}/a\:b\,c\\d,upperdir={0}/up\,per,workdir={}",
        f.scratch().display(),
        f.work.display()
    );
    succeeds(&overlay(&f, &options));
    let mounted = Mounted(f.mnt.clone());
    assert_eq!(fs::read_to_string(f.at("low")).unwrap(), "low\n");
    fs::write(f.at("new"), "new\n").unwrap();
    unmount(System::Ours, mounted);
    assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "new\n");
}

#[test]
fn a_descriptor_among_the_lowers() {
    if !require_all(&["fuse", "root"]) {
        return;
    }
    let mut f = stack("personality-thin");
    // The lower one becomes a layer on CVMFS.
    let layer = f.scratch().join("cvmfs/r.example.org/layers/11aa");
    fs::create_dir_all(layer.parent().unwrap()).unwrap();
    fs::rename(&f.lowers[1], &layer).unwrap();
    f.lowers[1] = layer;
    let json = f.scratch().join("thin.json");
    let url = r#"{"digest":"11aa","url":"cvmfs://r.example.org/layers/11aa"}"#;
    fs::write(&json, format!(r#"{{"version":"1.0","layers":[{url}]}}"#)).unwrap();
    succeeds(&overlay(&f, "lowerdir=lower0:thin.json,cvmfs_root=cvmfs"));
    let _mounted = Mounted(f.mnt.clone());
    assert_eq!(fs::read_to_string(f.at("both")).unwrap(), "top\n");
    assert_eq!(fs::read_to_string(f.at("low")).unwrap(), "low\n");
    assert!(!f.at("gone").exists());
}

#[test]
fn in_the_foreground() {
    if !require_all(&["fuse", "root"]) {
        return;
    }
    let f = stack("personality-foreground");
    let program = called("fuse-overlayfs", f.scratch());
    for (flag, logs) in [("-f", false), ("-d", true)] {
        let mut command = Command::new(&program);
        let lower = format!("-olowerdir={}", f.lowers[1].display());
        let daemon = Daemon::of(command.args([flag, &lower]).arg(&f.mnt), &f.mnt);
        assert_eq!(fs::read_to_string(f.at("low")).unwrap(), "low\n");
        let ended = daemon.end();
        assert_eq!(ended.log.contains("DEBUG"), logs, "{flag}: {}", ended.log);
    }
}

#[test]
fn what_is_refused_says_why() {
    let f = Fixture::new("personality-wrong");
    let refused = |options: &str, why: &str| {
        let output = overlay(&f, options);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{said}");
    };
    refused("ro", "no lowerdir=");
    refused("lowerdir=", "a directory without a name");
    refused("lowerdir=/a::/b", "a directory without a name");
    refused("lowerdir=/,upperdir", "wants a directory");
    refused("lowerdir=/no/such", "/no/such");
    refused("lowerdir=/,whiteouts=blue", "blue");
    refused("lowerdir=/,xattr_permissions=3", "xattr-permissions");
    refused("lowerdir=/,squash_to_root=0", "squash_to_root");
    refused("lowerdir=/,context=\"a,b,ro", "no second quote");
    let program = called("fuse-overlayfs", f.scratch());
    let output = run(Command::new(program).arg("--version"));
    assert!(output.status.success());
    let version = format!("cvmfs-union {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&output.stdout), version);
}

/// The attributes of each object of a stack, as it is shown with some options.
fn shown(f: &Fixture, system: System, program: &Path, options: &str) -> String {
    let list = format!("lowerdir={},{options}", f.lowers[0].display());
    succeeds(&run(Command::new(program).args(["-o", &list]).arg(&f.mnt)));
    let mounted = Mounted(f.mnt.clone());
    let listed = listed(&f.mnt);
    unmount(system, mounted);
    listed
}

/// The same options show the same owners here and there.
#[test]
fn owners_as_fuse_overlayfs_shows_them() {
    if !require_all(&["fuse", "root", "fuse-overlayfs-1"]) {
        return;
    }
    let mut f = Fixture::new("personality-owners");
    let lower = f.lower();
    for (name, uid, gid) in [
        ("a", 0, 0),
        ("b", 5, 6),
        ("c", 1000, 1000),
        ("d", 1099, 70000),
    ] {
        fs::write(lower.join(name), "").unwrap();
        sys::lchown(lower.join(name), uid, gid).unwrap();
    }
    f.watch_lowers();
    let ours = called("fuse-overlayfs", f.scratch());
    let theirs = fuse_overlayfs(System::FuseOverlayfs1).unwrap();
    for options in [
        "squash_to_root",
        "squash_to_uid=7",
        "squash_to_root,squash_to_gid=8",
        "uidmapping=1000:0:100,gidmapping=1000:0:100",
        "uidmapping=0:100:10:1000:5:100,gidmapping=0:100:10",
        "uidmapping=0:0:10,squash_to_gid=3",
        "noacl,static_nlink,timeout=5,volatile",
    ] {
        let wanted = shown(&f, System::FuseOverlayfs1, &theirs, options);
        assert_eq!(wanted.lines().count(), 5, "{wanted}");
        assert_eq!(shown(&f, System::Ours, &ours, options), wanted, "{options}");
    }
}

/// Owners and modes that fuse-overlayfs keeps beside the files of its upper, which is a layer afterwards.
#[test]
fn what_fuse_overlayfs_keeps_beside_files() {
    if !require_all(&["fuse", "root", "fuse-overlayfs-1"]) {
        return;
    }
    let mut f = stack("personality-beside");
    let theirs = fuse_overlayfs(System::FuseOverlayfs1).unwrap();
    let list = format!(
        "lowerdir={},upperdir={},workdir={},xattr_permissions=2",
        f.lowers[1].display(),
        f.upper.display(),
        f.work.display()
    );
    succeeds(&run(Command::new(&theirs).args(["-o", &list]).arg(&f.mnt)));
    let mounted = Mounted(f.mnt.clone());
    fs::write(f.at("new"), "new\n").unwrap();
    fs::create_dir(f.at("made")).unwrap();
    for (name, id, mode) in [
        ("new", 5, 0o750),
        ("low", 70000, 0o600),
        ("made", 7, 0o1770),
    ] {
        // Its chmod forgets the owner.
        sys::chmod(f.at(name), mode).unwrap();
        sys::lchown(f.at(name), id, id + 1).unwrap();
    }
    unmount(System::FuseOverlayfs1, mounted);
    let real = sys::stat(f.upper.join("new")).unwrap();
    assert_ne!(real.st_uid, 5, "it has given the file away");

    let upper = f.upper.clone();
    let layers = std::mem::replace(&mut f.lowers, vec![upper]);
    let wanted = shown(&f, System::FuseOverlayfs1, &theirs, "ro");
    assert!(wanted.contains("./new 5:6 750"), "{wanted}");
    let ours = called("fuse-overlayfs", f.scratch());
    assert_eq!(shown(&f, System::Ours, &ours, "ro"), wanted);
    f.lowers = layers;
}

/// What one of the two has kept beside the files of an upper the other reads and goes on with.
#[test]
fn owners_beside_files_go_both_ways() {
    if !require_all(&["fuse", "root", "fuse-overlayfs-1"]) {
        return;
    }
    for kind in ["1", "2"] {
        for ours_first in [true, false] {
            both_ways(kind, System::FuseOverlayfs1, ours_first, &[]);
        }
    }
}

/// containers/storage puts its own attribute on the upper's root, and asks for the other.
#[test]
fn an_upper_that_an_engine_has_begun_goes_both_ways() {
    if !require_all(&["fuse", "root", "fuse-overlayfs-2"]) {
        return;
    }
    const KEY: &str = "user.containers.override_stat";
    for ours_first in [true, false] {
        let upper = both_ways(
            "2",
            System::FuseOverlayfs2,
            ours_first,
            &[(KEY, b"0:0:0755")],
        );
        for (name, value) in [("new", "11:12:750"), ("made/low", "70000:70001:600")] {
            let kept = sys::getxattr(upper.upper.join(name), KEY).unwrap();
            assert_eq!(text(&kept), value, "{name}");
        }
        // It is nobody else's.
        let list = "lowerdir=lower1,upperdir=upper,workdir=work,xattr_permissions=2";
        succeeds(&overlay(&upper, list));
        let _mounted = Mounted(upper.mnt.clone());
        assert!(sys::getxattr(upper.at("new"), KEY).is_err());
        assert!(sys::setxattr(upper.at("new"), KEY, b"0:0:4755", 0).is_err());
    }
}

/// An upper that is begun by one, gone on with by the other, and read by the first again.
fn both_ways(kind: &str, other: System, ours_first: bool, on_root: &[(&str, &[u8])]) -> Fixture {
    let f = stack("personality-both");
    let ours = (System::Ours, called("fuse-overlayfs", f.scratch()));
    let others = (other, fuse_overlayfs(other).unwrap());
    let (first, second) = match ours_first {
        true => (ours, others),
        false => (others, ours),
    };
    for dir in [&f.upper, &f.work] {
        fs::create_dir_all(dir).unwrap();
    }
    for (key, value) in on_root {
        sys::setxattr(&f.upper, key, value, 0).unwrap();
    }
    let begun = during(&f, kind, &first, || {
        fs::write(f.at("new"), "new\n").unwrap();
        fs::create_dir(f.at("made")).unwrap();
        fs::write(f.at("made/in"), "").unwrap();
        fs::write(f.at("both"), "changed\n").unwrap();
        for (name, id, mode) in [
            ("new", 5, 0o750),
            ("low", 70000, 0o600),
            ("made", 7, 0o1770),
            ("made/in", 0, 0o444),
            ("dir", 9, 0o2755),
        ] {
            // chmod of fuse-overlayfs forgets the owner.
            sys::chmod(f.at(name), mode).unwrap();
            sys::lchown(f.at(name), id, id + 1).unwrap();
        }
    });
    for line in ["./new 5:6 750", "./low 70000:70001 600", "./dir 9:10 2755"] {
        assert!(begun.contains(line), "{line} not in\n{begun}");
    }
    let own = sys::stat(f.upper.join("new")).unwrap();
    assert_eq!((own.st_uid, own.st_gid), (0, 0), "it is given away");
    let context = format!("xattr_permissions={kind}, after {:?}", first.0);
    let seen = during(&f, kind, &second, || ());
    assert_eq!(seen, begun, "{context}");
    let changed = during(&f, kind, &second, || {
        fs::write(f.at("made/more"), "").unwrap();
        sys::lchown(f.at("new"), 11, 12).unwrap();
        sys::lchown(f.at("made/more"), 13, 14).unwrap();
        fs::rename(f.at("low"), f.at("made/low")).unwrap();
        fs::remove_file(f.at("made/in")).unwrap();
    });
    for line in ["./new 11:12 750", "./made/low 70000:70001 600"] {
        assert!(changed.contains(line), "{line} not in\n{changed}");
    }
    assert_eq!(during(&f, kind, &first, || ()), changed, "{context}");
    f
}

/// What is shown of a stack after the acts in a mount that keeps owners beside the files.
fn during(f: &Fixture, kind: &str, by: &(System, PathBuf), acts: impl FnOnce()) -> String {
    let (system, program) = by;
    let list = format!(
        "lowerdir={}:{},upperdir={},workdir={},xattr_permissions={kind}",
        f.lowers[0].display(),
        f.lowers[1].display(),
        f.upper.display(),
        f.work.display()
    );
    succeeds(&run(Command::new(program).args(["-o", &list]).arg(&f.mnt)));
    let mounted = Mounted(f.mnt.clone());
    acts();
    let listed = listed(&f.mnt);
    unmount(*system, mounted);
    listed
}

/// Owner and mode of all that a mount shows.
fn listed(mnt: &Path) -> String {
    let found = run(Command::new("find")
        .args([".", "-printf", "%p %U:%G %m\n"])
        .current_dir(mnt));
    succeeds(&found);
    let found = text(&found.stdout);
    let mut lines: Vec<_> = found.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
