//! Information about a store: its server, its clock, its connection pools.

use futures_util::future::BoxFuture;

use super::{PoolState, sealed};
use crate::error::Error;

/// Version and settings that a store server reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreServer {
    /// Its version; empty when the server does not report it.
    pub version: String,
    /// Its eviction policy, for example `noeviction`; empty when the server does not report it.
    pub eviction: String,
    /// The milliseconds by which its clock is ahead of ours.
    pub clock_ahead: i64,
}

/// Reports the state of the store. A part of [`super::Store`], and sealed like it.
pub trait StoreInfo: sealed::Sealed {
    /// Returns the store's clock, in milliseconds since the epoch. Waits while the store is
    /// unreachable, without limit: drop the future to give up.
    fn clock(&self) -> BoxFuture<'_, Result<i64, Error>>;

    /// Returns version and settings of the server.
    fn server(&self) -> BoxFuture<'_, Result<StoreServer, Error>>;

    /// Returns the state of the connection pools of this process.
    fn pools(&self) -> Vec<PoolState>;
}
