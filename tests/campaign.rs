//! The long campaign: a hundred thousand tasks from two kinds of producer, two workers, and random
//! faults until the last one is done.
//!
//! Counted: for every accepted id one terminal result, read from the store; and its runs, in a
//! Redis that no fault touches.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::time::Duration;

use countersign::{Client, Config};
use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use support::{DemoWorker, Effects, IN_FLIGHT, Proxy, Server, produce_marks, queue_name, servers};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const TASKS: usize = 100_000;
const SLOTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(300);

/// The servers under fault, seen through proxies that can be cut.
struct Field {
    rabbit: Server,
    redis: Server,
    by_rabbit: Proxy,
    by_redis: Proxy,
    queue: String,
    workers: Vec<DemoWorker>,
    /// Runs that a fault may have made necessary again, and publishes whose fate it hid.
    excused: usize,
}

impl Field {
    async fn start() -> Self {
        let (rabbit, redis) = tokio::join!(Server::rabbit(), Server::redis());
        let by_rabbit = Proxy::start(rabbit.address()).await;
        let by_redis = Proxy::start(redis.address()).await;
        let workers = Vec::new();
        let queue = queue_name();
        Self { rabbit, redis, by_rabbit, by_redis, queue, workers, excused: 0 }
    }

    fn urls(&self) -> (String, String) {
        (self.rabbit.url_by(&self.by_rabbit), self.redis.url_by(&self.by_redis))
    }

    fn worker(&self, place: usize) -> DemoWorker {
        let (broker, store) = self.urls();
        let (name, slots) = (format!("{}-{place}", self.queue), SLOTS.to_string());
        let arguments = ["-Q", &self.queue, "-c", &slots, "--prefetch", "64", "-n", &name];
        DemoWorker::spawn(
            &arguments,
            &[
                ("COUNTERSIGN_BROKER_URL", &broker),
                ("COUNTERSIGN_STORE_URL", &store),
                ("DEMO_MARKS_URL", &servers().store_url),
            ],
        )
    }

    async fn fault(&mut self, draw: &mut StdRng) -> &'static str {
        let place = draw.random_range(0..self.workers.len());
        match draw.random_range(0..100) {
            0..30 => {
                self.workers[place].kill9().await;
                self.workers[place] = self.worker(place);
                self.excused += SLOTS;
                "killed a worker"
            }
            30..50 => {
                self.workers[place].sigterm();
                self.workers[place].wait().await;
                self.workers[place] = self.worker(place);
                "drained a worker"
            }
            50..70 => {
                self.by_rabbit.cut();
                self.excused += self.workers.len() * SLOTS + IN_FLIGHT + 1;
                "cut RabbitMQ's connections"
            }
            70..85 => {
                self.by_redis.cut();
                "cut Redis's connections"
            }
            85..93 => {
                self.redis.stop().await;
                self.redis.start().await;
                "restarted Redis"
            }
            _ => {
                self.rabbit.stop().await;
                self.rabbit.start().await;
                self.excused += self.workers.len() * SLOTS + IN_FLIGHT + 1;
                "restarted RabbitMQ"
            }
        }
    }
}

async fn produce_with_celery(field_url: String, queue: String, list: String) -> Vec<String> {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/celery/producer.py");
    let ran = tokio::process::Command::new(python)
        .args([script, &queue, &list, &(TASKS / 2).to_string()])
        .env("COUNTERSIGN_BROKER_URL", field_url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ran = ran.await.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: 100,000 tasks under random faults"]
async fn a_hundred_thousand_tasks_survive_random_faults() {
    let seed = std::env::var("COUNTERSIGN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random::<u64>);
    eprintln!("COUNTERSIGN_TEST_SEED={seed}");
    let mut draw = StdRng::seed_from_u64(seed);
    let mut field = Field::start().await;
    field.workers = vec![field.worker(0), field.worker(1)];
    let (broker, store) = field.urls();
    let client = Client::start(Config::new(&broker, &store).unwrap()).unwrap();
    let mut effects = Effects::at(&servers().store_url).await;

    let (queue, list) = (field.queue.clone(), effects.list.clone());
    let rust = produce_marks(client.clone(), queue.clone(), list.clone(), TASKS / 2);
    let rust = tokio::spawn(rust);
    let celery = tokio::spawn(produce_with_celery(broker, queue, list));
    let done = CancellationToken::new();
    let stop = done.clone();
    let nemesis = tokio::spawn(async move {
        let mut faults: HashMap<&str, usize> = HashMap::new();
        while !stop.is_cancelled() {
            *faults.entry(field.fault(&mut draw).await).or_default() += 1;
            let pause = Duration::from_millis(draw.random_range(500..3000));
            stop.run_until_cancelled(sleep(pause)).await;
        }
        (field, faults)
    });

    let mut accepted = rust.await.unwrap();
    accepted.extend(celery.await.unwrap());
    assert_eq!(accepted.iter().collect::<HashSet<_>>().len(), TASKS);
    let results = futures_util::stream::iter(&accepted)
        .map(|id| client.handle::<Value>(id).result_within(PATIENCE))
        .buffer_unordered(20_000);
    let failed: Vec<_> = results.filter_map(async |result| result.err()).collect().await;
    assert!(failed.is_empty(), "{} of {TASKS} have no success: {:?}", failed.len(), failed.first());
    done.cancel();
    let (field, faults) = nemesis.await.unwrap();

    let runs = effects.runs().await;
    let never = accepted.iter().filter(|id| !runs.contains_key(*id)).count();
    assert_eq!(never, 0, "accepted, a success, and never run");
    let repeated = runs.values().map(|times| times - 1).sum::<usize>();
    eprintln!("{faults:?}: {repeated} runs repeated, {} excused", field.excused);
    assert!(repeated <= field.excused);
    client.close().await;
}
