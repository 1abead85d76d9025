//! The servers as the measuring process uses them: it fills queues, and counts messages and results.

use std::env;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::bare::{self, Producer};
use crate::role::{Result, Side};

const FILLED_AT_ONCE: usize = 256;

pub(crate) struct Servers {
    _connection: Connection,
    channel: Channel,
    store: MultiplexedConnection,
}

impl Servers {
    pub(crate) async fn connect() -> Result<Self> {
        let (connection, channel) = bare::connect().await?;
        let store = bare::redis_client()?.get_multiplexed_async_connection().await?;
        Ok(Self { _connection: connection, channel, store })
    }

    /// Declares a new durable queue, and empties the store. Dramatiq declares its queues itself, with its
    /// own arguments.
    pub(crate) async fn fresh_queue(&self, side: Side) -> Result<String> {
        let name = format!("bench-{}", bare::task_id());
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        if side != Side::Dramatiq {
            self.channel
                .queue_declare(name.as_str().into(), options, FieldTable::default())
                .await?;
        }
        redis::cmd("FLUSHALL").query_async::<()>(&mut self.store.clone()).await?;
        Ok(name)
    }

    pub(crate) async fn delete(&self, queue: &str) -> Result<()> {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// Returns the number of ready messages, which no consumer holds.
    pub(crate) async fn left(&self, queue: &str) -> Result<u32> {
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(queue.into(), look, FieldTable::default()).await?;
        Ok(queue.message_count())
    }

    /// Publishes tasks to a queue in the format of a Celery client, persistent and confirmed.
    pub(crate) async fn fill(
        &self,
        queue: &str,
        count: usize,
        payload: &str,
        pause: Duration,
    ) -> Result<()> {
        let producer = Producer::connect(queue.to_owned(), false).await?;
        let pause = u64::try_from(pause.as_millis())?;
        let (producer, reply_to) = (&producer, &bare::task_id());
        let send =
            |_| async move { producer.send(&bare::task_id(), payload, pause, reply_to).await };
        stream::iter(0..count).map(send).buffer_unordered(FILLED_AT_ONCE).try_collect().await
    }

    /// Closes every connection to the servers but those of this process, the oldest ones.
    pub(crate) async fn close_connections(&self) -> Result<()> {
        let listed = control(&["list_connections", "connected_at", "pid", "--quiet"]).await?;
        let mut connections: Vec<_> =
            listed.lines().skip(1).filter_map(|line| line.split_once('\t')).collect();
        connections.sort_unstable();
        for (_, pid) in connections.into_iter().skip(1) {
            control(&["close_connection", pid, "bench", "--quiet"]).await?;
        }
        for kind in ["normal", "pubsub"] {
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL").arg("TYPE").arg(kind);
            kill.query_async::<()>(&mut self.store.clone()).await?;
        }
        Ok(())
    }

    /// Returns the number of stored results.
    pub(crate) async fn results(&self) -> Result<usize> {
        Ok(redis::cmd("DBSIZE").query_async(&mut self.store.clone()).await?)
    }

    /// Returns the number of open approval requests.
    pub(crate) async fn open_requests(&self) -> Result<usize> {
        let mut count = redis::cmd("ZCARD");
        Ok(count.arg("cs:pending:{cs}").query_async(&mut self.store.clone()).await?)
    }

    /// Returns the versions that RabbitMQ and Redis report.
    pub(crate) async fn versions(&self) -> Result<(String, String)> {
        let info: String =
            redis::cmd("INFO").arg("server").query_async(&mut self.store.clone()).await?;
        let redis = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        Ok((rabbitmq_version().await?, redis.unwrap_or("unknown").to_owned()))
    }
}

/// Runs rabbitmqctl for the broker that `ops/servers run` has started, and returns its output.
async fn control(arguments: &[&str]) -> Result<String> {
    let folder = env::var("COUNTERSIGN_TEST_FOLDER")?;
    let mut command = Command::new("ops/servers");
    command.args(["control", "--dir", &format!("{folder}/rabbit"), "--"]).args(arguments);
    let output = command.output().await?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Reads RabbitMQ's version from its first frame (`connection.start`, server-properties).
async fn rabbitmq_version() -> Result<String> {
    const FIELD: &[u8] = b"\x07versionS\0\0\0";
    let url = url::Url::parse(&env::var("COUNTERSIGN_BROKER_URL")?)?;
    let host = url.host_str().unwrap_or("localhost");
    let mut connection = TcpStream::connect((host, url.port().unwrap_or(5672))).await?;
    connection.write_all(b"AMQP\0\0\x09\x01").await?;
    let mut start = vec![0; 4096];
    let length = timeout(Duration::from_secs(5), connection.read(&mut start)).await??;
    let found = start[..length].windows(FIELD.len()).position(|window| window == FIELD);
    let version = found.and_then(|at| {
        let (length, text) = start[at + FIELD.len()..].split_first()?;
        Some(String::from_utf8_lossy(text.get(..usize::from(*length))?).into_owned())
    });
    Ok(version.unwrap_or_else(|| "unknown".to_owned()))
}
