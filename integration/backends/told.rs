//! What is told of unions of the kernel, and what is known of their uppers: by notes, as there is no daemon to ask.

use super::as_root;

/// There is no daemon to ask, and no work directory to look into.
#[test]
fn what_is_told_of_a_mount_without_an_upper() {
    let script = r#"
scan
mount --read-only
told | grep -q "^- *[0-9]*[sm] *overlay *2 *$PWD/mnt$"
told | grep -q "^    image: thin.json$"
"$PROGRAM" status --json > rows
grep -q '"uptime_seconds": [0-9]' rows
[ -z "$("$PROGRAM" diff mnt)" ]
"$PROGRAM" explain mnt /dir/top | grep -q "^/dir/top: regular file, from layer 1"
"$PROGRAM" explain mnt "$PWD/mnt/dir/file" | grep -q "^/dir/file: regular file, from layer 2"
for form in "" --json --prometheus; do
    fails 6 "the kernel makes this union, and counts nothing" "$PROGRAM" stats $form mnt
done
# From another namespace it is the same.
unshare -m sh -c '/bin/umount mnt; "$PROGRAM" status' > other
grep -A1 "$PWD/mnt (of process" other | grep -q "^    image: thin.json$"
# It goes with the mount; and what somebody else has unmounted, with the next one.
[ "$(ls /run/cvmfs-union | wc -l)" = 1 ]
umount
[ -z "$(ls /run/cvmfs-union)" ]
mount --read-only
first=$(ls /run/cvmfs-union)
/bin/umount mnt
mount --read-only
[ "$(ls /run/cvmfs-union | wc -l)" = 1 ]
[ "$(ls /run/cvmfs-union)" != "$first" ]
# A mount in a namespace that is still there is not forgotten.
unshare -m sleep 1000 &
while [ "$(readlink /proc/$!/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ]; do :; done
umount
[ "$(ls /run/cvmfs-union | wc -l)" = 1 ]
told | grep -q "of process $!"
kill $!
"#;
    as_root("backend-told", script, |_| {});
}

/// What others have put where the notes are is not read, nor is a note of another mount.
#[test]
fn notes_of_others_are_not_believed() {
    let script = r#"
scan
mount --read-only
note=/run/cvmfs-union/$(ls /run/cvmfs-union)
image() { told | grep -c "^    image:" || true; }
[ "$(image)" = 1 ]
chmod 1777 /run/cvmfs-union
[ "$(image)" = 0 ]
chmod 755 /run/cvmfs-union
chown 12345 /run/cvmfs-union
[ "$(image)" = 0 ]
chown 0 /run/cvmfs-union
sed -i 's/"device": "[0-9]*:/"device": "9/' "$note"
[ "$(image)" = 0 ]
echo '{' > "$note"
[ "$(image)" = 0 ]
rm "$note"
mkfifo "$note"
[ "$(image)" = 0 ]
rm "$note"
[ "$(backend)" = overlay ]
fails 5 "pass --image IMAGE" "$PROGRAM" explain mnt /dir/file
"$PROGRAM" explain --image thin.json --cvmfs-root cvmfs mnt /dir/file | grep -q "from layer 2"
umount
# Where nothing can be noted the mount is made all the same, and that is said.
rm -r /run/cvmfs-union
echo > /run/cvmfs-union
mount --read-only 2> said
grep -q "warning: nothing is noted of this mount" said
[ "$(backend)" = overlay ]
umount
"#;
    as_root("backend-notes", script, |_| {});
}

/// No kernel of the tests has aufs, so a mount stands for one of it whose note says so.
#[test]
fn an_upper_that_aufs_has_mounted_is_refused() {
    let script = r#"
mkdir upper upper.work other
layers=cvmfs/repo.example.org/layers
/bin/mount -t overlay cvmfs-union-0123456789abcdef -o "lowerdir=$layers/aa:$layers/bb" mnt
device=$(awk -v mnt="$PWD/mnt" '$5 == mnt { print $3 }' /proc/self/mountinfo)
mkdir /run/cvmfs-union
cat > /run/cvmfs-union/mount-0123456789abcdef <<END
{"backend": "aufs", "mountpoint": "$PWD/mnt", "upper": "$PWD/upper", "device": "$device"}
END
echo '{"backend": "aufs"}' > upper.work/mount
told | grep -q "upper: $PWD/upper"
elsewhere() { "$PROGRAM" mount --cvmfs-root cvmfs "$@" --upper upper thin.json other; }
for backend in auto overlay fuse; do
    fails 5 "in use by another mount" elsewhere --backend $backend --assume-no-wh
done
fails 7 "mounted by the kernel" "$PROGRAM" check upper
umount
elsewhere
"$PROGRAM" umount other
"#;
    as_root("backend-aufs-twice", script, |_| {});
}
