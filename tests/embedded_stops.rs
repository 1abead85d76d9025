//! Two workers on one file are stopped for up to 15 s and continued, or are killed. Every accepted task
//! has a result, and its handler has run.
//!
//! `COUNTERSIGN_TEST_ROUNDS=100 cargo test --test embedded_stops` runs more rounds, and
//! `COUNTERSIGN_TEST_SEED=7` repeats the faults of a run.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use countersign::{Client, Handle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::roles::note::{EFFECTS, Note, QUEUE, config};
use support::{TIMEOUT, roles, scratch};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

const ROUNDS: u64 = 4;
const WORKERS: usize = 2;
/// The length of a session, and the longest stop, in milliseconds.
const LEASE: u64 = 10_000;
const LONGEST_STOP: u64 = 15_000;
const KILLED: f64 = 0.25;
/// More tasks than one worker can run: while the other is stopped, messages wait.
const BETWEEN_TASKS: Duration = Duration::from_millis(10);

struct Pool {
    file: PathBuf,
    effects: PathBuf,
    workers: Vec<Child>,
}

impl Pool {
    fn spawn(&self) -> Child {
        let mut command = roles::command("note", &[&self.file]);
        command.env(EFFECTS, &self.effects).stderr(Stdio::inherit()).spawn().unwrap()
    }

    /// Injects one fault into each worker, at overlapping or separate times.
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
        // Half of the stops are longer than a session.
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
async fn every_accepted_task_runs_though_workers_are_stopped_or_killed() {
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
    let accepted = timeout(TIMEOUT * 2, producing).await.unwrap().unwrap();
    let (calm, count) = (Instant::now(), accepted.len());
    for (number, handle) in accepted.into_iter().enumerate() {
        let result = handle.result_within(TIMEOUT).await;
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
