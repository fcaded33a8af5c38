//! Which Linux this is.

use nix::sys::utsname::uname;

/// Whether it is of this release, or a later one.
pub fn is_at_least(release: (u32, u32)) -> bool {
    let running = uname().ok().and_then(|u| parse(u.release().to_str()?));
    running.is_some_and(|running| running >= release)
}

/// The first two numbers of a release.
fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse("4.18.0-553.el8_10.x86_64"), Some((4, 18)));
        assert_eq!(parse("6.18-rc1"), Some((6, 18)));
        assert_eq!(parse("six"), None);
        assert!(is_at_least((2, 6)) && !is_at_least((1000, 0)));
    }
}
