//! What a worker holds back, protects and convicts.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{
    CircuitBreaker, Client, Config, Context, Policy, Rate, Retry, Task, TaskError, TaskResult,
    Worker,
};
use serde::{Deserialize, Serialize};
use support::{Running, queue_name, servers};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Notify;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Serialize, Deserialize)]
struct Work {
    n: u32,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    type Output = u32;
}

async fn echo(_: Context, Work { n }: Work) -> TaskResult<u32> {
    Ok(n)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_of_task_runs_no_more_at_once_than_its_policy_says() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running_now, seen) = (Arc::clone(&now), Arc::clone(&most));
    let counted = move |_: Context, Work { n }: Work| {
        let (now, most) = (Arc::clone(&running_now), Arc::clone(&seen));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(n)
        }
    };
    let policy = Policy { concurrency: Some(2), ..Policy::default() };
    let running = Running::start(|worker| worker.handle(counted, policy).concurrency(16)).await;
    let calls = (0..20).map(|n| running.call(Work { n }));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(most.load(Ordering::SeqCst), 2);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_without_tasks_leave_the_slots_to_the_others() {
    let idle = [queue_name(), queue_name()];
    let running = Running::start(|worker| {
        let worker = worker.queue(&idle[0]).queue_limited(&idle[1], 1);
        worker.handle(echo, Policy::default()).concurrency(1)
    })
    .await;
    for n in 0..3 {
        assert_eq!(running.call(Work { n }).await.unwrap(), n);
        for queue in &idle {
            let work = running.client.enqueue(Work { n }).queue(queue).await.unwrap();
            assert_eq!(work.result_within(PATIENCE).await.unwrap(), n);
        }
    }
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_postpones_what_it_holds_back_and_loses_none() {
    let rate = Some(Rate { tasks: 5, per: Duration::from_secs(2) });
    let policy = Policy { rate, ..Policy::default() };
    let running = Running::start(|worker| worker.handle(echo, policy).concurrency(4)).await;
    let begun = jiff::Timestamp::now();
    let calls = (0..12).map(|n| running.call(Work { n }));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let took = jiff::Timestamp::now().duration_since(begun);
    assert!(took >= jiff::SignedDuration::from_millis(2700), "12 at 5 in 2 s took {took:?}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_holds_tasks_back_until_one_succeeds() {
    let healthy = Arc::new(AtomicUsize::new(0));
    let runs = Arc::new(AtomicUsize::new(0));
    let (state, counted) = (Arc::clone(&healthy), Arc::clone(&runs));
    let flaky = move |_: Context, Work { n }: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        let up = state.load(Ordering::SeqCst) == 1;
        async move { if up { Ok(n) } else { Err(TaskError::fatal("down")) } }
    };
    let breaker = CircuitBreaker {
        failures: 3,
        within: Duration::from_secs(60),
        cool_down: Duration::from_millis(1500),
    };
    let policy = Policy { breaker: Some(breaker), ..Policy::default() };
    let running = Running::start(|worker| worker.handle(flaky, policy).concurrency(1)).await;
    for n in 0..3 {
        assert!(running.call(Work { n }).await.is_err());
    }
    healthy.store(1, Ordering::SeqCst);
    let held = futures_util::future::join_all((3..8).map(|n| running.call(Work { n }))).await;
    assert!(held.iter().all(Result::is_ok), "{held:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 8, "what was held back did not run and fail");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_section_outlives_the_drain_deadline() {
    let inside = Arc::new(Notify::new());
    let entered = Arc::clone(&inside);
    let critical = move |ctx: Context, Work { n }: Work| {
        let entered = Arc::clone(&entered);
        async move {
            let section = async {
                entered.notify_one();
                tokio::time::sleep(Duration::from_millis(1500)).await;
                n
            };
            ctx.protect(Duration::from_secs(10), section).await
        }
    };
    let running = Running::start(|worker| {
        worker.handle(critical, Policy::default()).drain_deadline(Duration::from_millis(100))
    })
    .await;
    let handle = running.client.enqueue(Work { n: 7 }).queue(&running.queue).await.unwrap();
    inside.notified().await;
    let client = Client::connect(running.client.config()).await.unwrap();
    let id = handle.id().clone();
    let drained = running.drain().await;
    assert_eq!((drained.protected, drained.is_clean()), (1, true), "{drained:?}");
    assert_eq!(client.handle::<u32>(id).result_within(PATIENCE).await.unwrap(), 7);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_drain_at_once() {
    let started = Arc::new(Notify::new());
    let begun = Arc::clone(&started);
    let stuck = move |_: Context, _: Work| {
        begun.notify_one();
        std::future::pending::<TaskResult<u32>>()
    };
    let hurry = Arc::new(Notify::new());
    let signal = Arc::clone(&hurry);
    let running = Running::start(|worker| {
        let worker = worker.drain_deadline(Duration::from_secs(3600));
        worker.handle(stuck, Policy::default()).hurry(async move { signal.notified().await })
    })
    .await;
    let task = running.client.enqueue(Work { n: 1 }).queue(&running.queue).await.unwrap();
    started.notified().await;
    hurry.notify_one();
    assert_eq!(running.drain().await.abandoned, std::slice::from_ref(task.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_task_within_its_grace_waits_for_a_worker_that_knows_it() {
    let ignorant = Running::start(|worker| worker.unknown_grace(Duration::from_secs(60))).await;
    let handle = ignorant.client.enqueue(Work { n: 3 }).queue(&ignorant.queue).await.unwrap();
    let queue = ignorant.queue.clone();
    let knows = Running::start(|worker| worker.queue(&queue).handle(echo, Policy::default())).await;
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), 3);
    ignorant.drain().await;
    knows.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_taken_attempt_is_not_run() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let count = move |_: Context, Work { n }: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Ok(n) }
    };
    let policy = Policy { once: true, ..Policy::default() };
    let running = Running::start(|worker| worker.handle(count, policy).concurrency(1)).await;
    let id = uuid::Uuid::new_v4().to_string();
    for _ in 0..3 {
        let task = running.client.enqueue(Work { n: 1 }).id(&id);
        task.queue(&running.queue).await.unwrap();
    }
    assert_eq!(running.call(Work { n: 2 }).await.unwrap(), 2);
    assert_eq!(runs.load(Ordering::SeqCst), 2, "one of three copies, and the last");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_back_off_and_never_retry_what_the_policy_excludes() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let fail = move |_: Context, _: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Err::<u32, _>(TaskError::raise("builtins", "KeyError", "k")) }
    };
    let retry = Retry::exponential(Duration::from_millis(50)).attempts(5).never_for("KeyError");
    let policy = Policy { retry, ..Policy::default() };
    let running = Running::start(|worker| worker.handle(fail, policy)).await;
    assert!(running.call(Work { n: 1 }).await.is_err());
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    running.drain().await;
}

/// What the poison test starts as processes of their own: a worker that 13 ends at once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of another test"]
async fn poison_worker() {
    let Ok(queue) = std::env::var("POISONED_QUEUE") else { return };
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let deadly = |_: Context, Work { n }: Work| async move {
        if n == 13 {
            std::process::abort();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(n)
    };
    let worker = Worker::new(&client).queue(queue).concurrency(4).prefetch(8);
    worker.handle(deadly, Policy::default()).run(std::future::pending()).await.unwrap();
}

/// Counted: results of innocents (all succeed), and the dead letters (one).
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_convicts_itself_and_no_innocent() {
    let servers = servers();
    let queue = queue_name();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let mut innocents = Vec::new();
    let mut poison = None;
    for n in 0..200 {
        let task = client.enqueue(Work { n: if n == 13 { 999 } else { n } });
        innocents.push(task.queue(&queue).await.unwrap());
        if n == 20 {
            poison = Some(client.enqueue(Work { n: 13 }).queue(&queue).await.unwrap());
        }
    }
    let poisoned = queue.clone();
    let supervisor = tokio::spawn(async move {
        loop {
            let mut worker = tokio::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "poison_worker", "--nocapture"])
                .env("POISONED_QUEUE", &poisoned)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            worker.wait().await.unwrap();
        }
    });
    let poison = poison.unwrap();
    let convict = poison.id().clone();
    let error = poison.result_within(PATIENCE).await.unwrap_err();
    assert_eq!(error.failure().unwrap().exc_type, "WorkerLostError", "{error}");
    for innocent in innocents {
        innocent.result_within(PATIENCE).await.unwrap();
    }
    supervisor.abort();
    let letter = client.dead_letters(&queue).find(&convict).await.unwrap().unwrap();
    let [lost] = letter.attempts.as_slice() else { panic!("{:?}", letter.attempts) };
    assert_eq!((lost.number, lost.error.as_str()), (1, "billiard.exceptions.WorkerLostError"));
    assert!(lost.message.ends_with("2 of them while nothing else did"), "{}", lost.message);
    client.close().await;
}

/// What the test of the watchdog starts as a process of its own: its handler blocks its thread.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of another test"]
async fn blocking_worker() {
    let Ok(queue) = std::env::var("BLOCKED_QUEUE") else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let rude = |_: Context, Work { n }: Work| async move {
        std::thread::sleep(Duration::from_millis(n.into()));
        Ok(n)
    };
    let worker = Worker::new(&client).queue(queue);
    worker.handle(rude, Policy::default()).run(std::future::pending()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_blocks_the_runtime_is_named() {
    let servers = servers();
    let queue = queue_name();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let mut worker = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "blocking_worker", "--nocapture"])
        .env("BLOCKED_QUEUE", &queue)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let blocked = client.enqueue(Work { n: 150 }).queue(&queue).await.unwrap();
    let named = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("blocks the async runtime") {
                return line;
            }
        }
        panic!("the worker ended and named nobody");
    };
    let line = tokio::time::timeout(PATIENCE, named).await.unwrap();
    assert!(line.contains(blocked.id().as_str()), "{line}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_have_limits_of_their_own() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running_now, seen) = (Arc::clone(&now), Arc::clone(&most));
    let counted = move |_: Context, Work { n }: Work| {
        let (now, most) = (Arc::clone(&running_now), Arc::clone(&seen));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(n)
        }
    };
    let narrow = queue_name();
    let running = Running::start(|worker| {
        worker.queue_limited(&narrow, 1).handle(counted, Policy::default()).concurrency(8)
    })
    .await;
    let mut handles = Vec::new();
    for n in 0..10 {
        handles.push(running.client.enqueue(Work { n }).queue(&narrow).await.unwrap());
    }
    for handle in handles {
        handle.result_within(PATIENCE).await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    running.drain().await;
}
