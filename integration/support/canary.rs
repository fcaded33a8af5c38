//! A place that nobody has any business in: who opens something there is heard.

use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::mount::MsFlags;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

use super::{Compare, Mounted, Scratch, Tree, sys};

/// A file system of its own, watched as a whole by fanotify.
pub struct Canary {
    dir: PathBuf,
    before: Tree,
    events: Fanotify,
    // Dropped in this order.
    _mounted: Mounted,
    _scratch: Scratch,
}

impl Canary {
    pub fn new() -> Canary {
        let scratch = Scratch::new("canary");
        let dir = scratch.dir("outside");
        let flags = MsFlags::MS_STRICTATIME;
        nix::mount::mount(Some("tests"), &dir, Some("tmpfs"), flags, None::<&str>).unwrap();
        let mounted = Mounted(dir.clone());
        sys::mkdir(dir.join("dir"), 0o755).unwrap();
        sys::mkdir(dir.join("dir/sub"), 0o755).unwrap();
        for file in ["file", "dir/file", "dir/sub/file"] {
            sys::make(dir.join(file), b"outside").unwrap();
        }
        sys::mknod(dir.join("fifo"), libc::S_IFIFO | 0o666, 0).unwrap();
        sys::mknod(dir.join("dir/fifo"), libc::S_IFIFO | 0o666, 0).unwrap();
        let before = Tree::read(&dir);
        let events = watch(&dir);
        Canary {
            dir,
            before,
            events,
            _mounted: mounted,
            _scratch: scratch,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The targets of links into it, absolute and as seen from any directory.
    pub fn targets(&self) -> Vec<PathBuf> {
        let up = "../".repeat(40);
        [
            "", "dir", "dir/sub", "file", "dir/file", "fifo", "dir/fifo", "absent",
        ]
        .iter()
        .flat_map(|name| {
            let absolute = self.dir.join(name);
            let relative = Path::new(&up).join(absolute.strip_prefix("/").unwrap());
            [absolute, relative]
        })
        .collect()
    }

    /// How often something was opened, read or changed here since the last call.
    pub fn heard(&self) -> usize {
        let mut heard = 0;
        while let Ok(events) = self.events.read_events() {
            heard += events.len();
        }
        heard
    }

    /// Nothing was opened, read or changed.
    pub fn check(&self) {
        assert_eq!(
            self.heard(),
            0,
            "something was opened outside of the layers"
        );
        let now = Tree::read(&self.dir);
        assert_eq!(self.before.difference(&now, Compare::BYTES), None);
        // That was us.
        assert_ne!(self.heard(), 0, "the canary is dead");
    }
}

fn watch(dir: &Path) -> Fanotify {
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLOEXEC;
    // The descriptors that come with events; that of a FIFO must not wait.
    let opened = EventFFlags::O_RDONLY | EventFFlags::O_NONBLOCK | EventFFlags::O_CLOEXEC;
    let events = Fanotify::init(flags, opened).unwrap();
    let mask =
        MaskFlags::FAN_OPEN | MaskFlags::FAN_ACCESS | MaskFlags::FAN_MODIFY | MaskFlags::FAN_ONDIR;
    let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
    events.mark(mark, mask, AT_FDCWD, Some(dir)).unwrap();
    events
}
