//! One request to the server and its reply.

use futures_util::future::BoxFuture;
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
        let reading = Box::pin(async move { timeout(limit, pool.read(commands)).await });
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
        let (handle, limit) = (self.handle.clone(), self.request_timeout);
        // Boxed, because an argument of an async function takes its size several times.
        let request = Box::pin(async move {
            if let Some(connection) = handle.live() {
                // The deadlines of its commands are within the limit.
                let commands = commands(&connection);
                return Ok(Ok(connection.call(&commands).await));
            }
            let request = async {
                let connection = handle.connection().await.ok_or(Kind::Closed)?;
                let commands = commands(&connection);
                Ok::<_, Error>(connection.call(&commands).await)
            };
            timeout(limit, request).await
        });
        match self.on_runtime(request).await? {
            Ok(replies) => check_replies(&self.shown, replies?),
            Err(_) => {
                let cause = format!("no reply within {} s", limit.as_secs_f64());
                Err(Kind::Connection { peer: peer(&self.shown), cause }.into())
            }
        }
    }

    /// Runs `work` on the store's own runtime: without another task if the caller already runs there.
    async fn on_runtime<T: Send + 'static>(&self, work: BoxFuture<'static, T>) -> Result<T, Error> {
        if Handle::try_current().is_ok_and(|current| current.id() == self.runtime.id()) {
            return Ok(work.await);
        }
        self.runtime.spawn(work).await.map_err(|_| Kind::Closed.into())
    }
}
