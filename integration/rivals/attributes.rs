//! Attributes: modes, numbers, counts and times, at creation, copy-up and remount.

use std::os::unix::fs::MetadataExt;

use crate::support::Fixture;
use crate::support::sys;

fn umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}

fn mode(f: &Fixture, path: &str) -> u32 {
    sys::lstat(f.at(path)).unwrap().st_mode & 0o7777
}

/// What is started from here on, the daemons too, has this umask.
pub fn closed_umask(f: &mut Fixture) {
    super::stock(f);
    umask(0o077);
}

pub fn umask_is_the_callers(f: &mut Fixture) {
    umask(0);
    drop(sys::open(f.at("f"), libc::O_CREAT | libc::O_WRONLY, 0o666).unwrap());
    sys::mkdir(f.at("dir/d"), 0o777).unwrap();
    sys::mknod(f.at("p"), libc::S_IFIFO | 0o666, 0).unwrap();
    assert_eq!(
        [mode(f, "f"), mode(f, "dir/d"), mode(f, "p")],
        [0o666, 0o777, 0o666]
    );
    // A copy-up keeps the mode, whatever the umask.
    std::fs::write(f.at("dir/inside"), b"new").unwrap();
    assert_eq!([mode(f, "dir/inside"), mode(f, "dir")], [0o644, 0o755]);
}

pub fn special_bits(f: &mut Fixture) {
    let create = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
    drop(sys::open(f.at("dir/f"), create, 0o7777).unwrap());
    sys::mknod(f.at("dir/n"), libc::S_IFREG | 0o6755, 0).unwrap();
    sys::mkdir(f.at("dir/d"), 0o1777).unwrap();
    let made = [mode(f, "dir/f"), mode(f, "dir/n"), mode(f, "dir/d")];
    assert_eq!(made, [0o7755, 0o6755, 0o1755]);
}

pub fn setuid_of_lower_file(f: &mut Fixture) {
    sys::as_user(1000, 1000, || {
        let fd = sys::open(f.at("setid"), libc::O_WRONLY, 0).unwrap();
        sys::pwrite(&fd, b"x", 0).unwrap();
    });
    assert_eq!(mode(f, "setid"), 0o777);
}

pub fn setgid_of_directory(f: &mut Fixture) {
    let expected = (0o2775, 500);
    let shown = |f: &Fixture| (mode(f, "shared"), sys::stat(f.at("shared")).unwrap().st_gid);
    assert_eq!(shown(f), expected);
    sys::make(f.at("shared/new"), b"").unwrap();
    assert_eq!(shown(f), expected);
    assert_eq!(sys::stat(f.at("shared/new")).unwrap().st_gid, 500);
    f.remount();
    assert_eq!(shown(f), expected);
}

fn links(f: &Fixture) -> [libc::stat; 2] {
    ["links/one", "links/two"].map(|path| sys::stat(f.at(path)).unwrap())
}

pub fn hardlink_count(f: &mut Fixture) {
    std::fs::write(f.at("links/one"), b"changed").unwrap();
    assert_eq!(links(f).map(|stat| stat.st_nlink), [2, 2]);
    sys::link(f.at("links/two"), f.at("links/three")).unwrap();
    assert_eq!(links(f).map(|stat| stat.st_nlink), [3, 3]);
    sys::unlink(f.at("links/one")).unwrap();
    sys::unlink(f.at("links/two")).unwrap();
    assert_eq!(sys::stat(f.at("links/three")).unwrap().st_nlink, 1);
}

pub fn hardlink_identity(f: &mut Fixture) {
    std::fs::write(f.at("links/one"), b"changed").unwrap();
    assert_eq!(std::fs::read(f.at("links/two")).unwrap(), b"changed");
    let [one, two] = links(f);
    assert_eq!(one.st_ino, two.st_ino);
}

pub fn hardlink_group(f: &mut Fixture) {
    std::fs::write(f.at("links/one"), b"changed").unwrap();
    sys::link(f.at("file"), f.at("dir/second")).unwrap();
    f.remount();
    let [one, two] = links(f);
    assert_eq!((one.st_ino, one.st_nlink, two.st_nlink), (two.st_ino, 2, 2));
    let numbers = ["file", "dir/second"].map(|path| {
        let stat = sys::stat(f.at(path)).unwrap();
        (stat.st_ino, stat.st_nlink)
    });
    assert_eq!(numbers, [(numbers[0].0, 2); 2]);
    std::fs::write(f.at("links/two"), b"again").unwrap();
    assert_eq!(std::fs::read(f.at("links/one")).unwrap(), b"again");
}

pub fn number_after_remount(f: &mut Fixture) {
    let numbers = |f: &Fixture| {
        let paths = ["file", "other", "dir", "dir/inside"];
        paths.map(|path| sys::lstat(f.at(path)).unwrap().st_ino)
    };
    let before = numbers(f);
    std::fs::write(f.at("file"), b"changed").unwrap();
    sys::chmod(f.at("other"), 0o600).unwrap();
    sys::make(f.at("dir/new"), b"").unwrap();
    f.remount();
    assert_eq!(numbers(f), before);
}

pub fn parent_times(f: &mut Fixture) {
    let times = |f: &Fixture| {
        ["dir", "dir/sub", ""].map(|path| {
            let meta = f.at(path).symlink_metadata().unwrap();
            (meta.mtime(), meta.mtime_nsec())
        })
    };
    let before = times(f);
    for path in ["dir/inside", "dir/sub/below", "file"] {
        std::fs::write(f.at(path), b"changed").unwrap();
    }
    assert_eq!(times(f), before);
    f.remount();
    assert_eq!(times(f), before);
}

pub fn negative_times(f: &mut Fixture) {
    for path in ["file", "dir", "dir/inside"] {
        for time in [(-1, 500_000_000), (-86_400, 1), (-2_000_000_000, 0)] {
            sys::utimens(f.at(path), time, time).unwrap();
            let stat = sys::lstat(f.at(path)).unwrap();
            assert_eq!((stat.st_mtime, stat.st_mtime_nsec), time, "{path}");
        }
    }
}
