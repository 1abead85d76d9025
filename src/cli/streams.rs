//! Standard output and standard error. `println!` panics if the reader has closed its end or the disk is
//! full; these functions store the first failure, which determines the command's exit code.

use std::fmt;
use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::exit;
use super::plain::plain_lines;

/// The first error of standard output.
static BROKEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes to standard output. After a failure, nothing more is written.
pub fn out(text: impl fmt::Display) {
    let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if broken.is_none() {
        *broken = write!(io::stdout().lock(), "{text}").err();
    }
}

/// Flushes standard output.
pub fn flush() {
    let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if broken.is_none() {
        *broken = io::stdout().lock().flush().err();
    }
}

/// Writes a line to standard output.
pub fn line(text: impl fmt::Display) {
    out(format_args!("{text}\n"));
}

/// Writes a line to standard error; ignores a failure.
pub fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{}", readable(&text));
}

/// Escapes all characters that move the cursor of a terminal, or change the order of characters.
fn readable(text: &impl fmt::Display) -> String {
    let text = text.to_string();
    if io::stderr().is_terminal() { plain_lines(&text) } else { text }
}

/// Prints a note if a list has as many records as its limit, so that there may be more.
pub fn note_if_full(shown: usize, limit: usize) {
    if shown >= limit {
        note(format_args!("countersign: {shown} are shown, and there may be more: see --limit"));
    }
}

/// Writes a line to standard error from a thread of its own. Returns once it is written, or after `longest`:
/// an unread pipe or a frozen terminal does not delay the exit of the process.
pub fn note_within(text: impl fmt::Display, longest: Duration) {
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

/// Writes a prompt to standard error, without a line break.
pub fn prompt(text: impl fmt::Display) {
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{}", readable(&text));
    let _ = stderr.flush();
}

/// Reads a line from standard input; returns whether it confirms.
pub fn is_confirmed() -> bool {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}

/// Returns whether standard output has failed. Endless output must stop then.
pub fn is_broken() -> bool {
    BROKEN.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Prints clap's output: help, the version, or an error in the command line. Returns the exit code.
pub fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // A failure here is ignored.
        let _ = error.print();
    } else {
        let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
        *broken = error.print().err();
    }
    finish(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE)))
}

/// Flushes standard output. A closed reader (`| head -1`) is not a failure; any other error is printed on
/// standard error, and changes the exit code.
pub fn finish(code: ExitCode) -> ExitCode {
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
