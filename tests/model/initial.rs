//! Random layers, and what extracting them one over the other gives: the tree to begin with.

use std::collections::BTreeMap;
use std::fmt::Write;

use cvmfs_union::union::api::Kind;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::fs::{components, join, split};
use crate::support::{Disk, Fs, Stack, is_root, opaque_key};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Names that only hard links have, so that no layer hides one of several names of a file.
const LINKS: [&str; 2] = ["l0", "l1"];
const FILE_MODES: [u32; 4] = [0o644, 0o600, 0o755, 0o4755];
const DIR_MODES: [u32; 4] = [0o755, 0o700, 0o2755, 0o1777];
const SIZES: [usize; 4] = [0, 1, 4096, 10_000];

/// What a layer says about a path.
#[derive(Clone, Debug)]
enum Said {
    Dir,
    File(usize),
    Symlink,
    Fifo,
    Wh,
    Whiteout,
    Opq,
    Opaque,
}

#[derive(Clone, Debug)]
struct Item {
    path: Vec<usize>,
    said: Said,
    mode: usize,
    foreign: bool,
    xattr: bool,
}

/// One more name of a file, so many directories above it.
#[derive(Clone, Debug)]
struct More {
    of: Index,
    up: usize,
    name: usize,
}

#[derive(Clone, Debug)]
pub struct Initial {
    /// Topmost first.
    layers: Vec<Vec<Item>>,
    links: Vec<More>,
    /// The topmost layer is the upper, as another program left it.
    upper: bool,
}

pub fn any() -> impl Strategy<Value = Initial> {
    let said = prop_oneof![
        3 => Just(Said::Dir),
        4 => (0..SIZES.len()).prop_map(Said::File),
        1 => Just(Said::Symlink),
        1 => Just(Said::Fifo),
        1 => Just(Said::Wh),
        1 => Just(Said::Whiteout),
        1 => Just(Said::Opq),
        1 => Just(Said::Opaque),
    ];
    let attrs = (
        0..4usize,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    );
    let item = (vec(0..NAMES.len(), 1..4), said, attrs).prop_map(|(path, said, attrs)| {
        let (mode, foreign, xattr) = attrs;
        Item {
            path,
            said,
            mode,
            foreign,
            xattr,
        }
    });
    let more = (prop::arbitrary::any::<Index>(), 0..3usize, 0..LINKS.len())
        .prop_map(|(of, up, name)| More { of, up, name });
    let upper = prop::bool::weighted(0.2);
    (vec(vec(item, 0..8), 1..4), vec(more, 0..3), upper).prop_map(|(layers, links, upper)| {
        Initial {
            layers,
            links,
            upper,
        }
    })
}

impl Initial {
    pub fn lowers(&self) -> usize {
        self.layers.len() - usize::from(self.upper)
    }

    /// Builds the layers and, in `whole`, what they make. Returns the story.
    pub fn build(&self, stack: &Stack, whole: &Disk) -> String {
        let upper = stack.upper();
        let mut disks: Vec<&Disk> = stack.lowers().iter().collect();
        if self.upper {
            disks.insert(0, &upper);
        }
        let mut whole = Whole {
            disk: whole,
            owners: BTreeMap::new(),
        };
        for (layer, items) in self.layers.iter().enumerate().rev() {
            for item in items {
                build(disks[layer], item);
            }
            whole.lay(disks[layer], layer, "");
        }
        for more in &self.links {
            whole.link(more, &disks);
        }
        let mut story = String::new();
        for (layer, disk) in disks.iter().enumerate() {
            let name = if self.upper && layer == 0 {
                "the upper"
            } else {
                "a layer"
            };
            write!(story, "{name}, {layer} from the top:\n{:?}", disk.tree()).unwrap();
        }
        story
    }
}

fn path_of(item: &Item) -> String {
    item.path
        .iter()
        .fold(String::new(), |path, name| join(&path, NAMES[*name]))
}

fn build(disk: &Disk, item: &Item) {
    let path = path_of(item);
    let kind = |path: &str| disk.stat(path).map(|a| a.kind).ok();
    let mut above = String::new();
    for name in components(split(&path).unwrap().0) {
        above = join(&above, name);
        if kind(&above).is_some_and(|k| k != Kind::Dir) {
            return;
        }
    }
    match (&item.said, kind(&path)) {
        (Said::Wh, _) => drop(disk.with_wh(&path)),
        (Said::Opq, None | Some(Kind::Dir)) => drop(disk.with_opq(&path)),
        (Said::Opaque, None | Some(Kind::Dir)) => drop(disk.with_opaque(&path)),
        (Said::Dir, None | Some(Kind::Dir)) => build_dir(disk, item, &path),
        (_, Some(_)) => {}
        (Said::File(size), None) => build_file(disk, item, &path, SIZES[*size]),
        (Said::Symlink, None) => drop(disk.with_symlink(&path, "somewhere/else")),
        (Said::Fifo, None) => drop(disk.with_node(&path, libc::S_IFIFO | 0o640, 0)),
        (Said::Whiteout, None) => drop(disk.with_whiteout(&path)),
    }
}

fn build_dir(disk: &Disk, item: &Item, path: &str) {
    disk.with_dir(path, 0o755);
    own(disk, item, path, DIR_MODES[item.mode]);
}

fn build_file(disk: &Disk, item: &Item, path: &str, size: usize) {
    let data = "data of the layer.".repeat(size / 18 + 1);
    disk.with_file(path, &data[..size]);
    own(disk, item, path, FILE_MODES[item.mode]);
}

fn own(disk: &Disk, item: &Item, path: &str, mode: u32) {
    if item.foreign && is_root() {
        disk.chown(path, 1000, 1001).unwrap();
    }
    if item.xattr {
        disk.with_xattr(path, "user.a", "of the layer");
    }
    disk.with_mode(path, mode);
}

/// What the layers make, one laid over the other, the lowest first.
struct Whole<'a> {
    disk: &'a Disk,
    /// The layer that each file comes from.
    owners: BTreeMap<String, usize>,
}

impl Whole<'_> {
    fn remove(&mut self, path: &str) {
        self.disk.remove(path);
        let below = format!("{path}/");
        self.owners
            .retain(|p, _| p != path && !p.starts_with(&below));
    }

    fn lay(&mut self, layer: &Disk, index: usize, dir: &str) {
        let names = layer.names(dir).unwrap();
        let opaque = layer.getxattr(dir, &opaque_key()).is_ok_and(|v| v == b"y");
        if opaque || names.iter().any(|n| n == ".wh..wh..opq") {
            for name in self.disk.names(dir).unwrap() {
                self.remove(&join(dir, &name));
            }
        }
        for deleted in names.iter().filter_map(|n| n.strip_prefix(".wh.")) {
            self.remove(&join(dir, deleted));
        }
        for name in names.iter().filter(|n| !n.starts_with(".wh.")) {
            self.lay_object(layer, index, &join(dir, name));
        }
    }

    fn lay_object(&mut self, layer: &Disk, index: usize, path: &str) {
        let attr = layer.stat(path).unwrap();
        let on_dir = self.disk.stat(path).is_ok_and(|a| a.kind == Kind::Dir);
        if attr.kind != Kind::Dir || !on_dir {
            self.remove(path);
        }
        match attr.kind {
            Kind::Char => return,
            Kind::Dir => {
                if !on_dir {
                    self.disk.mkdir(path, 0o700).unwrap();
                }
                for key in self.disk.listxattr(path).unwrap() {
                    self.disk.removexattr(path, &key).unwrap();
                }
                self.lay(layer, index, path);
            }
            Kind::File => {
                self.disk.write(path, &layer.read(path).unwrap()).unwrap();
                self.owners.insert(path.to_owned(), index);
            }
            Kind::Symlink => drop(self.disk.with_symlink(path, "somewhere/else")),
            _ => drop(self.disk.with_node(path, libc::S_IFIFO | 0o600, 0)),
        }
        self.disk.chown(path, attr.uid, attr.gid).unwrap();
        if attr.kind != Kind::Symlink {
            self.disk.chmod(path, attr.mode).unwrap();
        }
        if let Ok(value) = layer.getxattr(path, "user.a") {
            self.disk.setxattr(path, "user.a", &value, 0).unwrap();
        }
    }

    /// Gives a file another name, in its layer and here.
    fn link(&mut self, more: &More, layers: &[&Disk]) {
        let files: Vec<(&String, &usize)> = self.owners.iter().collect();
        if files.is_empty() {
            return;
        }
        let (file, owner) = more.of.get(&files);
        let (file, owner) = ((*file).clone(), **owner);
        let mut dir = split(&file).unwrap().0;
        for _ in 0..more.up {
            dir = split(dir).map_or("", |(dir, _)| dir);
        }
        let name = join(dir, LINKS[more.name]);
        if !self.disk.exists(&name) {
            layers[owner].with_link(&file, &name);
            self.disk.with_link(&file, &name);
            self.owners.insert(name, owner);
        }
    }
}
