//! A whole pool in one thread, by a clock that jumps: processes are slow, are stopped for up to 70 s
//! and continue without knowing it, and die, between any two of their calls to the database. A seed
//! says when. Every task that was accepted ends once, every question is decided once, and nobody
//! waits for ever.
//!
//! `COUNTERSIGN_TEST_SEEDS=10000 cargo test --release --test simulation` plays more of them, and
//! `COUNTERSIGN_TEST_SEED=7` one.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign::backend::{Chances, Life, Stage};
use countersign::{
    Client, Config, Context, Handle, Policy, Retry, Task, TaskError, TaskResult, Worker,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

const QUEUE: &str = "simulated";
const TASKS: usize = 10;
const WORKERS: u64 = 2;
/// Of the calls of a process that may die, so many end it.
const DIES: f64 = 0.01;
/// Of the same calls, so many stop it.
const STOPS: f64 = 0.01;
/// Longer than any lease: another process takes back what a stopped one holds.
const LONGEST_STOP: Duration = Duration::from_secs(70);
const SLOWEST: Duration = Duration::from_millis(50);
/// So long processes are stopped and die. Then they live: a task that one of them holds for a dead
/// one is never done.
const CALM_AFTER: Duration = Duration::from_secs(60);
const CHANCES: Chances = Chances {
    slowest: SLOWEST,
    stops: STOPS,
    longest_stop: LONGEST_STOP,
    dies: DIES,
    calm_after: CALM_AFTER,
};
/// By the clock of the simulation: whoever waits longer waits for ever.
const FOR_EVER: Duration = Duration::from_secs(2 * 60 * 60);
/// How long a question is open, and a task sleeps: long enough to be parked.
const OPEN: Duration = Duration::from_secs(20);
const NAP: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Kind {
    Plain,
    FailsTwice,
    Sleeps,
    Asks,
    AsksTwo,
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

/// What handlers have done outside of the database, by task: a process that is dead does nothing.
type Effects = Arc<Mutex<BTreeMap<usize, Vec<&'static str>>>>;

async fn play(ctx: Context, task: Play, effects: Effects, life: Life) -> TaskResult<usize> {
    let effect = async |what| {
        life.goes_on().await;
        effects.lock().unwrap().entry(task.number).or_default().push(what);
        TaskResult::Ok(())
    };
    ctx.step("begin", || effect("begin")).await?;
    let asked = |name| ctx.approval(name).ask("May it?").expires_in(OPEN);
    match task.kind {
        Kind::Plain => {}
        Kind::FailsTwice if ctx.attempt() < 3 => {
            return Err(TaskError::retry_after(Duration::from_secs(1), "not yet"));
        }
        Kind::FailsTwice => {}
        Kind::Sleeps => ctx.sleep("nap", NAP).await?,
        Kind::Asks => drop(asked("one").await?),
        Kind::AsksTwo => {
            let (one, two) = tokio::join!(asked("one").into_future(), asked("two").into_future());
            one?;
            two?;
        }
    }
    ctx.step("end", || effect("end")).await?;
    Ok(task.number)
}

/// Works, and is followed by another when it has died.
async fn work(stage: Arc<Stage>, config: Config, effects: Effects, seed: u64) {
    let mut seeds = StdRng::seed_from_u64(seed);
    loop {
        let (backends, life) = stage.process(&config, seeds.random(), CHANCES);
        let (effects, lives) = (Arc::clone(&effects), life.clone());
        let retry = Retry::exponential(Duration::from_secs(1)).attempts(100);
        let policy = Policy { retry, ..Policy::default() };
        let worker = Worker::new(&Client::of(backends, config.clone()))
            .queue(QUEUE)
            .handle(move |ctx, task| play(ctx, task, Arc::clone(&effects), lives.clone()), policy);
        tokio::spawn(worker.run(std::future::pending()));
        life.ended().await;
    }
}

/// Approves whatever is asked, unless it is slept through, and is followed by another.
async fn decide(stage: Arc<Stage>, config: Config, seed: u64) {
    let mut seeds = StdRng::seed_from_u64(seed);
    loop {
        let (backends, life) = stage.process(&config, seeds.random(), CHANCES);
        let client = Client::of(backends, config.clone());
        let sleeps: bool = seeds.random();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(if sleeps { OPEN } else { OPEN / 10 }).await;
                let pending = client.pending_approvals(100).await;
                for asked in pending.map_or_else(|_| Vec::new(), |pending| pending.asked) {
                    let _ = client.decide(&asked.approve("ana")).await;
                }
            }
        });
        life.ended().await;
    }
}

async fn simulate(seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut config = Config::embedded("sqlite::memory:").unwrap();
    config.lease = Duration::from_secs(5);
    let stage = Arc::new(Stage::new().unwrap());
    let effects = Effects::default();
    for _ in 0..WORKERS {
        let effects = Arc::clone(&effects);
        tokio::spawn(work(Arc::clone(&stage), config.clone(), effects, chance.random()));
    }
    for _ in 0..2 {
        tokio::spawn(decide(Arc::clone(&stage), config.clone(), chance.random()));
    }
    let producer = Chances { slowest: SLOWEST, ..Chances::default() };
    let (backends, _) = stage.process(&config, chance.random(), producer);
    let client = Client::of(backends, config);
    let mut accepted: Vec<Handle<usize>> = Vec::new();
    for number in 0..TASKS {
        let kinds = [Kind::Plain, Kind::FailsTwice, Kind::Sleeps, Kind::Asks, Kind::AsksTwo];
        let kind = kinds[chance.random_range(0..kinds.len())];
        accepted.push(client.enqueue(Play { number, kind }).queue(QUEUE).await.unwrap());
    }
    let mut convicted = BTreeSet::new();
    for (number, handle) in accepted.into_iter().enumerate() {
        let id = handle.id().clone();
        let result = handle.result_within(FOR_EVER).await;
        let stored = client.status(&id).await.unwrap().unwrap().output::<usize>();
        match result {
            Ok(answer) => {
                assert_eq!(answer, number);
                assert_eq!(stored.ok(), Some(number), "what was told is what is stored");
            }
            // Who happens to run whenever somebody dies is convicted of it, and nobody else.
            Err(error) => {
                let failure = error.failure().unwrap_or_else(|| panic!("task {number}: {error}"));
                assert_eq!(failure.exc_type, "WorkerLostError", "task {number}: {error}");
                assert_eq!(stored.unwrap_err().failure(), Some(failure));
                convicted.insert(number);
            }
        }
    }
    for (number, effects) in effects.lock().unwrap().iter() {
        if convicted.contains(number) {
            continue;
        }
        // A step whose process dies, or is stopped for long, between effect and record runs again.
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
fn whatever_dies_every_accepted_task_ends_once() {
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
        assert!(played.is_ok(), "seed {seed}: COUNTERSIGN_TEST_SEED={seed} plays it again");
    }
}
