//! One battery for every backend: what the doc comments of the two seams say, as promises that each
//! backend keeps. A backend says which capabilities it lacks; the promises that need one of them
//! are named and passed over.
//!
//! A new promise is a function in the file of its noun, and a line in the table there:
//!
//! ```ignore
//! promise(a_message_arrives_whole),
//! promise(both_see_it).needs(Capability::SeveralProcesses),
//! ```
//!
//! `CONFORMANCE=streams` in the environment asks only for the promises with that in their names.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test panics when it fails"
)]

mod approvals;
mod audit;
mod broker;
mod delivery;
mod forget;
mod ground;
mod holder;
mod journal;
mod keys;
mod land;
mod marks;
mod outbox;
mod parks;
mod presence;
mod promise;
mod requests;
mod results;
mod revocations;
mod rules;
mod streams;
mod verdicts;
mod waits;

use crate::land::Land;
use crate::promise::Promise;

/// Every promise there is.
fn promises() -> Vec<Promise> {
    let tables = [
        broker::promises(),
        delivery::promises(),
        results::promises(),
        waits::promises(),
        marks::promises(),
        keys::promises(),
        journal::promises(),
        streams::promises(),
        revocations::promises(),
        parks::promises(),
        forget::promises(),
        approvals::promises(),
        requests::promises(),
        verdicts::promises(),
        outbox::promises(),
        audit::promises(),
        presence::promises(),
    ];
    tables.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_memory_keeps_every_promise() {
    promise::keep_all("in memory", &Land::Memory, promises()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_a_file_keeps_every_promise() {
    promise::keep_all("in a file", &Land::File, promises()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_and_redis_keep_every_promise() {
    promise::keep_all("RabbitMQ and Redis", &Land::servers().await, promises()).await;
}
