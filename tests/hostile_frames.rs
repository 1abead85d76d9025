//! Content headers that no broker would send, injected between the broker and a worker.
//!
//! The test checks that each message either ran (a mark in Redis) or is a dead letter, that each valid one
//! ran, how often the worker connected, and that its process is still the same.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::HashSet;
use std::time::Duration;

use countersign::{Client, Config};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::amqp::{CONTENT_TYPE, CORRELATION_ID, HEADERS, RawChannel, long, nested, short, text};
use support::{DemoWorker, Effects, Rewriter, TIMEOUT, queue_name, servers};
use tokio::time::timeout;

/// The test fails after this time without progress.
const STALL: Duration = Duration::from_secs(30);
/// One in this number of messages stays unchanged.
const VALID: usize = 10;
/// Begins the correlation id of a message that is to be changed; a number of eight digits follows.
const MARK: &[u8] = b"mutate-";
/// The class, weight and body size of a content header, which stay unchanged: the size must be true.
const FIXED: usize = 12;

fn worker(queue: &str, broker_url: &str) -> DemoWorker {
    let arguments = ["-Q", queue, "-c", "16", "--prefetch", "200", "-n", queue];
    let store_url = servers().store_url;
    let variables = [
        ("COUNTERSIGN_BROKER_URL", broker_url),
        ("COUNTERSIGN_STORE_URL", &store_url),
        (
            "RUST_LOG",
            "error,lapin=off,countersign::backend=info,countersign::worker::heartbeat=info",
        ),
    ];
    DemoWorker::spawn(&arguments, &variables)
}

async fn client() -> Client {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    Client::connect(&config).await.unwrap()
}

/// Returns the number of a message that is to be changed.
fn number(payload: &[u8]) -> Option<u64> {
    let at = payload.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    std::str::from_utf8(payload.get(at..at + 8)?).ok()?.parse().ok()
}

/// Makes a content header invalid in one of several ways, the same for each delivery of a message.
fn mutate(seed: u64, payload: &mut Vec<u8>) {
    let Some(number) = number(payload) else { return };
    let mut random = StdRng::seed_from_u64(seed ^ (number << 20));
    let size = payload.len();
    match random.random_range(0..10) {
        0 => {
            for _ in 0..random.random_range(1..8) {
                let at = random.random_range(FIXED..size);
                payload[at] = random.random();
            }
        }
        1 => payload.truncate(random.random_range(FIXED..size)),
        2 => payload.extend((0..random.random_range(1..100)).map(|_| random.random::<u8>())),
        3 => payload[FIXED] = random.random(),
        4 => payload[FIXED + 1] = random.random(),
        5 => {
            let depth = random.random_range(1..if number % 50 == 1 { 5_000 } else { 200 });
            replace(payload, &nested("deep", depth));
        }
        // Rarely, because a broker keeps the dead letters in its memory.
        6 if number % 20 == 1 => {
            let large = vec![b'n'; random.random_range(100_000..500_000)];
            replace(payload, &text("large", &large));
        }
        6 | 7 => {
            let noise: Vec<u8> =
                (0..random.random_range(0..300)).map(|_| random.random()).collect();
            replace(payload, &noise);
        }
        8 => {
            let at = random.random_range(FIXED + 2..size);
            let bytes: Vec<u8> = (0..random.random_range(1..20)).map(|_| random.random()).collect();
            payload.splice(at..at, bytes);
        }
        _ => {
            let at = random.random_range(FIXED + 2..size);
            payload[at] = 0xff;
            payload[..4].copy_from_slice(&random.random::<[u8; 4]>());
        }
    }
}

/// Replaces the whole property list by a table.
fn replace(payload: &mut Vec<u8>, table: &[u8]) {
    payload.truncate(FIXED);
    payload.extend_from_slice(&HEADERS.to_be_bytes());
    payload.extend_from_slice(&long(table));
}

/// Publishes `count` tasks; returns the values of the valid ones.
async fn produce(queue: &str, list: &str, count: usize) -> HashSet<String> {
    let mut channel = RawChannel::open(&servers().broker_url).await;
    let mut valid = HashSet::new();
    for n in 0..count {
        let is_valid = n % VALID == 0;
        let kind = if is_valid { "valid-".as_bytes() } else { MARK };
        let correlation = [kind, format!("{n:08}").as_bytes()].concat();
        let id = format!("{queue}-{n}");
        let headers = [
            text("id", id.as_bytes()),
            text("task", b"demo.mark"),
            text("lang", b"py"),
            nested("stamps", 2),
        ];
        let list_of = [short(b"application/json"), long(&headers.concat()), short(&correlation)];
        let body = format!(r#"[["{list}", "{n}"], {{}}, {{}}]"#);
        let flags = CONTENT_TYPE | HEADERS | CORRELATION_ID;
        channel.send(("", queue), flags, &list_of.concat(), body.as_bytes()).await;
        if is_valid {
            valid.insert(n.to_string());
        }
        if n % 500 == 499 || n + 1 == count {
            channel.confirmed(u64::try_from(n + 1).unwrap()).await;
        }
    }
    valid
}

/// Waits until every message has run or is a dead letter; fails when there is no progress.
async fn all_settled(
    client: &Client,
    queue: &str,
    worker: &DemoWorker,
    effects: &mut Effects,
    count: usize,
) {
    let mut done = 0;
    let mut since = tokio::time::Instant::now();
    loop {
        // A broker under load may not answer in time: that counts as no progress.
        let dead = client.dead_letters(queue).count().await.unwrap_or_default();
        let now = usize::try_from(dead).unwrap() + effects.count().await;
        if now >= count {
            return;
        }
        if now > done {
            (done, since) = (now, tokio::time::Instant::now());
        }
        let log = worker.stderr();
        assert!(since.elapsed() < STALL, "{now} of {count} are settled, and no more:\n{log}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Returns the seed in `COUNTERSIGN_TEST_SEED`, which repeats a run, or a random seed.
fn seed() -> u64 {
    let seed = std::env::var("COUNTERSIGN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.unwrap_or_else(rand::random)
}

async fn inject(count: usize, seed: u64) {
    println!("seed {seed}");
    let (queue, client) = (queue_name(), client().await);
    let mut effects = Effects::at(&servers().store_url).await;
    let broker_url = servers().broker_url;
    let (_rewriter, url) =
        Rewriter::before(&broker_url, move |payload| mutate(seed, payload)).await;
    let worker = worker(&queue, &url);
    worker.ready().await;
    let before = worker.threads_and_descriptors();

    let valid = produce(&queue, &effects.list, count).await;
    all_settled(&client, &queue, &worker, &mut effects, count).await;

    let runs = effects.runs().await;
    let dead = client.dead_letters(&queue).count().await.unwrap();
    let dead = usize::try_from(dead).unwrap();
    assert_eq!(runs.len() + dead, count, "each ran or is dead, seed {seed}");
    assert!(runs.values().all(|times| *times == 1), "none ran twice, seed {seed}");
    let missing: Vec<_> = valid.iter().filter(|value| !runs.contains_key(*value)).collect();
    assert!(missing.is_empty(), "valid ones did not run, seed {seed}: {missing:.200?}");
    assert!(dead > count / 4, "most mutations are seen: {dead} of {count}");
    let log = worker.stderr();
    assert_eq!(log.matches("connected to RabbitMQ").count(), 2, "seed {seed}: {log:.2000}");
    let after = worker.threads_and_descriptors();
    assert!(after.0 <= before.0 + 8, "{before:?} became {after:?}");
    client.dead_letters(&queue).purge_all().await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_mutated_headers_stop_nothing() {
    inject(20_000, seed()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: 1,000,000 mutated content headers"]
async fn campaign_of_a_million_mutated_headers_stops_nothing() {
    let first = seed();
    for part in 0..50 {
        inject(20_000, first.wrapping_add(part)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_cannot_be_made_safe_ends_the_connection_and_the_delay_grows() {
    let (queue, client) = (queue_name(), client().await);
    let broker_url = servers().broker_url;
    let (_rewriter, url) = Rewriter::before(&broker_url, |payload| {
        if number(payload).is_some() {
            payload.resize(1024 * 1024 + 1, 0);
        }
    })
    .await;
    let worker = worker(&queue, &url);
    worker.ready().await;
    let mut channel = RawChannel::open(&broker_url).await;
    let mark = short(&[MARK, b"00000000"].concat());
    channel.publish(("", &queue), CORRELATION_ID, &mark, b"[[], {}, {}]").await;

    worker.wait_for_logs("reconnecting in", 4, TIMEOUT).await;
    let log = worker.stderr();
    assert!(log.contains("a frame of type 2 with 1048577 bytes is too large"), "{log}");
    for delay in ["200ms", "400ms", "800ms", "1.6s"] {
        let line = format!("reconnecting in {delay}");
        assert_eq!(log.matches(&line).count(), 1, "{delay}: {log}");
    }
    let purge = client.dead_letters(&queue);
    assert_eq!(timeout(TIMEOUT, purge.count()).await.unwrap().unwrap(), 0);
    client.close().await;
}
