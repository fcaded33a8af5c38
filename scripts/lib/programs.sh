#!/bin/bash
# The main job of the demonstration, run by chroot inside the merged root: programs that people really use.
set -euo pipefail
export HOME=/srv/demo LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
step() { printf -- '-- %s\n' "$*"; }

step 'sh: deleted files are gone, later layers show'
for gone in /usr/share/man /usr/share/locale /usr/share/doc/bash /etc/issue.net /.cvmfscatalog /etc/.wh.issue.net; do
    if [ -e "$gone" ] || [ -L "$gone" ]; then echo "still there: $gone"; exit 1; fi
    echo "gone: $gone"
done
[ "$(ls -A /usr/share/doc)" = README ]
[ "$(cat /opt/demo/welcome)" = 'Welcome to the demonstration image.' ]
[ -f /var/backups ]

step 'python3 with numpy'
python3 -c 'import numpy; a = numpy.arange(9).reshape(3, 3); print("trace of a a^T:", (a @ a.T).trace())'

step 'C: compile, link, run'
mkdir -p /srv/demo
printf '#include <stdio.h>\nint main(void) { puts("compiled inside the mount"); return 0; }\n' >/srv/demo/hello.c
gcc -O2 -Wall -o /srv/demo/hello /srv/demo/hello.c
/srv/demo/hello

step 'dpkg: build, install, list a package'
package=$(mktemp -d /tmp/package.XXXXXX)
mkdir -p "$package/DEBIAN" "$package/usr/bin"
printf 'Package: union-hello\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: says hello\n' \
    >"$package/DEBIAN/control"
printf '#!/bin/sh\necho "installed by dpkg"\n' >"$package/usr/bin/union-hello"
chmod 755 "$package" "$package/usr/bin/union-hello"
dpkg-deb --root-owner-group --build "$package" /tmp/union-hello.deb >/dev/null
dpkg -i /tmp/union-hello.deb
union-hello
rm -rf "$package"

if [ "${1:-}" = apt ]; then
    step 'apt-get: install from the archive, when it can be reached'
    if apt-get install -y -qq --no-install-recommends bc >/tmp/apt.log 2>&1; then
        echo '6 * 7' | bc
    else
        echo "archive not reached: $(tail -1 /tmp/apt.log)"
    fi
fi

step 'git: init, add, commit, log'
git init -q -b main /srv/demo/repository
cd /srv/demo/repository
git config user.name Demo && git config user.email demo@example.org
for n in 1 2 3; do
    echo "line $n" >>notes
    git add notes
    git commit -qm "Note $n"
done
git fsck --strict
git log --oneline

step 'change and delete files of the layers'
echo 'changed in the mount' >>/etc/issue
rm /etc/motd
mv /usr/share/perl5 /usr/share/perl5.moved
