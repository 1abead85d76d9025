//! Logs on standard error: readable text on a terminal, JSON lines elsewhere.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;

use super::log_writer::LogWriter;
use super::plain::plain_log;

/// Starts the logs of a command: warnings only, one short line each.
pub fn start_quiet() -> Logs {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,lapin=off,redis=error"));
    let writer = LogWriter::start(Readable(io::stderr()));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone());
    logs.with_ansi(has_colours()).with_target(false).without_time().init();
    Logs(writer)
}

/// Starts logging at the level in `RUST_LOG`, `info` by default. lapin logs only errors, because its other
/// messages repeat Countersign's own.
pub fn start() -> Logs {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,lapin=off,redis=error"));
    let writer = LogWriter::start(Readable(io::stderr()));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone());
    if io::stderr().is_terminal() {
        logs.with_ansi(has_colours()).with_target(false).init();
    } else {
        logs.with_ansi(false).json().flatten_event(true).init();
    }
    Logs(writer)
}

/// Returns whether standard error is a terminal and the user allows colours (<https://no-color.org>).
fn has_colours() -> bool {
    let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    io::stderr().is_terminal() && is_wanted
}

/// Standard error. On a terminal, no logged text changes the order of characters.
struct Readable(io::Stderr);

impl Write for Readable {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.is_terminal() {
            self.0.write_all(plain_log(&String::from_utf8_lossy(line)).as_bytes())?;
            return Ok(line.len());
        }
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The logs of this process. Dropping it waits up to half a second for queued lines.
#[derive(Debug)]
pub struct Logs(LogWriter);

impl Drop for Logs {
    fn drop(&mut self) {
        self.0.flush();
    }
}
