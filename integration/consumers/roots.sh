# A thin image of two layers, and what is done in it.
layers=cvmfs/r.example.org/layers
mkdir -p "$layers/11aa/dir"
mv image "$layers/22bb"
echo 'from the layer' >"$layers/11aa/file"
echo >"$layers/11aa/dir/.wh.two"
cat >thin.json <<'END'
{"version": "1.0", "layers": [
    {"digest": "22bb", "url": "cvmfs://r.example.org/layers/22bb"},
    {"digest": "11aa", "url": "cvmfs://r.example.org/layers/11aa"}]}
END
cat >"$layers/11aa/look.sh" <<'END'
set -eu
grep -q "^[^ ]* / $1 " /proc/mounts
[ "$(cat /file)" = 'from the layer' ]
[ "$(ls /dir)" = one ]
END
cat >"$layers/11aa/work.sh" <<'END'
. /look.sh
mkdir /shared/made
echo new >/shared/made/new
mv /shared/made/new /shared/made/moved
[ "$(stat -c %u /shared/made/moved)" = "$(id -u)" ]
END

export IMAGE=/mnt/thin.json ROOT=/mnt/own/root UPPER=/mnt/own/upper NAME="union-$$" COMMAND
# own [COMMAND...]: an empty directory for a recipe, of the one that the command makes us.
own() {
    rm -rf own
    mkdir own
    chown "$("$@" id -u)" own
    (cd own && "$@" mkdir root)
}
# try NAME [COMMAND...]: a recipe that works in a mount of its own, of which only the upper stays.
try() {
    tried=$1
    shift
    COMMAND='/bin/sh /work.sh fuse.cvmfs-union'
    own "$@"
    (cd own && recipe "$tried" "$@")
    [ "$(cat own/upper/shared/made/moved)" = new ]
    [ "$(stat -c %u own/upper/shared/made/moved)" = "$("$@" id -u)" ]
    if grep ' /mnt/own/' /proc/mounts; then exit 1; fi
}
