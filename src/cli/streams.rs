//! Standard output and standard error. `println!` panics when its reader has gone or its disk is full;
//! here the first failure is remembered, and becomes the command's exit code.

use std::fmt;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::exit;

/// Why standard output cannot be written any more.
static BROKEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes to standard output. Once that has failed, nothing more is written.
pub(super) fn out(text: impl fmt::Display) {
    let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if broken.is_none() {
        *broken = write!(io::stdout().lock(), "{text}").err();
    }
}

/// Writes a line to standard output.
pub(super) fn line(text: impl fmt::Display) {
    out(format_args!("{text}\n"));
}

/// Writes a line to standard error, where nothing more can be done if that fails.
pub(super) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a line to standard error from a thread of its own. Returns once it is written, or after
/// `longest`: an unread pipe or a frozen terminal does not keep the process from ending.
pub(super) fn note_within(text: impl fmt::Display, longest: Duration) {
    let (written, wait) = mpsc::channel();
    let text = text.to_string();
    let writer = thread::Builder::new().spawn(move || {
        note(text);
        // The caller may have stopped waiting.
        let _ = written.send(());
    });
    if writer.is_ok() {
        let _ = wait.recv_timeout(longest);
    }
}

/// Writes a question to standard error, and leaves the cursor behind it.
pub(super) fn prompt(text: impl fmt::Display) {
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{text}");
    let _ = stderr.flush();
}

/// Reads a line from standard input: whether it agrees to what was asked.
pub(super) fn is_confirmed() -> bool {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}

/// Whether standard output cannot be written any more: what is printed without end stops then.
pub(super) fn is_broken() -> bool {
    BROKEN.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Flushes standard output. A reader that closed its end (`| head -1`) is no failure; anything else is
/// named on standard error, and the exit code says so.
pub(super) fn finish(code: ExitCode) -> ExitCode {
    let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if broken.is_none() {
        *broken = io::stdout().lock().flush().err();
    }
    match &*broken {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            note(format_args!("countersign: cannot write to standard output: {error}"));
            ExitCode::from(exit::IO_ERROR)
        }
        _ => code,
    }
}
