//! How a worker limits, protects and quarantines tasks.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{
    CircuitBreaker, Client, Config, Context, Policy, Rate, Retry, TaskError, TaskResult,
};
use support::roles::work::{POISON, Work};
use support::{Running, TIMEOUT, queue_name, roles, servers};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Notify;

async fn echo(_: Context, Work { n }: Work) -> TaskResult<u32> {
    Ok(n)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_type_runs_within_its_concurrency_limit() {
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
    let running =
        Running::start(|worker| worker.handle_with_policy(counted, policy).concurrency(16)).await;
    let calls = (0..20).map(|n| running.call(Work { n }));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(most.load(Ordering::SeqCst), 2);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_queues_leave_their_permits_to_others() {
    let idle = [queue_name(), queue_name()];
    let running = Running::start(|worker| {
        let worker = worker.queue(&idle[0]).queue_limited(&idle[1], 1);
        worker.handle(echo).concurrency(1)
    })
    .await;
    for n in 0..3 {
        assert_eq!(running.call(Work { n }).await.unwrap(), n);
        for queue in &idle {
            let work = running.client.enqueue(Work { n }).queue(queue).await.unwrap();
            assert_eq!(work.result_within(TIMEOUT).await.unwrap(), n);
        }
    }
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_postpones_tasks_and_loses_none() {
    let rate = Some(Rate { tasks: 5, per: Duration::from_secs(2) });
    let policy = Policy { rate, ..Policy::default() };
    let running =
        Running::start(|worker| worker.handle_with_policy(echo, policy).concurrency(4)).await;
    let begun = jiff::Timestamp::now();
    let calls = (0..12).map(|n| running.call(Work { n }));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let took = jiff::Timestamp::now().duration_since(begun);
    assert!(took >= jiff::SignedDuration::from_millis(2700), "12 at 5 in 2 s took {took:?}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_circuit_breaker_postpones_tasks_until_one_succeeds() {
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
    let running =
        Running::start(|worker| worker.handle_with_policy(flaky, policy).concurrency(1)).await;
    for n in 0..3 {
        assert!(running.call(Work { n }).await.is_err());
    }
    healthy.store(1, Ordering::SeqCst);
    let held = futures_util::future::join_all((3..8).map(|n| running.call(Work { n }))).await;
    assert!(held.iter().all(Result::is_ok), "{held:?}");
    assert_eq!(runs.load(Ordering::SeqCst), 8, "the postponed tasks did not run and fail");
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
    let running =
        Running::start(|worker| worker.handle(critical).drain_deadline(Duration::from_millis(100)))
            .await;
    let handle = running.client.enqueue(Work { n: 7 }).queue(&running.queue).await.unwrap();
    inside.notified().await;
    let client = Client::connect(running.client.config()).await.unwrap();
    let id = handle.id().clone();
    let drained = running.drain().await;
    assert_eq!((drained.protected, drained.is_clean()), (1, true), "{drained:?}");
    assert_eq!(client.handle::<u32>(id).result_within(TIMEOUT).await.unwrap(), 7);
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
    let force = Arc::new(Notify::new());
    let signal = Arc::clone(&force);
    let running = Running::start(|worker| {
        let worker = worker.drain_deadline(Duration::from_secs(3600));
        worker.handle(stuck).force_shutdown(async move { signal.notified().await })
    })
    .await;
    let task = running.client.enqueue(Work { n: 1 }).queue(&running.queue).await.unwrap();
    started.notified().await;
    force.notify_one();
    assert_eq!(running.drain().await.abandoned, std::slice::from_ref(task.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_task_waits_during_its_grace_period_for_another_worker() {
    let unregistered = Running::start(|worker| worker.unknown_grace(Duration::from_secs(60))).await;
    let handle =
        unregistered.client.enqueue(Work { n: 3 }).queue(&unregistered.queue).await.unwrap();
    let queue = unregistered.queue.clone();
    let registered = Running::start(|worker| worker.queue(&queue).handle(echo)).await;
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 3);
    unregistered.drain().await;
    registered.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_claimed_attempt_is_not_run() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let count = move |_: Context, Work { n }: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Ok(n) }
    };
    let policy = Policy { once: true, ..Policy::default() };
    let running =
        Running::start(|worker| worker.handle_with_policy(count, policy).concurrency(1)).await;
    let id = uuid::Uuid::new_v4().to_string();
    for _ in 0..3 {
        let task = running.client.enqueue(Work { n: 1 }).id(&id);
        task.queue(&running.queue).await.unwrap();
    }
    assert_eq!(running.call(Work { n: 2 }).await.unwrap(), 2);
    assert_eq!(runs.load(Ordering::SeqCst), 2, "one of three copies, and the last task");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exception_excluded_by_the_policy_is_not_retried() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let fail = move |_: Context, _: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Err::<u32, _>(TaskError::with_exception("builtins", "KeyError", "k")) }
    };
    let retry = Retry::exponential(Duration::from_millis(50)).attempts(5).no_retry_on("KeyError");
    let policy = Policy { retry, ..Policy::default() };
    let running = Running::start(|worker| worker.handle_with_policy(fail, policy)).await;
    assert!(running.call(Work { n: 1 }).await.is_err());
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    running.drain().await;
}

/// The test counts the results of the other tasks (all succeed), and the dead letters (one).
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_task_is_dead_lettered_and_every_other_task_runs() {
    let servers = servers();
    let queue = queue_name();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let mut others = Vec::new();
    let mut poison = None;
    for n in 0..200 {
        let task = client.enqueue(Work { n: if n == POISON { 999 } else { n } });
        others.push(task.queue(&queue).await.unwrap());
        if n == 20 {
            poison = Some(client.enqueue(Work { n: POISON }).queue(&queue).await.unwrap());
        }
    }
    let poisoned = queue.clone();
    let supervisor = tokio::spawn(async move {
        loop {
            let mut worker = roles::command("abort", &[&poisoned]).spawn().unwrap();
            worker.wait().await.unwrap();
        }
    });
    let poison = poison.unwrap();
    let poison_id = poison.id().clone();
    let error = poison.result_within(TIMEOUT).await.unwrap_err();
    assert_eq!(error.failure().unwrap().exc_type, "WorkerLostError", "{error}");
    for other in others {
        other.result_within(TIMEOUT).await.unwrap();
    }
    supervisor.abort();
    let letter = client.dead_letters(&queue).find(&poison_id).await.unwrap().unwrap();
    let [lost] = letter.attempts.as_slice() else { panic!("{:?}", letter.attempts) };
    assert_eq!((lost.number, lost.error.as_str()), (1, "billiard.exceptions.WorkerLostError"));
    assert!(lost.message.ends_with("2 of them while no other task ran"), "{}", lost.message);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_blocks_the_runtime_is_logged() {
    let servers = servers();
    let queue = queue_name();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let mut worker = roles::command("block", &[&queue]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let blocked = client.enqueue(Work { n: 150 }).queue(&queue).await.unwrap();
    let named = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("blocks the async runtime") {
                return line;
            }
        }
        panic!("the worker ended and logged no blocking task");
    };
    let line = tokio::time::timeout(TIMEOUT, named).await.unwrap();
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
    let running =
        Running::start(|worker| worker.queue_limited(&narrow, 1).handle(counted).concurrency(8))
            .await;
    let mut handles = Vec::new();
    for n in 0..10 {
        handles.push(running.client.enqueue(Work { n }).queue(&narrow).await.unwrap());
    }
    for handle in handles {
        handle.result_within(TIMEOUT).await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    running.drain().await;
}
