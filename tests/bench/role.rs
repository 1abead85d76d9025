//! The role of a child process, passed as JSON on its command line.

use std::collections::BTreeMap;
use std::ops::Range;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The program that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// A hand-written program on lapin and redis, with the allocator of the platform. It does not change.
    Bare,
    /// The same program, with the allocator that Countersign's binaries use, and with batches.
    Improved,
    /// Countersign.
    Ours,
    /// Celery, prefork with two processes.
    Celery,
    /// Dramatiq, with two processes.
    Dramatiq,
}

/// A child's role. A worker runs until SIGTERM; the others print their [`Numbers`] as one line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "role")]
pub(crate) enum Role {
    Worker {
        queue: String,
        concurrency: usize,
    },
    /// Enqueues `count` tasks and waits for each confirm, with up to `in_flight` publishes unconfirmed.
    Enqueue {
        queue: String,
        count: usize,
        in_flight: usize,
    },
    /// `callers` enqueue tasks and await their results, each caller one call after the other.
    Calls {
        queue: String,
        count: usize,
        callers: usize,
    },
    /// Enqueues tasks that no worker runs, and waits for all of them at the same time. Prints its numbers
    /// once all waits have started, and continues to wait until it is killed.
    Waiters {
        queue: String,
        count: usize,
    },
    /// Enqueues tasks that request an approval, with ids derived from the queue.
    Suspend {
        queue: String,
        numbers: Range<usize>,
    },
    /// Approves every suspended task, and waits until each has ended.
    Decide {
        queue: String,
        numbers: Range<usize>,
    },
    /// Suspends and resumes one task after the other.
    Cycle {
        queue: String,
    },
    /// `deciders` decide each of `requests` requests at once.
    Race {
        requests: usize,
        deciders: usize,
    },
    /// Enqueues and runs `count` tasks in one process, on the database of this URL.
    Embedded {
        url: String,
        count: usize,
    },
    /// Waits until every task of a batch is suspended.
    Suspended {
        queue: String,
        numbers: Range<usize>,
    },
    /// Enqueues one task after the other for another process on the same database.
    Across {
        queue: String,
        count: usize,
    },
    /// Stores the results of `count` tasks.
    Finish {
        count: usize,
    },
    /// Opens a database with many expired results, and writes to it while they are deleted.
    Pruned,
    /// Enqueues a backlog of a type with a rate limit, and then tasks of another type.
    Limited {
        queue: String,
        backlog: usize,
        behind: usize,
    },
    /// Renews the claims of `claims` tasks, while `callers` read large results through the same client.
    Pools {
        claims: usize,
        callers: usize,
        rounds: usize,
    },
    /// `tasks` run at a time, and each writes `entries` to its stream. One stream is followed.
    Streams {
        queue: String,
        tasks: usize,
        entries: usize,
    },
}

/// Makes about 256 bytes of arguments, JSON syntax included.
pub(crate) fn payload() -> String {
    "x".repeat(220)
}

/// Prints the numbers of a child.
pub(crate) fn print(numbers: &Numbers) {
    println!("{}", serde_json::json!(numbers));
}

/// Measured numbers by name.
pub(crate) type Numbers = BTreeMap<String, f64>;

/// A result with any error; errors are only printed.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
