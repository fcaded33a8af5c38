//! The table under a model checker: `scripts/sanitize` runs these tests, with the feature `shuttle`.
//!
//! Threads do on a table what requests do, on the numbers of a directory and of two files, and a scheduler
//! chooses who goes on at each lock and each counter. A failing test prints the schedule, which
//! `shuttle::replay` repeats. `CVMFS_UNION_RACES_SECONDS` makes the tests with chosen schedules longer,
//! `CVMFS_UNION_RACES_SEED` repeats a choice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may fail")]

use std::collections::HashMap;
use std::sync::Mutex as Plain;
use std::time::Duration;

use shuttle::rand::Rng;
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::AtomicU16;
use shuttle::{Config, Runner, thread};

use super::*;
use crate::sync::RwLock;
use crate::union::api::Kind;
use crate::union::node::State;

const DIR: Ino = 2;
const FILE: Ino = 3;
const OTHER: Ino = 4;

/// Schedules of each kind that a test tries, unless it is told for how long.
const SCHEDULES: usize = 4000;
/// Orders that are tried where there are more.
const ORDERS: usize = 10_000;
/// Points at which a schedule prefers another thread.
const DEPTH: usize = 3;

fn node(ino: Ino) -> Node {
    let kind = if ino < FILE { Kind::Dir } else { Kind::File };
    let name = format!("{ino}");
    Node::new(
        ino,
        (kind, 0),
        name.as_bytes(),
        None,
        Vec::new(),
        State::new(false),
        false,
    )
}

/// A table, and what must be true of it. The plain locks are no steps of the model.
struct World {
    table: Table,
    tree: RwLock<()>,
    /// How often each object was changed; a node is made from what it was.
    objects: [AtomicU16; 3],
    /// The nodes that somebody holds, and how often.
    held: Plain<HashMap<Ino, (usize, u32)>>,
}

/// A node that somebody uses; meanwhile nobody has another one of its number.
struct Held<'a, N: Deref<Target = Arc<Node>>> {
    world: &'a World,
    node: N,
}

impl<N: Deref<Target = Arc<Node>>> Deref for Held<'_, N> {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        &self.node
    }
}

impl<N: Deref<Target = Arc<Node>>> Drop for Held<'_, N> {
    fn drop(&mut self) {
        let mut held = lock(&self.world.held);
        let (_, by) = held.entry(self.node.ino).or_default();
        *by = by.saturating_sub(1);
        if *by == 0 {
            held.remove(&self.node.ino);
        }
    }
}

/// As [`Used`] is to a request, for what holds a node without more.
struct Found(Arc<Node>);

impl Deref for Found {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        &self.0
    }
}

fn lock<T>(of: &Plain<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(|e| e.into_inner())
}

impl World {
    fn new() -> World {
        World {
            table: Table::new(node(ROOT)),
            tree: RwLock::new(()),
            objects: Default::default(),
            held: Plain::default(),
        }
    }

    fn hold<N: Deref<Target = Arc<Node>>>(&self, node: N) -> Held<'_, N> {
        let this = Arc::as_ptr(&node) as usize;
        let mut held = lock(&self.held);
        let (known, by) = held.entry(node.ino).or_insert((this, 0));
        let known = *known;
        *by += 1;
        drop(held);
        let held = Held { world: self, node };
        assert_eq!(known, this, "two nodes of number {}", held.ino);
        held
    }

    fn object(&self, ino: Ino) -> &AtomicU16 {
        &self.objects[(ino - DIR) as usize]
    }

    /// The node of a number, as [`crate::union::Union::lookup`] comes to it. `early`: as for an object of
    /// the upper, which is looked at before the number is watched, under the tree lock.
    fn resolve(&self, parent: &Arc<Node>, ino: Ino, early: bool) -> Held<'_, Used<'_>> {
        let make = || {
            let node = node(ino);
            for _ in 0..self.object(ino).load(Ordering::Relaxed) {
                node.moved();
            }
            node
        };
        loop {
            let tree = self.tree.read();
            let made = early.then(make);
            if let Some(node) = self.table.find(ino) {
                assert!(node.parent().is_some(), "no place");
                return self.hold(self.table.used(node));
            }
            let watch = early.then(|| self.table.watch(ino));
            drop(tree);
            let watch = watch.unwrap_or_else(|| self.table.watch(ino));
            let made = made.unwrap_or_else(make);
            let tree = self.tree.read();
            made.add_link(parent, &made.name, false);
            let Some(node) = watch.intern(made) else {
                continue;
            };
            let node = self.hold(self.table.used(node));
            node.add_link(parent, node.ino.to_string().as_bytes(), false);
            let object = self.object(ino).load(Ordering::Relaxed);
            assert_eq!(node.generation(), object, "made from what it was before");
            drop(tree);
            return node;
        }
    }

    /// Changes an object, which the node knows.
    fn change(&self, node: &Node) {
        let _tree = self.tree.write();
        let before = self.object(node.ino).fetch_add(1, Ordering::Relaxed);
        assert_eq!(node.moved(), before + 1, "a change that the node missed");
    }

    /// The node of a number that the kernel knows.
    fn known(&self, ino: Ino) -> Held<'_, Found> {
        let node = self.table.find(ino);
        let node = node.unwrap_or_else(|| panic!("number {ino} was looked up, and is gone"));
        self.hold(Found(node))
    }

    /// Each thread is a kernel of its own, and takes its lookups back at the end.
    fn kernel(&self) -> Kernel<'_> {
        Kernel {
            world: self,
            lookups: HashMap::new(),
        }
    }

    /// All has been given back.
    fn settled(&self) {
        assert_eq!(self.table.len(), 1, "nodes that nobody knows");
        for shard in &self.table.shards {
            assert!(shard.lock().watched.is_empty(), "watched by nobody");
        }
        let root = self.table.find(ROOT).map(|root| Arc::strong_count(&root));
        assert_eq!(root, Some(2), "held by nobody");
    }
}

struct Kernel<'a> {
    world: &'a World,
    lookups: HashMap<Ino, u32>,
}

impl Kernel<'_> {
    fn has(&self, ino: Ino) -> bool {
        self.lookups.contains_key(&ino)
    }

    fn lookup(&mut self, node: &Arc<Node>) {
        self.world.table.count(node);
        *self.lookups.entry(node.ino).or_default() += 1;
    }

    fn forget(&mut self, ino: Ino, n: u32) {
        let left = self.lookups.entry(ino).or_default();
        let n = n.min(*left);
        *left -= n;
        if *left == 0 {
            self.lookups.remove(&ino);
        }
        self.world.table.forget(ino, n.into());
    }

    /// A random request.
    fn act(&mut self) {
        let mut random = shuttle::rand::thread_rng();
        let world = self.world;
        let root = world.known(ROOT);
        let early = random.gen_bool(0.5);
        let dir = world.resolve(&root, DIR, early);
        let ino = [DIR, FILE, OTHER][random.gen_range(0..3)];
        let node = match ino {
            DIR => None,
            ino => Some(world.resolve(&dir, ino, early)),
        };
        let node: &Arc<Node> = node.as_deref().unwrap_or(&dir);
        match random.gen_range(0..6) {
            0 | 1 => self.lookup(node),
            2 => world.change(node),
            3 if self.has(ino) => self.forget(ino, random.gen_range(1..3)),
            4 if self.has(ino) => drop(world.known(ino)),
            // The request fails.
            _ => {}
        }
    }

    /// Takes back what is left, and looks each time whether it was still there.
    fn end(&mut self) {
        for ino in [FILE, OTHER, DIR] {
            if self.has(ino) {
                drop(self.world.known(ino));
                self.forget(ino, u32::MAX);
            }
        }
    }
}

fn asked<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok().and_then(|v| v.parse().ok())
}

/// How many schedules, where the time is not what ends a test.
fn most(schedules: usize) -> usize {
    match asked::<u64>("CVMFS_UNION_RACES_SECONDS") {
        Some(_) => usize::MAX,
        None => schedules,
    }
}

fn run(what: &str, scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    // About the memory order of counters, which are changed under locks here.
    config.silence_warnings = true;
    config.max_time = asked("CVMFS_UNION_RACES_SECONDS").map(Duration::from_secs);
    let tried = Runner::new(scheduler, config).run(test);
    eprintln!("{what}: {tried} schedules");
}

/// Tries schedules by chance, and such as prefer one thread with few changes of mind.
fn by_chance(test: impl Fn() + Copy + Send + Sync + 'static) {
    let seed = asked("CVMFS_UNION_RACES_SEED").unwrap_or(1);
    let most = most(SCHEDULES);
    run("random", RandomScheduler::new_from_seed(seed, most), test);
    run(
        "few changes",
        PctScheduler::new_from_seed(seed, DEPTH, most),
        test,
    );
}

/// Tries every order of the steps, or the first so many.
fn all_orders(what: &str, test: impl Fn() + Send + Sync + 'static) {
    run(what, DfsScheduler::new(Some(most(ORDERS)), false), test);
}

fn at_once(threads: usize, act: impl Fn(usize, &World) + Copy + Send + Sync + 'static) {
    let world = Arc::new(World::new());
    let threads: Vec<_> = (0..threads)
        .map(|i| {
            let world = world.clone();
            thread::spawn(move || act(i, &world))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    world.settled();
}

/// Each thread walks, counts, changes, forgets and fails, on three numbers.
#[test]
fn requests_leave_nothing_behind() {
    for threads in [2, 3] {
        by_chance(move || {
            at_once(threads, |_, world| {
                let mut kernel = world.kernel();
                for _ in 0..3 {
                    kernel.act();
                }
                kernel.end();
            });
        });
    }
}

/// What a thread does with a file that was looked up twice. Says how many lookups are more afterwards.
type Call = fn(&World) -> i32;

const CALLS: [(&str, Call); 5] = [
    ("forget one", |world| {
        world.table.forget(FILE, 1);
        -1
    }),
    ("use", |world| {
        let node = world
            .table
            .find(FILE)
            .map(|n| world.hold(world.table.used(n)));
        drop(node);
        0
    }),
    ("count", |world| {
        let node = world
            .table
            .find(FILE)
            .map(|n| world.hold(world.table.used(n)));
        node.map_or(0, |node| {
            world.table.count(&node);
            1
        })
    }),
    ("intern", |world| {
        let new = world.table.intern(FILE, || node(FILE));
        drop(world.hold(world.table.used(new)));
        0
    }),
    ("intern what was watched", |world| {
        let watch = world.table.watch(FILE);
        let new = watch.intern(node(FILE));
        drop(new.map(|n| world.hold(world.table.used(n))));
        0
    }),
];

/// Any two calls about one node, in every order of their steps, or the first so many.
#[test]
fn pairs_in_all_orders() {
    for (i, (first, a)) in CALLS.iter().enumerate() {
        for (second, b) in &CALLS[i..] {
            let test = move || {
                let world = Arc::new(World::new());
                let root = world.known(ROOT);
                let file = world.table.intern(FILE, || node(FILE));
                file.add_link(&root, b"3", false);
                drop(root);
                world.table.count(&file);
                world.table.count(&file);
                drop(file);
                let other = world.clone();
                let thread = thread::spawn(move || a(&other));
                let more = b(&world) + thread.join().unwrap();
                let left = (2 + more).unsigned_abs();
                let lookups = world
                    .table
                    .find(FILE)
                    .map(|n| n.lookups.load(Ordering::Relaxed));
                assert_eq!(lookups, (left > 0).then_some(left));
                world.table.forget(FILE, left.into());
                world.settled();
            };
            all_orders(&format!("{first} and {second}"), test);
        }
    }
}

/// Bare holders of a node, who do not see to its end, only put it off.
#[test]
fn what_was_held_goes_with_a_sweep() {
    all_orders("hold and forget", || {
        let world = Arc::new(World::new());
        world.table.count(&Arc::new(node(FILE)));
        let other = world.clone();
        let thread = thread::spawn(move || drop(other.table.find(FILE)));
        world.table.forget(FILE, 1);
        thread.join().unwrap();
        for _ in 0..SWEEP {
            world.table.forget(FILE, 0);
        }
        world.settled();
    });
}
