//! One connection to Redis that is always being kept up: made in the background, probed, dropped
//! at the first doubt, made again.
//!
//! A connection that answers late is as bad as one that is gone: a call that passes its deadline
//! drops it. redis-rs would keep such a connection for ever.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, PushInfo, PushKind, RedisError, ServerError, Value};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::address::{Address, Addresses};

const HEADER_LINE: &str = "#!lua\n";
const FINISH: &str = include_str!("finish.lua");
const LIVENESS_PERIOD: Duration = Duration::from_secs(5);
const LIVENESS_DEADLINE: Duration = Duration::from_secs(5);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    pub(super) connect: Duration,
    pub(super) command: Duration,
}

/// Takes what the server pushes. Called on the connection's own task: it must not block.
pub(super) type PushHandler = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// The way to a connection that is up.
#[derive(Clone, Debug)]
pub(super) struct Link {
    sessions: watch::Receiver<Option<Session>>,
    /// Why the latest attempt to connect failed.
    failed: Arc<Mutex<Option<String>>>,
}

/// One connection, from its making until the first doubt.
#[derive(Clone, Debug)]
pub(super) struct Session {
    connection: MultiplexedConnection,
    broken: CancellationToken,
    deadline: Duration,
    /// Which data set this is: changes when the server restarts or another takes its place.
    pub(super) identity: Arc<str>,
    /// By what name the server knows the connection, if it says so.
    pub(super) client: Option<i64>,
    /// The finish script, as this server wants it.
    script: Arc<str>,
    /// The hash by which the server knows the script.
    pub(super) finish: Arc<str>,
}

/// Makes and keeps the connection; ends when `closing` is cancelled.
pub(super) struct Keeper {
    pub(super) addresses: Addresses,
    pub(super) deadlines: Deadlines,
    pub(super) closing: CancellationToken,
    pub(super) pushes: Option<PushHandler>,
    /// Say on the log when the server is lost and found. One link of a store does.
    pub(super) outspoken: bool,
}

impl Link {
    /// The connection, as soon as there is one. `None`: closed.
    pub(super) async fn session(&self) -> Option<Session> {
        let live = |session: &Option<Session>| session.as_ref().is_some_and(Session::is_live);
        if let Some(session) = self.sessions.borrow().as_ref().filter(|s| s.is_live()) {
            return Some(session.clone());
        }
        self.sessions.clone().wait_for(live).await.ok()?.clone()
    }

    /// There is a connection right now.
    pub(super) fn is_live(&self) -> bool {
        self.sessions.borrow().as_ref().is_some_and(Session::is_live)
    }

    /// Why the latest attempt to connect failed, unless it succeeded.
    pub(super) fn connect_error(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Completes when there is no connection, and none will be made.
    pub(super) async fn gone(&self) {
        let mut sessions = self.sessions.clone();
        while sessions.changed().await.is_ok() {}
    }

    /// The connection after `last`, once it has changed. Cancel safe.
    pub(super) async fn changed(&mut self) -> Option<Session> {
        loop {
            self.sessions.changed().await.ok()?;
            if let Some(session) = self.sessions.borrow_and_update().clone() {
                return Some(session);
            }
        }
    }
}

impl Session {
    fn is_live(&self) -> bool {
        !self.broken.is_cancelled()
    }

    /// How long a command may take.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Drops this connection, so that another is made.
    pub(super) fn discard(&self) {
        self.broken.cancel();
    }

    /// Runs a pipeline. Server errors are in the values; any other error, and any answer that
    /// says that this server is of no use now, has discarded the session.
    pub(super) async fn send(&self, commands: &Pipeline) -> Result<Vec<Value>, RedisError> {
        self.send_within(self.deadline, commands).await
    }

    /// The same, for commands that may take longer than others.
    pub(super) async fn send_within(
        &self,
        d: Duration,
        commands: &Pipeline,
    ) -> Result<Vec<Value>, RedisError> {
        let mut connection = self.connection.clone();
        let answer = connection.send_packed_commands(commands, 0, commands.len());
        let answer = self.guard(timeout(d, answer).await);
        if answer.iter().flatten().any(says_useless) {
            self.discard();
        }
        answer
    }

    /// Subscribes, and returns when every channel is confirmed.
    pub(super) async fn subscribe(&self, channels: &[String]) -> Result<(), RedisError> {
        let mut connection = self.connection.clone();
        self.guard(timeout(self.deadline, connection.subscribe(channels)).await)
    }

    /// Unsubscribes, and returns when every channel is confirmed.
    pub(super) async fn unsubscribe(&self, channels: &[String]) -> Result<(), RedisError> {
        let mut connection = self.connection.clone();
        self.guard(timeout(self.deadline, connection.unsubscribe(channels)).await)
    }

    /// Reads keys, in their order; what is not text is as good as absent.
    pub(super) async fn read(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, RedisError> {
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("MGET").arg(keys);
        match self.send(&commands).await?.pop() {
            Some(Value::Array(values)) => Ok(values.into_iter().map(text).collect()),
            Some(Value::ServerError(error)) => Err(error.into()),
            _ => Err((redis::ErrorKind::UnexpectedReturnType, "MGET gave no array").into()),
        }
    }

    /// Gives the server the finish script again.
    pub(super) async fn load_finish(&self) -> Result<(), RedisError> {
        self.send(&script_load(&self.script)).await.map(drop)
    }

    /// Gives the server these scripts.
    pub(super) async fn load(&self, scripts: &[&'static str]) -> Result<(), RedisError> {
        let mut load = Pipeline::with_capacity(scripts.len());
        for script in scripts {
            load.cmd("SCRIPT").arg("LOAD").arg(self.script(script));
        }
        self.send(&load).await.map(drop)
    }

    /// A script as this server wants it: before Redis 7 a script had no header line.
    pub(super) fn script(&self, text: &'static str) -> &'static str {
        if self.script.starts_with(HEADER_LINE) {
            text
        } else {
            text.trim_start_matches(HEADER_LINE)
        }
    }

    fn guard<T>(
        &self,
        answer: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
    ) -> Result<T, RedisError> {
        let answer = answer.unwrap_or_else(|_| Err(std::io::Error::from(TIMED_OUT).into()));
        // A refusal in so many words leaves the connection as it was.
        if answer.as_ref().is_err_and(|error| error.code().is_none()) {
            self.discard();
        }
        answer
    }
}

const TIMED_OUT: std::io::ErrorKind = std::io::ErrorKind::TimedOut;

/// Answers after which only another connection, perhaps to another server, can help.
fn says_useless(value: &Value) -> bool {
    matches!(value, Value::ServerError(error)
        if matches!(error.code(), "READONLY" | "LOADING" | "BUSY" | "MASTERDOWN" | "NOAUTH"))
}

/// Answers after which the same call may succeed later.
pub(super) fn passes(error: &ServerError) -> bool {
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

fn text(value: Value) -> Option<Vec<u8>> {
    if let Value::BulkString(bytes) = value { Some(bytes) } else { None }
}

impl Keeper {
    /// Starts keeping a connection up, in the background.
    pub(super) fn start(self) -> Link {
        let (publish, sessions) = watch::channel(None);
        let failed = Arc::<Mutex<_>>::default();
        let link = Link { sessions, failed: Arc::clone(&failed) };
        tokio::spawn(async move {
            let closing = self.closing.clone();
            closing.run_until_cancelled(self.keep(&publish, &failed)).await;
            // The channel would keep the last connection open.
            publish.send_replace(None);
        });
        link
    }

    async fn keep(&self, publish: &watch::Sender<Option<Session>>, failed: &Mutex<Option<String>>) {
        let set_failed = |why| *failed.lock().unwrap_or_else(PoisonError::into_inner) = why;
        let mut backoff = Backoff::default();
        let mut lost = false;
        loop {
            let Some(address) = self.addresses.pick() else {
                return;
            };
            match self.connect(address).await {
                Ok(session) => {
                    self.say_found(address, lost);
                    set_failed(None);
                    // It has answered: the next loss is another story.
                    backoff = Backoff::default();
                    publish.send_replace(Some(session.clone()));
                    session.outlive().await;
                    publish.send_replace(None);
                    lost = false;
                }
                Err(cause) => {
                    self.say_lost(address, &cause, lost);
                    set_failed(Some(cause));
                    lost = true;
                }
            }
            backoff.wait().await;
        }
    }

    /// One attempt. The error is for people.
    pub(super) async fn connect(&self, address: &Address) -> Result<Session, String> {
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
            .map_err(|error| refused(&error))?;
        let (identity, script, finish) = ("".into(), FINISH.into(), "".into());
        let deadline = self.deadlines.command;
        let client = None;
        let session = Session { connection, broken, deadline, identity, client, script, finish };
        session.introduced().await
    }

    fn say_lost(&self, address: &Address, cause: &str, said: bool) {
        if self.outspoken && !said {
            let hosts = self.addresses.shown();
            warn!(url = address.shown, cause, hosts, "Redis is not reachable; trying on");
        } else {
            debug!(url = address.shown, cause, "Redis is not reachable");
        }
    }

    fn say_found(&self, address: &Address, lost: bool) {
        if self.outspoken && lost {
            info!(url = address.shown, "Redis is back");
        } else {
            debug!(url = address.shown, "connected to Redis");
        }
    }
}

impl Session {
    /// Asks who the server is, refuses a replica, and loads the script.
    async fn introduced(mut self) -> Result<Self, String> {
        let mut who = Pipeline::with_capacity(4);
        who.cmd("INFO").arg("server").cmd("INFO").arg("replication").cmd("CLIENT").arg("ID");
        // Every user may say HELLO, without which there is no RESP3.
        who.cmd("HELLO");
        let answers = self.send(&who).await.map_err(|error| error.to_string())?;
        let mut info = String::new();
        for answer in answers {
            match answer {
                Value::Int(id) => self.client = Some(id),
                // INFO may be forbidden: then nothing is known, and nothing is refused.
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
        if major.is_some_and(|major| major < 7) {
            // Before Redis 7 a script had no header line.
            self.script = FINISH.trim_start_matches(HEADER_LINE).into();
        }
        let loaded = self.send(&script_load(&self.script)).await.map_err(|e| e.to_string())?;
        match loaded.into_iter().next() {
            Some(Value::ServerError(error)) => Err(RedisError::from(error).to_string()),
            Some(hash) => {
                let hash = redis::from_redis_value::<String>(hash).map_err(|e| e.to_string())?;
                Ok(Self { finish: hash.into(), ..self })
            }
            None => Err("SCRIPT LOAD gave no answer".to_owned()),
        }
    }

    /// Returns when this session is broken, and makes sure that it is noticed.
    async fn outlive(&self) {
        let ping = {
            let mut ping = Pipeline::with_capacity(1);
            ping.cmd("PING");
            ping
        };
        let probe = async {
            loop {
                tokio::time::sleep(LIVENESS_PERIOD).await;
                // A failure discards the session, which ends this.
                let _ = self.send_within(LIVENESS_DEADLINE, &ping).await;
            }
        };
        self.broken.run_until_cancelled(probe).await;
    }
}

/// Why connecting failed. A refused login is named as such.
fn refused(error: &RedisError) -> String {
    match error.code() {
        Some("NOAUTH") => format!("a password is needed: {error}"),
        Some("WRONGPASS") => format!("the user name or the password is wrong: {error}"),
        _ if error.kind() == redis::ErrorKind::AuthenticationFailed => {
            format!("the user name or the password is wrong: {error}")
        }
        _ => error.to_string(),
    }
}

/// Refuses a server on which keys of one script may live on several nodes, or that keeps none.
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

fn script_load(script: &str) -> Pipeline {
    let mut load = Pipeline::with_capacity(1);
    load.cmd("SCRIPT").arg("LOAD").arg(script);
    load
}

/// Waits that double from 0.05 s to 5 s, each shortened at random by up to half.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: Duration::from_millis(50) }
    }
}

impl Backoff {
    /// Waits, longer every time.
    pub(super) async fn wait(&mut self) {
        let wait = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(Duration::from_secs(5));
        tokio::time::sleep(wait).await;
    }
}

/// A server error as text: for people.
pub(super) fn said(error: &ServerError) -> String {
    format!("{}: {}", error.code(), error.details().unwrap_or_default())
}
