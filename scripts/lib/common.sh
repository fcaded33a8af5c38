# shellcheck shell=bash
# Shared by the scripts beside this directory: messages, packages, places.

ROOT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE_DIR=${CVMFS_UNION_CACHE:-$ROOT_DIR/target/demo}
# The image, results and work of the benchmarks.
BENCH_DIR=${CVMFS_UNION_CACHE:-$ROOT_DIR/target}/bench

say() { printf '== %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }

# Names of those Debian packages among the arguments that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || printf '%s\n' "$package"
    done
}

# Install what is missing when root may do it; otherwise say what to install.
need_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} = 0 ] && return 0
    if ! is_root; then
        printf 'missing packages; as root: apt-get install %s\n' "${missing[*]}" >&2
        return 1
    fi
    say "installing ${missing[*]}"
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# FUSE for everyone: the device must exist and be open to ordinary users.
need_fuse_device() {
    if [ ! -e /dev/fuse ] && is_root; then modprobe fuse 2>/dev/null || mknod /dev/fuse c 10 229; fi
    [ -e /dev/fuse ] || die "/dev/fuse is not there: load the fuse module"
    if is_root; then chmod 666 /dev/fuse; fi
    [ -w /dev/fuse ] || die "/dev/fuse is not writable: as root, chmod 666 /dev/fuse"
}

# clean_up DIR, at exit: nothing stays behind, also when a step failed. Unmounts what is below DIR, deepest first.
clean_up() {
    local status=$? mountpoint
    if [ -e "$1/passwd" ]; then umount /etc/passwd || true; fi
    while read -r mountpoint; do
        umount -l "$mountpoint" 2>/dev/null || fusermount3 -uz "$mountpoint" 2>/dev/null || true
    done < <(cut -d' ' -f5 /proc/self/mountinfo | grep -F "$1/" | sort -r)
    rm -rf --one-file-system "$1"
    [ $status = 0 ] || say "${0##*/} FAILED ($status)"
}

# integration ARGUMENT...: the integration tests, each in a process of its own. Many of them wait, so there is one more
# at a time than there are processors.
integration() {
    need_nextest
    cargo nextest run --cargo-quiet --release --config-file scripts/lib/nextest.toml --test-threads $(($(nproc) + 1)) \
        --test integration "$@"
}

# One that is installed already will do.
need_nextest() {
    cargo nextest --version >/dev/null 2>&1 && return 0
    # It is built with no other dependencies than its own.
    tool cargo-nextest 0.9.143 --locked
    PATH=$PWD/target/tools/bin:$PATH
}

# tool CRATE VERSION [OPTION...]: install its programs into target/tools, once. Their sources may pin a toolchain that is
# not installed; ours does.
tool() {
    local installed=target/tools/.crates.toml toolchain
    grep -qsF "\"$1 $2 " "$installed" && [ -x "target/tools/bin/$1" ] && return 0
    toolchain=$(rustup show active-toolchain 2>/dev/null | cut -d' ' -f1) || true
    say "installing $1 $2"
    env ${toolchain:+RUSTUP_TOOLCHAIN="$toolchain"} cargo install --quiet --root target/tools --target-dir target/tools/build \
        "$1" --version "${@:2}"
    rm -rf target/tools/build
}
