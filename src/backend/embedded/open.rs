//! Opening the database that a URL names.

use std::path::PathBuf;
use std::sync::Arc;

use super::broker::EmbeddedBroker;
use super::db::Db;
use super::store::EmbeddedStore;
use crate::address::sqlite::{self, Database};
use crate::backend::{Backends, Capability, PoolSettings};
use crate::config::Config;
use crate::error::{Error, Kind};

const FILE_MISSING: &[Capability] = &[Capability::QueueTypes, Capability::RemoteControl];
const MEMORY_MISSING: &[Capability] = &[
    Capability::QueueTypes,
    Capability::RemoteControl,
    Capability::Durability,
    Capability::SeveralProcesses,
];

/// Opens the database that this URL names: `sqlite::memory:`, or `sqlite:` and a path.
pub(in crate::backend) fn open(url: &str, config: &Config) -> Result<Backends, Error> {
    let db = match sqlite::parse(url).map_err(|fault| Error::new(Kind::Config(vec![fault])))? {
        Database::Memory => Db::in_memory()?,
        Database::File(path) => Db::open(&path, PoolSettings::of(config))?,
    };
    Ok(backends(db, config))
}

/// Returns the file that this URL names; `None` for a database in memory and for other URLs.
pub fn file_of(url: &str) -> Option<PathBuf> {
    match sqlite::parse(url) {
        Ok(Database::File(path)) => Some(path),
        Ok(Database::Memory) | Err(_) => None,
    }
}

pub(super) fn backends(db: Db, config: &Config) -> Backends {
    let missing = if db.shared().is_file { FILE_MISSING } else { MEMORY_MISSING };
    let broker = EmbeddedBroker::start(db.clone());
    let store = EmbeddedStore::start(db, config.result_expires);
    Backends { broker: Arc::new(broker), store: Arc::new(store), missing }
}
