//! What binaries do with their command line, logs, signals and exit codes.

mod approvals;
mod audit;
mod batch;
mod command;
mod config;
mod database;
mod dev;
mod doctor;
mod failures;
mod health;
mod log_writer;
mod logs;
mod management;
mod output;
mod policies;
mod progress;
mod queues;
mod request;
mod route;
mod rules;
mod run;
mod signals;
mod streams;
mod tasks;
mod worker;
mod workers;

pub use command::main;
pub use signals::shutdown_signal;
pub use worker::run_worker;

/// Exit codes, as in `sysexits.h`.
pub mod exit {
    /// The awaited task failed, or something else went wrong.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// What the awaited task asked was not approved.
    pub const REFUSED: u8 = 3;
    /// A server did not answer.
    pub const UNAVAILABLE: u8 = 69;
    /// A database cannot be opened, or standard output cannot be written.
    pub const IO_ERROR: u8 = 74;
    /// A drain left tasks behind: they were given back, another worker will run them.
    pub const TEMPFAIL: u8 = 75;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}
