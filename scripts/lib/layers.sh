# shellcheck shell=bash
# How scripts/demo-image and scripts/bench-image make layers, and how the first publishes them. Needs common.sh, and
# runs in a mount namespace of its own.

# The base: a minimal Debian, fetched with the host's own archive settings when they are for the same release.
build_base() {
    local dir=$1 suite=bookworm sources=()
    if [ -n "${CVMFS_UNION_MIRROR:-}" ]; then
        sources=("$CVMFS_UNION_MIRROR")
    else
        mapfile -t sources < <(grep -lsE "debian.*$suite|Suites:.*\b$suite\b" \
            /etc/apt/sources.list /etc/apt/sources.list.d/debian.{list,sources} || true)
    fi
    mmdebstrap --quiet --variant=minbase --skip=cleanup/apt/lists \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
        "$suite" "$dir" "${sources[@]}"
}

# build_step DIR LOWERS COMMAND: run COMMAND in a chroot over LOWERS (topmost first), keep in DIR what it changed.
build_step() {
    local dir=$1 lowers=$2 command=$3 merged=$1.merged work=$1.work
    rm -rf "$dir" "$work"
    mkdir -p "$dir" "$work" "$merged"
    mount -t overlay demo-build -o "redirect_dir=off,metacopy=off,index=off,lowerdir=$lowers,upperdir=$dir,workdir=$work" "$merged" ||
        die "kernel overlayfs does not accept $dir as upper directory; set CVMFS_UNION_CACHE to a directory on ext4, xfs, btrfs or tmpfs"
    mount -t proc proc "$merged/proc"
    mount --bind /dev "$merged/dev"
    DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$merged" sh -euc "$command" >"$dir.log" 2>&1 || { tail -20 "$dir.log" >&2; die "a layer failed: $command"; }
    umount "$merged/dev" "$merged/proc" "$merged"
    rm -rf "$work" "$merged"
}

# build_layers BUILD: one layer below BUILD for each of NAMES, the first a base, the others by the command in STEPS. One
# that was made by the same command over the same layers is kept. Leaves all of them in LOWERS, topmost first.
build_layers() {
    local name dir want
    LOWERS=
    mkdir -p "$1"
    for name in "${NAMES[@]}"; do
        dir=$1/$name
        want="$LOWERS|${STEPS[$name]:-base}"
        if [ "$(cat "$dir.done" 2>/dev/null)" != "$want" ]; then
            say "building layer $name"
            rm -rf "$dir"
            if [ "$name" = base ]; then build_base "$dir"; else build_step "$dir" "$LOWERS" "${STEPS[$name]}"; fi
            printf '%s\n' "$want" >"$dir.done"
        fi
        LOWERS=$dir${LOWERS:+:$LOWERS}
    done
}

# markers_to_oci DIR LOWERS: the overlay markers of a tree become the plain files of an image layer. Overlayfs marks
# every new directory as opaque; only where a layer below has that directory does it mean anything. The files' times
# are fixed and their directories' times are kept, so that the same layer has the same digest.
markers_to_oci() {
    local path lower lowers
    IFS=: read -ra lowers <<<"$2"
    while IFS= read -r -d '' path; do
        [ "$(stat -c %t:%T "$1/$path")" = 0:0 ] || continue
        rm "$1/$path"
        touch -d @0 "$(dirname "$1/$path")/.wh.${path##*/}"
    done < <(find "$1" -type c -printf '%P\0')
    while IFS= read -r -d '' path; do
        [ "$(getfattr --only-values -n trusted.overlay.opaque "$1/$path" 2>/dev/null)" = y ] || continue
        for lower in "${lowers[@]}"; do
            if [ -d "$lower/$path" ]; then touch -d @0 "$1/$path/.wh..wh..opq"; fi
        done
    done < <(find "$1" -mindepth 1 -type d -printf '%P\0')
}

# publish BUILD LOWERS BASE: put the layer below BASE as an ingest leaves it: one owner, no xattrs, hardlinks split.
# Prints its digest.
publish() {
    local build=$1 lowers=$2 base=$3 staged=$1.staged digest bucket target dir
    rm -rf "$staged"
    cp -a --reflink=auto "$build" "$staged"
    markers_to_oci "$staged" "$lowers"
    (cd "$build" && find . -type d -print0) | while IFS= read -r -d '' dir; do touch -r "$build/$dir" "$staged/$dir"; done
    local pack=(tar --create --sort=name --hard-dereference --numeric-owner --owner="$OWNER" --group="$OWNER" -C "$staged" .)
    digest=$("${pack[@]}" | gzip -n1 | sha256sum | cut -d' ' -f1)
    bucket=$base/${digest:0:2} target=$base/${digest:0:2}/$digest/layerfs
    mkdir -p "$target"
    "${pack[@]}" | tar --extract --preserve-permissions --numeric-owner -C "$target"
    touch {"$base","$bucket","$target"}/.cvmfscatalog
    chown "$OWNER:$OWNER" {"$base","$bucket","$target"}{,/.cvmfscatalog} "${target%/*}"
    rm -rf "$staged"
    printf '%s\n' "$digest"
}
