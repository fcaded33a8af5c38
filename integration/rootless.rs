//! A mount in a user namespace, by an ordinary user's means.

use std::process::Command;

use crate::support::{Fixture, PROGRAM, require_all, run, sys, text};

/// The script's work is done inside the namespace, where the mount is.
const SCRIPT: &str = r#"
set -eu
"$PROGRAM" mount --owner squash --lower "$LOWER" --upper "$UPPER" --work "$WORK" "$MNT"
cd "$MNT"
[ "$(cat dir/file)" = content ]
[ "$(stat -c %u:%g dir/file)" = 0:0 ]
[ ! -e gone ]
echo more >> dir/file
mkdir -p new/deep
echo new > new/deep/file
ln dir/file dir/link
mv dir renamed
chmod 600 renamed/file
rm renamed/other
ln -s renamed/file symlink
[ "$(cat symlink)" = "content
more" ]
[ "$(stat -c %h renamed/file)" = 2 ]
cd /
"$PROGRAM" umount "$MNT"
"$PROGRAM" mount --owner squash --lower "$LOWER" --upper "$UPPER" --work "$WORK" "$MNT"
cd "$MNT"
[ "$(stat -c %a:%h renamed/file)" = 600:2 ]
[ ! -e renamed/other ]
[ ! -e dir ]
[ ! -e gone ]
[ "$(cat new/deep/file)" = new ]
rm -r renamed new symlink
[ -z "$(ls -A)" ]
cd /
"$PROGRAM" umount "$MNT"
"#;

fn lower_of(fixture: &mut Fixture) {
    let top = fixture.lower();
    sys::make(top.join(".wh.gone"), b"").unwrap();
    let base = fixture.lower();
    sys::mkdir(base.join("dir"), 0o755).unwrap();
    sys::make(base.join("dir/file"), b"content\n").unwrap();
    sys::make(base.join("dir/other"), b"other\n").unwrap();
    sys::make(base.join("gone"), b"").unwrap();
}

#[test]
fn user_namespace() {
    if !require_all(&["fuse", "userns"]) {
        return;
    }
    let mut fixture = Fixture::new("rootless");
    lower_of(&mut fixture);
    let before = crate::support::Tree::read(&fixture.lowers[1]);
    let script = SCRIPT.replace("--lower \"$LOWER\"", "--lower \"$TOP\" --lower \"$LOWER\"");
    let output = run(Command::new("unshare")
        .args(["-Urm", "sh", "-c", &script])
        .env("PROGRAM", PROGRAM)
        .env("TOP", &fixture.lowers[0])
        .env("LOWER", &fixture.lowers[1])
        .env("UPPER", &fixture.upper)
        .env("WORK", &fixture.work)
        .env("MNT", &fixture.mnt));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}", output.status);
    let after = crate::support::Tree::read(&fixture.lowers[1]);
    assert_eq!(before.difference(&after, crate::support::Compare::BYTES), None);
}
