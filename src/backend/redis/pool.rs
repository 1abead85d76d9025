//! The pool of connections for reads that may be large or slow: results, journals, streams, lists of
//! approvals, the audit, scans. Results, leases and notifications have connections of their own, so that
//! a reply of several MiB does not delay them.

use std::fmt;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    self, Metrics, PoolConfig, PoolError, RecycleResult, TimeoutType, Timeouts,
};
use redis::{Pipeline, Value};

use super::connection::{Connection, ConnectionHandle, RETRY_DELAY, Supervisor, is_unusable};
use super::reply::{check_replies, peer};
use crate::backend::backoff::Backoff;
use crate::backend::{PoolSettings, PoolState};
use crate::error::{Error, Kind};

/// A connection that was idle for longer is probed before it is used again.
const PROBE_AFTER: Duration = Duration::from_secs(1);

/// Makes connections and probes idle ones.
struct Connector {
    supervisor: Supervisor,
    /// The store's own connection: pooled ones must be to the same server.
    own: ConnectionHandle,
    recycle: Duration,
}

impl managed::Manager for Connector {
    type Type = Connection;
    type Error = String;

    async fn create(&self) -> Result<Connection, String> {
        let address = self.supervisor.addresses.pick().ok_or("no address is configured")?;
        self.supervisor.connect(address).await
    }

    /// Drops a connection that has failed, that is to another server than the store's own connection,
    /// or that was idle and does not reply.
    async fn recycle(&self, pooled: &mut Connection, metrics: &Metrics) -> RecycleResult<String> {
        let own = self.own.live();
        if !pooled.is_live() || own.is_some_and(|own| own.identity != pooled.identity) {
            return Err("the connection was lost".to_owned().into());
        }
        if metrics.last_used() < PROBE_AFTER {
            return Ok(());
        }
        let mut ping = Pipeline::with_capacity(1);
        ping.cmd("PING");
        let probed = pooled.send_within(self.recycle, &ping).await;
        probed.map(drop).map_err(|error| error.to_string().into())
    }
}

/// Connections for reads. They are made when they are needed.
#[derive(Clone)]
pub(super) struct ReadPool {
    /// `None`: reads share the store's own connection.
    pool: Option<managed::Pool<Connector>>,
    own: ConnectionHandle,
    shown: String,
}

impl ReadPool {
    /// `supervisor` gives the addresses and timeouts of the connections.
    pub(super) fn new(
        settings: PoolSettings,
        supervisor: Supervisor,
        own: ConnectionHandle,
    ) -> Result<Self, Error> {
        let shown = supervisor.addresses.shown();
        let timeouts = Timeouts {
            wait: Some(settings.wait),
            create: Some(supervisor.deadlines.connect),
            recycle: Some(settings.recycle),
        };
        let connector = Connector { supervisor, own: own.clone(), recycle: settings.recycle };
        let config = PoolConfig { timeouts, ..PoolConfig::new(settings.size) };
        let pool = managed::Pool::builder(connector).config(config).runtime(Runtime::Tokio1);
        let pool = pool.build().map_err(|error| Kind::Config(vec![error.to_string()]))?;
        Ok(Self { pool: (settings.size > 0).then_some(pool), own, shown })
    }

    /// Sends the commands, which must only read, until the server has replied: without a time limit
    /// while the server is unreachable.
    ///
    /// # Errors
    /// No connection became free in time; the reply is an error; the store is closed.
    pub(super) async fn read(
        &self,
        commands: impl Fn(&Connection) -> Pipeline,
    ) -> Result<Vec<Value>, Error> {
        let timeouts = self.pool.as_ref().map_or_else(Timeouts::default, managed::Pool::timeouts);
        self.read_within(timeouts, commands).await
    }

    /// As [`ReadPool::read`], but waits for a free connection without a time limit.
    pub(super) async fn read_without_limit(
        &self,
        commands: impl Fn(&Connection) -> Pipeline,
    ) -> Result<Vec<Value>, Error> {
        self.read_within(Timeouts::default(), commands).await
    }

    async fn read_within(
        &self,
        timeouts: Timeouts,
        commands: impl Fn(&Connection) -> Pipeline,
    ) -> Result<Vec<Value>, Error> {
        let mut backoff = Backoff::new(RETRY_DELAY);
        loop {
            // While the server is unreachable, its supervisor alone tries to connect.
            let own = self.own.connection().await.ok_or(Kind::Closed)?;
            let replies = match &self.pool {
                None => own.call(&commands(&own)).await.ok(),
                Some(pool) => match pool.timeout_get(&timeouts).await {
                    Ok(connection) => connection.call(&commands(&connection)).await.ok(),
                    Err(PoolError::Closed) => return Err(Kind::Closed.into()),
                    Err(error @ PoolError::Timeout(TimeoutType::Wait)) => {
                        let size = pool.status().max_size;
                        let cause = format!("{error}; all {size} are in use (store.pool_size)");
                        return Err(Kind::Connection { peer: peer(&self.shown), cause }.into());
                    }
                    // The connection could not be made, or an idle one did not reply.
                    Err(_) => None,
                },
            };
            if let Some(replies) = replies.filter(|replies| !replies.iter().any(is_unusable)) {
                return check_replies(&self.shown, Ok(replies));
            }
            backoff.wait().await;
        }
    }

    /// Reads keys with MGET, in their order. A value that is not a string counts as absent.
    pub(super) async fn get(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let replies = self.read(|_| {
            let mut get = Pipeline::with_capacity(1);
            get.cmd("MGET").arg(keys);
            get
        });
        let Some(Value::Array(values)) = replies.await?.pop() else {
            let (what, cause) =
                ("the reply of Redis to MGET".to_owned(), "it is no array".to_owned());
            return Err(Kind::Codec { what, cause }.into());
        };
        let text = |value| if let Value::BulkString(bytes) = value { Some(bytes) } else { None };
        Ok(values.into_iter().map(text).collect())
    }

    /// The connections that exist, and the reads that wait for one; `None` without a pool.
    pub(super) fn state(&self) -> Option<PoolState> {
        let status = self.pool.as_ref()?.status();
        Some(PoolState {
            name: "redis reads",
            size: status.size,
            max_size: status.max_size,
            idle: status.available,
            waiting: status.waiting,
        })
    }

    /// Closes idle connections, and fails reads that wait for one.
    pub(super) fn close(&self) {
        if let Some(pool) = &self.pool {
            pool.close();
        }
    }
}

impl fmt::Debug for ReadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadPool").field("state", &self.state()).finish_non_exhaustive()
    }
}
