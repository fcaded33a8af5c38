//! Names that come and go.

use cvmfs_union::union::api::{Caller, RenameKind::Replace};

use super::{acl, create, on, removed_dir};
use crate::support::faults::Scenario;
use crate::support::{Fs, is_root, ok};

pub fn creating() -> Vec<Scenario> {
    let mut all = vec![
        on("create", |m| create(m, "dir/sub/new")),
        on("create over a whiteout of a layer", |m| {
            create(m, "dir/gone")
        }),
        on("create over a whiteout", |m| create(m, "dir/file")).after(|m| m.unlink("dir/file")),
        on("create in a new directory", |m| create(m, "new/file")).after(|m| m.mkdir("new", 0o755)),
        on("create a name like a whiteout", |m| create(m, "dir/.wh.x")),
        on("create under a default ACL", |m| create(m, "dir/new"))
            .after(|m| m.setxattr("dir", "system.posix_acl_default", &acl(), 0)),
        on("mkdir", |m| m.mkdir("dir/sub/new", 0o750)),
        on("mkdir over a whiteout of a directory", |m| {
            m.mkdir("dir/sub", 0o750)
        })
        .after(removed_dir),
        on("mkdir over a whiteout of a file", |m| {
            m.mkdir("plain", 0o750)
        })
        .after(|m| m.unlink("plain")),
        on("mkdir over a whiteout of a layer", |m| {
            m.mkdir("dir/gone", 0o750)
        }),
        on("symlink", |m| m.symlink("target", "dir/new")),
        on("symlink over a whiteout", |m| m.symlink("target", "plain"))
            .after(|m| m.unlink("plain")),
        on("mknod of a fifo", |m| {
            m.mknod("dir/new", libc::S_IFIFO | 0o600, 0)
        }),
        on("mknod of a fifo over a whiteout", |m| {
            m.mknod("plain", libc::S_IFIFO | 0o600, 0)
        })
        .after(|m| m.unlink("plain")),
        // A device 0:0 would be a whiteout.
        on("mknod of a device 0:0", |m| {
            m.mknod("dir/new", libc::S_IFCHR | 0o600, 0)
        }),
        on("mknod of a device", |m| {
            m.mknod("dir/new", libc::S_IFCHR | 0o600, libc::makedev(1, 3))
        }),
    ];
    if is_root() {
        let stranger = Caller {
            uid: 1000,
            gid: 1001,
            umask: 0o022,
        };
        all.push(on("create for another user", move |m| {
            let (dir, name) = m.at("dir/new")?;
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
            let (attr, fh) = ok(m.union.create(&stranger, dir, name, 0o666, flags))?;
            m.close(fh);
            m.counted(attr);
            Ok(())
        }));
    }
    all
}

pub fn removing() -> Vec<Scenario> {
    let unlink = |path: &'static str| on(format!("unlink {path}"), move |m| m.unlink(path));
    vec![
        unlink("plain"),
        unlink("dir/sub/deep"),
        unlink("second"),
        unlink("fifo"),
        unlink("symlink"),
        on("unlink of the upper, over a layer", |m| m.unlink("plain"))
            .after(|m| m.write("plain", b"above")),
        on("unlink of the upper only", |m| m.unlink("new")).after(|m| m.write("new", b"above")),
        on("unlink over a whiteout of a layer", |m| {
            m.unlink("dir/gone")
        })
        .after(|m| m.write("dir/gone", b"again")),
        on("unlink the other of two names", |m| m.unlink("second"))
            .after(|m| m.chmod("first", 0o600)),
        on("unlink the same of two names", |m| m.unlink("first"))
            .after(|m| m.chmod("first", 0o600)),
        on("unlink the last of two names", |m| m.unlink("second")).after(|m| m.unlink("first")),
        on("unlink one of two new names", |m| m.unlink("new")).after(|m| {
            m.write("new", b"data")?;
            m.link("new", "newer")
        }),
        on("unlink a metadata copy", |m| m.unlink("plain")).after(|m| m.chmod("plain", 0o600)),
        on("rmdir of a layer", |m| m.rmdir("empty")),
        on("rmdir of a layer, with whiteouts", |m| m.rmdir("shallow")),
        on("rmdir merged", |m| m.rmdir("shallow")).after(|m| m.chmod("shallow", 0o700)),
        on("rmdir merged, with whiteouts", |m| m.rmdir("dir/sub"))
            .after(|m| m.unlink("dir/sub/deep")),
        on("rmdir of the upper", |m| m.rmdir("new")).after(|m| m.mkdir("new", 0o755)),
        on("rmdir opaque", |m| m.rmdir("dir/sub")).after(|m| {
            removed_dir(m)?;
            m.mkdir("dir/sub", 0o755)
        }),
        // Without a lower part of its own, and yet with whiteouts in it.
        on("rmdir moved", |m| m.rmdir("moved")).after(|m| {
            m.rename("dir/sub", "moved", Replace)?;
            m.unlink("moved/deep")
        }),
    ]
}

pub fn linking() -> Vec<Scenario> {
    vec![
        on("link to a file of a layer", |m| {
            m.link("plain", "dir/sub/new")
        }),
        on("link to one of two names", |m| m.link("first", "new")),
        on("link over a whiteout of a layer", |m| {
            m.link("symlink", "dir/gone")
        }),
        on("link over a whiteout", |m| m.link("dir/file", "plain")).after(|m| m.unlink("plain")),
        on("link to a file of the upper", |m| m.link("new", "dir/new"))
            .after(|m| m.write("new", b"x")),
    ]
}
