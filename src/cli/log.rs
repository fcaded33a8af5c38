//! Where log lines go.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;

use syslog_tracing::{Facility, Options, Syslog};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{Code, Failure, OrFail, Outcome};
use crate::sys::mount::NAME;

/// What to log and where to.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// What to log: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: LevelFilter,
    /// Where to: stderr, which a daemon has until the mount is ready, syslog, journald, or the path of a file
    #[arg(long, value_name = "WHERE", default_value = "stderr")]
    log_to: To,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    Stderr,
    Syslog,
    Journald,
    File(PathBuf),
}

impl FromStr for To {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<To, Infallible> {
        Ok(match text {
            "stderr" => To::Stderr,
            "syslog" => To::Syslog,
            "journald" => To::Journald,
            path => To::File(path.into()),
        })
    }
}

impl Args {
    /// Begins to log; once in a process, and before it forks.
    pub fn begin(&self) -> Outcome<()> {
        let lines = tracing_subscriber::fmt().with_max_level(self.log);
        match &self.log_to {
            To::Stderr => {
                let colour = io::stderr().is_terminal();
                lines.with_ansi(colour).with_writer(io::stderr).init();
            }
            To::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                let file = file.or_fail(Code::Usage, format!("--log-to {}", path.display()))?;
                lines.with_ansi(false).with_writer(Mutex::new(file)).init();
            }
            To::Syslog => {
                let syslog = Syslog::new(c"cvmfs-union", Options::LOG_PID, Facility::Daemon);
                let syslog = syslog
                    .ok_or_else(|| Failure::new(Code::Failure, "--log-to syslog: begun already"))?;
                // The time and the level are of the syslog.
                let lines = lines.with_ansi(false).without_time().with_level(false);
                lines.with_writer(syslog).init();
            }
            To::Journald => {
                let journal =
                    tracing_journald::layer().or_fail(Code::Failure, "--log-to journald")?;
                let journal = journal.with_syslog_identifier(NAME.to_owned());
                tracing_subscriber::registry()
                    .with(self.log)
                    .with(journal)
                    .init();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_paths() {
        assert_eq!("syslog".parse(), Ok(To::Syslog));
        assert_eq!("./syslog".parse(), Ok(To::File("./syslog".into())));
    }
}
