//! The backends, and the clock of each.

use std::sync::Arc;
use std::time::Duration;

use countersign::Config;
use countersign::backend::{Backends, Store, connect};
use redis::aio::MultiplexedConnection;
use support::{Server, servers};

/// Moves every stored time back, and lets keys expire, as if the server's clock had been set forward.
const AGE: &str = "
local by = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', 'cs:*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then
    for _, field in ipairs({ 'at', 'deadline', 'until', 'alarm' }) do
      local time = tonumber(redis.call('HGET', key, field) or '0')
      if time > 0 then
        redis.call('HSET', key, field, string.format('%.0f', time - by))
      end
    end
  elseif kind == 'zset' then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZINCRBY', key, string.format('%.0f', -by), member)
    end
  end
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= by then
    redis.call('DEL', key)
  elseif left > 0 then
    redis.call('PEXPIRE', key, string.format('%.0f', left - by))
  end
end";

/// The clock of a store.
pub(crate) enum Clock {
    /// The clock of the runtime, which is paused.
    Runtime,
    /// Redis's clock cannot move, so the stored times move instead.
    Redis(MultiplexedConnection),
}

impl Clock {
    pub(crate) async fn pass(&mut self, time: i64) {
        match self {
            Self::Runtime => {
                tokio::time::advance(Duration::from_millis(time.unsigned_abs())).await;
            }
            Self::Redis(redis) => {
                redis::cmd("EVAL").arg(AGE).arg(0).arg(time).exec_async(redis).await.unwrap();
            }
        }
    }
}

/// An empty store and its clock.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Clock,
}

pub(crate) fn in_memory() -> Fixture {
    let Backends { store, .. } = connect(&Config::embedded("sqlite::memory:").unwrap()).unwrap();
    Fixture { store, clock: Clock::Runtime }
}

/// Opens a store on this server. It is emptied before each sequence.
pub(crate) async fn redis(server: &Server) -> Fixture {
    let config = Config::new(&servers().broker_url, server.url()).unwrap();
    let Backends { store, .. } = connect(&config).unwrap();
    store.connected().await;
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    Fixture { store, clock: Clock::Redis(connection) }
}

/// Deletes all data of the store.
pub(crate) async fn empty(fixture: &mut Fixture) {
    match &mut fixture.clock {
        Clock::Runtime => *fixture = in_memory(),
        Clock::Redis(redis) => redis::cmd("FLUSHDB").exec_async(redis).await.unwrap(),
    }
}
