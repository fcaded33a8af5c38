//! podman, of root and of a user, with this program as its `mount_program`, and a registry beside it.

use super::script;
use crate::support::require_all;

const SETUP: &str = include_str!("podman.sh");
const ROOTS: &str = include_str!("roots.sh");

/// An image is pulled, changed, pushed, removed, pulled again and run.
const LIFE: &str = r#"
recipe podman-with-mount_program
podman run --name first "$IMAGES:1" sh -c 'grep " / fuse.cvmfs-union " /proc/mounts
    rm /dir/one; mv /dir/two /dir/zwei; echo new >/dir/new'
[ "$(podman diff first | grep /dir | sort)" = "A /dir/new
A /dir/zwei
C /dir
D /dir/one
D /dir/two" ]
podman start -a first 2>again || true
grep -q "can't remove '/dir/one'" again
podman commit -q first "$IMAGES:2"
podman push -q "$IMAGES:2"
podman rm first
podman rmi -a
podman pull -q "$IMAGES:2"
[ "$(podman run --rm "$IMAGES:2" ls /dir)" = "new
zwei" ]
[ "$(podman run --rm "$IMAGES:2" cat /dir/zwei)" = two ]
[ "$(podman run --rm --user 5 "$IMAGES:2" su root -c 'id -u')" = 0 ]
[ "$(podman run --rm --user 5 "$IMAGES:2" sh -c 'touch /tmp-file || id -u' 2>/dev/null)" = 5 ]
# All is unmounted, and what the daemons kept can be removed.
podman rmi -a
if grep " /mnt/.* fuse.cvmfs-union " /proc/mounts; then exit 1; fi
"#;

/// An image is published on CVMFS, and its layers are removed from the registry.
const STORE: &str = r#"
recipe podman-with-mount_program
podman run --name first "$IMAGES:1" sh -c 'rm /dir/one; mv /dir/two /dir/zwei; echo new >/dir/new'
podman commit -q first "$IMAGES:2"
podman push -q "$IMAGES:2"
podman rm first
podman rmi -a

registry=registry/docker/registry/v2
blob() { echo "$registry/blobs/sha256/$(echo "$1" | cut -c8-9)/${1#sha256:}/data"; }
manifest=$(blob "$(cat $registry/repositories/lab/image/_manifests/tags/2/current/link)")
repository=/cvmfs/r.example.org
mkdir -p "$repository/.metadata/$IMAGES:2"
sed 's/"schemaVersion"/"SchemaVersion"/; s/"mediaType"/"MediaType"/g; s/"config"/"Config"/; s/"layers"/"Layers"/
    s/"digest"/"Digest"/g; s/"size"/"Size"/g' "$manifest" >"$repository/.metadata/$IMAGES:2/manifest.json"
for digest in $(sed 's/.*"layers"//' "$manifest" | grep -o 'sha256:[0-9a-f]*'); do
    hex=${digest#sha256:}
    layer=$repository/.layers/$(echo "$hex" | cut -c-2)/$hex/layerfs
    mkdir -p "$layer"
    tar -C "$layer" -xpzf "$(blob "$digest")"
    # Only this one: others whose names begin alike stay.
    mkdir -p kept
    mv "$(blob "$digest")" "kept/$hex"
done
[ "$(find /cvmfs -name .wh.one)" ]
if [ "$(id -u)" = 0 ]; then find /cvmfs ! -perm -4000 -exec chown -h 1234:1234 {} +; fi
if podman pull -q "$IMAGES:2"; then exit 1; fi

export REFERENCE="$IMAGES:2" REPOSITORY=r.example.org LAYERSTORE=/mnt/store
[ "$(recipe podman-with-layers-from-cvmfs)" = "$LAYERSTORE: 2 layers of 1 images; 2 written, 0 removed, 0 left out" ]
refresh() { cvmfs-union layerstore "$REPOSITORY" "$LAYERSTORE"; }
[ "$(refresh)" = "$LAYERSTORE: 2 layers of 1 images; 0 written, 0 removed, 0 left out" ]
[ "$(podman run --rm "$IMAGES:2" ls /dir)" = "new
zwei" ]
# The program's own option shows the client's files as root's.
[ "$(podman run --rm "$IMAGES:2" stat -c %u /etc/passwd)" = 0 ]
[ "$(podman run --rm --user 5 "$IMAGES:2" su root -c 'id -u')" = 0 ]
podman run --name second "$IMAGES:2" sh -c 'rm /dir/new; echo more >/dir/more'
[ "$(podman diff second | grep /dir | sort)" = "A /dir/more
C /dir
D /dir/new" ]
podman commit -q second "$IMAGES:3"
[ "$(podman run --rm "$IMAGES:3" ls /dir)" = "more
zwei" ]
# The registry has what podman has never had.
for hex in $(ls kept); do mv "kept/$hex" "$(blob "sha256:$hex")"; done
podman push -q "$IMAGES:3"
podman rm second
podman rmi -a

# What has gone from the repository goes from the store.
rm -r "$repository/.metadata/$IMAGES:2"
[ "$(refresh)" = "$LAYERSTORE: 0 layers of 0 images; 0 written, 0 removed, 0 left out" ]
rm -r "$repository"/.layers/*
[ "$(refresh)" = "$LAYERSTORE: 0 layers of 0 images; 0 written, 2 removed, 0 left out" ]
[ -z "$(ls store)" ]
"#;

/// Runs podman's work as root, or by a function as another user.
fn podman(name: &str, run_as: &str, work: &str) {
    let programs = ["podman", "runc", "docker-registry"];
    let recipe = r#"recipe() { sh -eu "/mnt/recipes/$1.sh"; }"#;
    let work = format!("cat >work.sh <<'THE_END'\n{recipe}\n{work}THE_END\n");
    let run = "$RUN_AS sh -eux work.sh\n";
    script(
        name,
        &programs,
        &format!("RUN_AS={run_as}\n{SETUP}{work}{run}"),
    );
}

#[test]
fn of_root() {
    podman("podman", "", LIFE);
}

#[test]
fn of_a_user() {
    if require_all(&["userns"]) {
        podman("podman-rootless", "as_user", LIFE);
    }
}

#[test]
fn layers_from_cvmfs() {
    podman("podman-store", "", STORE);
}

#[test]
fn layers_from_cvmfs_for_a_user() {
    if require_all(&["userns"]) {
        podman("podman-store-rootless", "as_user", STORE);
    }
}

/// Runs a recipe with `--rootfs`, which wants no image.
fn rootfs(name: &str, run_as: &str, recipe: &str) {
    let programs = ["podman", "runc", "docker-registry"];
    let work = format!("recipe podman-with-mount_program $RUN_AS\n{recipe} ${{RUN_AS:-env}}\n");
    let all = format!("RUN_AS={run_as}\n{SETUP}{ROOTS}{work}");
    script(name, &programs, &all);
}

#[test]
fn rootfs_of_root() {
    rootfs("podman-rootfs", "", "try podman-run-rootfs");
}

#[test]
fn rootfs_of_a_user() {
    if require_all(&["userns"]) {
        let recipe = "try podman-run-rootfs-of-a-user";
        rootfs("podman-rootfs-user", "as_user", recipe);
    }
}
