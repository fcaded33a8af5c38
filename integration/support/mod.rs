//! What the tests share: requirements, mounts that clean up after themselves, tree snapshots.

pub mod canary;
pub mod creds;
pub mod daemon;
pub mod deadline;
pub mod files;
pub mod foreground;
pub mod mode;
pub mod process;
pub mod random;
pub mod script;
#[allow(dead_code, reason = "the benchmark uses more of it")]
pub mod slow_fs;
pub mod stats;
pub mod sys;
mod systems;
mod tree;
pub mod volume;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;

pub use tree::{Compare, Node, Tree, check_listings};

pub use self::systems::{System, fuse_overlayfs};

/// Whether some process sees a mount there, though it may be gone here.
fn is_mounted_elsewhere(mnt: &Path) -> bool {
    let at = format!(" {} ", mnt.display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut tables = processes.filter_map(|p| fs::read_to_string(p.path().join("mountinfo")).ok());
    tables.any(|table| table.contains(&at))
}

/// How long another test may hold a mount namespace.
const NAMESPACES: Duration = Duration::from_secs(150);

/// Waits until what was mounted there is gone from the namespaces that other tests made meanwhile, too:
/// each copies all mounts.
pub fn wait_for_namespaces(mnt: &Path) {
    let begun = Instant::now();
    while is_mounted_elsewhere(mnt) {
        assert!(begun.elapsed() < NAMESPACES, "a namespace stays");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cvmfs-union");

/// Whether this machine can do `what`; if not, says why, and panics where `REQUIRE` insists.
pub fn require(what: &str) -> bool {
    let Err(reason) = have(what) else { return true };
    let insisted = std::env::var("REQUIRE").unwrap_or_default();
    let mut words = insisted.split([' ', ',']);
    assert!(
        !words.any(|word| word == what || word == "all"),
        "{what} is required by REQUIRE, but {reason}"
    );
    eprintln!("skipped: needs {what}, but {reason}");
    false
}

/// [`require`] for several at once.
pub fn require_all(what: &[&str]) -> bool {
    what.iter().all(|what| require(what))
}

fn have(what: &str) -> Result<(), String> {
    let runs = |program: &str, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .output()
            .map_err(|e| format!("{program}: {e}"))?;
        if output.status.success() {
            Ok(())
        } else {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program} {args:?} failed: {}", text.trim()))
        }
    };
    match what {
        "root" if !nix::unistd::geteuid().is_root() => Err("the tests do not run as root".into()),
        "root" => Ok(()),
        "fuse" => fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map(drop)
            .map_err(|e| format!("/dev/fuse cannot be opened: {e}")),
        "fuse-for-users" => {
            let mode = fs::metadata("/dev/fuse").map(|device| device.mode());
            let open = mode.is_ok_and(|mode| mode & 0o006 == 0o006);
            open.then_some(())
                .ok_or_else(|| "/dev/fuse is not open to all users (chmod 666)".into())
        }
        "overlayfs" => {
            let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
            let found = known.lines().any(|line| line.ends_with("\toverlay"));
            found
                .then_some(())
                .ok_or_else(|| "the kernel has no overlayfs".into())
        }
        "passthrough" => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
            let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            (version >= (6, 9))
                .then_some(())
                .ok_or_else(|| format!("FUSE passthrough came with Linux 6.9, this is {release}"))
        }
        "userns" => runs("unshare", &["-Urm", "true"]),
        "setfacl" => runs("setfacl", &["--version"]),
        "fusermount3" => runs("fusermount3", &["--version"]),
        "fuse-overlayfs-1" => fuse_overlayfs(System::FuseOverlayfs1).map(drop),
        "fuse-overlayfs-2" => fuse_overlayfs(System::FuseOverlayfs2).map(drop),
        "xfs" | "btrfs" => {
            let mkfs = format!("mkfs.{what}");
            tool(&mkfs)
                .map(drop)
                .ok_or_else(|| format!("no {mkfs} on PATH"))
        }
        "loop" => fs::metadata("/dev/loop-control")
            .map(drop)
            .map_err(|e| format!("/dev/loop-control: {e}")),
        "strace" => runs("strace", &["-V"]),
        "busybox" | "podman" | "runc" | "bwrap" | "ch-run" | "systemd-nspawn" | "containerd"
        | "docker-registry" => tool(what)
            .map(drop)
            .ok_or_else(|| format!("no {what} on PATH")),
        "umoci" | "skopeo" | "systemd-analyze" => runs(what, &["--version"]),
        "python3" | "gcc" => {
            let program = Path::new("/usr/bin").join(what);
            fs::metadata(&program)
                .map(drop)
                .map_err(|e| format!("{}: {e}", program.display()))
        }
        "pjdfstest" | "fsx" => tool(what).map(drop).ok_or_else(|| {
            format!("no {what} on PATH or in $CVMFS_UNION_TOOLS/bin (cargo install {what})")
        }),
        other => panic!("unknown requirement {other}"),
    }
}

/// A program in `$CVMFS_UNION_TOOLS/bin` or on PATH.
pub fn tool(name: &str) -> Option<PathBuf> {
    let own = std::env::var_os("CVMFS_UNION_TOOLS").map(|dir| PathBuf::from(dir).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A directory of a test's own, removed with it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let base =
            std::env::var_os("CVMFS_UNION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!(
            "cvmfs-union-{}-{number}-{name}",
            std::process::id()
        ));
        fs::create_dir_all(&dir).unwrap();
        sys::chmod(&dir, 0o755).unwrap();
        Scratch(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.0.join(name);
        fs::create_dir_all(&dir).unwrap();
        sys::chmod(&dir, 0o755).unwrap();
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("CVMFS_UNION_KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
            return;
        }
        // By rm, which copes with paths longer than PATH_MAX; never across a mount left behind.
        let rm = Command::new("rm")
            .args(["-rf", "--one-file-system"])
            .arg(&self.0)
            .status();
        if !rm.is_ok_and(|status| status.success()) {
            eprintln!("could not remove {}", self.0.display());
        }
    }
}

/// Lower directories, an upper, a mountpoint, and the mount, if it is mounted.
///
/// When it goes, it unmounts and asserts that the lowers are what they were at the first mount.
pub struct Fixture {
    scratch: Scratch,
    pub system: System,
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub mnt: PathBuf,
    pub options: Vec<String>,
    /// Mount without the upper.
    pub read_only: bool,
    /// How the lowers are compared at the end with what they were.
    pub compare: Compare,
    before: Option<Vec<Tree>>,
    mounted: bool,
}

impl Fixture {
    pub fn new(name: &str) -> Self {
        Self::on(System::Ours, name)
    }

    pub fn on(system: System, name: &str) -> Self {
        let scratch = Scratch::new(name);
        let (upper, work, mnt) = (
            scratch.dir("upper"),
            scratch.dir("work"),
            scratch.dir("mnt"),
        );
        Fixture {
            scratch,
            system,
            lowers: Vec::new(),
            upper,
            work,
            mnt,
            options: Vec::new(),
            read_only: false,
            compare: Compare::BYTES,
            before: None,
            mounted: false,
        }
    }

    /// One more lower directory, beneath those there are. Without a union it is the one directory.
    pub fn lower(&mut self) -> PathBuf {
        if self.system == System::Plain {
            return self.mnt.clone();
        }
        let dir = self.scratch.dir(&format!("lower{}", self.lowers.len()));
        self.lowers.push(dir.clone());
        dir
    }

    /// The directory that all of this lies in.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A path in the mount.
    pub fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.mnt.join(relative)
    }

    /// What was mounted there last may go on in a namespace; then the upper is in use until it ends, and a
    /// little longer.
    pub fn mount(&mut self) {
        let begun = Instant::now();
        let in_use = |said: String| {
            let words = ["in use by another mount", "already mounted", "busy"];
            words.iter().any(|words| said.contains(words))
        };
        let mut output = self.try_mount();
        while !output.status.success()
            && (in_use(text(&output.stderr)) || is_mounted_elsewhere(&self.mnt))
            && begun.elapsed() < NAMESPACES
        {
            wait_for_namespaces(&self.mnt);
            std::thread::sleep(Duration::from_millis(10));
            output = self.try_mount();
        }
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "mount: {}\n{out}{err}",
            output.status
        );
    }

    /// Mounts, whatever comes of it.
    pub fn try_mount(&mut self) -> Output {
        self.watch_lowers();
        let Some(mut command) = self.system.mount_command(self) else {
            return run(&mut Command::new("true"));
        };
        let output = run(&mut command);
        self.mounted |= output.status.success();
        output
    }

    /// Mounts with a daemon in the foreground, whose log goes to a file.
    pub fn mount_logged(&mut self) -> PathBuf {
        self.watch_lowers();
        let log = self.scratch.path().join("log");
        let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
        let before = device(&self.mnt);
        let mut command = self.mount_command();
        command.args(["--foreground", "--log", "info"]);
        command
            .arg(&self.mnt)
            .stderr(fs::File::create(&log).unwrap());
        let mut daemon = command.stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while device(&self.mnt) == before {
            let gone = daemon.try_wait().unwrap();
            let said = || text(&fs::read(&log).unwrap());
            assert_eq!(gone, None, "mount: {}", said());
            assert!(Instant::now() < deadline, "no mount: {}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.mounted = true;
        // Nobody else waits for it.
        std::thread::spawn(move || daemon.wait());
        log
    }

    /// Remembers what the lowers are before the first mount.
    pub fn watch_lowers(&mut self) {
        if self.before.is_none() {
            self.before = Some(self.lower_trees());
        }
    }

    /// For lowers that are too deep or too large to be compared.
    pub fn trust_lowers(&mut self) {
        self.before = Some(Vec::new());
    }

    /// The command that mounts this stack; the mountpoint is still to be added.
    pub fn mount_command(&self) -> Command {
        let mut command = mount_command();
        for lower in &self.lowers {
            command.arg("--lower").arg(lower);
        }
        if self.read_only {
            command.arg("--read-only");
        } else {
            command.arg("--upper").arg(&self.upper);
            command.arg("--work").arg(&self.work);
        }
        command.args(&self.options);
        command
    }

    pub fn umount(&mut self) {
        if self.mounted {
            umount(self.system, &self.mnt).unwrap();
            self.mounted = false;
        }
    }

    pub fn remount(&mut self) {
        self.umount();
        self.mount();
    }

    /// For a test that unmounted by other means.
    pub fn forget_mount(&mut self) {
        self.mounted = false;
    }

    fn lower_trees(&self) -> Vec<Tree> {
        self.lowers.iter().map(|dir| Tree::read(dir)).collect()
    }

    fn check_lowers(&self) -> Result<(), String> {
        let Some(before) = self.before.as_ref().filter(|trees| !trees.is_empty()) else {
            return Ok(());
        };
        for ((dir, before), after) in self.lowers.iter().zip(before).zip(self.lower_trees()) {
            if let Some(difference) = before.difference(&after, self.compare) {
                return Err(format!("lower {} was changed: {difference}", dir.display()));
            }
        }
        Ok(())
    }
}

impl Fixture {
    /// Unmounts, and says if that fails or the lowers are not what they were.
    pub fn finish(&mut self) -> Result<(), String> {
        let unmounted = if std::mem::take(&mut self.mounted) {
            umount(self.system, &self.mnt)
        } else {
            Ok(())
        };
        let checked = self.check_lowers();
        self.before = None;
        unmounted.and(checked)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            assert!(std::thread::panicking(), "{error}");
            eprintln!("and also: {error}");
        }
    }
}

/// Root, and not of a user namespace only.
pub fn initial_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    nix::unistd::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// `cvmfs-union mount` with what the tests need for all users to be served, and with the options in
/// `CVMFS_UNION_MOUNT_OPTIONS`, which those of a test itself override.
pub fn mount_command() -> Command {
    let mut command = Command::new(PROGRAM);
    // No test is to be changed by what another one has opened.
    command.args(["mount", "--prefetch=off"]);
    let more = std::env::var("CVMFS_UNION_MOUNT_OPTIONS").unwrap_or_default();
    command.args(more.split_whitespace());
    if initial_root() {
        command.args(["-o", "allow_other,suid,dev"]);
    }
    command
}

/// Opens `/dev/fuse` and mounts it; who has the descriptor serves the mount.
pub fn mount_fuse(mnt: &Path, options: &str) -> OwnedFd {
    let device = sys::open("/dev/fuse", libc::O_RDWR, 0).unwrap();
    let fd = device.as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0{options}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tests"), mnt, Some("fuse"), flags, Some(data.as_str())).unwrap();
    device
}

/// A mount that `Fixture` does not look after; detached when it goes.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("could not detach {}: {e}", self.0.display());
        }
    }
}

/// Runs a command to its end. Its output goes through files, so that a daemon it leaves behind
/// does not keep us waiting on a pipe.
pub fn run(command: &mut Command) -> Output {
    let scratch = Scratch::new("output");
    let file = |name: &str| fs::File::create(scratch.path().join(name)).unwrap();
    let status = command
        .stdin(Stdio::null())
        .stdout(file("out"))
        .stderr(file("err"))
        .status()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let read = |name: &str| fs::read(scratch.path().join(name)).unwrap();
    Output {
        status,
        stdout: read("out"),
        stderr: read("err"),
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Unmounts; lazily, and with an error, if it does not go otherwise.
pub fn umount(system: System, mnt: &Path) -> Result<(), String> {
    // A child that another test is about to exec may still hold our descriptors: try for a while.
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut said;
    loop {
        let output = run(&mut system.umount_command(mnt));
        if output.status.success() {
            return Ok(());
        }
        said = text(&output.stderr);
        if Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let _detached = nix::mount::umount2(mnt, MntFlags::MNT_DETACH);
    Err(format!("umount {}: {said}", mnt.display()))
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Seconds since the epoch.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_secs()).unwrap()
}

/// Runs `body` on a thread with a umask, a working directory and credentials of its own.
pub fn isolated<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
            nix::sys::stat::umask(Mode::from_bits_retain(0o022));
            body()
        });
        thread
            .join()
            .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })
}

/// Runs on a thread of its own, so that a test which fails does not wait for it.
pub fn start<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // The test may be over.
        drop(sender.send(body()));
    });
    receiver
}

/// What `body` returns, if it does in time.
pub fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    start(body)
        .recv_timeout(limit)
        .unwrap_or_else(|e| panic!("{what}: not within {limit:?}: {e}"))
}
