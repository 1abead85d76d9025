//! The table of settings.

/// One row of the table of settings.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in `countersign.toml`; a dot separates table and key.
    pub name: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Environment variables of other tools, read when no other source has a value.
    pub fallback_env: &'static [&'static str],
    /// The default, as it would be written.
    pub default: &'static str,
    /// The description.
    pub help: &'static str,
}

const fn setting(
    name: &'static str,
    env: &'static str,
    fallback_env: &'static [&'static str],
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { name, env, fallback_env, default, help }
}

/// All settings.
pub const SETTINGS: &[Setting] = &[
    setting(
        "broker.url",
        "COUNTERSIGN_BROKER_URL",
        &["CELERY_BROKER_URL", "AMQP_URL"],
        "amqp://guest:guest@localhost:5672//",
        "URL of RabbitMQ; separate several nodes with `;`",
    ),
    setting(
        "broker.heartbeat",
        "COUNTERSIGN_BROKER_HEARTBEAT",
        &[],
        "10s",
        "a connection that is silent for twice this time is closed",
    ),
    setting(
        "broker.consumer_timeout",
        "COUNTERSIGN_BROKER_CONSUMER_TIMEOUT",
        &[],
        "30m",
        "RabbitMQ's consumer_timeout: a message is held for at most two minutes less (a third less of a \
         short one), from its delivery; a task that may take longer is acked while it runs",
    ),
    setting(
        "broker.publish_timeout",
        "COUNTERSIGN_BROKER_PUBLISH_TIMEOUT",
        &[],
        "30s",
        "how long an enqueue retries",
    ),
    setting(
        "broker.management_url",
        "COUNTERSIGN_BROKER_MANAGEMENT_URL",
        &[],
        "",
        "RabbitMQ's management API, such as http://localhost:15672, where doctor reads policies and \
         blocked delays; without it, port 15672 of the first broker is tried",
    ),
    setting(
        "store.url",
        "COUNTERSIGN_STORE_URL",
        &["CELERY_RESULT_BACKEND", "REDIS_URL"],
        "redis://localhost:6379/0",
        "URL of Redis; separate several hosts with `;`",
    ),
    setting(
        "store.result_expires",
        "COUNTERSIGN_STORE_RESULT_EXPIRES",
        &[],
        "24h",
        "how long results are kept; 0s keeps them forever",
    ),
    setting(
        "store.key_prefix",
        "COUNTERSIGN_STORE_KEY_PREFIX",
        &[],
        "",
        "Celery's global_keyprefix",
    ),
    setting(
        "store.command_timeout",
        "COUNTERSIGN_STORE_COMMAND_TIMEOUT",
        &[],
        "2s",
        "how long one Redis command may take",
    ),
    setting(
        "store.pool_size",
        "COUNTERSIGN_STORE_POOL_SIZE",
        &[],
        "16",
        "the maximum number of connections for large reads (results, journals, streams, lists); 0: reads of \
         Redis use the connection of the leases, and those of a database file use one",
    ),
    setting(
        "store.pool_wait_timeout",
        "COUNTERSIGN_STORE_POOL_WAIT_TIMEOUT",
        &[],
        "5s",
        "how long a read waits for a free connection of the pool; 0: not at all",
    ),
    setting(
        "store.pool_recycle_timeout",
        "COUNTERSIGN_STORE_POOL_RECYCLE_TIMEOUT",
        &[],
        "1s",
        "how long an idle connection of the pool may take to answer before it is replaced",
    ),
    setting(
        "connect_timeout",
        "COUNTERSIGN_CONNECT_TIMEOUT",
        &[],
        "10s",
        "how long one attempt to connect may take",
    ),
    setting(
        "tls.ca_file",
        "COUNTERSIGN_TLS_CA_FILE",
        &[],
        "",
        "PEM file of a private certificate authority for amqps:// and rediss://",
    ),
    setting(
        "client.idempotency_expires",
        "COUNTERSIGN_CLIENT_IDEMPOTENCY_EXPIRES",
        &[],
        "24h",
        "how long an idempotency key is remembered",
    ),
    setting(
        "client.envelope",
        "COUNTERSIGN_CLIENT_ENVELOPE",
        &[],
        "lean",
        "the headers of enqueued tasks: lean (those that have a value), or celery (all that a Celery client writes)",
    ),
    setting(
        "client.queue",
        "COUNTERSIGN_CLIENT_QUEUE",
        &[],
        "celery",
        "the queue of tasks that name none",
    ),
    setting(
        "limits.arguments",
        "COUNTERSIGN_LIMITS_ARGUMENTS",
        &[],
        "8MiB",
        "the largest body of a task message, after decompression",
    ),
    setting(
        "limits.result",
        "COUNTERSIGN_LIMITS_RESULT",
        &[],
        "8MiB",
        "the largest result; a larger one fails its task",
    ),
    setting(
        "limits.step",
        "COUNTERSIGN_LIMITS_STEP",
        &[],
        "1MiB",
        "the largest value of a step; a larger one fails its task",
    ),
    setting(
        "limits.journal",
        "COUNTERSIGN_LIMITS_JOURNAL",
        &[],
        "16MiB",
        "the largest journal of a task: the values of all its steps",
    ),
    setting(
        "limits.stream_entry",
        "COUNTERSIGN_LIMITS_STREAM_ENTRY",
        &[],
        "256KiB",
        "the largest entry of a task's stream; a larger one fails its task",
    ),
    setting(
        "approvals.hold",
        "COUNTERSIGN_APPROVALS_HOLD",
        &[],
        "200ms",
        "how long a run that waits for a decision keeps its slot before it is suspended",
    ),
    setting(
        "approvals.lease",
        "COUNTERSIGN_APPROVALS_LEASE",
        &[],
        "30s",
        "how long a resumed task stays claimed by a worker that does not renew its lease",
    ),
    setting(
        "approvals.operators",
        "COUNTERSIGN_APPROVALS_OPERATORS",
        &[],
        "",
        "who may extend any request, in addition to its approvers; comma-separated names",
    ),
    setting(
        "approvals.seal_key_file",
        "COUNTERSIGN_APPROVALS_SEAL_KEY_FILE",
        &[],
        "",
        "file of the key that the audit is sealed with, of 32 bytes at least; only processes \
         that seal or verify the audit need it",
    ),
    setting(
        "worker.queues",
        "COUNTERSIGN_WORKER_QUEUES",
        &[],
        "",
        "the queues that a worker consumes, comma-separated; without any, the name of its binary",
    ),
    setting(
        "worker.concurrency",
        "COUNTERSIGN_WORKER_CONCURRENCY",
        &[],
        "16",
        "how many tasks a worker runs at once",
    ),
    setting(
        "worker.prefetch",
        "COUNTERSIGN_WORKER_PREFETCH",
        &[],
        "",
        "how many unsettled messages of each queue a worker holds; without it, twice the \
         concurrency",
    ),
    setting(
        "worker.name",
        "COUNTERSIGN_WORKER_NAME",
        &[],
        "",
        "the name of the worker; without it, its binary's name @ its host",
    ),
    setting(
        "worker.unknown_grace",
        "COUNTERSIGN_UNKNOWN_GRACE",
        &[],
        "0s",
        "how long a task without a handler in this worker may wait for a worker that has one (rolling \
         deploys)",
    ),
    setting(
        "worker.health_dir",
        "COUNTERSIGN_WORKER_HEALTH_DIR",
        &[],
        "",
        "directory of the file that `health` reads; without it, the system's temporary directory",
    ),
    setting(
        "drain.kill_after",
        "COUNTERSIGN_DRAIN_KILL_AFTER",
        &[],
        "",
        "when the supervisor kills the process after SIGTERM (stop_grace_period, TimeoutStopSec, \
         terminationGracePeriodSeconds); doctor compares it with the longest drain",
    ),
    setting(
        "drain.deadline",
        "COUNTERSIGN_DRAIN_DEADLINE",
        &[],
        "30s",
        "how long a drain waits for running tasks",
    ),
];

/// Returns the setting of this name, as `countersign.toml` writes it.
pub(super) fn named(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// Returns `; did you mean X?` for the most similar name in `known`, if there is one.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, near)| format!("; did you mean {near}?"))
}
