//! The command line, logs, signals and exit codes of worker binaries.

#[cfg(not(feature = "unstable"))]
mod log_writer;
#[cfg(not(feature = "unstable"))]
mod logs;
#[cfg(not(feature = "unstable"))]
mod plain;
#[cfg(not(feature = "unstable"))]
mod signals;
#[cfg(not(feature = "unstable"))]
mod streams;
mod worker;

// The `countersign` command uses these as well.
#[cfg(feature = "unstable")]
pub mod log_writer;
#[cfg(feature = "unstable")]
pub mod logs;
#[cfg(feature = "unstable")]
pub mod plain;
#[cfg(feature = "unstable")]
pub mod signals;
#[cfg(feature = "unstable")]
pub mod streams;

pub use signals::shutdown_signal;
pub use worker::run_worker;

/// Exit codes, as in `sysexits.h`.
pub mod exit {
    /// The awaited task failed, or another error happened.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// A request of the awaited task was not approved.
    pub const REFUSED: u8 = 3;
    /// A server did not answer.
    pub const UNAVAILABLE: u8 = 69;
    /// A database cannot be opened, or standard output cannot be written.
    pub const IO_ERROR: u8 = 74;
    /// A drain returned unfinished tasks, which another worker will run.
    pub const TEMPFAIL: u8 = 75;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}
