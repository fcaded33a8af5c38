//! `run`: commands in an image, by root and by an ordinary user, and what is left when they have ended.
//!
//! The image has a few files of its own; programs are the host's, shown in it by `--bind`.

mod endings;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::json;

use crate::rootless::USER;
use crate::support::daemon::wait;
use crate::support::files::file;
use crate::support::{PROGRAM, Scratch, Tree, require_all, run, sys, text};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Root,
    User,
}

/// An image in a repository, and a directory for all that the tests leave.
struct Image {
    scratch: Scratch,
    program: PathBuf,
    before: Tree,
}

impl Image {
    fn new(name: &str) -> Option<Image> {
        if !require_all(&["root", "fuse", "fuse-for-users", "userns"]) {
            return None;
        }
        let scratch = Scratch::new(name);
        let layers = scratch.dir("cvmfs/repo.example.org/layers");
        file(layers.join("aa/file"), "below\n");
        file(layers.join("aa/gone"), "");
        fs::create_dir(layers.join("aa/usr")).unwrap();
        for (name, target) in [
            ("bin", "usr/bin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            symlink(target, layers.join("aa").join(name)).unwrap();
        }
        // Mount points that lead out of the image for who does not look.
        symlink("/run/elsewhere/tmp", layers.join("aa/tmp")).unwrap();
        file(layers.join("bb/.wh.gone"), "");
        file(layers.join("bb/etc/of"), "the image\n");
        let of = |digest: &str| json!({ "digest": digest, "url": format!("cvmfs://repo.example.org/layers/{digest}") });
        let thin = json!({ "version": "1.0", "layers": [of("aa"), of("bb")] });
        fs::write(scratch.path().join("thin.json"), thin.to_string()).unwrap();
        let program = scratch.path().join("cvmfs-union");
        assert!(
            run(Command::new("cp").arg(PROGRAM).arg(&program))
                .status
                .success()
        );
        for dir in ["tmp", "work", "home"] {
            sys::lchown(scratch.dir(dir), USER, USER).unwrap();
        }
        sys::chmod(scratch.path(), 0o1777).unwrap();
        Some(Image {
            before: Tree::read(&layers),
            scratch,
            program,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The command that runs `script` in the image.
    fn command(&self, who: Who, options: &[&str], script: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args([
                "run",
                "--prefetch=off",
                "--bind",
                "/usr:/usr:ro",
                "--cvmfs-root",
            ])
            .arg(self.at("cvmfs"))
            .args(options)
            .arg(self.at("thin.json"))
            .args(["--", "sh", "-euc", script])
            .current_dir("/")
            .env("HOME", self.at("home"))
            .env("TMPDIR", self.at("tmp"))
            .stdin(Stdio::null());
        if who == Who::User {
            command.uid(USER).gid(USER);
        }
        command
    }

    fn run(&self, who: Who, options: &[&str], script: &str) -> Output {
        run(&mut self.command(who, options, script))
    }

    /// What the script prints; it must succeed.
    fn prints(&self, who: Who, options: &[&str], script: &str) -> String {
        let output = self.run(who, options, script);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{who:?} {}\n{said}", output.status);
        text(&output.stdout)
    }

    /// Starts it, and waits for the first line that it prints.
    fn start(&self, who: Who, options: &[&str], script: &str) -> (Child, BufReader<ChildStdout>) {
        let mut command = self.command(who, options, script);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        (child, lines)
    }

    /// No process of ours, no mount, and no upper is left, and the layers are what they were.
    fn nothing_is_left(&self) {
        let here = self.scratch.path().to_string_lossy().into_owned();
        let of_ours = || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let lines = processes.filter_map(|p| fs::read(p.path().join("cmdline")).ok());
            lines.filter(|line| text(line).contains(&here)).count()
        };
        wait("a process stays", || of_ours() == 0);
        assert_eq!(sys::names(self.at("tmp")).unwrap(), Vec::<String>::new());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(&here), "{table}");
        let layers = self.at("cvmfs/repo.example.org/layers");
        let after = Tree::read(&layers);
        let compare = crate::support::Compare::BYTES;
        assert_eq!(self.before.difference(&after, compare), None);
    }
}

const BOTH: [Who; 2] = [Who::Root, Who::User];

#[test]
fn the_root_is_the_image() {
    let Some(image) = Image::new("run-root") else {
        return;
    };
    const SCRIPT: &str = r#"
cat /file /etc/of
[ ! -e /gone ]
[ ! -e /var/lib ]
[ -d /proc/self ]
[ -c /dev/null ]
[ -d /sys/kernel ]
echo x > /tmp/run-test-$$ && rm /tmp/run-test-$$
cat /etc/resolv.conf > "$HOME/resolv" 2>/dev/null || true
echo kept > "$HOME/note"
if touch /new 2>/dev/null; then exit 1; fi
echo "$(id -u):$(id -g)"
grep -c '^Cap\(Eff\|Prm\|Inh\|Amb\):.0*$' /proc/self/status || true
"#;
    for who in BOTH {
        let said = image.prints(who, &[], SCRIPT);
        let (id, caps) = match who {
            Who::Root => ("0:0".to_owned(), "2"),
            Who::User => (format!("{USER}:{USER}"), "4"),
        };
        assert_eq!(said, format!("below\nthe image\n{id}\n{caps}\n"));
        assert_eq!(fs::read_to_string(image.at("home/note")).unwrap(), "kept\n");
        // A host without DNS may have none.
        let resolv = fs::read(image.at("home/resolv")).unwrap();
        assert_eq!(resolv, fs::read("/etc/resolv.conf").unwrap_or_default());
        for name in ["note", "resolv"] {
            fs::remove_file(image.at("home").join(name)).unwrap();
        }
        image.nothing_is_left();
    }
    // What was made for /tmp lies in the image, and the host has nothing of it.
    assert!(!Path::new("/run/elsewhere").exists());
}

#[test]
fn changes_are_thrown_away_or_kept() {
    let Some(image) = Image::new("run-changes") else {
        return;
    };
    let change = "echo more >> /file; rm /etc/of; mkdir -p /new/deep; cat /file";
    for who in BOTH {
        let said = image.prints(who, &["--ephemeral"], change);
        assert_eq!(said, "below\nmore\n");
        image.nothing_is_left();
        let upper = image.at("work").join(format!("{who:?}"));
        let keep = ["--upper", upper.to_str().unwrap()];
        image.prints(who, &keep, change);
        let said = image.prints(who, &keep, "cat /file; ls /new; ! ls /etc/of 2>/dev/null");
        assert_eq!(said, "below\nmore\ndeep\n");
        image.nothing_is_left();
    }
}

#[test]
fn a_user_may_be_root() {
    let Some(image) = Image::new("run-mapped") else {
        return;
    };
    let script = "id -u; chown 0:0 /file; stat -c %u:%g /file /etc; cat /proc/self/uid_map";
    let said = image.prints(Who::User, &["--root", "--ephemeral"], script);
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "0:0", "0:0", "0", &*USER.to_string(), "1"]);
    // So is whoever is root of a namespace already.
    let inner = image.command(
        Who::User,
        &["--ephemeral"],
        "id -u; echo more >> /file; stat -c %u /file",
    );
    let mut outer = Command::new("unshare");
    outer
        .arg("-Ur")
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir("/");
    outer
        .env("HOME", image.at("home"))
        .env("TMPDIR", image.at("tmp"))
        .uid(USER)
        .gid(USER);
    let output = run(&mut outer);
    assert_eq!(text(&output.stdout), "0\n0\n", "{}", text(&output.stderr));
    // Without it, the files are the user's all the same.
    let said = image.prints(
        Who::User,
        &["--ephemeral"],
        "stat -c %u:%g /file; chmod 600 /file",
    );
    assert_eq!(said, format!("{USER}:{USER}\n"));
    image.nothing_is_left();
}

#[test]
fn binds_variables_and_directories() {
    let Some(image) = Image::new("run-options") else {
        return;
    };
    file(image.at("data/sub/note"), "of the host\n");
    sys::chmod(image.at("data"), 0o777).unwrap();
    let data = image.at("data").display().to_string();
    let (there, read_only) = (format!("{data}:/data"), format!("{data}:/etc/data:ro"));
    let one = format!("{data}/sub/note:/etc/one");
    let options = [
        "--bind",
        &there,
        "--bind",
        &read_only,
        "--bind",
        &one,
        "--env",
        "WORD=a=b",
        "--workdir",
        "/data/sub",
    ];
    let script = r#"
pwd; cat note /etc/data/sub/note /etc/one; echo "$WORD"
echo new > /data/new
if touch /etc/data/more 2>/dev/null; then exit 1; fi
[ -f /etc/data/new ]
"#;
    for who in BOTH {
        let said = image.prints(who, &options, script);
        let host = "of the host\n".repeat(3);
        assert_eq!(said, format!("/data/sub\n{host}a=b\n"));
        fs::remove_file(image.at("data/new")).unwrap();
    }
    // The caller's directory, which the image lacks, is there, too.
    let here = image.at("data/sub");
    let mut command = image.command(Who::User, &[], "pwd; cat note");
    let output = run(command.current_dir(&here));
    assert_eq!(
        text(&output.stdout),
        format!("{}\nof the host\n", here.display())
    );
    // A home that would cover what the image has is left out.
    let mut command = image.command(Who::User, &[], "cat /etc/of");
    let output = run(command.env("HOME", "/etc"));
    assert_eq!(
        text(&output.stdout),
        "the image\n",
        "{}",
        text(&output.stderr)
    );
    image.nothing_is_left();
}

/// An image's symlinks lead into what is bound before: nothing is made there.
#[test]
fn nothing_is_made_on_the_host() {
    let Some(image) = Image::new("run-host") else {
        return;
    };
    let shared = image.at("shared");
    fs::create_dir(&shared).unwrap();
    sys::chmod(&shared, 0o777).unwrap();
    file(shared.join("there/file"), "of the host\n");
    let layer = image.at("cvmfs/repo.example.org/layers/aa");
    for name in ["file", "dir", "there"] {
        symlink(
            Path::new("/shared").join(name),
            layer.join(format!("to-{name}")),
        )
        .unwrap();
    }
    let bound = format!("{}:/shared", shared.display());
    for who in BOTH {
        for to in ["/to-file", "/to-dir/deep", "/shared/new"] {
            for from in ["/etc/passwd", "/etc"] {
                let bind = format!("{from}:{to}");
                let options = ["--bind", &*bound, "--bind", &*bind];
                let output = image.run(who, &options, "true");
                let said = text(&output.stderr);
                assert_eq!(output.status.code(), Some(1), "{who:?} {bind}: {said}");
                assert!(said.contains("make it first"), "{said}");
            }
        }
        assert_eq!(sys::names(&shared).unwrap(), ["there"]);
        // What is there can be covered.
        let options = ["--bind", &*bound, "--bind", "/etc:/to-there"];
        image.prints(who, &options, "test -f /shared/there/passwd");
        assert_eq!(sys::names(shared.join("there")).unwrap(), ["file"]);
    }
}

#[test]
fn many_at_once() {
    let Some(image) = Image::new("run-many") else {
        return;
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let said = image.prints(
                        Who::User,
                        &["--ephemeral"],
                        "echo x > /mine; cat /mine /file",
                    );
                    assert_eq!(said, "x\nbelow\n");
                }
            });
        }
    });
    image.nothing_is_left();
}

/// A thin image as other tools make and save it.
#[test]
fn images_that_other_tools_have_saved() {
    const SCRIPT: &str = r#"
set -eu
cd "$DIR"
umoci init --layout oci
umoci new --image oci:thin
umoci unpack --image oci:thin bundle
cp thin.json bundle/rootfs/
umoci repack --image oci:thin bundle
skopeo copy -q oci:oci:thin docker-archive:docker.tar:lab/thin:1
skopeo copy -q oci:oci:thin oci-archive:oci.tar
skopeo copy -q oci:oci:thin dir:dir
gzip -k docker.tar
for image in oci docker.tar docker.tar.gz oci.tar dir; do
    [ "$("$PROGRAM" run --bind /usr:/usr:ro --cvmfs-root cvmfs $image cat /file)" = below ]
    "$PROGRAM" inspect --cvmfs-root cvmfs --json $image | grep -q '"digest": "bb"'
done
"#;
    let Some(image) = Image::new("run-saved") else {
        return;
    };
    if !require_all(&["umoci", "skopeo"]) {
        return;
    }
    let dir = image.scratch.path();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", SCRIPT])
        .env("DIR", dir)
        .env("PROGRAM", &image.program);
    let output = run(shell
        .env("TMPDIR", image.at("tmp"))
        .env("HOME", image.at("home")));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    image.nothing_is_left();
}

/// What a run opens is fetched ahead in the next one.
#[test]
fn runs_are_recorded() {
    let Some(image) = Image::new("run-recorded") else {
        return;
    };
    for (who, dir) in BOTH.into_iter().zip(["of-root", "of-user"]) {
        let profiles = image.scratch.dir(dir);
        if who == Who::User {
            sys::lchown(&profiles, USER, USER).unwrap();
        }
        let profiles = profiles.to_str().unwrap();
        let options = ["--prefetch=auto", "--profiles", profiles];
        for runs in 1..=2 {
            let said = image.prints(who, &options, "cat /file");
            assert_eq!(said, "below\n");
            let mut show = Command::new(&image.program);
            show.args(["profile", "show", "--json", "--profiles", profiles]);
            show.arg("--cvmfs-root").arg(image.at("cvmfs"));
            let output = run(show.arg(image.at("thin.json")));
            let shown: serde_json::Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)));
            assert_eq!(shown["runs"], runs, "{who:?}: {shown}");
            let files = shown["files"].as_array().unwrap();
            assert!(files.iter().any(|f| f["path"] == "file"), "{shown}");
        }
        image.nothing_is_left();
    }
}
