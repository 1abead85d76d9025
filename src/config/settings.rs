//! The table of settings.

/// One line of the table of settings.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in `countersign.toml`; a dot separates table and key.
    pub name: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Environment variables of other tools that are read when nothing else says anything.
    pub fallback_env: &'static [&'static str],
    /// What holds when nobody says anything, as it would be written.
    pub default: &'static str,
    /// What it does.
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

/// All settings there are.
pub const SETTINGS: &[Setting] = &[
    setting(
        "broker.url",
        "COUNTERSIGN_BROKER_URL",
        &["CELERY_BROKER_URL", "AMQP_URL"],
        "amqp://guest:guest@localhost:5672//",
        "RabbitMQ; several nodes are joined by `;`",
    ),
    setting(
        "broker.heartbeat",
        "COUNTERSIGN_BROKER_HEARTBEAT",
        &[],
        "10s",
        "a silent connection is given up after twice this",
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
        "how long an enqueue goes on trying",
    ),
    setting(
        "broker.management_url",
        "COUNTERSIGN_BROKER_MANAGEMENT_URL",
        &[],
        "",
        "RabbitMQ's management API, such as http://localhost:15672, by which doctor sees policies and \
         blocked delays; without it, port 15672 of the first broker is tried",
    ),
    setting(
        "store.url",
        "COUNTERSIGN_STORE_URL",
        &["CELERY_RESULT_BACKEND", "REDIS_URL"],
        "redis://localhost:6379/0",
        "Redis; several hosts are joined by `;`",
    ),
    setting(
        "store.result_expires",
        "COUNTERSIGN_STORE_RESULT_EXPIRES",
        &[],
        "24h",
        "how long results are kept; 0s keeps them for ever",
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
        "client.queue",
        "COUNTERSIGN_CLIENT_QUEUE",
        &[],
        "celery",
        "where tasks go that name no queue",
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
        "how long a run that waits for a decision keeps its slot before it is parked",
    ),
    setting(
        "approvals.lease",
        "COUNTERSIGN_APPROVALS_LEASE",
        &[],
        "30s",
        "how long a resumed task is left to its worker without a sign of life of it",
    ),
    setting(
        "approvals.operators",
        "COUNTERSIGN_APPROVALS_OPERATORS",
        &[],
        "",
        "who may give any request more time, beside its approvers; names joined by commas",
    ),
    setting(
        "approvals.seal_key_file",
        "COUNTERSIGN_APPROVALS_SEAL_KEY_FILE",
        &[],
        "",
        "file of the key that the audit is sealed with, of 32 bytes at least; only those who seal \
         or verify it need one",
    ),
    setting(
        "worker.queues",
        "COUNTERSIGN_WORKER_QUEUES",
        &[],
        "",
        "what a worker consumes, joined by commas; without any, the queue of its binary's name",
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
        "how many messages of each queue the broker hands out in advance; without it, twice the \
         concurrency",
    ),
    setting(
        "worker.name",
        "COUNTERSIGN_WORKER_NAME",
        &[],
        "",
        "what a worker is called; without it, its binary's name @ its host",
    ),
    setting(
        "worker.unknown_grace",
        "COUNTERSIGN_UNKNOWN_GRACE",
        &[],
        "0s",
        "how long a task that a worker does not know may wait for one that does (rolling deploys)",
    ),
    setting(
        "worker.health_dir",
        "COUNTERSIGN_WORKER_HEALTH_DIR",
        &[],
        "",
        "folder of the file by which `health` knows a worker; without it, the system's temporary folder",
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

/// The setting of this name, as `countersign.toml` writes it.
pub(super) fn named(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// `; did you mean X?` for the one of `known` that is most like `name`, if any is.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, near)| format!("; did you mean {near}?"))
}
