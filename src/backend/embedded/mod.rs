//! Broker and store in one SQLite database, for one machine: the one folder that names `rusqlite`.
//!
//! | file | what is in it |
//! |---|---|
//! | `approvals` | questions and decisions, by the rules of `lifecycle/vote.rs` |
//! | `audit` | what people did, and the seals on it |
//! | `availability` | whether the database takes writes |
//! | `backoff` | how long to wait before something is tried again |
//! | `backup` | copying a database, and rewriting it without its unused pages |
//! | `bells` | who is told when something has happened |
//! | `broker` | queues and the messages in them |
//! | `check` | whether a database is sound |
//! | `clock` | the store's clock |
//! | `db` | the database: who may use it, and when it is durable |
//! | `file` | opening one; `schema.sql` has the tables |
//! | `identity` | whether the open file is still the one that its path names |
//! | `intake` | consuming a queue, and settling what was delivered |
//! | `journal` | what the runs of a task leave: steps and streams |
//! | `life` | a process that dies where a test says so |
//! | `marks` | attempts, crashes, idempotency keys, workers, revocations |
//! | `outbox` | resume messages that nobody is known to have sent |
//! | `parks` | parked tasks, by the rules of `lifecycle/park.rs` |
//! | `questions` | questions and what was said to them, as they are stored |
//! | `results` | results, and who waits for them |
//! | `session` | under what a process holds messages, and what happens when it is gone |
//! | `store` | the store, by the names of its seam |
//! | `threads` | the thread that writes to a file, and the one that reads |
//! | `txn` | a transaction, and the pieces of work that share it |
//! | `upkeep` | hearing other processes, deleting what has expired |
//! | `wal` | the log beside the file: its size, and moving it into the file |
//! | `warnings` | warnings that repeat |

mod approvals;
mod audit;
mod availability;
mod backoff;
#[cfg(feature = "cli")]
mod backup;
mod bells;
mod broker;
#[cfg(feature = "cli")]
mod check;
mod clock;
mod db;
mod file;
mod identity;
mod intake;
mod journal;
mod life;
mod marks;
mod outbox;
mod parks;
mod questions;
mod results;
mod session;
mod store;
mod threads;
mod txn;
mod upkeep;
mod wal;
mod warnings;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "cli")]
pub(crate) use self::backup::{back_up, compact};
#[cfg(feature = "cli")]
pub(crate) use self::check::check;
#[cfg(feature = "faults")]
pub use self::life::{Chances, Life, Stage};

use self::broker::EmbeddedBroker;
use self::db::Db;
use self::store::EmbeddedStore;
use super::{Backends, Capability};
use crate::address::sqlite::{self, Database};
use crate::config::Config;
use crate::error::{Error, Kind};

const FILE_LACKS: &[Capability] = &[Capability::QueueTypes, Capability::RemoteControl];
const MEMORY_LACKS: &[Capability] = &[
    Capability::QueueTypes,
    Capability::RemoteControl,
    Capability::Durability,
    Capability::SeveralProcesses,
];

/// Opens the database that this URL names: `sqlite::memory:`, or `sqlite:` and a path.
pub(super) fn open(url: &str, config: &Config) -> Result<Backends, Error> {
    let db = match sqlite::parse(url).map_err(|fault| Error::new(Kind::Config(vec![fault])))? {
        Database::Memory => Db::in_memory()?,
        Database::File(path) => Db::open(&path)?,
    };
    Ok(backends(db, config))
}

/// The file that this URL names; `None` when it is in memory, or names no database.
pub(crate) fn file_of(url: &str) -> Option<PathBuf> {
    match sqlite::parse(url) {
        Ok(Database::File(path)) => Some(path),
        Ok(Database::Memory) | Err(_) => None,
    }
}

fn backends(db: Db, config: &Config) -> Backends {
    let lacks = if db.shared().is_file { FILE_LACKS } else { MEMORY_LACKS };
    let broker = EmbeddedBroker::start(db.clone());
    let store = EmbeddedStore::start(db, config.result_expires);
    Backends { broker: Arc::new(broker), store: Arc::new(store), lacks }
}
