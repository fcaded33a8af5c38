# $1: a directory of the test's own; $2: a root file system; $3: the source.
#
# What is done here is done in an overlay upon that root file system, so that a test can use the places that the
# documents name, and leaves nothing there.

# The mounts of other tests are not held here.
awk '$3 ~ /^fuse/ { print $2 }' /proc/mounts | while read -r other; do umount -lci "$other" || true; done
mount --make-rprivate /
over=$1/over
mkdir "$over"
mount -t tmpfs tmpfs "$over"
mkdir "$over/upper" "$over/work" "$over/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$over/upper,workdir=$over/work" "$over/root"
mount -t proc proc "$over/root/proc"
for dir in /sys /dev; do mount --rbind "$dir" "$over/root$dir"; done
for dir in /tmp /run; do mount -t tmpfs tmpfs "$over/root$dir"; done
mkdir -p "$over/root$3" "$over/root/cvmfs" "$1/cvmfs" "$over/root/old"
mount --bind "$3" "$over/root$3"
# The paths of sockets must be short.
mount --bind "$1" "$over/root/mnt"
mount --bind "$1/cvmfs" "$over/root/cvmfs"
cp --remove-destination /etc/hosts /etc/resolv.conf "$over/root/etc/"
cd "$over/root"
pivot_root . old
umount -l /old
mount --make-rshared /
cd /mnt
ln -sf /proc/mounts /etc/mtab
# Open to users.
mknod -m 666 fuse c 10 229
mount --bind fuse /dev/fuse

USER_ID=12345
echo "tester:x:$USER_ID:$USER_ID::/home/tester:/bin/sh" >>/etc/passwd
echo "tester:x:$USER_ID:" >>/etc/group
echo "$USER_ID:100000:65536" | tee /etc/subuid >/etc/subgid
mkdir -p /home/tester
chown "$USER_ID:$USER_ID" /home/tester
as_user() { setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups env USER=tester HOME=/home/tester "$@"; }

CVMFS_UNION_BIN=/mnt/cvmfs-union "$3/scripts/install"
# recipe NAME [COMMAND...]: runs a recipe of RECIPES.md, by the command.
recipe() {
    recipe=/mnt/recipes/$1.sh
    shift
    "$@" sh -eu "$recipe"
}

# An image whose set-id busybox lets everybody become root.
mkdir -p image/bin image/dev image/dir image/etc image/proc image/sys image/tmp image/usr
mv busybox image/bin/busybox
chmod 4755 image/bin/busybox
for name in sh cat chmod echo grep id ls mkdir mv rm stat su touch; do ln -s busybox image/bin/$name; done
printf 'root::0:0::/:/bin/sh\nuser::5:5::/:/bin/sh\n' >image/etc/passwd
printf 'root:x:0:\nuser:x:5:\n' >image/etc/group
touch image/etc/hosts image/etc/resolv.conf image/etc/nsswitch.conf image/etc/os-release
echo one >image/dir/one
echo two >image/dir/two
mkdir image/shared
chmod 1777 image/tmp image/shared
