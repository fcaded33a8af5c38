# podman's surroundings, and a registry; RUN_AS is nothing or `as_user`, and runs all of it.
tar -C image -cf base.tar .
mkdir run
chmod 700 run

cat >registry.yml <<END
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: $PWD/registry}}
http: {addr: "127.0.0.1:0"}
END
mkdir registry
chown -R "$($RUN_AS id -u)" .
touch registry.log
$RUN_AS docker-registry serve registry.yml >registry.log 2>&1 &
address=
for _ in $(seq 300); do
    address=$(sed -n 's/.*listening on \(127\.[0-9.:]*\).*/\1/p' registry.log)
    [ -z "$address" ] || break
    sleep 0.1
done
[ -n "$address" ] || { cat registry.log; exit 1; }

cat >containers.conf <<END
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "$PWD/tmp"
END
cat >registries.conf <<END
[[registry]]
location = "$address"
insecure = true
END
export XDG_RUNTIME_DIR=/mnt/run CONTAINERS_CONF=/mnt/containers.conf CONTAINERS_REGISTRIES_CONF=/mnt/registries.conf \
    CONTAINERS_STORAGE_CONF=/mnt/storage.conf STORAGE=/mnt/graph RUNROOT=/mnt/state \
    IMAGES="$address/lab/image" REFERENCE="$address/lab/image:1" COMMAND="grep -q fuse.cvmfs-union /proc/mounts"
# The first image, from a storage of its own.
cat >first.conf <<END
[storage]
driver = "vfs"
graphroot = "/mnt/first"
rootless_storage_path = "/mnt/first"
runroot = "/mnt/first-run"
END
first() { $RUN_AS env CONTAINERS_STORAGE_CONF=/mnt/first.conf podman "$@"; }
first import -q base.tar "$REFERENCE"
first push -q "$REFERENCE"
