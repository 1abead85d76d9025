//! Information about the store.

use futures_util::future::BoxFuture;

use super::store::EmbeddedStore;
use crate::backend::{PoolState, StoreInfo, StoreServer};
use crate::error::Error;

impl StoreInfo for EmbeddedStore {
    fn clock(&self) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(async { Ok(self.db.shared().clock.now()) })
    }

    fn server(&self) -> BoxFuture<'_, Result<StoreServer, Error>> {
        let version = format!("SQLite {}", rusqlite::version());
        let server = StoreServer { version, eviction: "noeviction".to_owned(), clock_ahead: 0 };
        Box::pin(async { Ok(server) })
    }

    fn pools(&self) -> Vec<PoolState> {
        self.db.pools()
    }
}
