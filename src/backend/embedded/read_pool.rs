//! The pool of read-only connections to a file. Reads run at the same time as the writer and each other.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, PoolConfig, RecycleResult, Timeouts};
use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::task::TaskTracker;

use super::commit::{Work, refuse};
use super::file;
use super::identity::Identity;
use super::shared::Shared;
use super::txn::Txn;
use crate::backend::{PoolSettings, PoolState};
use crate::error::{Error, Kind};

/// Opens connections to a file.
struct Opener {
    path: PathBuf,
    identity: Identity,
}

impl managed::Manager for Opener {
    type Type = Connection;
    type Error = Error;

    async fn create(&self) -> Result<Connection, Error> {
        let (path, mut identity) = (self.path.clone(), self.identity.clone());
        let opened = spawn_blocking(move || {
            let connection = file::open_for_reading(&path)?;
            // Another file may be at the path by now.
            match identity.fault() {
                Some(cause) => {
                    let what = format!("the database {}", path.display());
                    Err(Error::new(Kind::Storage { what, cause }))
                }
                None => Ok(connection),
            }
        });
        opened.await.map_err(|_| Kind::Closed)?
    }

    /// A connection to a local file does not break.
    async fn recycle(&self, _: &mut Connection, _: &Metrics) -> RecycleResult<Error> {
        Ok(())
    }
}

/// Connections that only read. They are opened when they are needed.
#[derive(Clone)]
pub(super) struct ReadPool {
    pool: managed::Pool<Opener>,
    shared: Arc<Shared>,
    reads: TaskTracker,
    runtime: Handle,
}

impl ReadPool {
    /// Opens no connection yet.
    pub(super) fn new(
        path: &Path,
        settings: PoolSettings,
        shared: Arc<Shared>,
        runtime: Handle,
    ) -> Result<Self, Error> {
        let opener = Opener { path: path.to_owned(), identity: Identity::of(path) };
        let timeouts = Timeouts { wait: Some(settings.wait), ..Timeouts::default() };
        let config = PoolConfig { timeouts, ..PoolConfig::new(settings.size.max(1)) };
        let pool = managed::Pool::builder(opener).config(config).runtime(Runtime::Tokio1).build();
        let pool = pool.map_err(|error| Kind::Config(vec![error.to_string()]))?;
        Ok(Self { pool, shared, reads: TaskTracker::new(), runtime })
    }

    /// Runs a job on the current state of the file, as soon as a connection is free. Returns at once.
    pub(super) fn run(&self, mut work: Work) {
        let (pool, shared) = (self.pool.clone(), Arc::clone(&self.shared));
        let reading = async move {
            if let Some(cause) = shared.availability.lost() {
                return refuse(vec![work], cause).publish(&shared);
            }
            let connection = match pool.get().await {
                Ok(connection) => connection,
                Err(error) => {
                    let size = pool.status().max_size;
                    let cause =
                        format!("{error}; the pool has {size} connections (store.pool_size)");
                    return refuse(vec![work], cause).publish(&shared);
                }
            };
            let read = spawn_blocking(move || {
                let mut txn = Txn::of(&connection, &shared);
                work.attempt(&mut txn);
                // The caller's next read may use it.
                drop(connection);
                work.complete(Ok(()));
            });
            // If the runtime ends before the job has begun, its caller sees that as closed.
            let _ = read.await;
        };
        self.reads.spawn_on(reading, &self.runtime);
    }

    pub(super) fn state(&self) -> PoolState {
        let status = self.pool.status();
        PoolState {
            name: "sqlite reads",
            size: status.size,
            max_size: status.max_size,
            idle: status.available,
            waiting: status.waiting,
        }
    }

    /// Waits for the reads that have begun, and closes the connections. Later reads fail.
    pub(super) async fn close(&self) {
        self.reads.close();
        self.reads.wait().await;
        self.pool.close();
    }
}

impl fmt::Debug for ReadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadPool").field("state", &self.state()).finish_non_exhaustive()
    }
}
