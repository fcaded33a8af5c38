//! What mounts a union: ours, the rivals, and a plain directory that needs no mounting.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Fixture, PROGRAM, initial_root, run, text, tool};

/// What mounts the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// No union: the lowers' content in one directory.
    Plain,
    Ours,
    /// Kernel overlayfs as it comes.
    OverlayfsDefault,
    /// Kernel overlayfs with its optional features.
    Overlayfs,
    /// fuse-overlayfs 1.x, in C.
    FuseOverlayfs1,
    /// fuse-overlayfs 2.0, in Rust.
    FuseOverlayfs2,
    /// No union: the benchmark's own daemon over the lowers' content in one directory, which it mounts itself.
    #[allow(dead_code, reason = "no test asks for it")]
    Floor,
}

impl System {
    pub const ALL: [System; 6] = [
        System::Plain,
        System::Ours,
        System::OverlayfsDefault,
        System::Overlayfs,
        System::FuseOverlayfs1,
        System::FuseOverlayfs2,
    ];

    pub const RIVALS: [System; 4] = [
        System::OverlayfsDefault,
        System::Overlayfs,
        System::FuseOverlayfs1,
        System::FuseOverlayfs2,
    ];

    /// Its place among all, by which another process is told of it.
    pub fn number(self) -> usize {
        Self::ALL.iter().position(|system| *system == self).unwrap()
    }

    pub fn numbered(word: &str) -> System {
        Self::ALL[word.parse::<usize>().unwrap()]
    }

    pub fn name(self) -> &'static str {
        match self {
            System::Plain => "plain directory",
            System::Ours => "cvmfs-union",
            System::OverlayfsDefault => "overlayfs",
            System::Overlayfs => "overlayfs, all features",
            System::FuseOverlayfs1 => "fuse-overlayfs 1",
            System::FuseOverlayfs2 => "fuse-overlayfs 2.0",
            System::Floor => "floor",
        }
    }

    /// The requirements of tests on it.
    pub fn needs(self) -> &'static [&'static str] {
        match self {
            System::Plain => &[],
            System::Ours | System::Floor => &["fuse"],
            System::OverlayfsDefault | System::Overlayfs => &["overlayfs"],
            System::FuseOverlayfs1 => &["fuse", "fuse-overlayfs-1"],
            System::FuseOverlayfs2 => &["fuse", "fuse-overlayfs-2"],
        }
    }

    /// The command that mounts this stack; None where nothing is to be mounted.
    pub fn mount_command(self, stack: &Fixture) -> Option<Command> {
        let mut command = match self {
            System::Plain | System::Floor => return None,
            System::Ours => {
                let mut command = stack.mount_command();
                command.arg(&stack.mnt);
                return Some(command);
            }
            System::OverlayfsDefault | System::Overlayfs => {
                let mut command = Command::new("mount");
                command.args(["-t", "overlay", "overlay"]);
                command
            }
            System::FuseOverlayfs1 | System::FuseOverlayfs2 => {
                Command::new(fuse_overlayfs(self).unwrap())
            }
        };
        let lowers: Vec<_> = stack.lowers.iter().map(|l| l.to_str().unwrap()).collect();
        let mut words = vec![format!("lowerdir={}", lowers.join(":"))];
        if !stack.read_only {
            words.push(format!("upperdir={}", stack.upper.display()));
            words.push(format!("workdir={}", stack.work.display()));
        }
        let features: &[&str] = match self {
            // In a user namespace it has `user.` marks, and no other features with them.
            System::Overlayfs | System::OverlayfsDefault if !initial_root() => &["userxattr"],
            System::Overlayfs => &["redirect_dir=on", "index=on", "metacopy=on", "xino=on"],
            System::FuseOverlayfs1 | System::FuseOverlayfs2 if initial_root() => &["suid", "dev"],
            _ => &[],
        };
        words.extend(features.iter().map(|word| (*word).to_owned()));
        words.extend(stack.options.iter().cloned());
        command.arg("-o").arg(words.join(",")).arg(&stack.mnt);
        Some(command)
    }

    pub fn umount_command(self, mnt: &Path) -> Command {
        let mut command = match self {
            System::Ours => Command::new(PROGRAM),
            _ => Command::new("umount"),
        };
        if self == System::Ours {
            command.arg("umount");
        }
        command.arg(mnt);
        command
    }
}

/// The program, if there is one of that version.
pub fn fuse_overlayfs(system: System) -> Result<PathBuf, String> {
    let (found, version) = match system {
        System::FuseOverlayfs2 => (tool("fuse-overlayfs"), "version 2."),
        _ => (Some("/usr/bin/fuse-overlayfs".into()), "version 1."),
    };
    let program = found.ok_or("no fuse-overlayfs on PATH or in $CVMFS_UNION_TOOLS/bin")?;
    if !program.is_file() {
        return Err(format!("there is no {}", program.display()));
    }
    let output = run(Command::new(&program).arg("--version"));
    let said = text(&output.stdout) + &text(&output.stderr);
    if said.contains(&format!("fuse-overlayfs: {version}")) {
        Ok(program)
    } else {
        Err(format!("{} is not {version}: {said}", program.display()))
    }
}
