//! Python and a compiler, as this machine has them, in five layers.

use std::process::Command;

use super::profiles::copy_program;
use super::*;
use crate::support::{run, text};

const PYTHON: &str = "import json, email.message, xml.dom.minidom, argparse, logging, unittest, zipfile, tarfile, difflib, csv";
const GCC: &str =
    "echo 'int main(void) { return 0; }' | gcc -x c -o /tmp/program - && /tmp/program";

fn said(program: &str, args: &[&str]) -> String {
    let output = run(Command::new(program).args(args));
    assert!(
        output.status.success(),
        "{program}: {}",
        text(&output.stderr)
    );
    text(&output.stdout).trim().to_owned()
}

fn copy(path: &Path, into: &Path) {
    let to = into.join(path.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(path, to).unwrap();
}

/// Python in two layers, the compiler in another two, and what both need below them.
fn fill(source: &Path) {
    let layer = |n: usize| source.join(format!("l{n}"));
    copy_program(Path::new("/bin/sh"), &layer(4));
    fs::create_dir_all(layer(4).join("tmp")).unwrap();
    copy_program(Path::new("/usr/bin/python3"), &layer(3));
    let library = said(
        "/usr/bin/python3",
        &[
            "-c",
            "import sysconfig; print(sysconfig.get_path('stdlib'))",
        ],
    );
    let to = layer(2).join(library.trim_start_matches('/'));
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    // With the times that compiled modules are checked by.
    said("cp", &["-a", &library, to.to_str().unwrap()]);

    let path = |way: &str, name: &str| {
        let found = said("/usr/bin/gcc", &[&format!("-print-{way}-name={name}")]);
        let found = PathBuf::from(found);
        match found.is_absolute() {
            true => fs::canonicalize(found).unwrap(),
            false => Path::new("/usr/bin").join(found),
        }
    };
    copy_program(Path::new("/usr/bin/gcc"), &layer(1));
    for program in ["cc1", "collect2", "as", "ld"] {
        copy_program(&path("prog", program), &layer(1));
    }
    // By the names that others call them.
    for program in ["as", "ld"] {
        copy_program(&Path::new("/usr/bin").join(program), &layer(1));
    }
    // Where it looks for it.
    file(layer(0).join("usr/include/stdc-predef.h"), "");
    let gcc = path("file", "libgcc.a").parent().unwrap().to_owned();
    for entry in fs::read_dir(gcc).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let wanted =
            name.ends_with(".o") || name.starts_with("libgcc") || name.starts_with("liblto");
        if wanted && entry.path().is_file() {
            copy(&entry.path(), &layer(0));
        }
    }
    let files = ["Scrt1.o", "crti.o", "crtn.o", "libc.so", "libc_nonshared.a"];
    for name in files
        .iter()
        .chain(&["libc.so.6", "ld-linux-x86-64.so.2", "libgcc_s.so.1"])
    {
        // Not by its canonical name: linker scripts name them.
        let found = PathBuf::from(said("/usr/bin/gcc", &[&format!("-print-file-name={name}")]));
        if found.is_absolute() {
            let dir = fs::canonicalize(found.parent().unwrap()).unwrap();
            copy(&dir.join(name), &layer(0));
        }
    }
    for (link, to) in [
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("bin", "usr/bin"),
    ] {
        merge_usr(source, link, to);
    }
}

/// Where this machine has `/lib` in `/usr`, so has the image: what was copied below the one goes below the other.
fn merge_usr(source: &Path, link: &str, to: &str) {
    if !fs::symlink_metadata(Path::new("/").join(link)).is_ok_and(|meta| meta.is_symlink()) {
        return;
    }
    for n in 0..LAYERS {
        let layer = source.join(format!("l{n}"));
        let from = layer.join(link);
        if from.is_dir() {
            fs::create_dir_all(layer.join(to)).unwrap();
            let from = format!("{}/.", from.display());
            said("cp", &["-r", &from, layer.join(to).to_str().unwrap()]);
            fs::remove_dir_all(layer.join(link)).unwrap();
        }
    }
    std::os::unix::fs::symlink(to, source.join("l4").join(link)).unwrap();
}

/// A cold start, to the end of the job.
fn start(case: &Case, command: &[&str]) -> Duration {
    case.slow.renew();
    let begun = Instant::now();
    let daemon = case.mount();
    said(
        "chroot",
        &[&[case.fixture.mnt.to_str().unwrap()], command].concat(),
    );
    let took = begun.elapsed();
    daemon.end();
    took
}

/// Starts a job twice, however long a transfer takes, and however many requests are served at once.
fn check(command: &[&str], least: usize) {
    if !require_all(&["python3", "gcc"]) {
        return;
    }
    for latency in [5, 25, 100] {
        for in_flight in [10, 16] {
            let Some(case) = Case::new(latency, in_flight, fill) else {
                return;
            };
            let first = start(&case, command);
            let fetched = case.cold().transfers();
            let files = case.profile().files.len();
            assert!(files >= least, "{files} files");
            assert_eq!(fetched, (files + LAYERS) as u64);
            let second = start(&case, command);
            assert_eq!(case.cold().transfers(), fetched, "each once");
            let most = case.cold().most();
            assert!((8..=in_flight).contains(&most), "{most} at a time");
            let replay = case.profile().replay.unwrap();
            // What programs were faster at is theirs.
            assert!(
                replay.files >= files as u64 / 2 && replay.used * 10 >= replay.files * 9,
                "{latency} ms, {in_flight} in flight: {replay:?}"
            );
            eprintln!(
                "{files} files, {latency} ms, {in_flight} in flight: {first:?}, then {second:?}"
            );
        }
    }
}

#[test]
fn python() {
    check(&["/usr/bin/python3", "-B", "-c", PYTHON], 80);
}

#[test]
fn compiler() {
    check(&["/bin/sh", "-c", GCC], 20);
}
