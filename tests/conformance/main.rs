//! One test suite for every backend: its cases check the doc comments of the two backend traits. A backend
//! declares its missing capabilities; cases that need one of them are listed as ignored.
//!
//! A new case is a function in the file of its subject, and a line in the table there:
//!
//! ```ignore
//! case(a_message_arrives_complete),
//! case(both_see_it).needs(Capability::SeveralProcesses),
//! ```
//!
//! Each case is a test on each backend: `cargo test --test conformance servers::streams`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test panics when it fails"
)]

mod approvals;
mod attempts;
mod audit;
mod backend;
mod broker;
mod case;
mod child_consumer;
mod deadlines;
mod decisions;
mod delivery;
mod fixture;
mod forget;
mod index;
mod journal;
mod keys;
mod outbox;
mod presence;
mod requests;
mod results;
mod revocations;
mod rules;
mod streams;
mod suspended_results;
mod suspensions;
mod waits;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;
use tokio::runtime::Runtime;

use crate::backend::{Backend, DATABASES};
use crate::case::Case;

/// The default number of cases that run at the same time: most of them wait.
const AT_ONCE: usize = 8;

/// Returns all cases.
fn cases() -> Vec<Case> {
    let tables = [
        broker::cases(),
        delivery::cases(),
        results::cases(),
        waits::cases(),
        attempts::cases(),
        keys::cases(),
        journal::cases(),
        streams::cases(),
        revocations::cases(),
        suspended_results::cases(),
        suspensions::cases(),
        deadlines::cases(),
        forget::cases(),
        approvals::cases(),
        requests::cases(),
        decisions::cases(),
        outbox::cases(),
        audit::cases(),
        presence::cases(),
        index::cases(),
    ];
    tables.into_iter().flatten().collect()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let threads = arguments.test_threads.unwrap_or(AT_ONCE).min(DATABASES.into());
    arguments.test_threads = Some(threads);
    // What a backend lacks cannot be tested on it.
    let runs_ignored = arguments.ignored || arguments.include_ignored;
    let runtime = Runtime::new().unwrap();
    let mut trials = Vec::new();
    for backend in [Backend::Memory, Backend::File, Backend::servers()] {
        let backend = Arc::new(backend);
        let missing = runtime.block_on(backend.missing());
        let tests = cases().into_iter().map(|case| case.on(&backend, missing, runtime.handle()));
        trials.extend(tests.filter(|test| !(runs_ignored && test.has_ignored_flag())));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
