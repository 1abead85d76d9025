//! The pool of channels for requests: declare, inspect, get, purge, delete, and the set-up of delayed
//! delivery. Each would otherwise open and close a channel, which takes two round trips.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, BuildError, Metrics, Object, PoolConfig, RecycleResult, Timeouts};
use lapin::{Channel, Connection};

/// A classic queue whose node is down answers only after 64 s.
pub(super) const DECLARE_DEADLINE: Duration = Duration::from_secs(10);
/// The most channels. RabbitMQ allows 2,047 for a connection by default.
const SIZE: usize = 8;

/// Opens channels on one connection.
pub(super) struct Opener {
    connection: Arc<Connection>,
}

impl managed::Manager for Opener {
    type Type = Channel;
    type Error = lapin::Error;

    async fn create(&self) -> Result<Channel, lapin::Error> {
        self.connection.create_channel().await
    }

    async fn recycle(&self, channel: &mut Channel, _: &Metrics) -> RecycleResult<lapin::Error> {
        if channel.status().connected() {
            return Ok(());
        }
        Err(managed::RecycleError::message("the channel is closed"))
    }
}

/// The channels of one connection. They are opened when they are needed.
#[derive(Clone)]
pub(super) struct ChannelPool(managed::Pool<Opener>);

impl ChannelPool {
    pub(super) fn new(connection: Arc<Connection>) -> Result<Self, BuildError> {
        let limit = Some(DECLARE_DEADLINE);
        let timeouts = Timeouts { wait: limit, create: limit, recycle: None };
        let config = PoolConfig { timeouts, ..PoolConfig::new(SIZE) };
        let pool = managed::Pool::builder(Opener { connection }).config(config);
        pool.runtime(Runtime::Tokio1).build().map(Self)
    }

    /// Takes a channel. Waits for at most ten seconds, until one is free or open.
    pub(super) async fn take(&self) -> Result<BorrowedChannel, String> {
        let pooled = self.0.get().await.map_err(|error| error.to_string())?;
        Ok(BorrowedChannel { channel: Channel::clone(&pooled), pooled: Some(pooled) })
    }
}

impl fmt::Debug for ChannelPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChannelPool").field(&self.0.status()).finish()
    }
}

/// A channel that only its owner uses. It is closed when it is dropped: after an error, and when a
/// request was given up before its reply.
pub(super) struct BorrowedChannel {
    pub(super) channel: Channel,
    /// Taken when the channel is put back.
    pooled: Option<Object<Opener>>,
}

impl BorrowedChannel {
    /// Puts the channel back, after every request on it was answered without an error.
    pub(super) fn put_back(mut self) {
        drop(self.pooled.take());
    }
}

impl Drop for BorrowedChannel {
    fn drop(&mut self) {
        drop(self.pooled.take().map(Object::take));
    }
}
