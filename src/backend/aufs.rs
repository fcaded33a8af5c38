//! aufs over a stack of directories: the file system that Docker used before overlayfs. It knows `.wh.` files.
//!
//! It is no part of Linux, and takes its branches in one page of text; what does not fit there is appended, one
//! branch at a time.

use std::path::Path;

use nix::mount::MsFlags;

use super::Stack;
use crate::error::best_effort;
use crate::sys::mount;

/// The type, as the table of mounts shows it.
pub const FSTYPE: &str = "aufs";
/// What mount(2) reads of its options, with the NUL at the end (`PAGE_SIZE`, which is nowhere smaller).
const PAGE: usize = 4096;

/// Mounts. An error says at which step.
pub fn mount(stack: &Stack, mountpoint: &Path) -> Result<(), String> {
    let options = options(stack)?;
    let call = |flags, options: &str| {
        nix::mount::mount(
            Some(stack.source.as_str()),
            mountpoint,
            Some(FSTYPE),
            flags,
            Some(options),
        )
        .map_err(|e| format!("mount of type {FSTYPE}: {e}"))
    };
    let Some((first, more)) = options.split_first() else {
        return Ok(());
    };
    call(stack.flags, first)?;
    for branch in more {
        if let Err(why) = call(stack.flags | MsFlags::MS_REMOUNT, branch) {
            best_effort("unmount", mount::umount_direct(mountpoint, true));
            return Err(why);
        }
    }
    Ok(())
}

/// The options of the mount, and of each remount after it.
fn options(stack: &Stack) -> Result<Vec<String>, String> {
    let mut branches = Vec::new();
    if let Some((upper, _)) = &stack.upper {
        branches.push(format!("{}=rw", name(upper)?));
    }
    for lower in &stack.lowers {
        branches.push(format!("{}=ro+wh", name(lower)?));
    }
    let mut branches = branches.into_iter().peekable();
    let mut first = String::from("br:");
    let mut separator = "";
    while let Some(branch) = branches.next_if(|b| first.len() + b.len() + 1 < PAGE) {
        first.push_str(separator);
        first.push_str(&branch);
        separator = ":";
    }
    let more = branches.map(|branch| format!("append:{branch}"));
    Ok(std::iter::once(first).chain(more).collect())
}

/// The name of a directory, if it can be told from what comes after it.
fn name(dir: &Path) -> Result<&str, String> {
    let taken = [':', ',', '=', '\\'];
    dir.to_str()
        .filter(|name| !name.contains(taken))
        .ok_or_else(|| {
            let shown = dir.display();
            format!("{shown}: it takes no names with a colon, comma, equals sign or backslash, or not in UTF-8")
        })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn stack(lowers: Vec<PathBuf>, upper: bool) -> Stack {
        Stack {
            lowers,
            upper: upper.then(|| ("/u".into(), "/w".into())),
            user_marks: false,
            portable: false,
            flags: MsFlags::empty(),
            source: mount::NAME.to_owned(),
        }
    }

    #[test]
    fn branches_in_one_text() {
        let lowers = ["/a", "/b c"].map(PathBuf::from).to_vec();
        assert_eq!(
            options(&stack(lowers.clone(), true)),
            Ok(vec!["br:/u=rw:/a=ro+wh:/b c=ro+wh".to_owned()])
        );
        assert_eq!(
            options(&stack(lowers, false)),
            Ok(vec!["br:/a=ro+wh:/b c=ro+wh".to_owned()])
        );
    }

    #[test]
    fn what_does_not_fit_is_appended_in_order() {
        let lowers: Vec<PathBuf> = (0..100).map(|n| format!("/{n:0100}").into()).collect();
        let options = options(&stack(lowers.clone(), true)).unwrap_or_default();
        let (first, more) = options
            .split_first()
            .map_or(("", [].as_slice()), |(f, m)| (f, m));
        assert!(
            first.len() < PAGE && first.len() > PAGE - 200,
            "{}",
            first.len()
        );
        let branches = first.trim_start_matches("br:").split(':').skip(1);
        let appended = more
            .iter()
            .map(|option| option.trim_start_matches("append:"));
        let all: Vec<_> = branches.chain(appended).collect();
        let expected: Vec<_> = lowers
            .iter()
            .map(|l| format!("{}=ro+wh", l.display()))
            .collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn names_with_separators_are_refused() {
        for odd in ["/a:b", "/a,b", "/a=b", "/a\\b"] {
            let options = options(&stack(vec![odd.into()], false));
            assert!(options.is_err_and(|why| why.contains(odd)), "{odd}");
        }
    }
}
