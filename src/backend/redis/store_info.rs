//! Information about the server, its clock, and the connection pool.

use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline, Value};

use super::store::RedisStore;
use crate::backend::{PoolState, StoreInfo, StoreServer};
use crate::clock;
use crate::error::{Error, Kind};

impl StoreInfo for RedisStore {
    fn clock(&self) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(async move {
            let mut time = Pipeline::with_capacity(1);
            time.cmd("TIME");
            let replies = self.handle.send_with_retry(&time, Some).await.ok_or(Kind::Closed)?;
            let reply = replies.into_iter().next().unwrap_or(Value::Nil);
            let read = <(i64, i64)>::from_redis_value(reply).map_err(|error| {
                let what = "the reply of Redis to TIME".to_owned();
                Kind::Codec { what, cause: error.to_string() }
            });
            let (seconds, microseconds) = read?;
            Ok(seconds.saturating_mul(1000).saturating_add(microseconds / 1000))
        })
    }

    /// Reads INFO and TIME. Values that the server forbids stay empty.
    fn server(&self) -> BoxFuture<'_, Result<StoreServer, Error>> {
        Box::pin(async move {
            let before = clock::now();
            let replies = self.request_with_timeout(|_| {
                let mut query = Pipeline::with_capacity(3);
                query.cmd("TIME").cmd("INFO").arg("server").cmd("INFO").arg("memory");
                query
            });
            let mut parts = replies.await?.into_iter();
            let half = before.duration_since(clock::now()).as_millis().abs() / 2;
            let middle = i128::from(before.as_millisecond()) + half;
            let server_time =
                parts.next().map_or(middle, |time| server_millis(time).unwrap_or(middle));
            let info: String =
                parts.filter_map(|text| String::from_redis_value(text).ok()).collect();
            let field = |name| info.lines().find_map(|line| line.strip_prefix(name));
            Ok(StoreServer {
                version: field("redis_version:").unwrap_or_default().to_owned(),
                eviction: field("maxmemory_policy:").unwrap_or_default().to_owned(),
                clock_ahead: i64::try_from(server_time - middle).unwrap_or(i64::MAX),
            })
        })
    }

    fn pools(&self) -> Vec<PoolState> {
        self.pool.state().into_iter().collect()
    }
}

/// Decodes a reply to TIME, in milliseconds.
fn server_millis(time: Value) -> Option<i128> {
    let parts = Vec::<String>::from_redis_value(time).ok()?;
    let number = |n: usize| parts.get(n)?.parse::<i128>().ok();
    Some(number(0)? * 1000 + number(1)? / 1000)
}
