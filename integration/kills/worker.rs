//! One thread of the load: what it does, and what must be there of it after a kill.

use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::{LARGE, Style, Tally};
use crate::support::script::{Op, Random, Side};
use crate::support::sys::{self, Errno};
use crate::support::{Compare, Fixture, Tree, mode, now, text};

/// One thread's part of the tree, with the plain directory that says what must be in it.
pub struct Worker {
    ours: Side,
    plain: Side,
    /// Its directory in the upper.
    upper: PathBuf,
    random: Random,
    /// The call under way when the daemon died.
    cut: Option<Op>,
    /// Numbers as they were first seen, by what the object is in the plain directory.
    numbers: HashMap<(u64, SystemTime), u64>,
    pub operations: usize,
    log: VecDeque<String>,
}

/// Whether a request meets nobody. What lstat says may come from the kernel's cache.
fn has_no_daemon(root: &Path) -> bool {
    let answer = nix::sys::statvfs::statvfs(root);
    matches!(answer, Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Whether a call failed since the daemon is dead. A write that is under way then says EIO.
fn is_dead(e: Errno, root: &Path) -> bool {
    match e {
        Errno::ENOTCONN | Errno::ECONNABORTED => true,
        Errno::EIO => has_no_daemon(root),
        _ => false,
    }
}

impl Worker {
    pub fn new(fixture: &Fixture, plain: &Path, name: &str, seed: u64, start: i64) -> Worker {
        Worker {
            ours: Side::new(fixture.mnt.join(name), start),
            plain: Side::new(plain.join(name), start),
            upper: fixture.upper.join(name),
            random: Random::new(seed),
            cut: None,
            numbers: HashMap::new(),
            operations: 0,
            log: VecDeque::new(),
        }
    }

    /// Changes things until the daemon is dead.
    pub fn work(&mut self, style: Style, long: &AtomicUsize) {
        loop {
            let op = if self.random.chance(20) {
                self.next_of_large(style).unwrap_or_else(|| self.next())
            } else {
                self.next()
            };
            if paths(&op)
                .iter()
                .any(|path| self.is_large(&self.plain.root.join(path)))
            {
                long.fetch_add(1, Ordering::Relaxed);
            }
            let answer = self.ours.apply(&op);
            if let Err(e) = answer
                && is_dead(e, &self.ours.root)
            {
                self.note(&op, "cut off");
                self.cut = Some(op);
                return;
            }
            if style.portable && answer == Err(Errno::EXDEV) && matches!(op, Op::Rename(..)) {
                // S44: and nothing has changed.
                continue;
            }
            if let Some((first, rest)) = halves(&op, &answer) {
                // Of the requests that a write takes the later ones met no daemon.
                self.note(&op, "cut short");
                assert!(has_no_daemon(&self.ours.root), "{}", self.story());
                self.plain.apply(&first).unwrap();
                self.cut = Some(rest);
                return;
            }
            let collected = mode::collects_writes() && matches!(op, Op::Write(..) | Op::Append(..));
            if collected && has_no_daemon(&self.ours.root) {
                // Then the close has said nothing: of pages that met no daemon Linux notes no error.
                self.note(&op, "collected");
                self.cut = Some(op);
                return;
            }
            let expected = self.apply_to_plain(&op);
            self.note(&op, &format!("{expected:?}"));
            if style.user_namespace
                && (&answer, &expected) == (&Err(Errno::EACCES), &Err(Errno::ENXIO))
            {
                // S49: no device can be opened.
                continue;
            }
            assert_eq!(answer, expected, "{}", self.story());
            self.operations += 1;
            if expected.is_ok()
                && let Err(e) = self.follow(&op, style)
            {
                assert!(is_dead(e, &self.ours.root), "{e}\n{}", self.story());
                return;
            }
        }
    }

    /// ext4 gives the directory a new time also when a RENAME_WHITEOUT fails (`ext4_resetent`).
    fn apply_to_plain(&mut self, op: &Op) -> sys::Result<String> {
        if mode::collects_writes()
            && let Some(file) = self.plain.no_change(op)
        {
            let answer = self.plain.apply(op);
            file.put_times_back();
            return answer;
        }
        let Op::Rename(from, _, libc::RENAME_WHITEOUT) = op else {
            return self.plain.apply(op);
        };
        let path = self.plain.root.join(from);
        let dir = path.parent().unwrap();
        let before = sys::lstat(dir).ok();
        let answer = self.plain.apply(op);
        if let (Err(_), Some(stat)) = (&answer, before) {
            let atime = (stat.st_atime, stat.st_atime_nsec);
            sys::utimens(dir, atime, (stat.st_mtime, stat.st_mtime_nsec)).unwrap();
        }
        answer
    }

    /// The next operation that changes something by one call on a path.
    fn next(&mut self) -> Op {
        loop {
            return match Op::random(&mut self.random) {
                Op::Rename(from, to, 0) if self.random.chance(10) => {
                    Op::Rename(from, to, libc::RENAME_WHITEOUT)
                }
                Op::Write(path, offset, data) if self.random.chance(20) => Op::Write(
                    path,
                    offset,
                    vec![data.first().copied().unwrap_or(1); LARGE / 4],
                ),
                op if paths(&op).is_empty() => continue,
                // Mostly what can be done.
                op if !self.within_reach(&op) && self.random.chance(90) => continue,
                op => op,
            };
        }
    }

    fn is_large(&self, path: &Path) -> bool {
        sys::lstat(path).is_ok_and(|stat| stat.st_size >= LARGE as i64)
    }

    /// One on a file whose copying takes a while; first of its attributes, then of its data.
    fn next_of_large(&mut self, style: Style) -> Option<Op> {
        let mut found = Vec::new();
        let mut dirs = vec![self.plain.root.clone()];
        while let Some(dir) = dirs.pop() {
            for name in sys::names(&dir).unwrap_or_default() {
                let path = dir.join(name);
                if path.is_dir() && !path.is_symlink() {
                    dirs.push(path);
                } else if self.is_large(&path) {
                    found.push(path);
                }
            }
        }
        if found.is_empty() {
            return None;
        }
        let path = &found[self.random.below(found.len())];
        let path = path.strip_prefix(&self.plain.root).unwrap();
        let path = path.to_str().unwrap().to_owned();
        if !self.is_metadata_copy(&path, style) && self.random.chance(60) {
            return Some(Op::Chmod(path, self.random.pick(&[0o600, 0o644, 0o755])));
        }
        Some(match self.random.below(3) {
            0 => Op::Append(path, vec![b'A'; 100]),
            1 => Op::Truncate(path, LARGE as i64 + 1),
            _ => Op::Write(path, 5000, vec![b'W'; 100]),
        })
    }

    /// Whether the directories are there that it works in.
    fn within_reach(&self, op: &Op) -> bool {
        paths(op).iter().all(|path| {
            let parent = Path::new(path).parent().unwrap_or(Path::new(""));
            self.plain.root.join(parent).is_dir()
        })
    }

    /// After a call that has returned: numbers are noted, some data are synced.
    fn follow(&mut self, op: &Op, style: Style) -> sys::Result<()> {
        if let Op::Write(path, ..) | Op::Append(path, _) = op
            && self.random.chance(20)
            && let Ok(fd) = sys::open(
                self.ours.root.join(path),
                libc::O_RDONLY | libc::O_NONBLOCK,
                0,
            )
        {
            sys::fsync(&fd)?;
        }
        for path in paths(op) {
            let stat = match sys::lstat(self.ours.root.join(path)) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                other => other?,
            };
            self.check_number(path.as_bytes(), stat.st_mode, stat.st_ino, style);
        }
        Ok(())
    }

    /// S4: an object has one number for ever.
    fn check_number(&mut self, path: &[u8], mode: u32, ino: u64, style: Style) {
        let there = self.plain.root.join(text(path));
        let meta = std::fs::symlink_metadata(&there).unwrap();
        let object = (meta.ino(), meta.created().unwrap());
        let kind = mode & libc::S_IFMT;
        if style.user_namespace && kind != libc::S_IFREG && kind != libc::S_IFDIR {
            // S41: it may be another one in the next mount.
            return;
        }
        let known = *self.numbers.entry(object).or_insert(ino);
        assert_eq!(ino, known, "number of {}\n{}", text(path), self.story());
    }

    /// Compares with the plain directory, in which the call that was cut off comes to pass as far as
    /// it did in ours.
    pub fn verify(&mut self, style: Style, tally: &mut Tally) -> Tree {
        let found = Tree::read(&self.ours.root);
        let how = Compare {
            now: self.plain.start,
            dir_nlink: true,
            ino: false,
            dir_size: false,
        };
        let cut = self.cut.take();
        let mut stages = self.stages(cut.as_ref(), &found, style).into_iter();
        let mut reached = "not done";
        let mut said = Vec::new();
        while let Some(difference) = Tree::read(&self.plain.root).difference(&found, how) {
            said.push(format!("{reached}: {difference}"));
            let next = stages.next().filter(|(_, op)| self.plain.apply(op).is_ok());
            let Some((name, _)) = next else {
                panic!("{}\n{cut:?} was cut off\n{}", self.story(), said.join("\n"));
            };
            reached = name;
        }
        if cut.is_some() {
            *tally.cut.entry(reached).or_default() += 1;
        }
        for (path, node) in &found.0 {
            self.check_number(path, node.mode, node.ino, style);
        }
        found
    }

    /// Where a path leads in the plain directory; None: nowhere, or out of it.
    fn real_path(&self, path: &str, follows: bool) -> Option<String> {
        let root = self.plain.root.canonicalize().unwrap();
        let mut real = root.join(path);
        // As many links as Linux follows.
        for _ in 0..40 {
            let parent = real.parent()?.canonicalize().ok()?;
            real = parent.join(real.file_name()?);
            match std::fs::read_link(&real) {
                Ok(target) if follows => real = parent.join(target),
                _ => return Some(real.strip_prefix(&root).ok()?.to_str()?.to_owned()),
            }
        }
        None
    }

    /// The states that a call passes through, after that before it: what leads to each from the last.
    fn stages(&self, cut: Option<&Op>, found: &Tree, style: Style) -> Vec<(&'static str, Op)> {
        const DONE: &str = "done";
        let Some(cut) = cut else { return Vec::new() };
        let mut op = cut.clone();
        if let Op::Write(path, ..)
        | Op::Append(path, _)
        | Op::OpenTruncate(path)
        | Op::Truncate(path, _)
        | Op::Chmod(path, _) = &mut op
            && let Some(real) = self.real_path(path, true)
        {
            // What a call leaves undone is not the link's that leads there.
            *path = real;
        }
        let op = &op;
        let there = |path: &str| sys::lstat(self.plain.root.join(path)).ok();
        let is_dir =
            |path: &str| there(path).is_some_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR);
        // How much of the data a kill let through: a write stops at any page.
        let arrived = |path: &String, offset: i64, data: &[u8]| {
            let content = found
                .0
                .get(path.as_bytes())
                .map(|node| node.content.as_slice());
            let begin = usize::try_from(offset).unwrap();
            let written = content
                .and_then(|content| content.get(begin..))
                .unwrap_or_default();
            written.iter().zip(data).take_while(|(a, b)| a == b).count()
        };
        let touch = |path: &String| Op::Utimens(path.clone(), (now(), 0));
        // The kernel that has collected data sends their time after them.
        let untimed = |path: &String| {
            let stat = there(path).filter(|_| mode::collects_writes())?;
            let times = (stat.st_mtime, stat.st_mtime_nsec);
            Some(("collected", Op::Utimens(path.clone(), times)))
        };
        let mut stages = Vec::new();
        // A copy-up puts the times of the directory back after it has moved the copy there.
        let is_touched = |dir: &String| {
            let before = there(dir).map(|stat| stat.st_mtime);
            let after = found.0.get(dir.as_bytes()).map(|node| node.mtime.0);
            before
                .zip(after)
                .is_some_and(|(a, b)| a != b && b >= self.plain.start)
        };
        for path in paths(op) {
            let path = self.real_path(path, false).unwrap_or(path.clone());
            let above = Path::new(&path).ancestors().skip(1);
            let mut dirs = above.map(|dir| dir.to_str().unwrap().to_owned());
            if let Some(dir) = dirs.find(&is_touched) {
                stages.push(("S16", touch(&dir)));
                break;
            }
        }
        if let Op::Write(path, ..)
        | Op::Append(path, _)
        | Op::Truncate(path, _)
        | Op::OpenTruncate(path) = op
            && let Some(stat) = there(path)
            && let Some(node) = found.0.get(path.as_bytes())
        {
            let stripped = stat.st_mode & 0o7777 & !(libc::S_ISUID | libc::S_ISGID);
            let modes = (stat.st_mode & 0o7777, node.mode & 0o7777);
            // Root of a user namespace is anybody to the kernel here.
            if style.user_namespace && modes != (stripped, stripped) && modes.1 == stripped {
                stages.push(("S15", Op::Chmod(path.clone(), stripped)));
            }
            if self.is_metadata_copy(path, style) {
                stages.push(("S61", touch(path)));
                if style.user_namespace {
                    let times = (stat.st_mtime, stat.st_mtime_nsec);
                    stages.push(("S61", Op::Utimens(path.clone(), times)));
                }
            }
        }
        stages.extend(match op {
            Op::Write(path, offset, data) => {
                let part = data[..arrived(path, *offset, data)].to_vec();
                let mut all = vec![
                    ("in part", touch(path)),
                    ("in part", Op::Write(path.clone(), *offset, part)),
                ];
                all.extend(untimed(path));
                all.push((DONE, op.clone()));
                all
            }
            Op::Append(path, data) => {
                let size = there(path).map_or(0, |stat| stat.st_size);
                let part = arrived(path, size, data);
                let first = match there(path) {
                    None => ("created", Op::Create(path.clone(), 0o644)),
                    Some(_) => ("in part", touch(path)),
                };
                let first_part = Op::Append(path.clone(), data[..part].to_vec());
                let rest = Op::Append(path.clone(), data[part..].to_vec());
                let mut all = vec![first, ("in part", first_part)];
                all.extend(untimed(path));
                all.push((DONE, rest));
                all
            }
            Op::Rename(from, to, libc::RENAME_WHITEOUT) => vec![
                ("S65", Op::Rename(from.clone(), to.clone(), 0)),
                (DONE, Op::Mknod(from.clone(), libc::S_IFCHR, 0)),
            ],
            Op::Rename(from, to, 0) if style.wh && from != to && is_dir(from) && is_dir(to) => {
                vec![("S62", Op::Rmdir(to.clone())), (DONE, op.clone())]
            }
            _ => vec![(DONE, op.clone())],
        });
        stages
    }

    /// Whether the upper holds a file without its data.
    fn is_metadata_copy(&self, path: &str, style: Style) -> bool {
        let escaped = |name: &str| match name.strip_prefix(".wh.") {
            Some(rest) if style.wh || style.portable => format!(".wh..wh.u.{rest}"),
            _ => name.to_owned(),
        };
        let stored: PathBuf = path.split('/').map(escaped).collect();
        let space = if style.user_namespace {
            "user"
        } else {
            "trusted"
        };
        sys::getxattr(self.upper.join(stored), format!("{space}.overlay.metacopy")).is_ok()
    }

    fn note(&mut self, op: &Op, answer: &str) {
        let op: String = format!("{op:?}").chars().take(120).collect();
        self.log.push_back(format!("{op} = {answer}"));
        if self.log.len() > 30 {
            self.log.pop_front();
        }
    }

    fn story(&self) -> String {
        let last: Vec<_> = self.log.iter().map(String::as_str).collect();
        format!(
            "in {}, after\n{}",
            self.ours.root.display(),
            last.join("\n")
        )
    }
}

/// What a write has written and what not, if it said that it wrote less than all.
fn halves(op: &Op, answer: &sys::Result<String>) -> Option<(Op, Op)> {
    let written: usize = answer.as_ref().ok()?.parse().ok()?;
    match op {
        Op::Write(path, offset, data) if written < data.len() => {
            let (first, rest) = data.split_at(written);
            let end = offset + i64::try_from(written).unwrap();
            Some((
                Op::Write(path.clone(), *offset, first.to_vec()),
                Op::Write(path.clone(), end, rest.to_vec()),
            ))
        }
        Op::Append(path, data) if written < data.len() => {
            let (first, rest) = data.split_at(written);
            Some((
                Op::Append(path.clone(), first.to_vec()),
                Op::Append(path.clone(), rest.to_vec()),
            ))
        }
        _ => None,
    }
}

/// The paths that a change is about; none for what changes nothing, or goes by an open file.
fn paths(op: &Op) -> Vec<&String> {
    match op {
        Op::Create(path, _)
        | Op::Write(path, ..)
        | Op::Append(path, _)
        | Op::OpenTruncate(path)
        | Op::Truncate(path, _)
        | Op::Unlink(path)
        | Op::Mkdir(path, _)
        | Op::Rmdir(path)
        | Op::Symlink(_, path)
        | Op::Mknod(path, ..)
        | Op::Chmod(path, _)
        | Op::Chown(path, ..)
        | Op::Utimens(path, _)
        | Op::SetXattr(path, ..)
        | Op::RemoveXattr(path, _) => vec![path],
        Op::Rename(from, to, _) | Op::Link(from, to) => vec![from, to],
        _ => Vec::new(),
    }
}
