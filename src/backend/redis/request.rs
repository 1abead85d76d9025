//! One request to the server and its reply.

use redis::{Pipeline, Value};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::connection::Connection;
use super::reply::{check_replies, peer};
use super::store::RedisStore;
use crate::error::{Error, Kind};

impl RedisStore {
    /// Sends the commands once. Waits for a connection without a limit. A server error is returned as
    /// an error; the caller may retry.
    pub(super) async fn request(
        &self,
        commands: impl FnOnce(&Connection) -> Pipeline,
    ) -> Result<Vec<Value>, Error> {
        let connection = self.handle.connection().await.ok_or(Kind::Closed)?;
        let commands = commands(&connection);
        check_replies(&self.shown, connection.call(&commands).await)
    }

    /// Sends commands that only read, on a pooled connection, until the server has answered; within the
    /// store's timeout. Runs on the store's own runtime.
    pub(super) async fn read_with_timeout(
        &self,
        commands: impl Fn(&Connection) -> Pipeline + Send + Sync + 'static,
    ) -> Result<Vec<Value>, Error> {
        let (pool, limit) = (self.pool.clone(), self.request_timeout);
        let reading = async move { timeout(limit, pool.read(commands)).await };
        let read = self.on_runtime(reading).await?;
        let cause = format!("no reply within {} s", limit.as_secs_f64());
        read.map_err(|_| Kind::Connection { peer: peer(&self.shown), cause })?
    }

    /// Sends the commands once, within the store's timeout. Runs on the store's own runtime, because
    /// the caller's may be another one.
    pub(super) async fn request_with_timeout(
        &self,
        commands: impl FnOnce(&Connection) -> Pipeline + Send + 'static,
    ) -> Result<Vec<Value>, Error> {
        let (handle, request_timeout) = (self.handle.clone(), self.request_timeout);
        let request = async move {
            let connection = handle.connection().await.ok_or(Kind::Closed)?;
            let commands = commands(&connection);
            Ok::<_, Error>(connection.call(&commands).await)
        };
        let outcome = self.on_runtime(async move { timeout(request_timeout, request).await });
        let cause = format!("no reply within {} s", request_timeout.as_secs_f64());
        match outcome.await? {
            Ok(replies) => check_replies(&self.shown, replies?),
            Err(_) => Err(Kind::Connection { peer: peer(&self.shown), cause }.into()),
        }
    }

    /// Runs `work` on the store's own runtime: without another task if the caller already runs there.
    async fn on_runtime<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        if Handle::try_current().is_ok_and(|current| current.id() == self.runtime.id()) {
            return Ok(work.await);
        }
        self.runtime.spawn(work).await.map_err(|_| Kind::Closed.into())
    }
}
