//! A place that nobody has any business in: who opens something there is heard.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::{Compare, Mounted, Scratch, Tree, sys};

/// A file system of its own, watched as a whole by fanotify.
pub struct Canary {
    dir: PathBuf,
    before: Tree,
    events: OwnedFd,
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
        let mut buffer = [0u8; 4096];
        let mut heard = 0;
        while let Ok(n) = nix::unistd::read(&self.events, &mut buffer) {
            let mut at = 0;
            while at < n {
                let event: libc::fanotify_event_metadata = unsafe {
                    buffer
                        .as_ptr()
                        .add(at)
                        .cast::<libc::fanotify_event_metadata>()
                        .read_unaligned()
                };
                drop(unsafe { OwnedFd::from_raw_fd(event.fd) });
                at += event.event_len as usize;
                heard += 1;
            }
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

/// The descriptors that come with events; that of a FIFO must not wait.
const EVENT_FLAGS: u32 = (libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC) as u32;

fn watch(dir: &Path) -> OwnedFd {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC;
    let fd = unsafe { libc::fanotify_init(flags, EVENT_FLAGS) };
    assert!(fd >= 0, "fanotify_init: {}", sys::Errno::last());
    let events = unsafe { OwnedFd::from_raw_fd(fd) };
    let mask = libc::FAN_OPEN | libc::FAN_ACCESS | libc::FAN_MODIFY | libc::FAN_ONDIR;
    let (path, mark) = (sys::c(dir), libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM);
    let fd = events.as_raw_fd();
    let done = unsafe { libc::fanotify_mark(fd, mark, mask, libc::AT_FDCWD, path.as_ptr()) };
    assert_eq!(done, 0, "fanotify_mark: {}", sys::Errno::last());
    events
}
