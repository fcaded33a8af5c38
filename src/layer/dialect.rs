//! The names and attributes by which layers mark deletions.
//!
//! Sources: the aufs manual and the OCI image specification (`.wh.`), the kernel's overlayfs
//! documentation (device 0:0, `overlay.opaque`, `overlay.whiteout`), fuse-overlayfs.

/// Prefix of all the aufs and OCI marker names.
pub const WH: &[u8] = b".wh.";
/// The name that makes its directory opaque.
pub const WH_OPAQUE: &[u8] = b".wh..wh..opq";

/// Whether a lower never shows this name.
pub fn hidden_in_lower(name: &[u8]) -> bool {
    name.starts_with(WH) || name == b".cvmfscatalog" || name == b".cvmfsautocatalog"
}

/// The name that a `.wh.` marker deletes; none for the bookkeeping names `.wh..wh.*` and a bare `.wh.`.
pub fn deleted_by(marker: &[u8]) -> Option<&[u8]> {
    let name = marker.strip_prefix(WH)?;
    (!name.is_empty() && !name.starts_with(WH)).then_some(name)
}

/// The marker that deletes `name`.
pub fn marker_for(name: &[u8]) -> Vec<u8> {
    [WH, name].concat()
}

/// Whether an attribute belongs to a union (ours or another) and not to the users.
pub fn is_union_xattr(key: &[u8]) -> bool {
    let Some(rest) = key
        .strip_prefix(b"trusted.")
        .or_else(|| key.strip_prefix(b"user."))
    else {
        return false;
    };
    rest.starts_with(b"overlay.")
        || rest.starts_with(b"cvmfs-union.")
        || rest.starts_with(b"fuseoverlayfs.")
}

/// Attributes that CVMFS answers on any file without storing them.
const MAGIC: &[&[u8]] = &[
    b"user.pid",
    b"user.version",
    b"user.revision",
    b"user.root_hash",
    b"user.expires",
    b"user.maxfd",
    b"user.usedfd",
    b"user.nioerr",
    b"user.host",
    b"user.proxy",
    b"user.uptime",
    b"user.nclg",
    b"user.nopen",
    b"user.ndownload",
    b"user.timeout",
    b"user.timeout_direct",
    b"user.rx",
    b"user.speed",
    b"user.fqrn",
    b"user.ndiropen",
    b"user.inode_max",
    b"user.tag",
    b"user.hash",
    b"user.lhash",
    b"user.rawlink",
    b"user.chunks",
    b"user.chunk_list",
    b"user.compression",
    b"user.external_file",
    b"user.catalog_counters",
    b"user.repo_counters",
    b"user.repo_metainfo",
    b"user.host_list",
    b"user.external_host",
    b"user.external_timeout",
    b"user.hitrate",
    b"user.logbuffer",
    b"user.pubkeys",
    b"user.authz",
    b"user.direct_io",
    b"user.xattrs",
];

/// Whether a CVMFS client makes this attribute up.
pub fn is_cvmfs_magic(key: &[u8]) -> bool {
    MAGIC.contains(&key) || key.starts_with(b"xfsroot.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_name_what_they_delete() {
        assert_eq!(deleted_by(b".wh.a"), Some(&b"a"[..]));
        assert_eq!(deleted_by(b".wh."), None);
        assert_eq!(deleted_by(WH_OPAQUE), None);
        assert_eq!(deleted_by(b"a"), None);
        assert_eq!(deleted_by(&marker_for(b"x")), Some(&b"x"[..]));
    }
}
