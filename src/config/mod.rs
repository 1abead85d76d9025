//! All settings: name, environment variable, default and description, in one table.
//!
//! A value comes from the first of these sources that has it: the command line, the environment,
//! `countersign.toml`, the environment variables that Celery and AMQP tools use, the default. A secret
//! may come from a file: `COUNTERSIGN_BROKER_URL_FILE` names a file that holds the URL. Unknown
//! settings are refused.
//!
//! Only `countersign.toml` can configure a queue that differs from Celery's declaration:
//!
//! ```toml
//! [queues.billing]
//! max_priority = 10       # tasks may have priorities from 1 to 10
//!
//! [queues.audit]
//! type = "quorum"
//! ```
//!
//! and policies that decide approval requests automatically. The first policy that matches applies:
//!
//! ```toml
//! [[approvals.policy]]
//! name = "small refunds"
//! task = "billing.*"              # `*` is any text; also: action, requester
//! max_risk = "medium"             # by default, nothing irreversible is approved
//! max = { "/cents" = 5000 }       # by JSON pointer into the action's arguments; also: min
//! in_quorum = false               # true: its approval counts towards a quorum
//! then = "approve"                # or "reject", or "ask": an approver decides
//! reason = "under the limit"
//! ```

mod policies;
mod queues;
mod read;
mod secret;
mod settings;
mod sources;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::address::sqlite::is_database;
use crate::approval::{AutoPolicy, SealKey};
use crate::error::{Error, Kind};
use crate::protocol::EnvelopeForm;
use read::Reader;
#[cfg(feature = "unstable")]
pub use sources::CONFIG_FLAG;
use sources::{SourcedValue, Sources};

pub use queues::{QueueSettings, QueueType};
#[cfg(feature = "unstable")]
pub use read::parse_duration;
pub use secret::SecretUrl;
pub use settings::{SETTINGS, Setting};

/// The effective value of a setting, and its source.
#[derive(Clone, Debug)]
#[cfg(feature = "unstable")]
pub struct Origin {
    /// The setting's name, or `queues.NAME.KEY`.
    pub name: String,
    /// The value; passwords are masked.
    pub value: String,
    /// The name of the source.
    pub origin: String,
}

/// The checked settings of one process. [`SETTINGS`] has the name of each in `countersign.toml` and in the
/// environment.
#[derive(Clone, Debug)]
pub struct Config {
    /// The URL of RabbitMQ, or of a database; several nodes are joined by `;`. Default:
    /// `amqp://guest:guest@localhost:5672//`.
    pub broker_url: SecretUrl,
    /// The heartbeat interval of the connections to RabbitMQ; a silent connection is closed after twice
    /// this time. Default: 10 seconds.
    pub heartbeat: Duration,
    /// RabbitMQ's `consumer_timeout`, from the delivery of a message to its ack. A task that may take longer
    /// is acked while it runs. Default: 30 minutes.
    pub consumer_timeout: Duration,
    /// How long an enqueue retries before it fails. Default: 30 seconds.
    pub publish_timeout: Duration,
    /// The URL of RabbitMQ's management API, for `countersign doctor`. Default: `None`, which is port 15672
    /// of the first broker.
    pub management_url: Option<String>,
    /// The URL of Redis, or of a database; several hosts are joined by `;`. Default:
    /// `redis://localhost:6379/0`.
    pub store_url: SecretUrl,
    /// How long results are stored; zero: without limit. Default: 24 hours.
    pub result_expires: Duration,
    /// Celery's `global_keyprefix`: the prefix of all keys in Redis. Default: empty.
    pub key_prefix: String,
    /// How long one Redis command may take. Default: 2 seconds.
    pub command_timeout: Duration,
    /// The maximum number of connections for large reads; with 0, reads of Redis share a connection with the
    /// leases. Default: 16.
    pub pool_size: u16,
    /// How long a read waits for a free connection of the pool. Default: 5 seconds.
    pub pool_wait_timeout: Duration,
    /// How long an idle connection of the pool may take to answer. Default: 1 second.
    pub pool_recycle_timeout: Duration,
    /// How long one attempt to connect may take. Default: 10 seconds.
    pub connect_timeout: Duration,
    /// The certificate of a private certificate authority, in PEM, for `amqps://` and `rediss://`. Default:
    /// `None`, which is the certificate authorities of the system.
    pub tls_ca_pem: Option<String>,
    /// The queue of tasks that name none. Default: `celery`.
    pub queue: String,
    /// The maximum size of the body of a task message after decompression, in bytes. Default: 8 MiB.
    pub max_arguments: usize,
    /// The maximum size of a result, in bytes; a larger one fails its task. Default: 8 MiB.
    pub max_result: usize,
    /// The maximum size of the value of a step, in bytes; a larger one fails its task. Default: 1 MiB.
    pub max_step: usize,
    /// The maximum size of the values of all steps of a task, in bytes. Default: 16 MiB.
    pub max_journal: usize,
    /// The maximum size of an entry of a task's stream, in bytes; a larger one fails its task. Default:
    /// 256 KiB.
    pub max_stream_entry: usize,
    /// The headers of enqueued tasks. Default: [`EnvelopeForm::Lean`].
    pub envelope: EnvelopeForm,
    /// How long an idempotency key is stored. Default: 24 hours.
    pub idempotency_expires: Duration,
    /// How long a run that waits for a decision keeps its permit before it is suspended. Default:
    /// 200 milliseconds.
    pub hold: Duration,
    /// How long a resumed task stays assigned to a worker that sends no heartbeat. Default: 30 seconds.
    pub lease: Duration,
    /// The users who may extend the deadline of any request, in addition to its approvers. Default: none.
    pub operators: Vec<String>,
    /// The key that seals the audit, of at least 32 bytes. Default: `None`; only processes that seal or
    /// verify the audit need it.
    pub seal_key: Option<SealKey>,
    /// The policies that decide approval requests automatically; the first one that matches applies. Default:
    /// none.
    pub policies: Vec<AutoPolicy>,
    /// The defaults of worker binaries.
    pub worker: WorkerSettings,
    /// How long a drain waits for running tasks. Default: 30 seconds.
    pub drain_deadline: Duration,
    /// The time after which the supervisor kills the process after SIGTERM; `countersign doctor` compares it
    /// with the longest drain. Default: `None`, which is unknown.
    pub kill_after: Option<Duration>,
    /// The settings of queues, by name; a queue without an entry is classic, with an empty argument table.
    /// Default: none.
    pub queues: BTreeMap<String, QueueSettings>,
}

/// The defaults of a worker binary; its code may override them.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The queues to consume. Default: none, which is the queue named like the binary.
    pub queues: Vec<String>,
    /// The maximum number of tasks that run at once. Default: 16.
    pub concurrency: u16,
    /// The number of unsettled messages of each queue that the broker delivers in advance. Default: `None`,
    /// which is twice the concurrency.
    pub prefetch: Option<u16>,
    /// The name of the worker. Default: `None`, which is the name of the binary, `@` and the host.
    pub name: Option<String>,
    /// How long a task without a handler in this worker may wait for a worker that has one. Default: zero.
    pub unknown_grace: Duration,
    /// The folder of the file that `health` reads. Default: `None`, which is the system's temporary folder.
    pub health_dir: Option<PathBuf>,
}

impl Config {
    /// Returns the defaults, with these two servers. Does not read the environment.
    ///
    /// # Errors
    /// A configuration error when the scheme of a URL is unknown.
    pub fn new(broker_url: &str, store_url: &str) -> Result<Self, Error> {
        let given = [("broker.url", broker_url), ("store.url", store_url)];
        let settings = given.map(|(name, url)| (name, SourcedValue::new(url, "argument"))).into();
        Self::check(Sources { settings, ..Sources::default() })
    }

    /// Returns the defaults, with one database as broker and store: `sqlite:path/to/file.db`, or
    /// `sqlite::memory:`, which is gone when its client closes.
    ///
    /// # Errors
    /// A configuration error when the URL is not that of a database.
    pub fn embedded(url: &str) -> Result<Self, Error> {
        Self::new(url, url)
    }

    /// Whether one database is both broker and store.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        is_database(self.broker_url.reveal())
    }

    /// Reads the settings of this process: environment, `countersign.toml` in the working directory (or
    /// the file that `COUNTERSIGN_CONFIG` names), defaults.
    ///
    /// # Errors
    /// A configuration error that lists every fault, one per line.
    pub fn load() -> Result<Self, Error> {
        Self::load_with(&[])
    }

    /// Reads the settings of this process; `flags` (names of settings and their values) override all
    /// other sources.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with(flags: &[(&'static str, String)]) -> Result<Self, Error> {
        Self::check(Sources::of_process(flags))
    }

    /// As [`Config::load_with`]; if neither server is configured, `database` may supply one.
    #[cfg(feature = "unstable")]
    pub fn load_or(
        flags: &[(&'static str, String)],
        database: impl FnOnce() -> Option<String>,
    ) -> Result<Self, Error> {
        Self::check(Self::sources_or(flags, database))
    }

    #[cfg(feature = "unstable")]
    fn sources_or(
        flags: &[(&'static str, String)],
        database: impl FnOnce() -> Option<String>,
    ) -> Sources {
        let mut sources = Sources::of_process(flags);
        let is_given = |name| sources.settings.contains_key(name);
        if !is_given("broker.url")
            && !is_given("store.url")
            && let Some(url) = database()
        {
            sources.settings.insert("broker.url", SourcedValue::new(&url, "countersign dev"));
            sources.settings.insert("store.url", SourcedValue::new(url, "countersign dev"));
        }
        sources
    }

    /// Reads the policies of this settings file; ignores the environment.
    #[cfg(feature = "unstable")]
    pub fn policies_in(path: &str) -> Result<Vec<AutoPolicy>, Error> {
        let mut sources = Sources::default();
        sources.read_file(std::path::Path::new(path), true);
        let Sources { policies, mut faults, .. } = sources;
        let policies = policies::read(&policies, &mut faults);
        if faults.is_empty() { Ok(policies) } else { Err(Kind::Config(faults).into()) }
    }

    /// Returns every setting of this process with its value and source; passwords are masked. The
    /// settings of queues come last, and then those of policies.
    #[cfg(feature = "unstable")]
    pub fn origins(
        flags: &[(&'static str, String)],
        database: impl FnOnce() -> Option<String>,
    ) -> Vec<Origin> {
        let sources = Self::sources_or(flags, database);
        let masked = |name: &str, value: &str| match name {
            "broker.url" | "store.url" => SecretUrl(value.to_owned()).to_string(),
            _ => value.to_owned(),
        };
        let mut origins: Vec<_> = SETTINGS
            .iter()
            .map(|setting| {
                let given = sources.settings.get(setting.name);
                let value = given.map_or(setting.default, |given| &given.value);
                Origin {
                    name: setting.name.to_owned(),
                    value: masked(setting.name, value),
                    origin: given.map_or("default", |given| &given.origin).to_owned(),
                }
            })
            .collect();
        let queues =
            sources.queues.into_iter().map(|(name, keys)| (format!("queues.{name}"), keys));
        let policies =
            sources.policies.into_iter().map(|table| ("approvals.policy".into(), table.keys));
        for (table, keys) in queues.chain(policies) {
            origins.extend(keys.into_iter().map(|(key, SourcedValue { value, origin })| Origin {
                name: format!("{table}.{key}"),
                value,
                origin,
            }));
        }
        origins
    }

    fn check(sources: Sources) -> Result<Self, Error> {
        let mut read = Reader { sources };
        read.share_database();
        let mut config = Self {
            broker_url: read.url("broker.url", read::check_broker),
            heartbeat: read.duration("broker.heartbeat"),
            consumer_timeout: read.duration("broker.consumer_timeout"),
            publish_timeout: read.duration("broker.publish_timeout"),
            management_url: read.optional("broker.management_url"),
            store_url: read.url("store.url", read::check_store),
            result_expires: read.duration("store.result_expires"),
            key_prefix: read.text("store.key_prefix").0,
            command_timeout: read.duration("store.command_timeout"),
            pool_size: read.number("store.pool_size"),
            pool_wait_timeout: read.duration("store.pool_wait_timeout"),
            pool_recycle_timeout: read.duration("store.pool_recycle_timeout"),
            connect_timeout: read.duration("connect_timeout"),
            tls_ca_pem: read.pem("tls.ca_file"),
            queue: read.text("client.queue").0,
            max_arguments: read.size("limits.arguments"),
            max_result: read.size("limits.result"),
            max_step: read.size("limits.step"),
            max_journal: read.size("limits.journal"),
            max_stream_entry: read.size("limits.stream_entry"),
            envelope: read.envelope("client.envelope"),
            idempotency_expires: read.duration("client.idempotency_expires"),
            hold: read.duration("approvals.hold"),
            lease: read.duration("approvals.lease"),
            operators: read.list("approvals.operators"),
            seal_key: read.seal_key("approvals.seal_key_file"),
            policies: Vec::new(),
            worker: WorkerSettings {
                queues: read.list("worker.queues"),
                concurrency: read.count("worker.concurrency"),
                prefetch: read.optional_count("worker.prefetch"),
                name: read.optional("worker.name"),
                unknown_grace: read.duration("worker.unknown_grace"),
                health_dir: read.optional("worker.health_dir").map(PathBuf::from),
            },
            drain_deadline: read.duration("drain.deadline"),
            kill_after: read.optional_duration("drain.kill_after"),
            queues: BTreeMap::new(),
        };
        let Sources { queues, policies, mut faults, .. } = read.sources;
        config.queues = queues::read(&queues, &mut faults);
        config.policies = policies::read(&policies, &mut faults);
        if faults.is_empty() { Ok(config) } else { Err(Kind::Config(faults).into()) }
    }
}

impl From<&Config> for Config {
    fn from(config: &Config) -> Self {
        config.clone()
    }
}

impl TryFrom<&str> for Config {
    type Error = Error;

    /// As [`Config::embedded`].
    fn try_from(url: &str) -> Result<Self, Error> {
        Self::embedded(url)
    }
}

#[cfg(test)]
mod tests;
