//! Several tasks under one id, on servers and on a database: each has its own journal and suspension.
//! Each test counts the runs of its handler and reads the results that waiters receive.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::backend::{PublishRequest, Queue};
use countersign::protocol::{Arguments, Envelope, Message, SuspendHeader, SuspendKind};
use countersign::{ApprovalId, Config, Context, Handle, Policy, Retry, Task, TaskError, TaskId};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{Running, TIMEOUT, approve, queue_name, scratch, servers, wait_until_suspended};
use tokio::time::timeout;

#[derive(Clone, Serialize, Deserialize)]
struct Work {
    n: usize,
    how: String,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    /// Its argument, and the number of the handler run that executed its step.
    type Output = (usize, usize);
}

/// A worker on one of the backends.
struct Pool {
    running: Running,
    runs: Arc<AtomicUsize>,
    /// The file of the database; `None` on servers.
    file: Option<PathBuf>,
}

impl Pool {
    async fn start(file: Option<PathBuf>) -> Self {
        let mut config = match &file {
            Some(file) => Config::embedded(&format!("sqlite:{}", file.display())).unwrap(),
            None => Config::new(&servers().broker_url, &servers().store_url).unwrap(),
        };
        config.hold = Duration::ZERO;
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let work = move |ctx: Context, Work { n, how }: Work| {
            let run = counted.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                let step = ctx.step("s", || async { Ok::<_, TaskError>(run) }).await?;
                match how.as_str() {
                    "ask" => {
                        let request =
                            ctx.approval("go").title("Go on?").action("go", json!({ "n": n }));
                        request.await?.approved()?;
                    }
                    "fail" if ctx.attempt() == 1 => {
                        return Err(TaskError::retry_after(Duration::ZERO, "once more"));
                    }
                    "sleep" => ctx.sleep("sleep", Duration::from_secs(6)).await?,
                    _ => {}
                }
                Ok((n, step))
            }
        };
        let retry = Retry::exponential(Duration::from_millis(10)).attempts(2);
        let policy = Policy { retry, ..Policy::default() };
        let running =
            Running::start_with(&config, |worker| worker.handle_with_policy(work, policy)).await;
        Self { running, runs, file }
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    async fn send(&self, id: &TaskId, n: usize, how: &str) -> Handle<(usize, usize)> {
        let task = Work { n, how: how.to_owned() };
        self.running.client.enqueue(task).queue(&self.running.queue).id(id.as_str()).await.unwrap()
    }

    async fn result(&self, handle: Handle<(usize, usize)>) -> (usize, usize) {
        handle.result_within(TIMEOUT).await.unwrap()
    }

    /// Deletes the result, as a Celery client's `AsyncResult.forget()` does.
    async fn forget_result(&self, id: &TaskId) {
        match &self.file {
            Some(file) => {
                let database = rusqlite::Connection::open(file).unwrap();
                database.busy_timeout(TIMEOUT).unwrap();
                database.execute("DELETE FROM results WHERE id = ?", [id.as_str()]).unwrap();
            }
            None => {
                let redis = redis::Client::open(servers().store_url).unwrap();
                let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
                let _: u8 = redis.del(format!("celery-task-meta-{id}")).await.unwrap();
            }
        }
    }

    /// Deletes the note of a task's end, which the store does not keep forever.
    async fn forget_suspension(&self, id: &TaskId) {
        match &self.file {
            Some(file) => {
                let database = rusqlite::Connection::open(file).unwrap();
                database.busy_timeout(TIMEOUT).unwrap();
                database.execute("DELETE FROM parks WHERE task = ?", [id.as_str()]).unwrap();
            }
            None => {
                let redis = redis::Client::open(servers().store_url).unwrap();
                let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
                let _: u8 = redis.del(format!("cs:park:{{cs}}:{id}")).await.unwrap();
            }
        }
    }

    async fn publish(&self, message: Message, queue: Queue) {
        let request = PublishRequest { message, queue, delay: None, timeout: TIMEOUT };
        let _ = self.running.client.backends().broker.publish(request).await.unwrap();
    }

    async fn approve(&self, id: &TaskId) {
        wait_until_suspended(&self.running.client, id).await;
        approve(&self.running.client, &ApprovalId::of(id, "go", 0)).await;
    }
}

/// Returns the message of such a task, as a client would send it.
fn envelope(id: &TaskId, n: usize, how: &str) -> Envelope {
    let arguments = Arguments::of(&Work { n, how: how.to_owned() }).unwrap();
    let mut envelope = Envelope::new(Work::NAME, arguments);
    envelope.id = id.clone();
    envelope
}

fn new_id() -> TaskId {
    TaskId::from(queue_name())
}

/// Runs a test once on the servers, and once on a database.
async fn on_both_backends(test: impl AsyncFn(&Pool)) {
    let folder = scratch();
    for file in [None, Some(folder.join("same-id.db"))] {
        println!("on {}", file.as_ref().map_or("servers", |_| "a database"));
        let pool = Pool::start(file).await;
        test(&pool).await;
        pool.running.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_task_reads_no_step_of_an_earlier_task_with_its_id() {
    on_both_backends(async |pool| {
        let id = new_id();
        assert_eq!(pool.result(pool.send(&id, 1, "").await).await, (1, 1));
        for (n, run) in [(2, 2), (2, 3), (1, 4)] {
            pool.forget_result(&id).await;
            assert_eq!(pool.result(pool.send(&id, n, "").await).await, (n, run));
        }
        pool.running.client.forget(&id).await.unwrap();
        assert_eq!(pool.result(pool.send(&id, 1, "").await).await, (1, 5));
    })
    .await;
}

/// The result of the earlier task arrives when no handle awaits it.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_task_returns_no_result_of_an_earlier_task_with_its_id() {
    on_both_backends(async |pool| {
        let id = new_id();
        for (n, run) in [(1, 1), (2, 2), (2, 3)] {
            let handle = pool.send(&id, n, "").await;
            if run < 3 {
                drop(handle);
                let other: Handle<(usize, usize)> = pool.running.client.handle(id.clone());
                assert_eq!(pool.result(other).await, (n, run));
                pool.forget_result(&id).await;
            } else {
                assert_eq!(pool.result(handle).await, (n, run));
            }
        }
    })
    .await;
}

/// Attempts of an earlier task do not count as attempts of a later one.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_task_with_the_same_id_is_retried() {
    on_both_backends(async |pool| {
        let id = new_id();
        for n in [1, 2] {
            let handle = pool.send(&id, n, "fail").await;
            assert_eq!(pool.result(handle).await.0, n);
            pool.forget_result(&id).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_whose_suspension_has_ended_is_suspended_again() {
    on_both_backends(async |pool| {
        let id = new_id();
        // The same message again requests a new approval: a decision counts for one run of a task to its end.
        for (n, how) in [(1, "ask"), (1, "ask"), (2, "ask"), (1, "sleep"), (1, "sleep")] {
            let before = pool.runs();
            let handle = pool.send(&id, n, how).await;
            if how == "ask" {
                pool.approve(&id).await;
            } else {
                wait_until_suspended(&pool.running.client, &id).await;
            }
            // One run before it is suspended, and one after.
            assert_eq!(pool.result(handle).await, (n, before + 1));
            assert_eq!(pool.runs(), before + 2);
            pool.forget_result(&id).await;
        }
    })
    .await;
}

/// The worker died before the task was suspended: the redelivery is not a late copy of the ended task.
#[tokio::test(flavor = "multi_thread")]
async fn a_redelivered_message_of_a_later_task_runs() {
    on_both_backends(async |pool| {
        let id = new_id();
        let first = pool.send(&id, 1, "ask").await;
        pool.approve(&id).await;
        assert_eq!(pool.result(first).await, (1, 1));
        for n in [1, 2] {
            pool.forget_result(&id).await;
            let mut message = envelope(&id, n, "ask").encode();
            message.mark_returned();
            pool.publish(message, Queue::new(&pool.running.queue)).await;
            pool.approve(&id).await;
            let handle = pool.running.client.handle::<(usize, usize)>(id.as_str());
            assert_eq!(pool.result(handle).await.0, n);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_wake_message_of_an_earlier_task_changes_nothing() {
    on_both_backends(async |pool| {
        let (id, lost) = (new_id(), new_id());
        let resume = Queue::new(&pool.running.queue).resume();
        let wake = |id, number| {
            SuspendHeader { kind: SuspendKind::Wake, number }.on(envelope(id, 1, "ask").encode())
        };
        let first = pool.send(&id, 1, "ask").await;
        pool.approve(&id).await;
        pool.result(first).await;
        pool.running.client.forget(&id).await.unwrap();
        pool.publish(wake(&id, 1), resume.clone()).await;
        let second = pool.send(&id, 2, "ask").await;
        wait_until_suspended(&pool.running.client, &id).await;
        for number in [1, 2, 3, 9] {
            pool.publish(wake(&id, number), resume.clone()).await;
        }
        // When this wake message of a task without state has failed, those before it have been processed.
        pool.publish(wake(&lost, 1), resume).await;
        let handle = pool.running.client.handle::<(usize, usize)>(lost.as_str());
        assert!(handle.result_within(TIMEOUT).await.unwrap_err().failure().is_some());
        assert_eq!(pool.runs(), 3, "two runs of the first task, and one of the second");
        pool.approve(&id).await;
        assert_eq!(pool.result(second).await, (2, 3));
        assert_eq!(pool.runs(), 4);
    })
    .await;
}

/// The workers were stopped for longer than the store keeps the note of the task's end and the result.
#[tokio::test(flavor = "multi_thread")]
async fn a_wake_message_without_any_record_is_dead_lettered() {
    on_both_backends(async |pool| {
        let client = &pool.running.client;
        let (id, errback) = (new_id(), new_id());
        let first = pool.send(&id, 1, "ask").await;
        pool.approve(&id).await;
        assert_eq!(pool.result(first).await, (1, 1));
        pool.forget_result(&id).await;
        pool.forget_suspension(&id).await;
        let mut late = envelope(&id, 1, "ask");
        let follow = json!({
            "task": Work::NAME, "args": [], "kwargs": { "n": 7, "how": "" }, "immutable": true,
            "options": { "task_id": errback }, "subtask_type": null,
        });
        late.embed = serde_json::value::to_raw_value(&json!({ "errbacks": [follow] })).unwrap();
        let mut late = SuspendHeader { kind: SuspendKind::Wake, number: 1 }.on(late.encode());
        let week = Duration::from_secs(7 * 24 * 60 * 60);
        let now = client.backends().store.clock().await.unwrap();
        let sent = now - i64::try_from(week.as_millis()).unwrap();
        late.headers.insert("x-countersign-sent".into(), sent.into());
        let resume = Queue::new(&pool.running.queue).resume();
        pool.publish(late.clone(), resume.clone()).await;
        let letters = client.dead_letters(&pool.running.queue);
        let letter = async {
            loop {
                if let Some(letter) = letters.find(&id).await.unwrap() {
                    return letter;
                }
                let status = client.status(&id).await.unwrap();
                assert!(status.is_none(), "{status:?}");
            }
        };
        let letter = timeout(TIMEOUT, letter).await.unwrap();
        assert!(letter.reason.as_ref().is_some_and(|it| it.contains("7 days")), "{letter:?}");
        assert!(client.status(&id).await.unwrap().is_none(), "no result is stored");
        assert!(client.status(&errback).await.unwrap().is_none());

        // For a younger wake message, the worker stores that the state was lost.
        late.headers.insert("x-countersign-sent".into(), (sent + 600_000).into());
        pool.publish(late, resume).await;
        let lost = client.handle::<(usize, usize)>(id.as_str());
        let lost = lost.result_within(TIMEOUT).await.unwrap_err();
        assert_eq!(lost.failure().unwrap().exc_type, "StateLost");
        let followed = client.handle::<(usize, usize)>(errback.as_str());
        assert_eq!(pool.result(followed).await.0, 7);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_message_under_the_id_of_a_suspended_task_is_dead_lettered() {
    on_both_backends(async |pool| {
        let id = new_id();
        let client = &pool.running.client;
        let first = pool.send(&id, 1, "ask").await;
        wait_until_suspended(client, &id).await;
        let error = client.forget(&id).await.unwrap_err();
        assert!(error.is_unfinished() && error.to_string().contains("suspended"), "{error}");

        let second = pool.send(&id, 2, "ask").await;
        let dead = client.dead_letters(&pool.running.queue);
        let letter = async {
            loop {
                if let Some(letter) = dead.browse(1).await.unwrap().pop() {
                    return letter;
                }
            }
        };
        let letter = timeout(TIMEOUT, letter).await.unwrap();
        let reason = letter.reason.unwrap();
        assert!(reason.contains("test.work") && reason.contains(id.as_str()), "{reason}");

        // A replayed message finds the same state. The suspended task continues.
        dead.replay(&id).await.unwrap();
        wait_until_suspended(client, &id).await;
        pool.approve(&id).await;
        assert_eq!(pool.result(first).await.0, 1);
        assert_eq!(pool.result(second).await.0, 1, "the result of this id");
    })
    .await;
}
