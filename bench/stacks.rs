//! What grows with layers and with files: time to mount, work for one path, memory of the daemon.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::lists::Lists;
use crate::place::{How, Layers, Place, drop_names, time_to_mount};
use crate::report::Figures;
use crate::support::System;
use crate::worker::work;

pub const LAYERS: &str = "Layers";
pub const MEMORY: &str = "Memory of the daemon";
/// The most that a mount may take, ms.
const MOUNT_AT_MOST: f64 = 20.0;
const IDLE_AT_MOST: f64 = 8e6;
const INODE_AT_MOST: f64 = 200.0;
/// For the kernel to forget, and the daemon to hear of it.
const FORGETTING: Duration = Duration::from_millis(1500);

/// The same content in so many layers: each file in one of them, chosen by its path. What lies in `srv` is left out.
/// Made once.
pub fn split(flat: &Path, into: &Path, count: usize) -> Layers {
    let dir = into.join(count.to_string());
    let done = dir.join("done");
    if !done.exists() {
        eprintln!("  splitting into {count} layers");
        let _old = fs::remove_dir_all(&dir);
        let layers: Vec<_> = (0..count).map(|n| dir.join(n.to_string())).collect();
        layers
            .iter()
            .for_each(|layer| fs::create_dir_all(layer).unwrap());
        distribute(flat, Path::new(""), &layers);
        fs::write(&done, "").unwrap();
    }
    Layers {
        dir,
        names: (0..count).map(|n| n.to_string()).collect(),
        flat: flat.to_owned(),
    }
}

fn distribute(flat: &Path, path: &Path, layers: &[PathBuf]) {
    for entry in fs::read_dir(flat.join(path)).unwrap() {
        let below = path.join(entry.unwrap().file_name());
        let source = flat.join(&below);
        let meta = fs::symlink_metadata(&source).unwrap();
        if below == Path::new("srv") {
            continue;
        }
        let sum = below
            .to_string_lossy()
            .bytes()
            .fold(0usize, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
        let target = layers[sum % layers.len()].join(&below);
        if meta.is_dir() || meta.is_file() || meta.is_symlink() {
            fs::create_dir_all(target.parent().unwrap()).unwrap();
        }
        if meta.is_dir() {
            fs::create_dir_all(&target).unwrap();
            distribute(flat, &below, layers);
        } else if meta.is_file() {
            fs::copy(&source, &target).unwrap();
        } else if meta.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else {
            continue;
        }
        lchown(&target, Some(meta.uid()), Some(meta.gid())).unwrap();
    }
}

/// Mounts of these numbers of layers, and paths that nobody has looked at.
pub fn layers(
    flat: &Path,
    into: &Path,
    lists: &Lists,
    systems: &[System],
    counts: &[usize],
    times: usize,
) -> Vec<Figures> {
    let mut found = Vec::new();
    for &count in counts {
        let layers = split(flat, into, count);
        let mut mount = Figures::new(LAYERS, &format!("mount, {count} layers"), "ms");
        mount.most = Some(MOUNT_AT_MOST);
        let mut fresh = Figures::new(
            LAYERS,
            &format!("stat of 2k fresh paths, {count} layers"),
            "cpu s",
        );
        eprintln!("  {count} layers");
        // In turn, so that what the machine does beside it meets all alike.
        let mut took = vec![Vec::new(); systems.len()];
        let mut used = took.clone();
        for _ in 0..times {
            for (system, took) in systems.iter().zip(&mut took) {
                took.extend(time_to_mount(*system, &layers).map(|s| s * 1e3));
            }
        }
        for _ in 0..times {
            for (system, used) in systems.iter().zip(&mut used) {
                used.push(fresh_paths(*system, &layers, lists));
            }
        }
        for (figures, values) in [(&mut mount, took), (&mut fresh, used)] {
            for (system, mut values) in systems.iter().zip(values) {
                values.sort_by(f64::total_cmp);
                if let Some(median) = values.get(values.len() / 2) {
                    figures.values.push((*system, *median));
                }
                figures.details[system.name()] = json!(values);
            }
        }
        found.push(mount);
        found.push(fresh);
    }
    found
}

fn fresh_paths(system: System, layers: &Layers, lists: &Lists) -> f64 {
    drop_names();
    let place = Place::mount(system, layers, &How::default());
    let before = place.daemon_cpu();
    let used = work(&["stat", &lists.path("stat-2k")])
        .run(&place.root)
        .unwrap();
    used.cpu + place.daemon_cpu() - before
}

/// Resident memory: after the mount, for each object that was looked at, and when the kernel has forgotten them.
pub fn memory(layers: &Layers, systems: &[System]) -> Vec<Figures> {
    let mut idle = Figures::new(MEMORY, "idle", "bytes");
    idle.most = Some(IDLE_AT_MOST);
    let mut each = Figures::new(MEMORY, "for each object, all objects looked at", "bytes");
    each.most = Some(INODE_AT_MOST);
    let mut all = Figures::new(MEMORY, "all objects looked at", "bytes");
    let mut after = Figures::new(MEMORY, "after the kernel forgot them", "bytes");
    for system in systems {
        let place = Place::mount(*system, layers, &How::default());
        let Some(start) = place.memory() else {
            continue;
        };
        eprintln!("  memory: {}", system.name());
        work(&["run", "ls", "-lR", "."]).run(&place.root).unwrap();
        let full = place.memory().unwrap_or(0);
        let count = objects(&place.root);
        drop_names();
        std::thread::sleep(FORGETTING);
        let forgotten = place.memory().unwrap_or(0);
        idle.values.push((*system, start as f64));
        all.values.push((*system, full as f64));
        each.values
            .push((*system, full.saturating_sub(start) as f64 / count as f64));
        each.details[system.name()] = json!({"objects": count});
        after.values.push((*system, forgotten as f64));
    }
    vec![idle, each, all, after]
}

fn objects(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => 1 + objects(&entry.path()),
            false => 1,
        })
        .sum()
}
