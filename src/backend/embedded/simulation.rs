//! Simulates several processes on one database in memory, in one thread, for tests.

use std::sync::Arc;

use tokio::time::{Instant, sleep};

use super::db::Db;
use super::maintenance::{self, MAINTENANCE};
use super::open;
use super::simulated_process::{FaultChances, SimulatedProcess};
use crate::backend::Backends;
use crate::config::Config;
use crate::error::Error;

/// One database in memory, and the processes that use it.
#[derive(Debug)]
pub struct Simulation {
    db: Db,
    started: Instant,
}

impl Simulation {
    /// Creates an empty database.
    ///
    /// # Errors
    /// The same as [`crate::backend::connect`].
    pub fn new() -> Result<Self, Error> {
        Ok(Self { db: Db::in_memory_for_several()?, started: Instant::now() })
    }

    /// Adds a process with its own session. While it is stopped or dead it does not renew that
    /// session, so that another process returns its messages to their queues.
    pub fn process(
        &self,
        config: &Config,
        seed: u64,
        chances: FaultChances,
    ) -> (Backends, SimulatedProcess) {
        let calm = self.started + chances.calm_after;
        let process = SimulatedProcess::new(chances, calm, seed);
        let db = self.db.of_another(process.clone());
        let maintained = db.clone();
        tokio::spawn(async move {
            while !maintained.is_closed() {
                sleep(MAINTENANCE).await;
                let of = Arc::clone(&maintained.session);
                let _ = maintained.write(move |txn| maintenance::run(txn, &of)).await;
            }
        });
        (open::backends(db, config), process)
    }
}
