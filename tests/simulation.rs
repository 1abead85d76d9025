//! A whole pool in one thread, with a simulated clock: between any two of their calls to the database,
//! processes are slow, are stopped for up to 70 s and continue without noticing, or die. A seed determines
//! the faults. Every accepted task ends once, every request is decided once, and no waiter hangs.
//!
//! `COUNTERSIGN_TEST_SEEDS=10000 cargo test --release --test simulation` runs more seeds, and
//! `COUNTERSIGN_TEST_SEED=7` runs one.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign::backend::{FaultChances, SimulatedProcess, Simulation};
use countersign::{
    Client, Config, Context, Handle, Policy, Retry, Task, TaskError, TaskResult, Worker,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

const QUEUE: &str = "simulated";
const TASKS: usize = 10;
const WORKERS: u64 = 2;
/// The probability that a call of a process that may die ends the process.
const DIES: f64 = 0.01;
/// The probability that such a call stops the process.
const STOPS: f64 = 0.01;
/// Longer than any lease: another process reclaims the tasks of a stopped one.
const LONGEST_STOP: Duration = Duration::from_secs(70);
const SLOWEST: Duration = Duration::from_millis(50);
/// Processes are stopped and die only until this time. After that they live: otherwise, a task that one of
/// them holds for a dead one would never end.
const CALM_AFTER: Duration = Duration::from_secs(60);
const CHANCES: FaultChances = FaultChances {
    slowest: SLOWEST,
    stops: STOPS,
    longest_stop: LONGEST_STOP,
    dies: DIES,
    calm_after: CALM_AFTER,
};
/// In simulated time: a wait that takes longer counts as a hang.
const FOR_EVER: Duration = Duration::from_secs(2 * 60 * 60);
/// How long a request is open, and how long a task sleeps: long enough for a suspension.
const OPEN: Duration = Duration::from_secs(20);
const SLEEP: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Kind {
    Plain,
    FailsTwice,
    Sleeps,
    NeedsApproval,
    NeedsTwoApprovals,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Play {
    number: usize,
    kind: Kind,
}

impl Task for Play {
    const NAME: &'static str = "test.play";
    type Output = usize;
}

/// The handlers' effects outside of the database, by task: a dead process has none.
type Effects = Arc<Mutex<BTreeMap<usize, Vec<&'static str>>>>;

async fn play(
    ctx: Context,
    task: Play,
    effects: Effects,
    process: SimulatedProcess,
) -> TaskResult<usize> {
    let effect = async |what| {
        process.proceed().await;
        effects.lock().unwrap().entry(task.number).or_default().push(what);
        TaskResult::Ok(())
    };
    ctx.step("begin", || effect("begin")).await?;
    let request = |name| ctx.approval(name).title("May it?").expires_in(OPEN);
    match task.kind {
        Kind::Plain => {}
        Kind::FailsTwice if ctx.attempt() < 3 => {
            return Err(TaskError::retry_after(Duration::from_secs(1), "not yet"));
        }
        Kind::FailsTwice => {}
        Kind::Sleeps => ctx.sleep("sleep", SLEEP).await?,
        Kind::NeedsApproval => drop(request("one").await?),
        Kind::NeedsTwoApprovals => {
            let (one, two) =
                tokio::join!(request("one").into_future(), request("two").into_future());
            one?;
            two?;
        }
    }
    ctx.step("end", || effect("end")).await?;
    Ok(task.number)
}

/// Runs workers: when one has died, another follows.
async fn work(simulation: Arc<Simulation>, config: Config, effects: Effects, seed: u64) {
    let mut seeds = StdRng::seed_from_u64(seed);
    loop {
        let (backends, process) = simulation.process(&config, seeds.random(), CHANCES);
        let (effects, lives) = (Arc::clone(&effects), process.clone());
        let retry = Retry::exponential(Duration::from_secs(1)).attempts(100);
        let policy = Policy { retry, ..Policy::default() };
        let worker =
            Worker::new(&Client::of(backends, config.clone())).queue(QUEUE).handle_with_policy(
                move |ctx, task| play(ctx, task, Arc::clone(&effects), lives.clone()),
                policy,
            );
        tokio::spawn(worker.run(std::future::pending()));
        process.ended().await;
    }
}

/// Runs deciders, which approve every request unless it expires while they sleep; another follows a dead one.
async fn decide(simulation: Arc<Simulation>, config: Config, seed: u64) {
    let mut seeds = StdRng::seed_from_u64(seed);
    loop {
        let (backends, process) = simulation.process(&config, seeds.random(), CHANCES);
        let client = Client::of(backends, config.clone());
        let sleeps: bool = seeds.random();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(if sleeps { OPEN } else { OPEN / 10 }).await;
                let pending = client.pending_approvals(100).await;
                for record in pending.map_or_else(|_| Vec::new(), |pending| pending.requests) {
                    let _ = client.decide(&record.approve("ana")).await;
                }
            }
        });
        process.ended().await;
    }
}

async fn simulate(seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut config = Config::embedded("sqlite::memory:").unwrap();
    config.lease = Duration::from_secs(5);
    let simulation = Arc::new(Simulation::new().unwrap());
    let effects = Effects::default();
    for _ in 0..WORKERS {
        let effects = Arc::clone(&effects);
        tokio::spawn(work(Arc::clone(&simulation), config.clone(), effects, chance.random()));
    }
    for _ in 0..2 {
        tokio::spawn(decide(Arc::clone(&simulation), config.clone(), chance.random()));
    }
    let producer = FaultChances { slowest: SLOWEST, ..FaultChances::default() };
    let (backends, _) = simulation.process(&config, chance.random(), producer);
    let client = Client::of(backends, config);
    let mut accepted: Vec<Handle<usize>> = Vec::new();
    for number in 0..TASKS {
        let kinds = [
            Kind::Plain,
            Kind::FailsTwice,
            Kind::Sleeps,
            Kind::NeedsApproval,
            Kind::NeedsTwoApprovals,
        ];
        let kind = kinds[chance.random_range(0..kinds.len())];
        accepted.push(client.enqueue(Play { number, kind }).queue(QUEUE).await.unwrap());
    }
    let mut quarantined = BTreeSet::new();
    for (number, handle) in accepted.into_iter().enumerate() {
        let id = handle.id().clone();
        let result = handle.result_within(FOR_EVER).await;
        let stored = client.status(&id).await.unwrap().unwrap().output::<usize>();
        match result {
            Ok(value) => {
                assert_eq!(value, number);
                assert_eq!(stored.ok(), Some(number), "the returned result is the stored one");
            }
            // Only a task that happens to run at every crash fails as a poison task.
            Err(error) => {
                let failure = error.failure().unwrap_or_else(|| panic!("task {number}: {error}"));
                assert_eq!(failure.exc_type, "WorkerLostError", "task {number}: {error}");
                assert_eq!(stored.unwrap_err().failure(), Some(failure));
                quarantined.insert(number);
            }
        }
    }
    for (number, effects) in effects.lock().unwrap().iter() {
        if quarantined.contains(number) {
            continue;
        }
        // A step runs again if its process dies, or is stopped for long, between its effect and its record.
        // A process that continues late may add its own effect after the end.
        assert!(
            effects.first() == Some(&"begin") && effects.contains(&"end"),
            "{number}: {effects:?}"
        );
    }
    let mut decided = BTreeMap::<String, usize>::new();
    for entry in client.audit_entries(10_000).await.unwrap() {
        let field = |name| entry.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        if field("what").as_deref() == Some("approve") {
            *decided.entry(field("approval").unwrap()).or_default() += 1;
        }
    }
    assert!(decided.values().all(|times| *times == 1), "{decided:?}");
}

#[test]
fn every_accepted_task_ends_once_despite_crashes() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("COUNTERSIGN_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("COUNTERSIGN_TEST_SEEDS").unwrap_or(300),
    };
    for seed in seeds {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(simulate(seed));
        }));
        assert!(played.is_ok(), "seed {seed}: COUNTERSIGN_TEST_SEED={seed} repeats it");
    }
}
