#!/bin/bash
# Run by chroot in the second mount over the same upper: everything that programs.sh left must be found.
set -euo pipefail
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
/srv/demo/hello
union-hello
dpkg-query -W union-hello
[ "$(git -C /srv/demo/repository log --oneline | wc -l)" = 3 ] && git -C /srv/demo/repository status -s
tail -1 /etc/issue
[ ! -e /etc/motd ] && [ -d /usr/share/perl5.moved ] && [ ! -e /usr/share/perl5 ]
echo 'the work is all there'
