//! The backends that the suite runs on, and how each isolates the data of a case.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use countersign::Config;
use countersign::backend::{Backends, Capability, connect};
use redis::AsyncConnectionConfig;
use support::{Server, TIMEOUT, servers};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::fixture::Fixture;

/// The default number of databases of a Redis server: no more cases run on it at the same time.
pub(crate) const DATABASES: u8 = 16;

/// A backend under test.
pub(crate) enum Backend {
    /// A database in memory: each opened one is new.
    Memory,
    /// A database file in a folder for each case.
    File,
    /// The RabbitMQ of this test run, and a Redis of our own, with a database for each case.
    Servers { redis: Box<OnceCell<Server>>, free: Mutex<VecDeque<u8>> },
}

/// The resources of one case, for the cleanup after it.
pub(crate) struct Cleanup {
    opened: Opened,
    storage: Storage,
}

/// The storage of one case.
enum Storage {
    Memory,
    Folder(PathBuf),
    Database(u8),
}

/// All backends that one case has opened.
pub(crate) type Opened = Arc<Mutex<Vec<Backends>>>;

impl Backend {
    /// The Redis starts with the first case.
    pub(crate) fn servers() -> Self {
        let free = (0..DATABASES).collect();
        Self::Servers { redis: Box::default(), free: Mutex::new(free) }
    }

    /// Returns its name, the first part of the names of its tests.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
            Self::Servers { .. } => "servers",
        }
    }

    /// Returns the capabilities that the backend declares as missing. Servers have all.
    pub(crate) async fn missing(&self) -> &'static [Capability] {
        if let Self::Servers { .. } = self {
            return &[];
        }
        let (config, cleanup) = self.prepare().await;
        let backends = open(&config, &cleanup.opened).await;
        cleanup.run(self).await;
        backends.missing
    }

    /// Returns an empty fixture and its resources.
    pub(crate) async fn fixture(&self) -> (Fixture, Cleanup) {
        let (config, cleanup) = self.prepare().await;
        (Fixture::on(config, Arc::clone(&cleanup.opened)).await, cleanup)
    }

    async fn prepare(&self) -> (Config, Cleanup) {
        let (config, storage) = match self {
            Self::Memory => (Config::embedded("sqlite::memory:"), Storage::Memory),
            Self::File => {
                let folder = std::env::temp_dir().join(support::queue_name());
                std::fs::create_dir(&folder).unwrap();
                let url = format!("sqlite:{}/conformance.db", folder.display());
                (Config::embedded(&url), Storage::Folder(folder))
            }
            Self::Servers { redis, free } => {
                let number = free.lock().unwrap().pop_front().expect("fewer cases at once");
                let redis = redis.get_or_init(Server::redis).await;
                let url = redis.url().trim_end_matches('0').to_owned() + &number.to_string();
                empty(&url).await;
                (Config::new(&servers().broker_url, &url), Storage::Database(number))
            }
        };
        // Long timeouts, so that a busy machine fails no case.
        let (connect_timeout, command_timeout) = (TIMEOUT / 3, TIMEOUT / 3);
        let config = Config { connect_timeout, command_timeout, ..config.unwrap() };
        (config, Cleanup { opened: Opened::default(), storage })
    }
}

impl Cleanup {
    /// Closes the opened backends and releases the storage.
    pub(crate) async fn run(self, backend: &Backend) {
        let opened = std::mem::take(&mut *self.opened.lock().unwrap());
        for backends in opened {
            // A backend that cannot be closed was reported as stuck.
            let _ = timeout(TIMEOUT, backends.broker.close()).await;
            let _ = timeout(TIMEOUT, backends.store.close()).await;
        }
        match (self.storage, backend) {
            (Storage::Database(number), Backend::Servers { free, .. }) => {
                free.lock().unwrap().push_back(number);
            }
            (Storage::Folder(folder), _) => std::fs::remove_dir_all(folder).unwrap(),
            _ => {}
        }
    }
}

/// Connects to a backend, and lists it for closing.
pub(crate) async fn open(config: &Config, opened: &Opened) -> Backends {
    let backends = connect(config).unwrap();
    opened.lock().unwrap().push(backends.clone());
    backends.broker.connected().await;
    backends.store.connected().await;
    backends
}

async fn empty(store_url: &str) {
    let client = redis::Client::open(store_url).unwrap();
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT));
    let redis = client.get_multiplexed_async_connection_with_config(&config);
    let mut redis = redis.await.unwrap();
    redis::cmd("FLUSHDB").exec_async(&mut redis).await.unwrap();
}
