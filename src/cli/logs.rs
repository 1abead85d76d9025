//! Logs: on standard error, made for people on a terminal and as JSON lines elsewhere.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::log_writer::LogWriter;

/// Logs of a command: warnings only, one short line each.
pub(super) fn start_quiet() -> Logs {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,lapin=off,redis=error"));
    let writer = LogWriter::start(io::stderr());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone());
    logs.with_ansi(io::stderr().is_terminal()).with_target(false).without_time().init();
    Logs(writer)
}

/// Starts logging at the level that `RUST_LOG` says, `info` without it. lapin repeats what we say
/// ourselves, so it is kept to errors.
pub(super) fn start() -> Logs {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,lapin=off,redis=error"));
    let writer = LogWriter::start(io::stderr());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone());
    if io::stderr().is_terminal() {
        logs.with_ansi(true).with_target(false).init();
    } else {
        logs.with_ansi(false).json().flatten_event(true).init();
    }
    Logs(writer)
}

/// The logs of this process. Dropped, it waits a moment for what is still to be written.
pub(super) struct Logs(LogWriter);

impl Drop for Logs {
    fn drop(&mut self) {
        self.0.flush();
    }
}
