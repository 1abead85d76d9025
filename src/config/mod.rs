//! Every knob: its name, its environment variable, its default and what it does, in one table.
//!
//! A value is looked up in this order: the command line, the environment, `countersign.toml`, the
//! environment names that Celery and AMQP tools use, the default. A secret may be given by file:
//! `COUNTERSIGN_BROKER_URL_FILE` names a file that holds the URL. Whatever is not known is refused.
//!
//! Only `countersign.toml` says how a queue is declared that is not as Celery clients declare it:
//!
//! ```toml
//! [queues.billing]
//! max_priority = 10       # tasks may have priorities from 1 to 10
//!
//! [queues.audit]
//! type = "quorum"
//! ```
//!
//! and which questions are decided without a person. The first policy that matches counts:
//!
//! ```toml
//! [[approvals.policy]]
//! name = "small refunds"
//! task = "billing.*"              # `*` is any text; also: action, requester
//! max_risk = "medium"             # unless it is said, nothing irreversible is approved
//! max = { "/cents" = 5000 }       # by JSON pointer into the action's arguments; also: min
//! in_quorum = false               # true: its approval is one of those that a quorum needs
//! then = "approve"                # or "reject", or "ask": a person decides
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
use read::Reader;
#[cfg(feature = "cli")]
pub(crate) use sources::CONFIG_FLAG;
use sources::{Given, Sources};

pub use queues::{QueueSettings, QueueType};
#[cfg(feature = "cli")]
pub(crate) use read::parse_duration;
pub use secret::SecretUrl;
pub use settings::{SETTINGS, Setting};

/// A setting as it holds, and who said so.
#[derive(Clone, Debug)]
#[cfg(feature = "cli")]
pub(crate) struct Origin {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) origin: String,
}

/// The settings of one process, all checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "SETTINGS says what each one does")]
pub struct Config {
    pub broker_url: SecretUrl,
    pub heartbeat: Duration,
    pub consumer_timeout: Duration,
    pub publish_timeout: Duration,
    pub management_url: Option<String>,
    pub store_url: SecretUrl,
    pub result_expires: Duration,
    pub key_prefix: String,
    pub command_timeout: Duration,
    pub connect_timeout: Duration,
    pub tls_ca_pem: Option<String>,
    pub queue: String,
    pub max_arguments: usize,
    pub max_result: usize,
    pub max_step: usize,
    pub max_journal: usize,
    pub max_stream_entry: usize,
    pub idempotency_expires: Duration,
    pub hold: Duration,
    pub lease: Duration,
    pub operators: Vec<String>,
    pub seal_key: Option<SealKey>,
    pub policies: Vec<AutoPolicy>,
    pub worker: WorkerSettings,
    pub drain_deadline: Duration,
    pub kill_after: Option<Duration>,
    /// By name; a queue that is not here is classic, with an empty argument table.
    pub queues: BTreeMap<String, QueueSettings>,
}

/// What a worker binary does unless its code says otherwise.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "SETTINGS says what each one does")]
pub struct WorkerSettings {
    pub queues: Vec<String>,
    pub concurrency: u16,
    pub prefetch: Option<u16>,
    pub name: Option<String>,
    pub unknown_grace: Duration,
    pub health_dir: Option<PathBuf>,
}

impl Config {
    /// The defaults, with these two servers. Nothing is read from the environment.
    ///
    /// # Errors
    /// A configuration error when a URL is of no known kind.
    pub fn new(broker_url: &str, store_url: &str) -> Result<Self, Error> {
        let given = [("broker.url", broker_url), ("store.url", store_url)];
        let settings = given.map(|(name, url)| (name, Given::new(url, "argument"))).into();
        Self::check(Sources { settings, ..Sources::default() })
    }

    /// The defaults, with one database for everything: `sqlite:path/to/file.db`, or
    /// `sqlite::memory:`, which is gone with its client.
    ///
    /// # Errors
    /// A configuration error when the URL is of another kind.
    pub fn embedded(url: &str) -> Result<Self, Error> {
        Self::new(url, url)
    }

    /// One database is broker and store.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        is_database(self.broker_url.reveal())
    }

    /// The settings of this process: environment, `countersign.toml` in the working directory (or
    /// the file that `COUNTERSIGN_CONFIG` names), defaults.
    ///
    /// # Errors
    /// A configuration error that lists every fault, a line each.
    pub fn load() -> Result<Self, Error> {
        Self::load_with(&[])
    }

    /// The settings of this process, where `flags` (names of settings and their values) come
    /// before everything else.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with(flags: &[(&'static str, String)]) -> Result<Self, Error> {
        Self::check(Sources::of_process(flags))
    }

    /// As [`Config::load_with`]; where nobody has said which servers, `database` may name one.
    #[cfg(feature = "cli")]
    pub(crate) fn load_or(
        flags: &[(&'static str, String)],
        database: impl FnOnce() -> Option<String>,
    ) -> Result<Self, Error> {
        let mut sources = Sources::of_process(flags);
        let is_said = |name| sources.settings.contains_key(name);
        if !is_said("broker.url")
            && !is_said("store.url")
            && let Some(url) = database()
        {
            sources.settings.insert("broker.url", Given::new(url, "countersign dev"));
        }
        Self::check(sources)
    }

    /// The policies of this settings file, whatever the environment says.
    #[cfg(feature = "cli")]
    pub(crate) fn policies_in(path: &str) -> Result<Vec<AutoPolicy>, Error> {
        let mut sources = Sources::default();
        sources.read_file(std::path::Path::new(path), true);
        let Sources { policies, mut faults, .. } = sources;
        let policies = policies::read(&policies, &mut faults);
        if faults.is_empty() { Ok(policies) } else { Err(Kind::Config(faults).into()) }
    }

    /// Every setting of this process with its value and where that came from; passwords are masked.
    /// The queues' own settings come last, and the policies'.
    #[cfg(feature = "cli")]
    pub(crate) fn origins(flags: &[(&'static str, String)]) -> Vec<Origin> {
        let sources = Sources::of_process(flags);
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
            origins.extend(keys.into_iter().map(|(key, Given { value, origin })| Origin {
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
            connect_timeout: read.duration("connect_timeout"),
            tls_ca_pem: read.pem("tls.ca_file"),
            queue: read.text("client.queue").0,
            max_arguments: read.size("limits.arguments"),
            max_result: read.size("limits.result"),
            max_step: read.size("limits.step"),
            max_journal: read.size("limits.journal"),
            max_stream_entry: read.size("limits.stream_entry"),
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
