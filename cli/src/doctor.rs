//! `countersign doctor`: reports the problems of an installation, their effects, and how to fix them.

use std::process::ExitCode;
use std::time::Duration;

use countersign::backend::{PoolState, Queue, QueueState, StoreServer};
use countersign::cli::exit;
use countersign::client::Client;
use countersign::config::{Config, QueueType};
use countersign::task::Policy;
use countersign::worker::longest_drain;
use serde::Serialize;
use tokio::time::timeout;

use crate::management::Management;
use crate::output::Format;
use crate::policies;
use crate::queues::known;

/// Older versions of RabbitMQ have quorum queues without features that delayed delivery needs.
const OLDEST_BROKER: Version = (3, 10);
/// From this version on, RabbitMQ limits the deliveries of a quorum queue's messages to 20 by default.
const LIMITING_BROKER: Version = (4, 0);
/// Older versions of Redis do not support RESP3.
const OLDEST_STORE: Version = (6, 0);
/// The clock difference that workers tolerate, and the one that is an error, in milliseconds.
const SKEW: (u64, u64) = (1_000, 5_000);

type Version = (u32, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    Warning,
    Error,
}

/// The result of one check.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    pub(crate) what: String,
    why: String,
    mend: String,
}

impl Finding {
    pub(crate) fn ok(what: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), why: String::new(), mend: String::new() }
    }

    pub(crate) fn new(
        level: Level,
        what: impl Into<String>,
        why: &str,
        mend: impl Into<String>,
    ) -> Self {
        Self { level, what: what.into(), why: why.into(), mend: mend.into() }
    }
}

/// Prints all results. Exit code 1 if one of them is an error.
pub(crate) async fn perform(client: &Client, format: Format) -> ExitCode {
    let mut findings = vec![deadlines(client.config())];
    let (broker, store) = if client.config().is_embedded() {
        (database(client, &mut findings).await, None)
    } else {
        (reach_broker(client, &mut findings).await, reach_store(client, &mut findings).await)
    };
    if let Some(version) = broker {
        let queues = known(client).await.into_iter();
        let queues: Vec<_> =
            queues.map(|queue| Queue::configured(queue, client.config())).collect();
        for queue in &queues {
            check_queue(client, queue, version, &mut findings).await;
        }
        if !client.config().is_embedded()
            && let Some(management) = Management::of(client.config())
        {
            policies::check(&management, &queues, &mut findings).await;
            findings.push(late_after_restart());
        }
    }
    if let Some(server) = store {
        findings.extend([eviction(&server), clock(&server)]);
    }
    findings.extend(client.backends().store.pools().into_iter().map(pool));
    let records: Vec<_> =
        findings.iter().filter_map(|finding| serde_json::to_value(finding).ok()).collect();
    format.print_findings(&["level", "what", "why", "mend"], &records);
    let is_error = findings.iter().any(|finding| finding.level == Level::Error);
    ExitCode::from(if is_error { exit::FAILURE } else { 0 })
}

fn pool(pool: PoolState) -> Finding {
    let PoolState { name, size, max_size, idle, waiting } = pool;
    Finding::ok(format!(
        "pool of {name} in this command: {size} of {max_size} connections, {idle} idle, {waiting} requests waiting"
    ))
}

/// Reports the database, which the client has opened already.
async fn database(client: &Client, findings: &mut Vec<Finding>) -> Option<Version> {
    let version = client.backends().broker.version().await.unwrap_or_default();
    findings.push(Finding::ok(format!("{version} has {} open", client.config().broker_url)));
    #[cfg(unix)]
    if let Some(file) = countersign::backend::database::file_of(client.config().broker_url.reveal())
    {
        findings.push(readers(&file));
    }
    Some(OLDEST_BROKER)
}

/// Reports who may read the database's arguments and results, by the modes of its file and its folder.
#[cfg(unix)]
fn readers(file: &std::path::Path) -> Finding {
    use std::os::unix::fs::MetadataExt;
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let mode = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |found| found.mode());
    let folder = absolute.parent().map_or(0, mode);
    let readable = mode(&absolute) & 0o044;
    // Reading a file needs permission to enter its folder.
    let others = match readable & (folder & 0o011) << 2 {
        0 => return Finding::ok("only its user can read the database"),
        bits if bits & 0o004 != 0 => "every user of this machine",
        _ => "the group of its file",
    };
    let file = file.display();
    Finding::new(
        Level::Warning,
        format!("{others} can read the database {file}"),
        "the arguments and results of all tasks are in it",
        format!("chmod go-rwx {file} {file}-wal {file}-shm"),
    )
}

fn deadlines(config: &Config) -> Finding {
    let (drain, consumer) = (config.drain_deadline, config.consumer_timeout);
    let seconds = |time: Duration| time.as_secs();
    // Steps have a grace period of their own, which may be longer than the default.
    let total = longest_drain(drain, Policy::default().step_grace);
    if let Some(kill_after) = config.kill_after.filter(|kill_after| *kill_after < total) {
        let enough = kill_after.saturating_sub(total.saturating_sub(drain));
        return Finding::new(
            Level::Error,
            format!(
                "a drain takes up to {} s, but is killed after {} s",
                seconds(total),
                seconds(kill_after)
            ),
            "running tasks are killed, and run again on another worker",
            format!(
                "give the supervisor {} s (stop_grace_period, TimeoutStopSec, \
                 terminationGracePeriodSeconds), or export COUNTERSIGN_DRAIN_DEADLINE={}s",
                seconds(total) + 1,
                seconds(enough)
            ),
        );
    }
    if drain < consumer {
        return Finding::ok(format!(
            "a drain takes at most {} s: {} s for tasks, the rest for steps and for closing",
            seconds(total),
            seconds(drain)
        ));
    }
    Finding::new(
        Level::Error,
        format!(
            "drain.deadline is {} s, the broker's consumer timeout {} s",
            seconds(drain),
            seconds(consumer)
        ),
        "the broker redelivers tasks that still run in a drain, so they run twice",
        format!("export COUNTERSIGN_DRAIN_DEADLINE={}s", seconds(consumer) / 2),
    )
}

/// Returns the broker's version, or the oldest supported one if the broker does not report its version.
async fn reach_broker(client: &Client, findings: &mut Vec<Finding>) -> Option<Version> {
    let (broker, limit) = (&client.backends().broker, client.config().connect_timeout);
    if timeout(limit, broker.connected()).await.is_err() {
        findings.push(Finding::new(
            Level::Error,
            format!(
                "no connection to RabbitMQ at {}{}",
                client.config().broker_url,
                because(broker.connect_error())
            ),
            "nothing can be enqueued or consumed",
            "countersign config show    # is this the right URL? then: systemctl status rabbitmq-server",
        ));
        return None;
    }
    let text = match broker.version().await {
        Ok(text) => text,
        Err(error) => {
            findings.push(Finding::ok(format!(
                "RabbitMQ is connected; its version is unknown: {error}"
            )));
            return Some(OLDEST_BROKER);
        }
    };
    let version = parse(&text).unwrap_or(OLDEST_BROKER);
    findings.push(if version < OLDEST_BROKER {
        Finding::new(
            Level::Error,
            format!("RabbitMQ is {text}"),
            "delays and retries need at-least-once dead-lettering, which RabbitMQ supports since 3.10",
            "upgrade RabbitMQ to 3.10 or later",
        )
    } else {
        Finding::ok(format!("RabbitMQ is {text}"))
    });
    Some(version)
}

fn because(why: Option<String>) -> String {
    why.map_or_else(String::new, |why| format!(": {why}"))
}

async fn reach_store(client: &Client, findings: &mut Vec<Finding>) -> Option<StoreServer> {
    let (store, limit) = (&client.backends().store, client.config().connect_timeout);
    let reached = timeout(limit, store.connected()).await.is_ok();
    let server = if reached { store.server().await.ok() } else { None };
    let Some(server) = server else {
        findings.push(Finding::new(
            Level::Error,
            format!(
                "no answer from Redis at {}{}",
                client.config().store_url,
                because(store.connect_error())
            ),
            "workers start no task while results cannot be stored",
            "countersign config show    # is this the right URL? then: systemctl status redis-server",
        ));
        return None;
    };
    findings.push(if parse(&server.version).is_some_and(|version| version < OLDEST_STORE) {
        Finding::new(
            Level::Error,
            format!("Redis is {}", server.version),
            "clients that wait for results need RESP3, which Redis supports since 6.0",
            "upgrade Redis to 6.0 or later",
        )
    } else {
        Finding::ok(format!("Redis is {}", server.version))
    });
    Some(server)
}

/// Always reported, because neither AMQP nor the management API shows it.
fn late_after_restart() -> Finding {
    Finding::new(
        Level::Ok,
        "a delayed task may be delivered 180 s late after a restart of RabbitMQ",
        "RabbitMQ waits that long before it retries dead-lettering, unless a shorter time is set",
        "set dead_letter_worker_publisher_confirm_timeout, as ops/rabbitmq/advanced.config does",
    )
}

fn eviction(server: &StoreServer) -> Finding {
    let level = match server.eviction.as_str() {
        "noeviction" | "" => return Finding::ok("Redis evicts nothing"),
        policy if policy.starts_with("allkeys") => Level::Error,
        _ => Level::Warning,
    };
    Finding::new(
        level,
        format!("Redis' maxmemory-policy is {}", server.eviction),
        "when its memory is full, Redis drops results that clients wait for",
        "redis-cli CONFIG SET maxmemory-policy noeviction",
    )
}

fn clock(server: &StoreServer) -> Finding {
    let ahead = server.clock_ahead;
    let level = match ahead.unsigned_abs() {
        skew if skew <= SKEW.0 => return Finding::ok("this clock and Redis' agree"),
        skew if skew <= SKEW.1 => Level::Warning,
        _ => Level::Error,
    };
    Finding::new(
        level,
        format!("Redis' clock is {ahead} ms ahead of this one"),
        "tasks start early or late, or expire before their time",
        "timedatectl set-ntp true    # on the machine whose clock is wrong",
    )
}

async fn check_queue(
    client: &Client,
    queue: &Queue,
    version: Version,
    findings: &mut Vec<Finding>,
) {
    let (broker, name) = (&client.backends().broker, &queue.name);
    let state = match broker.inspect(name).await {
        Ok(Some(state)) => state,
        Ok(None) => return findings.push(Finding::ok(format!("queue {name} does not exist yet"))),
        Err(error) => {
            let why = "the queue cannot be checked";
            return findings.push(Finding::new(
                Level::Error,
                format!("queue {name}: {error}"),
                why,
                format!("rabbitmqctl list_queues name state type | grep {name}"),
            ));
        }
    };
    findings.push(consumers(name, state));
    if client.config().queues.contains_key(name)
        && let Err(error) = broker.declare(queue).await
    {
        findings.push(Finding::new(
            Level::Error,
            error.to_string(),
            "an existing queue keeps its type and arguments; the configured ones have no effect",
            format!("rabbitmqctl delete_queue {name} --if-empty    # then start a worker, which declares it"),
        ));
    }
    if queue.kind == QueueType::Quorum && version >= LIMITING_BROKER {
        findings.push(Finding::new(
            Level::Warning,
            format!("quorum queue {name} may have RabbitMQ's delivery limit of 20"),
            "at its 21st return the broker deletes a message of another client; Countersign's workers \
             publish theirs again before that",
            format!(
                "rabbitmqctl set_policy no-limit '^{name}$' '{{\"delivery-limit\": -1}}' --apply-to queues"
            ),
        ));
    }
    let dead = client.dead_letters(name);
    if let Ok(count @ 1..) = dead.count().await {
        findings.push(Finding::new(
            Level::Warning,
            format!("{count} messages are in {}", dead.queue()),
            "no worker could run them",
            format!("countersign failures list -Q {name}"),
        ));
    }
}

fn consumers(name: &str, state: QueueState) -> Finding {
    match state {
        QueueState { ready: 1.., consumers: 0 } => Finding::new(
            Level::Error,
            format!("{} tasks wait in {name}, and no worker consumes it", state.ready),
            "they wait until a worker consumes the queue",
            format!("demo -Q {name}    # or another worker with handlers for these tasks"),
        ),
        QueueState { ready, consumers } => {
            Finding::ok(format!("queue {name}: {ready} ready, {consumers} consumers"))
        }
    }
}

fn parse(version: &str) -> Option<Version> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_database_that_others_can_read_is_a_warning() {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("countersign-{}", uuid::Uuid::new_v4()));
        let file = folder.join("tasks.db");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&file, "").unwrap();
        let found = |folder_mode, file_mode| {
            for (path, mode) in [(&folder, folder_mode), (&file, file_mode)] {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            readers(&file)
        };
        assert_eq!(found(0o755, 0o600).level, Level::Ok);
        assert_eq!(found(0o700, 0o644).level, Level::Ok);
        let warning = found(0o755, 0o644);
        assert_eq!(warning.level, Level::Warning);
        assert!(warning.what.contains("every user") && warning.mend.contains("chmod go-rwx"));
        assert!(found(0o750, 0o640).what.contains("the group"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(parse("3.10.8"), Some((3, 10)));
        assert!(parse("3.9.1") < Some(OLDEST_BROKER));
        assert!(parse("4.0.5") >= Some(LIMITING_BROKER));
        assert_eq!(parse("unknown"), None);
    }

    #[test]
    fn a_policy_that_drops_any_key_is_an_error() {
        let policy = |eviction: &str| {
            eviction_level(&StoreServer { eviction: eviction.into(), ..StoreServer::default() })
        };
        assert_eq!(policy("noeviction"), Level::Ok);
        assert_eq!(policy("volatile-lru"), Level::Warning);
        assert_eq!(policy("allkeys-lru"), Level::Error);
    }

    fn eviction_level(server: &StoreServer) -> Level {
        eviction(server).level
    }

    #[test]
    fn a_small_clock_difference_is_accepted() {
        let skew =
            |clock_ahead| clock(&StoreServer { clock_ahead, ..StoreServer::default() }).level;
        assert_eq!(skew(-900), Level::Ok);
        assert_eq!(skew(3_000), Level::Warning);
        assert_eq!(skew(-60_000), Level::Error);
    }

    #[test]
    fn a_drain_must_end_before_the_consumer_timeout() {
        let mut config = Config::new("amqp://localhost", "redis://localhost").unwrap();
        assert_eq!(deadlines(&config).level, Level::Ok);
        config.kill_after = Some(Duration::from_secs(45));
        assert_eq!(deadlines(&config).level, Level::Ok);
        config.kill_after = Some(Duration::from_secs(31));
        assert_eq!(deadlines(&config).level, Level::Error);
        config.kill_after = None;
        config.drain_deadline = config.consumer_timeout;
        assert_eq!(deadlines(&config).level, Level::Error);
        assert_eq!(deadlines(&config).mend, "export COUNTERSIGN_DRAIN_DEADLINE=900s");
    }
}
