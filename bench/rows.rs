//! The rows of the table of speed: what is done in which order, and the figures to reach.

use crate::lists::Lists;
use crate::place::{How, Layers};
use crate::support::System;
use crate::worker::{Work, work};

/// Steps in one mount, with an upper of its own.
pub struct Scenario {
    pub layers: Layers,
    pub how: How,
    pub steps: Vec<Step>,
    /// Brings the plain directory back to what it was; a union loses its upper.
    pub undo: Vec<Work>,
    /// Needs the programs of the image.
    pub programs: bool,
    /// The kernel has to read the names and attributes in the lowers anew too.
    pub cold: bool,
    /// May be asked of the floor too, which knows nothing of layers and copy-ups.
    pub floor: bool,
}

/// Some work, measured if it is a row.
pub struct Step {
    pub row: Option<Row>,
    pub work: Work,
}

#[derive(Clone)]
pub struct Row {
    pub name: String,
    /// The most that ours may take, as a multiple of kernel overlayfs.
    pub most: Option<f64>,
    /// Systems that this cannot be asked of.
    pub without: &'static [System],
}

impl Scenario {
    fn new(layers: &Layers) -> Scenario {
        Scenario {
            layers: layers.clone(),
            how: How::default(),
            steps: Vec::new(),
            undo: Vec::new(),
            programs: false,
            cold: false,
            floor: false,
        }
    }

    fn floor(mut self) -> Scenario {
        self.floor = true;
        self
    }

    /// Listings are looked at for names alone.
    fn names(mut self) -> Scenario {
        self.how.names = true;
        self
    }

    fn cold(mut self) -> Scenario {
        self.cold = true;
        self
    }

    /// Work that only prepares.
    fn first(mut self, words: &[&str]) -> Scenario {
        self.steps.push(Step {
            row: None,
            work: work(words),
        });
        self
    }

    fn row(mut self, name: &str, most: impl Into<Option<f64>>, words: &[&str]) -> Scenario {
        let row = Row {
            name: name.to_owned(),
            most: most.into(),
            without: &[],
        };
        self.steps.push(Step {
            row: Some(row),
            work: work(words),
        });
        self
    }

    fn without(mut self, systems: &'static [System]) -> Scenario {
        for row in self.steps.iter_mut().filter_map(|step| step.row.as_mut()) {
            row.without = systems;
        }
        self
    }

    fn undo(mut self, words: &[&str]) -> Scenario {
        self.undo.push(work(words));
        self
    }

    fn with(mut self, options: &[&str]) -> Scenario {
        self.how.options = options.iter().map(ToString::to_string).collect();
        self
    }

    fn read_only(mut self) -> Scenario {
        self.how.read_only = true;
        self
    }

    fn programs(mut self) -> Scenario {
        self.programs = true;
        self
    }

    /// Whether it can be asked of a system at all.
    pub fn is_for(&self, system: System) -> bool {
        let mut rows = self.steps.iter().filter_map(|step| step.row.as_ref());
        (system != System::Floor || self.floor) && !rows.any(|row| row.without.contains(&system))
    }
}

const PLAIN: &[System] = &[System::Plain];
const VOLATILE: &[&str] = &["--durability", "volatile"];

/// All rows, in the order of the table.
pub fn all(layers: &Layers, lists: &Lists) -> Vec<Scenario> {
    let mut all = looking(layers, lists);
    all.extend(reading(layers, lists));
    all.extend(changing(layers, lists));
    all.extend(copying(layers, lists));
    all.extend(programs(layers));
    all.extend(clients(layers, lists));
    all
}

fn looking(layers: &Layers, lists: &Lists) -> Vec<Scenario> {
    let list = |name| lists.path(name);
    let find = ["chroot", "find", "usr"];
    let huge = "srv/huge";
    vec![
        Scenario::new(layers)
            .row("stat 20k paths, fresh mount", 2.0, &["stat", &list("stat")])
            .row("stat 20k paths, again", None, &["stat", &list("stat")])
            .floor(),
        Scenario::new(layers)
            .row("find, fresh mount", 2.5, &find)
            .row("find, warm", 1.0, &find)
            .programs()
            .names()
            .floor(),
        Scenario::new(layers)
            .row(
                "stat 20k paths, cold lowers",
                None,
                &["stat", &list("stat")],
            )
            .cold(),
        Scenario::new(layers)
            .row("find, cold lowers", None, &find)
            .programs()
            .cold(),
        Scenario::new(layers)
            .first(&["chroot", "ls", "-lR", "usr"])
            .row("ls -lR, warm", 1.0, &["chroot", "ls", "-lR", "usr"])
            .row("du, warm", 0.8, &["chroot", "du", "-s", "usr"])
            .programs()
            .floor(),
        Scenario::new(layers)
            .row(
                "20k absent names, fresh mount",
                2.0,
                &["absent", &list("absent")],
            )
            .row("20k absent names, again", 0.8, &["absent", &list("absent")])
            .first(&["absent", &list("path")])
            .row("PATH search, again", 1.0, &["absent", &list("path")])
            .floor(),
        Scenario::new(layers)
            .row("directory of 100k, first readdir", 5.0, &["list", huge])
            .row("directory of 100k, second readdir", 0.5, &["list", huge])
            .names()
            .floor(),
        Scenario::new(layers)
            .first(&["list", huge])
            .row(
                "directory of 100k, ls -l",
                1.2,
                &["chroot", "ls", "-l", huge],
            )
            .programs()
            .floor(),
    ]
}

fn reading(layers: &Layers, lists: &Lists) -> Vec<Scenario> {
    let list = |name| lists.path(name);
    let small = list("small");
    vec![
        Scenario::new(layers)
            .row(
                "open+close 10k files, first",
                3.0,
                &["open", &list("files")],
            )
            .row(
                "open+close 10k files, again",
                3.0,
                &["open", &list("files")],
            )
            .floor(),
        Scenario::new(layers)
            .first(&["open", &list("files")])
            .row(
                "open+close 10k files, again, no upper",
                1.0,
                &["open", &list("files")],
            )
            .read_only(),
        Scenario::new(layers)
            .first(&["read", &small])
            .row("read 10k small files, again", 3.0, &["read", &small])
            .row("the same, by 4 processes", 2.0, &["read-by", &small, "4"])
            .floor(),
        Scenario::new(layers)
            .first(&["read-file", "srv/big"])
            .row(
                "1 GiB: sequential read, warm",
                1.0,
                &["read-file", "srv/big"],
            )
            .row("1 GiB: mmap, warm", 1.0, &["map-file", "srv/big"])
            .row("1 GiB: random read, warm", 1.0, &["read-pages", "srv/big"]),
    ]
}

fn changing(layers: &Layers, lists: &Lists) -> Vec<Scenario> {
    let (new, mib) = (lists.sizes.new.to_string(), lists.sizes.mib.to_string());
    let more = (lists.sizes.mib * 3 / 2).to_string();
    let dir = "opt/bench-new";
    let (made, untarred) = ("opt/bench-file", "/opt/bench-untar");
    let deep: Vec<_> = lists.lines("deep");
    let deep = deep.iter().map(|dir| format!("{dir}/bench-made"));
    let remove: Vec<_> = ["run", "rm", "-rf"]
        .into_iter()
        .map(str::to_owned)
        .chain(deep)
        .collect();
    vec![
        Scenario::new(layers)
            .first(&["warm-memory", &lists.path("memory"), &more])
            .row("1 GiB: sequential write", 1.0, &["write-file", made, &mib])
            .row("1 GiB: random 4k writes", 1.2, &["write-pages", made])
            .undo(&["run", "rm", "-f", made]),
        Scenario::new(layers)
            .first(&["mkdir", dir])
            .row("create 10k files", 1.3, &["create", dir, &new])
            .row("rename 10k files", 2.0, &["rename", dir, &new])
            .row("rm 10k files", 2.0, &["unlink", dir, &new])
            .undo(&["run", "rm", "-rf", dir])
            .floor(),
        Scenario::new(layers)
            .first(&["mkdir", &untarred[1..]])
            .row(
                "untar sources",
                1.2,
                &["chroot", "tar", "-C", untarred, "-xf", "/srv/sources.tar"],
            )
            .row("rm -rf of them", 1.5, &["chroot", "rm", "-rf", untarred])
            .programs()
            .floor(),
        Scenario {
            undo: vec![Work(remove)],
            ..Scenario::new(layers)
                .row(
                    "mkdir + create in 500 deep lower directories",
                    1.2,
                    &["populate", &list(lists, "deep")],
                )
                .floor()
        },
    ]
}

fn list(lists: &Lists, name: &str) -> String {
    lists.path(name)
}

fn copying(layers: &Layers, lists: &Lists) -> Vec<Scenario> {
    let changed = lists.path("changed");
    let chown = |owner| {
        [
            "chroot",
            "chown",
            "-hR",
            owner,
            "usr/share",
            "usr/lib/python3.11",
        ]
    };
    let chmod = |name: &str, most| {
        Scenario::new(layers)
            .row(name, most, &["chmod", &changed])
            .undo(&["chmod", &changed])
    };
    let append = |name: &str, most| {
        Scenario::new(layers)
            .row(name, most, &["append", &changed])
            .undo(&["shorten", &changed])
    };
    let owner = |name: &str, most| {
        Scenario::new(layers)
            .row(name, most, &chown("990:990"))
            .undo(&chown("0:0"))
            .programs()
            .names()
            .floor()
    };
    vec![
        chmod("copy-up: chmod 2k, volatile", 0.3).with(VOLATILE),
        append("copy-up: append 2k, volatile", 0.4).with(VOLATILE),
        owner("copy-up: chown -R, volatile", 0.1).with(VOLATILE),
        chmod("copy-up: chmod 2k, auto", 1.0),
        append("copy-up: append 2k, auto", 1.0),
        owner("copy-up: chown -R, auto", 1.0),
    ]
}

fn programs(layers: &Layers) -> Vec<Scenario> {
    let python = ["chroot", "python3", "-c", "import numpy, scipy.linalg"];
    let source = "echo '#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }' >/tmp/a.c; gcc -O2 -o /tmp/a /tmp/a.c; rm /tmp/a /tmp/a.c";
    let gcc = ["chroot", "sh", "-ec", source];
    let status = ["chroot", "git", "-C", "/srv/repository", "status"];
    vec![
        Scenario::new(layers)
            .first(&python)
            .row("python start, warm", 1.1, &python)
            .first(&gcc)
            .row("gcc build, warm", 1.1, &gcc)
            .programs()
            .floor(),
        Scenario::new(layers)
            .row("git status (20k files), first", 2.0, &status)
            .row("git status (20k files), again", 1.0, &status)
            .programs()
            .without(PLAIN)
            .names()
            .floor(),
        Scenario::new(layers)
            .row(
                "dpkg -i",
                1.3,
                &["chroot", "dpkg", "-i", "/srv/package.deb"],
            )
            .programs()
            .without(PLAIN)
            .floor(),
    ]
}

/// The same work split between more and more processes: it must never take longer.
fn clients(layers: &Layers, lists: &Lists) -> Vec<Scenario> {
    let small = lists.path("small");
    let rows = ["1", "2", "4", "8", "16"];
    let first = Scenario::new(layers).first(&["read", &small]).floor();
    vec![rows.iter().fold(first, |scenario, clients| {
        let name = format!("stat + read 10k files, {clients} processes");
        scenario.row(&name, None, &["stat-and-open-by", &small, clients])
    })]
}
