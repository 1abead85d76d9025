//! Two workers on one file, which are stopped for up to 15 s and continue, or are killed. Every task
//! that was accepted has a result, and its handler has run.
//!
//! `COUNTERSIGN_TEST_ROUNDS=100 cargo test --test embedded_stops` goes on for longer, and
//! `COUNTERSIGN_TEST_SEED=7` chooses the same faults again.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use countersign::{Client, Config, Context, Handle, Policy, Task, TaskResult, Worker};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use support::scratch;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(120);
const QUEUE: &str = "stops";
/// Tells a child of this test which file to use, and where it records what its handler did.
const FILE: &str = "COUNTERSIGN_TEST_DATABASE";
const EFFECTS: &str = "COUNTERSIGN_TEST_EFFECTS";
const ROUNDS: u64 = 4;
const WORKERS: usize = 2;
/// How long a session lasts, and a stop at most, in milliseconds.
const LEASE: u64 = 10_000;
const LONGEST_STOP: u64 = 15_000;
const KILLED: f64 = 0.25;
/// More than one worker can do: while the other is stopped, messages wait.
const BETWEEN_TASKS: Duration = Duration::from_millis(10);

#[derive(Serialize, Deserialize)]
struct Note {
    number: usize,
}

impl Task for Note {
    const NAME: &'static str = "test.note";
    type Output = usize;
}

async fn note(_: Context, Note { number }: Note) -> TaskResult<usize> {
    let path = std::env::var(EFFECTS)?;
    let mut effects = std::fs::File::options().append(true).create(true).open(path)?;
    // One write, so that lines of two processes do not mix.
    effects.write_all(format!("{number}\n").as_bytes())?;
    sleep(Duration::from_millis(rand::random_range(0..50))).await;
    Ok(number)
}

fn config(file: &Path) -> Config {
    let mut config = Config::embedded(&format!("sqlite:{}", file.display())).unwrap();
    config.publish_timeout = PATIENCE;
    config
}

/// No test: a worker that is stopped and killed. It holds more messages than it runs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a worker that is stopped and killed"]
async fn working() {
    let Ok(file) = std::env::var(FILE) else { return };
    let client = Client::connect(&config(Path::new(&file))).await.unwrap();
    let worker = Worker::new(&client).queue(QUEUE).concurrency(2).prefetch(16);
    worker.handle(note, Policy::default()).run(std::future::pending()).await.unwrap();
}

struct Pool {
    file: PathBuf,
    effects: PathBuf,
    workers: Vec<Child>,
}

impl Pool {
    fn spawn(&self) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "working", "--ignored", "--nocapture"])
            .env(FILE, &self.file)
            .env(EFFECTS, &self.effects)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// One fault of each worker, at the same time or one after the other.
    async fn break_all(&mut self, chance: &mut StdRng) {
        for worker in 0..WORKERS {
            sleep(Duration::from_millis(chance.random_range(0..3_000))).await;
            if chance.random_bool(KILLED) {
                self.workers[worker].kill().await.unwrap();
                self.workers[worker] = self.spawn();
            } else {
                signal("STOP", &self.workers[worker]);
            }
        }
        // Half of them longer than a session lasts.
        let stop = |worker| match chance.random_bool(0.5) {
            true => (chance.random_range(LEASE..LONGEST_STOP), worker),
            false => (chance.random_range(1_000..LEASE), worker),
        };
        let mut stops: Vec<_> = (0..WORKERS).map(stop).collect();
        stops.sort_unstable();
        let mut waited = 0;
        for (stop, worker) in stops {
            sleep(Duration::from_millis(stop - waited)).await;
            waited = stop;
            signal("CONT", &self.workers[worker]);
        }
    }
}

fn signal(name: &str, process: &Child) {
    let id = process.id().expect("a process that has not ended").to_string();
    let sent = std::process::Command::new("kill").args([&format!("-{name}"), &id]).status();
    assert!(sent.unwrap().success(), "kill -{name} {id}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_stopped_or_killed_every_accepted_task_ends_and_has_run() {
    let seed = number("COUNTERSIGN_TEST_SEED").unwrap_or_else(rand::random);
    let rounds = number("COUNTERSIGN_TEST_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("COUNTERSIGN_TEST_SEED={seed}, {rounds} rounds, stops of up to {LONGEST_STOP} ms");
    let mut chance = StdRng::seed_from_u64(seed);
    let folder = scratch();
    let (file, effects) = (folder.join("tasks.db"), folder.join("effects"));
    let client = Client::connect(&config(&file)).await.unwrap();
    let mut pool = Pool { file, effects, workers: Vec::new() };
    pool.workers = (0..WORKERS).map(|_| pool.spawn()).collect();

    let producer = client.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let producing = tokio::spawn(async move {
        let mut accepted: Vec<Handle<usize>> = Vec::new();
        while stopped.is_empty() {
            let task = producer.enqueue(Note { number: accepted.len() }).queue(QUEUE);
            accepted.push(task.await.unwrap());
            sleep(BETWEEN_TASKS).await;
        }
        accepted
    });
    for _ in 0..rounds {
        pool.break_all(&mut chance).await;
    }
    stop.send(()).unwrap();
    let accepted = timeout(PATIENCE * 2, producing).await.unwrap().unwrap();
    let (calm, count) = (Instant::now(), accepted.len());
    for (number, handle) in accepted.into_iter().enumerate() {
        let result = handle.result_within(PATIENCE).await;
        assert_eq!(result.expect("an accepted task ends"), number);
    }
    eprintln!("{count} tasks; the last one ended {:?} after the last fault", calm.elapsed());
    let mut runs = BTreeMap::<usize, usize>::new();
    for line in std::fs::read_to_string(&pool.effects).unwrap().lines() {
        *runs.entry(line.parse().unwrap()).or_default() += 1;
    }
    assert_eq!(runs.len(), count, "every accepted task has run");
    eprintln!("{} tasks ran more than once", runs.values().filter(|runs| **runs > 1).count());
    client.close().await;
}
