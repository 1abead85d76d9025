//! Steps on real servers: recorded once, returned from the journal, run again only after a crash.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{Client, Config, Context, Failure, Policy, Retry, Task, TaskError, TaskResult};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use support::roles::charge::{AFTER_THE_RECORD, BEFORE_THE_RECORD, CRASH, Capture, capture};
use support::{Effects, Running, Server, TIMEOUT, roles, servers};
use tokio::sync::Notify;
use tokio::time::timeout;

#[derive(Serialize, Deserialize)]
struct Charge {
    cents: u64,
}

impl Task for Charge {
    const NAME: &'static str = "test.charge";
    type Output = u64;
}

fn again_at_once() -> Policy {
    let retry = Retry::exponential(Duration::from_millis(10)).attempts(10);
    Policy { retry, ..Policy::default() }
}

fn not_yet<T>() -> TaskResult<T> {
    Err(TaskError::retry_after(Duration::ZERO, "not yet"))
}

async fn failure(running: &Running) -> Failure {
    let error = running.call(Charge { cents: 1 }).await.unwrap_err();
    error.failure().unwrap().clone()
}

/// A connection to the Redis that all tests share.
async fn redis() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(servers().store_url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_runs_once_and_every_run_gets_its_value() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let handler = move |ctx: Context, Charge { cents }: Charge| {
        let done = Arc::clone(&counted);
        async move {
            let held = ctx
                .step("hold", || async {
                    Ok::<_, TaskError>((cents, done.fetch_add(1, Ordering::SeqCst)))
                })
                .await?;
            assert_eq!(held, (cents, 0));
            if ctx.attempt() < 3 { not_yet() } else { Ok(held.0) }
        }
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(handler, again_at_once())).await;
    assert_eq!(running.call(Charge { cents: 500 }).await.unwrap(), 500);
    assert_eq!(done.load(Ordering::SeqCst), 1);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_is_not_recorded() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let handler = move |ctx: Context, Charge { cents }: Charge| {
        let done = Arc::clone(&counted);
        async move {
            ctx.step("hold", || async {
                if done.fetch_add(1, Ordering::SeqCst) == 0 { not_yet() } else { Ok(cents) }
            })
            .await
        }
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(handler, again_at_once())).await;
    assert_eq!(running.call(Charge { cents: 5 }).await.unwrap(), 5);
    assert_eq!(done.load(Ordering::SeqCst), 2);
    running.drain().await;
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    number: u64,
    #[serde(skip)]
    secret: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_run_gets_the_decoded_value_too() {
    let handler = |ctx: Context, Charge { cents }: Charge| async move {
        let receipt = ctx
            .step("pay", || async { Ok::<_, TaskError>(Receipt { number: cents, secret: cents }) });
        let Receipt { number, secret } = receipt.await?;
        Ok(number + secret)
    };
    let running = Running::start(|worker| worker.handle(handler)).await;
    assert_eq!(running.call(Charge { cents: 7 }).await.unwrap(), 7);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_used_twice_in_a_run_fails_the_task() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let handler = move |ctx: Context, Charge { cents }: Charge| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            ctx.step("pay", || async { Ok::<_, TaskError>(cents) }).await?;
            ctx.step("pay", || async { Ok::<_, TaskError>(cents) }).await
        }
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(handler, again_at_once())).await;
    let failure = failure(&running).await;
    assert_eq!(failure.exc_type, "DuplicateStep");
    assert!(failure.message().contains("\"pay\""), "{failure}");
    assert_eq!(runs.load(Ordering::SeqCst), 1, "another attempt would find the same");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_another_type_than_recorded_names_its_step() {
    let handler = |ctx: Context, _: Charge| async move {
        if ctx.attempt() == 1 {
            ctx.step("hold", || async { Ok::<_, TaskError>("h-1".to_owned()) }).await?;
            return not_yet();
        }
        ctx.step("hold", || async { Ok::<u64, TaskError>(1) }).await
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(handler, again_at_once())).await;
    let failure = failure(&running).await;
    assert_eq!(failure.exc_type, "JournalMismatch");
    assert!(failure.message().contains("\"hold\""), "{failure}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_or_journal_that_is_too_large_fails_and_names_its_setting() {
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    (config.max_step, config.max_journal) = (100, 150);
    let handler = |ctx: Context, Charge { cents }: Charge| async move {
        let size = usize::try_from(cents)?;
        for part in ["one", "two"] {
            ctx.step(part, || async { Ok::<_, TaskError>("x".repeat(size)) }).await?;
        }
        Ok(cents)
    };
    let running =
        Running::start_with(&config, |worker| worker.handle_with_policy(handler, again_at_once()))
            .await;
    assert_eq!(running.call(Charge { cents: 10 }).await.unwrap(), 10);
    for (cents, class, setting) in
        [(100, "StepTooLarge", "limits.step"), (80, "JournalTooLarge", "limits.journal")]
    {
        let error = running.call(Charge { cents }).await.unwrap_err();
        let failure = error.failure().unwrap();
        assert_eq!(failure.exc_type, class);
        assert!(failure.message().contains(setting), "{failure}");
    }
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_a_newer_worker_is_left_to_a_newer_worker() {
    let runs = Arc::new(Notify::new());
    let counted = Arc::clone(&runs);
    let handler = move |ctx: Context, _: Charge| {
        let runs = Arc::clone(&counted);
        async move {
            if ctx.attempt() == 1 {
                let key = format!("cs:journal:{}", ctx.id());
                let _: () = redis().await.hset(key, "hold", r#"{"v":2,"done":7}"#).await?;
                return not_yet();
            }
            runs.notify_one();
            ctx.step("hold", || async { Ok::<u64, TaskError>(1) }).await
        }
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(handler, again_at_once())).await;
    let handle = running.client.enqueue(Charge { cents: 1 }).queue(&running.queue).await.unwrap();
    for _ in 0..2 {
        timeout(TIMEOUT, runs.notified()).await.expect("the task is delivered again");
    }
    let key = format!("cs:journal:{}", handle.id());
    let _: () = redis().await.hset(key, "hold", r#"{"v":1,"step":7}"#).await.unwrap();
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 7);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recording_a_step_waits_while_redis_is_away() {
    let mut server = Server::redis().await;
    let config = Config::new(&servers().broker_url, server.url()).unwrap();
    let (inside, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (entered, may_go) = (Arc::clone(&inside), Arc::clone(&go));
    let handler = move |ctx: Context, Charge { cents }: Charge| {
        let (entered, may_go) = (Arc::clone(&entered), Arc::clone(&may_go));
        async move {
            let hold = || async {
                entered.notify_one();
                may_go.notified().await;
                Ok::<_, TaskError>(cents)
            };
            ctx.step("hold", hold).await
        }
    };
    let running = Running::start_with(&config, |worker| worker.handle(handler)).await;
    let handle = running.client.enqueue(Charge { cents: 3 }).queue(&running.queue).await.unwrap();
    inside.notified().await;
    server.kill().await;
    go.notify_one();
    server.start().await;
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 3);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_a_step_and_the_next_run_has_its_value() {
    let done = Arc::new(AtomicUsize::new(0));
    let inside = Arc::new(Notify::new());
    let handler = |done: &Arc<AtomicUsize>, inside: &Arc<Notify>, ends: bool| {
        let (done, inside) = (Arc::clone(done), Arc::clone(inside));
        move |ctx: Context, Charge { cents }: Charge| {
            let (done, inside) = (Arc::clone(&done), Arc::clone(&inside));
            async move {
                let hold = || async {
                    inside.notify_one();
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                    done.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, TaskError>(cents)
                };
                let held = ctx.step("hold", hold).await?;
                if !ends {
                    std::future::pending::<()>().await;
                }
                Ok(held)
            }
        }
    };
    let first = handler(&done, &inside, false);
    let running =
        Running::start(|worker| worker.handle(first).drain_deadline(Duration::from_millis(100)))
            .await;
    let handle = running.client.enqueue(Charge { cents: 9 }).queue(&running.queue).await.unwrap();
    inside.notified().await;
    let (id, queue) = (handle.id().clone(), running.queue.clone());
    let drained = running.drain().await;
    assert_eq!((drained.protected, &*drained.abandoned), (1, &[id.clone()][..]), "{drained:?}");
    assert_eq!(done.load(Ordering::SeqCst), 1);

    let second = handler(&done, &inside, true);
    let successor = Running::start(|worker| worker.queue(&queue).handle(second)).await;
    let held = successor.client.handle::<u64>(id).result_within(TIMEOUT).await.unwrap();
    assert_eq!((held, done.load(Ordering::SeqCst)), (9, 1));
    successor.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_does_not_end_is_dropped_after_its_grace_period() {
    let stuck = |ctx: Context, _: Charge| async move {
        ctx.step("hold", std::future::pending::<TaskResult<u64>>).await
    };
    let policy = Policy {
        hard_limit: Duration::from_millis(50),
        step_grace: Duration::from_millis(50),
        ..Policy::default()
    };
    let running = Running::start(|worker| worker.handle_with_policy(stuck, policy)).await;
    assert_eq!(failure(&running).await.exc_type, "TimeLimitExceeded");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_about_to_be_dropped_starts_no_step() {
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&begun);
    let handler = move |ctx: Context, Charge { cents }: Charge| {
        let begun = Arc::clone(&counted);
        async move {
            let slow = || async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok::<_, TaskError>(cents)
            };
            ctx.step("hold", slow).await?;
            ctx.step("capture", || async {
                begun.fetch_add(1, Ordering::SeqCst);
                Ok::<_, TaskError>(cents)
            })
            .await
        }
    };
    let policy = Policy { hard_limit: Duration::from_millis(50), ..Policy::default() };
    let running = Running::start(|worker| worker.handle_with_policy(handler, policy)).await;
    assert_eq!(failure(&running).await.exc_type, "TimeLimitExceeded");
    assert_eq!(begun.load(Ordering::SeqCst), 0);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_future_that_outlives_its_run_starts_no_step() {
    let go = Arc::new(Notify::new());
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let may_go = Arc::clone(&go);
    let handler = move |ctx: Context, Charge { cents }: Charge| {
        let (go, sender) = (Arc::clone(&may_go), sender.clone());
        async move {
            tokio::spawn(async move {
                go.notified().await;
                let late = ctx.step("late", || async { Ok::<_, TaskError>(cents) }).await;
                sender.send(late).await
            });
            Ok(cents)
        }
    };
    let running = Running::start(|worker| worker.handle(handler)).await;
    assert_eq!(running.call(Charge { cents: 4 }).await.unwrap(), 4);
    go.notify_one();
    let late = timeout(TIMEOUT, receiver.recv()).await.unwrap().unwrap();
    assert!(late.unwrap_err().to_string().contains("after its run had ended"));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_expires_with_its_result() {
    let handler = |ctx: Context, Charge { cents }: Charge| async move {
        ctx.step("hold", || async { Ok::<_, TaskError>(cents) }).await
    };
    let running = Running::start(|worker| worker.handle(handler)).await;
    let handle = running.client.enqueue(Charge { cents: 1 }).queue(&running.queue).await.unwrap();
    let key = format!("cs:journal:{}", handle.id());
    handle.result_within(TIMEOUT).await.unwrap();
    let result_expires = running.client.config().result_expires.as_secs();
    // The drain flushes pending writes.
    running.drain().await;
    let left: u64 = redis().await.ttl(key).await.unwrap();
    assert!(left <= result_expires, "{left} s");
}

/// Runs a task in a worker that dies at this point, then in another; returns how often its step ran.
async fn effects_of_a_crash(at: &str) -> usize {
    let mut effects = Effects::at(&servers().store_url).await;
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = support::queue_name();
    let task = client.enqueue(Capture { list: effects.list.clone() }).queue(&queue);
    let handle = task.await.unwrap();
    let id = handle.id().to_string();
    let mut dying = roles::command("charge", &[&queue]).env(CRASH, at).spawn().unwrap();
    let died = timeout(TIMEOUT, dying.wait()).await.unwrap().unwrap();
    assert_eq!(died.code(), None, "a signal ends the worker");

    let successor = Running::start(|worker| worker.queue(&queue).handle(capture));
    let successor = successor.await;
    let receipt = handle.result_within(TIMEOUT).await.unwrap();
    assert_eq!(receipt, format!("receipt of {id}"));
    successor.drain().await;
    client.close().await;
    effects.runs().await.remove(&id).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_effect_and_record_repeats_the_step() {
    assert_eq!(effects_of_a_crash(BEFORE_THE_RECORD).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_step_is_not_repeated_after_a_crash() {
    assert_eq!(effects_of_a_crash(AFTER_THE_RECORD).await, 1);
}
