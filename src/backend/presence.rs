//! Who is there: workers, and servers.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How long a queue is remembered after a worker last consumed it.
pub(in crate::backend) const SEEN_QUEUE_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A worker's word that it is there, kept in the store until it is overdue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Its name.
    pub name: String,
    /// The machine it is on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// What it consumes.
    pub queues: Vec<String>,
    /// The task types that it has handlers for. Empty when an older version wrote this.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// How many tasks it may run at once.
    pub concurrency: usize,
    /// How many it runs now.
    pub running: usize,
    /// How many came to an end since it started.
    pub finished: u64,
    /// It takes no more.
    pub draining: bool,
    /// When it started.
    pub started: Timestamp,
    /// When it said so.
    pub at: Timestamp,
}

impl Presence {
    /// Tells it from every other worker that runs, of the same name too.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}#{}#{}", self.name, self.host, self.pid)
    }
}

/// What a store server says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreServer {
    /// Its version; empty when it will not tell.
    pub version: String,
    /// What it does when its memory is full, for example `noeviction`; empty when it will not tell.
    pub eviction: String,
    /// How far its clock is ahead of ours, in milliseconds.
    pub clock_ahead: i64,
}
