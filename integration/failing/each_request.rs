//! Each request to a layer fails once, or it and all after it: what the work has said is right or an
//! error, and when the fault is gone everything is right.
//!
//! `CVMFS_UNION_LOWER_FAULTS=all` takes each number with each errno, once and for good; else every second
//! number meets one errno in one of the ways, in turn.

use std::collections::BTreeMap;
use std::fs;

use fuser::Errno as Wire;

use super::*;
use crate::support::text;

const ERRNOS: [Wire; 3] = [Wire::EIO, Wire::ENOTCONN, Wire::ESTALE];

/// What a step found, in words that can be compared.
type Said = Result<String, Errno>;
type Step = (&'static str, fn(&Path) -> Said);

/// The work: lookups, listings, reads, and copy-ups of all sorts. Each step can be made again after
/// it has failed.
const STEPS: [Step; 14] = [
    ("list the root", |m| Ok(names(m)?.join(" "))),
    ("list d", |m| Ok(names(&m.join("d"))?.join(" "))),
    ("stat e/y", |m| {
        Ok(sys::lstat(m.join("e/y"))?.st_size.to_string())
    }),
    ("absent", |m| match sys::lstat(m.join("d/absent")) {
        Err(Errno::ENOENT) => Ok("absent".to_owned()),
        other => Ok(format!("{:?}", other?.st_size)),
    }),
    ("cat d/a", |m| cat(&m.join("d/a"))),
    ("cat d/below", |m| cat(&m.join("d/below"))),
    ("cat d/big", |m| {
        let data = cat(&m.join("d/big"))?;
        Ok(format!("{} {}", data.len(), data == text(&content())))
    }),
    ("read the link", |m| {
        Ok(text(&sys::readlink(m.join("e/link"))?))
    }),
    ("xattr", |m| {
        Ok(text(&sys::getxattr(m.join("e/x"), "user.k")?))
    }),
    ("append", |m| {
        // Once only, though the step may come again.
        let fd = sys::open(m.join("d/c"), libc::O_RDWR, 0)?;
        sys::pwrite(&fd, b"++", 3)?;
        // Where the kernel has collected it, this tells what became of it.
        sys::flush(&fd)?;
        cat(&m.join("d/c"))
    }),
    ("chmod", |m| {
        sys::chmod(m.join("e/x"), 0o600)?;
        Ok(format!("{:o}", sys::lstat(m.join("e/x"))?.st_mode))
    }),
    ("truncate", |m| {
        sys::truncate(m.join("d/b"), 1)?;
        cat(&m.join("d/b"))
    }),
    ("move", |m| {
        if let Err(errno) = sys::rename(m.join("d/sub"), m.join("e/moved"), 0)
            && (errno != Errno::ENOENT || sys::lstat(m.join("e/moved")).is_err())
        {
            return Err(errno);
        }
        cat(&m.join("e/moved/x"))
    }),
    ("remove", |m| match sys::unlink(m.join("e/y")) {
        Ok(()) | Err(Errno::ENOENT) => {
            let mut left = names(&m.join("e"))?;
            // The step before may have failed where this one asks no layer.
            left.retain(|name| name != "moved");
            Ok(left.join(" "))
        }
        Err(errno) => Err(errno),
    }),
];

fn cat(path: &Path) -> Result<String, Errno> {
    let fd = sys::open(path, libc::O_RDONLY, 0)?;
    let mut data = Vec::new();
    loop {
        let more = sys::pread(&fd, 1 << 18, data.len() as i64)?;
        if more.is_empty() {
            return Ok(text(&data));
        }
        data.extend(more);
    }
}

/// Kind, mode and content of everything, by path.
type Whole = BTreeMap<Vec<u8>, (u32, Vec<u8>)>;

fn tree(mnt: &Path) -> Whole {
    let nodes = Tree::read(mnt).0.into_iter();
    nodes.map(|(path, n)| (path, (n.mode, n.content))).collect()
}

fn mount() -> Option<Failing> {
    Failing::filled("each-request", &[], |top, _| {
        fs::write(top.join("e/x"), "top").unwrap();
        sys::setxattr(top.join("e/x"), "user.k", b"value", 0).unwrap();
        sys::symlink("target", top.join("e/link")).unwrap();
    })
}

/// How many requests the work makes, what it says, and the tree after it.
fn sound() -> Option<(u64, Vec<Said>, Whole)> {
    let f = mount()?;
    let before = f.slow.faults.requests();
    let said: Vec<_> = STEPS.iter().map(|(_, step)| step(&f.fixture.mnt)).collect();
    let requests = f.slow.faults.requests() - before;
    for ((name, _), said) in STEPS.iter().zip(&said) {
        assert!(said.is_ok(), "{name}: {said:?}");
    }
    Some((requests, said, tree(&f.fixture.mnt)))
}

#[test]
fn each_request_fails() {
    let Some((requests, expected, whole)) = sound() else {
        return;
    };
    let all = std::env::var("CVMFS_UNION_LOWER_FAULTS").is_ok_and(|v| v == "all");
    let (mut runs, mut errors, mut recovered) = (0, 0, 0);
    for n in (0..requests).step_by(if all { 1 } else { 2 }) {
        for (i, errno) in ERRNOS.into_iter().enumerate() {
            if !all && i as u64 != n / 2 % 3 {
                continue;
            }
            for lasting in [true, false] {
                if !all && lasting != (n / 2 % 2 == 0) {
                    continue;
                }
                let context = format!("request {n}, {errno:?}, lasting: {lasting}");
                let Some(mut f) = mount() else { return };
                f.slow.faults.fail_after(n, lasting, errno);
                let mut failed = Vec::new();
                for ((name, step), expected) in STEPS.iter().zip(&expected) {
                    match step(&f.fixture.mnt) {
                        Err(errno) => {
                            assert_eq!(errno, Errno::EIO, "{name}; {context}");
                            failed.push((name, step, expected));
                        }
                        said => assert_eq!(&said, expected, "{name}; {context}"),
                    }
                }
                f.lift();
                f.check_work();
                errors += failed.len();
                recovered += usize::from(failed.is_empty());
                for (name, step, expected) in failed {
                    assert_eq!(&step(&f.fixture.mnt), expected, "{name} again; {context}");
                }
                for after_remount in [false, true] {
                    if after_remount && !all && n % 4 != 0 {
                        continue;
                    }
                    if after_remount {
                        f.remount();
                    }
                    let found = tree(&f.fixture.mnt);
                    for (path, node) in &whole {
                        assert!(found.get(path) == Some(node), "{}; {context}", text(path));
                    }
                    assert_eq!(found.len(), whole.len(), "{context}");
                }
                runs += 1;
            }
        }
    }
    eprintln!(
        "{requests} requests, {runs} runs: {errors} steps failed and were made again; \
         {recovered} runs without an error"
    );
    assert!(errors > 0);
}
