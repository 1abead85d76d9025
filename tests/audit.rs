//! The audit is sealed as it grows, and a change of sealed entries is detected.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use countersign::approval::{ApprovalRequest, AuditKind, DecideResult, Decision, Seal, Verified};
use countersign::backend::AuditAction;
use countersign::{Client, Config, TaskId};
use redis::aio::MultiplexedConnection;
use support::{Server, TIMEOUT, servers};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const AUDIT: &str = "cs:audit:{cs}";
const SEALS: &str = "cs:seal:{cs}";
const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";

/// An approval service in this process, which seals the audit.
struct ApprovalService {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl ApprovalService {
    async fn start(config: &Config) -> Self {
        let client = Client::connect(config).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            client.run_approval_service(async { drop(stopped.await) }).await
        });
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

fn config(redis: &Server) -> Config {
    let mut config = Config::new(&servers().broker_url, redis.url()).unwrap();
    config.seal_key = countersign::approval::SealKey::new(KEY.trim().as_bytes());
    config
}

async fn decide(client: &Client, times: usize) {
    for n in 0..times {
        let requested = client.request_approval(ApprovalRequest::new("Deploy?")).await.unwrap();
        let record = client.approval(requested.id()).await.unwrap();
        let decision = record.approve(&format!("person-{n}"));
        assert_eq!(client.decide(&decision).await.unwrap(), DecideResult::Applied);
    }
}

/// Waits for a seal that covers at least this many entries.
async fn sealed(client: &Client, entries: u64) -> Seal {
    let wait = async {
        loop {
            let newest = client.newest_seal().await.unwrap();
            if let Some(seal) = newest.filter(|seal| seal.count >= entries) {
                return seal;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.unwrap()
}

async fn faults(client: &Client, exported: Option<&Seal>) -> Vec<String> {
    client.verify_audit(exported).await.unwrap().faults
}

async fn connection(redis: &Server) -> MultiplexedConnection {
    let client = redis::Client::open(redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Returns all entries of a stream in the form that `XADD` takes.
async fn entries(redis: &mut MultiplexedConnection, key: &str) -> Vec<(String, Vec<String>)> {
    redis::cmd("XRANGE").arg(key).arg("-").arg("+").query_async(redis).await.unwrap()
}

async fn write(redis: &mut MultiplexedConnection, key: &str, entries: &[(String, Vec<String>)]) {
    let _: () = redis::cmd("DEL").arg(key).query_async(redis).await.unwrap();
    for (id, fields) in entries {
        let mut add = redis::cmd("XADD");
        let _: String = add.arg(key).arg(id).arg(fields).query_async(redis).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_to_sealed_entries_is_detected() {
    let redis = Server::redis().await;
    let config = config(&redis);
    let client = Client::connect(&config).await.unwrap();
    let services = [ApprovalService::start(&config).await, ApprovalService::start(&config).await];
    decide(&client, 5).await;
    let early = sealed(&client, 5).await;
    decide(&client, 5).await;
    sealed(&client, 10).await;
    for service in services {
        service.end().await;
    }
    // Refused attempts and notes are listed, but neither sealed nor counted.
    let requested = client.request_approval(ApprovalRequest::new("Deploy?")).await.unwrap();
    let record = client.approval(requested.id()).await.unwrap();
    let stale = Decision { digest: "0".repeat(64).into(), ..record.approve("eve") };
    assert_eq!(client.decide(&stale).await.unwrap(), DecideResult::DigestMismatch);
    let (id, queue) = (TaskId::random(), "q.dead".to_owned());
    let action = AuditAction { what: "purge", id, queue, by: "a worker".into() };
    drop(client.backends().store.record_action(action).await.unwrap());
    let kinds: Vec<_> = client.audit_entries(2).await.unwrap().iter().map(|it| it.kind).collect();
    assert!(kinds.contains(&AuditKind::Note) && kinds.contains(&AuditKind::Refused), "{kinds:?}");
    let unchanged = client.verify_audit(Some(&early)).await.unwrap();
    let Verified { sealed, unsealed, faults: none, .. } = unchanged;
    assert!((sealed, unsealed) == (10, 0) && none.is_empty(), "{none:?}");

    let mut redis = connection(&redis).await;
    let (audit, seals) = (entries(&mut redis, AUDIT).await, entries(&mut redis, SEALS).await);
    let mut altered = audit.clone();
    let by = altered[3].1.iter().position(|text| text == "person-3").unwrap();
    altered[3].1[by] = "person-4".into();
    let mut swapped = audit.clone();
    (swapped[6].1, swapped[7].1) = (audit[7].1.clone(), audit[6].1.clone());
    let without = |n: usize| [&audit[..n], &audit[n + 1..]].concat();
    for changed in [altered, swapped, without(0), without(5), without(9), Vec::new()] {
        write(&mut redis, AUDIT, &changed).await;
        assert_ne!(faults(&client, None).await, [""; 0]);
    }
    write(&mut redis, AUDIT, &audit).await;
    write(&mut redis, SEALS, &seals[1..]).await;
    assert_ne!(faults(&client, None).await, [""; 0]);
    write(&mut redis, SEALS, &[]).await;
    let found = faults(&client, Some(&early)).await;
    assert!(found[0].contains("the audit was truncated"), "{found:?}");
    write(&mut redis, SEALS, &seals).await;
    assert_eq!(faults(&client, Some(&early)).await, [""; 0]);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_continues_the_seal_chain_of_a_dead_one() {
    let redis = Server::redis().await;
    let config = config(&redis);
    let client = Client::connect(&config).await.unwrap();
    let first = ApprovalService::start(&config).await;
    decide(&client, 1).await;
    sealed(&client, 1).await;
    first.task.abort();
    let second = ApprovalService::start(&config).await;
    decide(&client, 1).await;
    let seal = sealed(&client, 2).await;
    assert_eq!(seal.number, 2);
    assert_eq!(faults(&client, Some(&seal)).await, [""; 0]);
    // This key is not the one that the entries were sealed with.
    let mut other = config.clone();
    other.seal_key = countersign::approval::SealKey::new(&[7; 32]);
    let stranger = Client::connect(&other).await.unwrap();
    assert_eq!(faults(&stranger, None).await.len(), 2);
    other.seal_key = None;
    let keyless = Client::connect(&other).await.unwrap();
    assert!(keyless.verify_audit(None).await.unwrap_err().is_config());
    second.end().await;
    for client in [client, stranger, keyless] {
        client.close().await;
    }
}
