//! What a child process does, told to it as JSON on its command line.

use std::collections::BTreeMap;
use std::ops::Range;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Whose program is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// A hand-written program on lapin and redis.
    Bare,
    /// Countersign.
    Ours,
    /// Celery, prefork with two processes.
    Celery,
    /// Dramatiq, with two processes.
    Dramatiq,
}

/// A child's part. A worker works until SIGTERM; the others print their [`Numbers`] as one line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "role")]
pub(crate) enum Role {
    Worker {
        queue: String,
        concurrency: usize,
    },
    /// Enqueues so many tasks, each confirmed, with so many on their way at a time.
    Enqueue {
        queue: String,
        count: usize,
        in_flight: usize,
    },
    /// So many callers enqueue tasks and await their results, each one call after the other.
    Calls {
        queue: String,
        count: usize,
        callers: usize,
    },
    /// Enqueues tasks that nobody runs, waits for all of them at a time, says so, and goes on
    /// waiting until it is killed.
    Waiters {
        queue: String,
        count: usize,
    },
    /// Enqueues tasks that ask, with ids that are known to whoever knows the queue.
    Park {
        queue: String,
        numbers: Range<usize>,
    },
    /// Approves every task that was parked, and waits until each has ended.
    Decide {
        queue: String,
        numbers: Range<usize>,
    },
    /// Parks and resumes one task after the other.
    Cycle {
        queue: String,
    },
    /// So many deciders race for each of so many questions.
    Race {
        questions: usize,
        deciders: usize,
    },
    /// Enqueues and runs so many tasks in one process, on the database of this URL.
    Embedded {
        url: String,
        count: usize,
    },
    /// Waits until every task of a batch is parked.
    Parked {
        queue: String,
        numbers: Range<usize>,
    },
    /// Enqueues one task after the other to another process on the same database.
    Across {
        queue: String,
        count: usize,
    },
    /// Stores the results of so many tasks.
    Finish {
        count: usize,
    },
    /// Opens a database with many results, and writes to it while they are forgotten.
    Pruned,
    /// So many tasks at a time write so many entries each into their streams; one is followed.
    Streams {
        queue: String,
        tasks: usize,
        entries: usize,
    },
}

/// What was measured, by name.
pub(crate) type Numbers = BTreeMap<String, f64>;

/// Whatever went wrong; a person reads it.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
