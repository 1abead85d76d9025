//! The backends that the battery is run on, and how each gives every promise data of its own.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use countersign::Config;
use countersign::backend::{Backends, Capability, connect};
use redis::AsyncConnectionConfig;
use support::{Server, servers};
use tokio::time::timeout;

use crate::ground::{Ground, PATIENCE};

/// What Redis has unless it is told otherwise.
const DATABASES: u8 = 16;

/// A backend to stand on.
pub(crate) enum Land {
    /// A database in memory: each that is opened is a new one.
    Memory,
    /// A database in a folder of each promise's own.
    File,
    /// The run's RabbitMQ, and a Redis of our own: each promise has one of its databases.
    Servers { redis: Box<Server>, free: Mutex<VecDeque<u8>> },
}

/// What was given to one promise, to be tidied up after it.
pub(crate) struct Lot {
    opened: Opened,
    place: Place,
}

/// What is there only for this promise, beside what it has opened.
enum Place {
    Nowhere,
    Folder(PathBuf),
    Database(u8),
}

/// All that one promise has opened.
pub(crate) type Opened = Arc<Mutex<Vec<Backends>>>;

impl Land {
    pub(crate) async fn servers() -> Self {
        let (redis, free) = (Server::redis().await, (0..DATABASES).collect());
        Self::Servers { redis: Box::new(redis), free: Mutex::new(free) }
    }

    /// What the backend says of itself.
    pub(crate) async fn lacks(&self) -> &'static [Capability] {
        let (config, lot) = self.lot().await;
        let backends = open(&config, &lot.opened).await;
        lot.give_back(self).await;
        backends.lacks
    }

    /// A place with nothing on it.
    pub(crate) async fn ground(&self) -> (Ground, Lot) {
        let (config, lot) = self.lot().await;
        (Ground::on(config, Arc::clone(&lot.opened)).await, lot)
    }

    async fn lot(&self) -> (Config, Lot) {
        let (config, place) = match self {
            Self::Memory => (Config::embedded("sqlite::memory:"), Place::Nowhere),
            Self::File => {
                let folder = std::env::temp_dir().join(support::queue_name());
                std::fs::create_dir(&folder).unwrap();
                let url = format!("sqlite:{}/conformance.db", folder.display());
                (Config::embedded(&url), Place::Folder(folder))
            }
            Self::Servers { redis, free } => {
                let number = free.lock().unwrap().pop_front().expect("fewer promises at once");
                let url = redis.url().trim_end_matches('0').to_owned() + &number.to_string();
                empty(&url).await;
                (Config::new(&servers().broker_url, &url), Place::Database(number))
            }
        };
        // A machine with much to do breaks no promise.
        let (connect_timeout, command_timeout) = (PATIENCE / 3, PATIENCE / 3);
        let config = Config { connect_timeout, command_timeout, ..config.unwrap() };
        (config, Lot { opened: Opened::default(), place })
    }
}

impl Lot {
    /// Closes what was opened there, and tidies up.
    pub(crate) async fn give_back(self, land: &Land) {
        let opened = std::mem::take(&mut *self.opened.lock().unwrap());
        for backends in opened {
            // What cannot be closed was reported as stuck.
            let _ = timeout(PATIENCE, backends.broker.close()).await;
            let _ = timeout(PATIENCE, backends.store.close()).await;
        }
        match (self.place, land) {
            (Place::Database(number), Land::Servers { free, .. }) => {
                free.lock().unwrap().push_back(number);
            }
            (Place::Folder(folder), _) => std::fs::remove_dir_all(folder).unwrap(),
            _ => {}
        }
    }
}

/// Connects, and notes that it is to be closed.
pub(crate) async fn open(config: &Config, opened: &Opened) -> Backends {
    let backends = connect(config).unwrap();
    opened.lock().unwrap().push(backends.clone());
    backends.broker.connected().await;
    backends.store.connected().await;
    backends
}

async fn empty(store_url: &str) {
    let client = redis::Client::open(store_url).unwrap();
    let patient = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    let redis = client.get_multiplexed_async_connection_with_config(&patient);
    let mut redis = redis.await.unwrap();
    redis::cmd("FLUSHDB").exec_async(&mut redis).await.unwrap();
}
