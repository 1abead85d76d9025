//! Settings and state of a pool of connections.

use std::time::Duration;

use serde::Serialize;

use crate::config::Config;

/// The number of connections of a pool, and of the requests that wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PoolState {
    /// The name of the pool.
    pub name: &'static str,
    /// The connections that exist.
    pub size: usize,
    /// The most connections.
    pub max_size: usize,
    /// The existing connections that no request uses.
    pub idle: usize,
    /// The requests that wait for a connection.
    pub waiting: usize,
}

/// The size and the timeouts of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolSettings {
    /// The most connections. With 0, reads of Redis share the store's own connection.
    pub(crate) size: usize,
    /// How long a read waits for a free connection.
    pub(crate) wait: Duration,
    /// How long the probe of an idle connection may take.
    pub(crate) recycle: Duration,
}

impl PoolSettings {
    pub(in crate::backend) fn of(config: &Config) -> Self {
        Self {
            size: config.pool_size.into(),
            wait: config.pool_wait_timeout,
            recycle: config.pool_recycle_timeout,
        }
    }
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self { size: 16, wait: Duration::from_secs(5), recycle: Duration::from_secs(1) }
    }
}
