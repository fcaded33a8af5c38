#!/bin/bash
# The second part of the demonstration, run by an ordinary user: as-user.sh namespace|fusermount BINARY CVMFS THIN OWN
# OWN is a directory of the user. The first form runs inside `unshare -Urm`, the second with no namespace at all.
set -euo pipefail
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
way=$1 binary=$2 cvmfs=$3 thin=$4 own=$5
here=$(cd "$(dirname "$0")" && pwd)
root=$own/root-$way upper=$own/upper-$way
mkdir -p "$root"
mounted() { "$binary" mount --cvmfs-root "$cvmfs" --owner squash --upper "$upper" "$thin" "$root"; }

in_namespace() { # what to run, with /proc and /dev of the host inside
    mounted
    mount --rbind /proc "$root/proc"
    mount --rbind /dev "$root/dev"
    chroot "$root" /bin/bash -s <"$here/$1"
    umount -l "$root/proc" "$root/dev"
    "$binary" umount "$root"
}

by_fusermount() { # the layers belong to root here, so the user writes where everyone may
    mounted
    head -2 "$root/etc/os-release"
    test ! -e "$root/etc/issue.net"
    if echo no 2>/dev/null >"$root/etc/forbidden"; then echo "a user wrote to /etc"; exit 1; fi
    test -e "$root/tmp/kept" || echo "written without root" >"$root/tmp/kept"
    # A namespace only for the sake of chroot(2); the mount is outside of it.
    unshare -Ur chroot "$root" python3 -c 'print(open("/tmp/kept").read().strip(), "and read by python3")'
    "$binary" umount "$root"
}

case $way in
namespace)
    in_namespace programs.sh
    in_namespace again.sh
    ;;
fusermount)
    by_fusermount
    by_fusermount # finds what the first one wrote
    ;;
*) echo "as-user.sh: namespace or fusermount, not $way" >&2; exit 2 ;;
esac
