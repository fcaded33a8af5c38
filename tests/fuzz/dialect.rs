//! Bytes as a name or the key of an attribute: what they are to the dialects, against the rules stated once
//! more.

use cvmfs_union::layer::dialect::{
    deleted_by, hidden_in_lower, is_cvmfs_magic, is_union_xattr, marker_for,
};

const TOKENS: &[&[u8]] = &[
    b".wh.",
    b".wh..wh.",
    b".wh..wh..opq",
    b"opq",
    b".",
    b"..",
    b".cvmfscatalog",
    b".cvmfsautocatalog",
    b"user.",
    b"trusted.",
    b"overlay.",
    b"cvmfs-union.",
    b"fuseoverlayfs.",
    b"xfsroot.",
    b"root_hash",
    b"security.",
    b"\0",
    b"\n",
];

#[test]
fn dialects() {
    super::run("dialect", TOKENS, check);
}

pub fn check(name: &[u8]) {
    let marker = name.len() >= 4 && &name[..4] == b".wh.";
    let catalog = [&b".cvmfscatalog"[..], b".cvmfsautocatalog"].contains(&name);
    assert_eq!(hidden_in_lower(name), marker || catalog, "{name:?}");

    let deleted = (marker && name.len() > 4 && !name[4..].starts_with(b".wh.")).then(|| &name[4..]);
    assert_eq!(deleted_by(name), deleted, "{name:?}");
    if let Some(deleted) = deleted {
        assert_eq!(marker_for(deleted), name);
    }
    let own = marker_for(name);
    assert!(hidden_in_lower(&own));
    let can_be_deleted = !name.is_empty() && !marker;
    assert_eq!(deleted_by(&own), can_be_deleted.then_some(name));

    let parts: Vec<&[u8]> = name.splitn(3, |b| *b == b'.').collect();
    let union = match parts.as_slice() {
        [space, word, _] => {
            [&b"user"[..], b"trusted"].contains(space)
                && [&b"overlay"[..], b"cvmfs-union", b"fuseoverlayfs"].contains(word)
        }
        _ => false,
    };
    assert_eq!(is_union_xattr(name), union, "{name:?}");
    assert!(!(union && is_cvmfs_magic(name)), "{name:?}");
}
