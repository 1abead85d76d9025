//! One supervised connection to Redis: the supervisor connects in the background, probes, drops the
//! connection at the first failure and reconnects.
//!
//! A command that exceeds its deadline drops the connection. redis-rs would supervise such a connection
//! forever.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, PushInfo, PushKind, RedisError, ServerError, Value};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::address::{Address, Addresses};
use super::script::{Script, Scripts};
use crate::backend::backoff::Backoff;

/// The first delay before a failed operation is retried.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(50);
const LIVENESS_PERIOD: Duration = Duration::from_secs(5);
const LIVENESS_DEADLINE: Duration = Duration::from_secs(5);

/// Timeouts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) connect: Duration,
    pub(super) command: Duration,
}

/// Receives the server's push messages. Called on the connection's own task: it must not block.
pub(super) type PushHandler = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// A handle to the supervised connection.
#[derive(Clone, Debug)]
pub(super) struct ConnectionHandle {
    connections: watch::Receiver<Option<Connection>>,
    /// Why the latest attempt to connect failed.
    failed: Arc<Mutex<Option<String>>>,
}

/// One live connection. It is used until its first failure.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    connection: MultiplexedConnection,
    broken: CancellationToken,
    deadline: Duration,
    /// Identifies the data set. It changes when the server restarts or another server replaces it.
    pub(super) identity: Arc<str>,
    /// The server's id of this connection, if the server reports it.
    pub(super) client: Option<i64>,
    /// The scripts in the form that this server accepts.
    scripts: &'static Scripts,
}

/// Connects and reconnects until `closing` is cancelled.
pub(super) struct Supervisor {
    pub(super) addresses: Addresses,
    pub(super) deadlines: Deadlines,
    pub(super) closing: CancellationToken,
    pub(super) pushes: Option<PushHandler>,
    /// Log when the server is lost and found. One connection of a store does.
    pub(super) log_changes: bool,
}

impl ConnectionHandle {
    /// Waits for a live connection. Returns `None` when the supervisor is closed.
    pub(super) async fn connection(&self) -> Option<Connection> {
        let live =
            |connection: &Option<Connection>| connection.as_ref().is_some_and(Connection::is_live);
        if let Some(connection) = self.live() {
            return Some(connection);
        }
        self.connections.clone().wait_for(live).await.ok()?.clone()
    }

    /// The connection that is live right now.
    pub(super) fn live(&self) -> Option<Connection> {
        self.connections.borrow().as_ref().filter(|connection| connection.is_live()).cloned()
    }

    /// Whether a connection is live right now.
    pub(super) fn is_live(&self) -> bool {
        self.live().is_some()
    }

    /// Why the latest attempt to connect failed; `None` if it succeeded.
    pub(super) fn connect_error(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Completes when the supervisor has ended: there is no connection and there will be none.
    pub(super) async fn closed(&self) {
        let mut connections = self.connections.clone();
        while connections.changed().await.is_ok() {}
    }

    /// Sends the commands until the server has replied and `decode` accepts the replies: without a time
    /// limit. Returns `None` when the supervisor is closed. Cancel safe.
    pub(super) async fn send_with_retry<T>(
        &self,
        commands: &Pipeline,
        decode: impl Fn(Vec<Value>) -> Option<T>,
    ) -> Option<T> {
        let mut backoff = Backoff::new(RETRY_DELAY);
        loop {
            let replies = self.connection().await?.send(commands).await;
            if let Some(decoded) = replies.ok().and_then(&decode) {
                return Some(decoded);
            }
            backoff.wait().await;
        }
    }

    /// Waits for the next connection. Returns `None` when the supervisor is closed. Cancel safe.
    pub(super) async fn changed(&mut self) -> Option<Connection> {
        loop {
            self.connections.changed().await.ok()?;
            if let Some(connection) = self.connections.borrow_and_update().clone() {
                return Some(connection);
            }
        }
    }
}

impl Connection {
    pub(super) fn is_live(&self) -> bool {
        !self.broken.is_cancelled()
    }

    /// The timeout of a command.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Drops this connection; the supervisor makes a new one.
    pub(super) fn discard(&self) {
        self.broken.cancel();
    }

    /// Runs a pipeline. Server errors are returned as values. Any other error discards the connection,
    /// and so does a reply that says that the server is unusable.
    pub(super) async fn send(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        self.send_within(self.deadline, commands).await
    }

    /// As [`Connection::send`], with a different timeout.
    pub(super) async fn send_within(
        &self,
        d: Duration,
        commands: &Pipeline,
    ) -> Result<Vec<Value>, RedisError> {
        let mut connection = self.connection.clone();
        let reply = connection.send_packed_commands(commands, 0, commands.len());
        let reply = self.guard(timeout(d, reply).await);
        if reply.iter().flatten().any(is_unusable) {
            self.discard();
        }
        reply
    }

    /// Subscribes. Returns when the server has confirmed every channel.
    pub(super) async fn subscribe(&self, channels: &[String]) -> Result<(), RedisError> {
        let mut connection = self.connection.clone();
        self.guard(timeout(self.deadline, connection.subscribe(channels)).await)
    }

    /// Unsubscribes. Returns when the server has confirmed every channel.
    pub(super) async fn unsubscribe(&self, channels: &[String]) -> Result<(), RedisError> {
        let mut connection = self.connection.clone();
        self.guard(timeout(self.deadline, connection.unsubscribe(channels)).await)
    }

    /// Loads all scripts on the server.
    pub(super) async fn load_scripts(&self) -> Result<(), RedisError> {
        let replies = self.send(&self.scripts.load()).await?;
        let connect_failure = replies.into_iter().find_map(|reply| match reply {
            Value::ServerError(error) => Some(error),
            _ => None,
        });
        connect_failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Runs a pipeline that calls scripts. If the server has lost the scripts (`SCRIPT FLUSH`), loads
    /// them and runs the whole pipeline again: its other commands must be idempotent.
    pub(super) async fn call(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let replies = self.send(commands).await?;
        let is_lost = |reply: &Value| matches!(reply, Value::ServerError(error) if error.code() == "NOSCRIPT");
        if !replies.iter().any(is_lost) {
            return Ok(replies);
        }
        self.load_scripts().await?;
        self.send(commands).await
    }

    /// The SHA-1 by which `EVALSHA` names a script.
    pub(super) fn hash(&self, script: Script) -> &'static str {
        self.scripts.hash(script)
    }

    fn guard<T>(
        &self,
        reply: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
    ) -> Result<T, RedisError> {
        let reply = reply.unwrap_or_else(|_| Err(std::io::Error::from(TIMED_OUT).into()));
        // A server error leaves the connection usable.
        if reply.as_ref().is_err_and(|error| error.code().is_none()) {
            self.discard();
        }
        reply
    }
}

const TIMED_OUT: std::io::ErrorKind = std::io::ErrorKind::TimedOut;

/// Whether this reply requires another connection, possibly to another server.
pub(super) fn is_unusable(value: &Value) -> bool {
    matches!(value, Value::ServerError(error)
        if matches!(error.code(), "READONLY" | "LOADING" | "BUSY" | "MASTERDOWN" | "NOAUTH"))
}

/// Whether the same call may succeed later.
pub(super) fn is_transient(error: &ServerError) -> bool {
    matches!(
        error.code(),
        "OOM"
            | "READONLY"
            | "LOADING"
            | "BUSY"
            | "MASTERDOWN"
            | "NOREPLICAS"
            | "MISCONF"
            | "TRYAGAIN"
            | "CLUSTERDOWN"
            | "NOPERM"
            | "NOAUTH"
    )
}

impl Supervisor {
    /// Starts the supervisor in the background.
    pub(super) fn start(self) -> ConnectionHandle {
        let (publish, connections) = watch::channel(None);
        let failed = Arc::<Mutex<_>>::default();
        let handle = ConnectionHandle { connections, failed: Arc::clone(&failed) };
        tokio::spawn(async move {
            let closing = self.closing.clone();
            closing.run_until_cancelled(self.supervise(&publish, &failed)).await;
            // The channel would supervise the last connection open.
            publish.send_replace(None);
        });
        handle
    }

    async fn supervise(
        &self,
        publish: &watch::Sender<Option<Connection>>,
        failed: &Mutex<Option<String>>,
    ) {
        let set_failed = |why| *failed.lock().unwrap_or_else(PoisonError::into_inner) = why;
        let mut backoff = Backoff::new(RETRY_DELAY);
        let mut lost = false;
        loop {
            let Some(address) = self.addresses.pick() else {
                return;
            };
            match self.connect(address).await {
                Ok(connection) => {
                    self.log_connected(address, lost);
                    set_failed(None);
                    // The server answered, so the next loss starts with a fresh backoff.
                    backoff = Backoff::new(RETRY_DELAY);
                    publish.send_replace(Some(connection.clone()));
                    connection.watch().await;
                    publish.send_replace(None);
                    lost = false;
                }
                Err(cause) => {
                    self.log_failure(address, &cause, lost);
                    set_failed(Some(cause));
                    lost = true;
                }
            }
            backoff.wait().await;
        }
    }

    /// Makes one attempt to connect. The error is a text for users.
    pub(super) async fn connect(&self, address: &Address) -> Result<Connection, String> {
        let broken = CancellationToken::new();
        let (lost, pushes) = (broken.clone(), self.pushes.clone());
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.deadlines.connect))
            .set_response_timeout(None)
            .set_push_sender(move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    lost.cancel();
                } else if let Some(handle) = &pushes {
                    handle(push);
                }
                Ok::<(), std::convert::Infallible>(())
            });
        let connecting = address.client.get_multiplexed_async_connection_with_config(&config);
        let connection = timeout(self.deadlines.connect, connecting)
            .await
            .map_err(|_| format!("no connection within {:?}", self.deadlines.connect))?
            .map_err(|error| connect_failure(&error))?;
        let (identity, client, scripts) = ("".into(), None, Scripts::of_version(None));
        let deadline = self.deadlines.command;
        let connection = Connection { connection, broken, deadline, identity, client, scripts };
        connection.handshake().await
    }

    fn log_failure(&self, address: &Address, cause: &str, is_repeated: bool) {
        if self.log_changes && !is_repeated {
            let hosts = self.addresses.shown();
            warn!(url = address.shown, cause, hosts, "cannot connect to Redis; retrying");
        } else {
            debug!(url = address.shown, cause, "cannot connect to Redis");
        }
    }

    fn log_connected(&self, address: &Address, lost: bool) {
        if self.log_changes && lost {
            info!(url = address.shown, "reconnected to Redis");
        } else {
            debug!(url = address.shown, "connected to Redis");
        }
    }
}

impl Connection {
    /// Reads the server's identity, refuses a replica, and loads the scripts.
    async fn handshake(mut self) -> Result<Self, String> {
        let mut who = Pipeline::with_capacity(4);
        who.cmd("INFO").arg("server").cmd("INFO").arg("replication").cmd("CLIENT").arg("ID");
        // Every user may send HELLO; RESP3 requires it.
        who.cmd("HELLO");
        let replies = self.send(&who).await.map_err(|error| error.to_string())?;
        let mut info = String::new();
        for reply in replies {
            match reply {
                Value::Int(id) => self.client = Some(id),
                // INFO may be forbidden. Then the role is unknown and the server is accepted.
                Value::ServerError(error) if error.code() == "NOPERM" => {}
                Value::ServerError(error) => return Err(RedisError::from(error).to_string()),
                Value::Map(hello) => refuse_mode(&hello)?,
                other => {
                    info.push_str(&redis::from_redis_value::<String>(other).unwrap_or_default())
                }
            }
        }
        let field = |name| info.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        if field("role:") == "slave" {
            return Err("this server is a read-only replica".to_owned());
        }
        self.identity = format!("{} {}", field("run_id:"), field("master_replid:")).into();
        let major = field("redis_version:").split('.').next().and_then(|v| v.parse::<u32>().ok());
        self.scripts = Scripts::of_version(major);
        self.load_scripts().await.map_err(|error| error.to_string())?;
        Ok(self)
    }

    /// Pings the server, and returns when this connection is broken.
    async fn watch(&self) {
        let ping = {
            let mut ping = Pipeline::with_capacity(1);
            ping.cmd("PING");
            ping
        };
        let probe = async {
            loop {
                tokio::time::sleep(LIVENESS_PERIOD).await;
                // A failure discards the connection, which ends this loop.
                let _ = self.send_within(LIVENESS_DEADLINE, &ping).await;
            }
        };
        self.broken.run_until_cancelled(probe).await;
    }
}

/// Explains why connecting failed. Names a connect_failure login.
fn connect_failure(error: &RedisError) -> String {
    match error.code() {
        Some("NOAUTH") => format!("a password is needed: {error}"),
        Some("WRONGPASS") => format!("the user name or the password is wrong: {error}"),
        _ if error.kind() == redis::ErrorKind::AuthenticationFailed => {
            format!("the user name or the password is wrong: {error}")
        }
        _ => error.to_string(),
    }
}

/// Refuses a cluster, where the keys of a script may be on different nodes, and a Sentinel, which
/// stores no keys.
fn refuse_mode(hello: &[(Value, Value)]) -> Result<(), String> {
    let text = |value: &Value| redis::from_redis_value_ref::<String>(value).unwrap_or_default();
    let mode = hello.iter().find(|(name, _)| text(name) == "mode").map(|(_, mode)| text(mode));
    match mode.as_deref() {
        Some("cluster") => {
            Err("this server is a node of a Redis Cluster, which is not supported: use \
                                one with cluster-enabled no"
                .to_owned())
        }
        Some("sentinel") => {
            Err("this server is a Sentinel: give the address of the primary, or of a \
                                 proxy that follows it"
                .to_owned())
        }
        _ => Ok(()),
    }
}

/// Formats a server error for users.
pub(super) fn error_text(error: &ServerError) -> String {
    format!("{}: {}", error.code(), error.details().unwrap_or_default())
}
