//! `check`: what is not as it should be in an upper, and its repair.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::mount::UPPER_PATIENCE;
use super::terminal::say;
use super::{Code, Failure, OrFail, Outcome, layers, upper, writer};
use crate::backend::{Backend, Writer};
use crate::error::printable;
use crate::sys::{mounts, process};
use crate::union::api::UpperSpec;
use crate::union::view::{Finding, State, View, check};

/// Looks for what is not as it should be in an upper that is not mounted: leftovers, entries of the index without
/// a file, marks of other unions or of two kinds, objects whose part in the layers is missing.
///
/// Fails if something is left.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The upper directory
    upper: PathBuf,
    /// Its work directory [default: <upper>.work]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome<()> {
    // Each level of directories takes a descriptor.
    process::raise_open_files().or_fail(Code::Failure, "limit of open files")?;
    let shown = args.upper.display();
    if writer::is_mounted_by_kernel(&args.upper).or_fail(Code::Failure, mounts::TABLE)? {
        let text = format!("{shown} is mounted by the kernel; unmount it first");
        return Err(Failure::new(Code::Busy, text));
    }
    let work = upper::work_of(&args.upper, args.work.as_deref());
    if let Some(work) = &work
        && upper::belongs(work, &args.upper) == Some(false)
    {
        let text = format!(
            "{} is the work directory of another upper, as its file `mount` says; if this one was moved, mount \
             it once with that directory",
            work.display()
        );
        return Err(Failure::new(Code::Upper, text));
    }
    let record = work.as_deref().and_then(upper::recorded);
    let lowers = record.and_then(|record| layers::specs_of(record.get("layers")?));
    let view = lowers.map(|lowers| View::open(&lowers, Some(&args.upper)));
    if let Some(Err(e)) = &view {
        say(format_args!(
            "check: warning: the layers are not looked at: {e}"
        ));
    }
    let view = view.and_then(Result::ok);
    // What overlayfs has in its work directory is its own, and nobody else's to mend.
    let work = work.filter(|work| {
        let (upper, work) = (args.upper.clone(), work.clone());
        let written = writer::of(&UpperSpec { upper, work });
        !matches!(
            written,
            Ok(Writer::Noted(Backend::Overlay) | Writer::ForeignOverlay)
        )
    });
    let begun = Instant::now();
    let found = loop {
        let found = check(&args.upper, work.as_deref(), view.as_ref(), args.repair);
        let taken = found
            .as_ref()
            .is_err_and(|e| e.errno() == libc::EWOULDBLOCK);
        if !taken || begun.elapsed() > UPPER_PATIENCE {
            break found;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let found = found.map_err(|e| match e.errno() {
        libc::EWOULDBLOCK => {
            Failure::new(Code::Busy, format!("{shown} is mounted; unmount it first"))
        }
        _ => Failure::new(Code::Upper, e.to_string()),
    })?;
    let text = match args.json {
        true => format!("{:#}\n", found.iter().map(row).collect::<Value>()),
        false => found.iter().map(line).collect(),
    };
    super::print(&text)?;
    let left = |state| found.iter().filter(|of| of.state == state).count();
    match (left(State::Mendable), left(State::Left)) {
        (0, 0) => Ok(()),
        (0, n) => Err(Failure::new(
            Code::Failure,
            format!("{shown}: {n} findings cannot be mended"),
        )),
        (n, 0) => Err(Failure::new(
            Code::Failure,
            format!("{shown}: {n} findings; --repair mends them"),
        )),
        (n, m) => {
            let text = format!("{shown}: {} findings; --repair mends {n} of them", n + m);
            Err(Failure::new(Code::Failure, text))
        }
    }
}

fn state(of: State) -> &'static str {
    match of {
        State::Mendable => "mendable",
        State::Mended => "mended",
        State::Left => "left",
    }
}

fn row(of: &Finding) -> Value {
    json!({
        "path": String::from_utf8_lossy(&of.path),
        "finding": of.what,
        "state": state(of.state),
    })
}

fn line(of: &Finding) -> String {
    let path = printable(OsStr::from_bytes(&of.path));
    let (state, what) = (state(of.state), printable(&of.what));
    format!("{state:<8}  {path}: {what}\n")
}
