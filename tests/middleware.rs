//! Middlewares: functions that wrap the runs of all handlers of a worker.
#![expect(clippy::panic, reason = "a handler panics in a test")]
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign::testing::Pool;
use countersign::{
    Context, HandlerOutput, Next, Policy, Retry, Revoke, Task, TaskError, TaskResult, Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;

#[derive(Serialize, Deserialize)]
struct Work {
    kind: String,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    type Output = String;

    fn policy() -> Policy {
        let retry = Retry::fixed(Duration::from_secs(1)).attempts(2);
        Policy { retry, hard_limit: Duration::from_secs(5), ..Policy::default() }
    }
}

/// What happened, in its order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Logs the beginning of each run, and its outcome.
async fn logged(name: &str, log: Log, ctx: Context, next: Next) -> TaskResult<HandlerOutput> {
    log.add(format!("{name} begins attempt {}", ctx.attempt()));
    let result = next.run(ctx).await;
    match &result {
        Ok(output) => log.add(format!("{name} sees {}", output.json())),
        Err(error) => log.add(format!("{name} sees {error}")),
    }
    result
}

/// Adds a middleware that logs, and a handler that ends by the kind of its task.
fn watched(worker: Worker, log: &Log, running: &Arc<Notify>) -> Worker {
    let (middleware, handler, running) = (log.clone(), log.clone(), Arc::clone(running));
    worker.wrap(move |ctx, next| logged("outer", middleware.clone(), ctx, next)).handle(
        move |ctx: Context, task: Work| {
            handler.add("handler");
            let running = Arc::clone(&running);
            async move { end(ctx, task, &running).await }
        },
    )
}

async fn end(ctx: Context, task: Work, running: &Notify) -> TaskResult<String> {
    match task.kind.as_str() {
        "panics" => panic!("out of paper"),
        "hangs" => {
            running.notify_one();
            std::future::pending().await
        }
        "asks" => {
            ctx.sleep("night", Duration::from_secs(8 * 60 * 60)).await?;
            let approval = ctx.approval("work").title("Work?").await?;
            Ok(format!("approved: {}", approval.is_approved()))
        }
        "fails" => Err("no paper".into()),
        kind => Ok(kind.to_owned()),
    }
}

fn work(kind: &str) -> Work {
    Work { kind: kind.into() }
}

async fn pool(log: &Log) -> Pool {
    Pool::start(|worker| watched(worker, log, &Arc::default())).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_first_middleware_is_the_outermost_and_all_see_the_task() {
    let log = Log::default();
    let pool = Pool::start(|worker| {
        let inner = log.clone();
        watched(worker, &log, &Arc::default()).wrap(move |ctx, next| {
            assert_eq!(ctx.name(), "test.work");
            assert_eq!(ctx.header("tenant"), Some(&json!("acme")));
            inner.add(format!("inner has {}", ctx.id()));
            logged("inner", inner.clone(), ctx, next)
        })
    });
    let pool = pool.await.unwrap();
    let tenant = [("tenant".to_owned(), json!("acme"))].into_iter().collect();
    let task = pool.client().enqueue(work("prints")).queue("testing").id("w-1").headers(tenant);
    assert_eq!(task.await.unwrap().result().await.unwrap(), "prints");
    let lines = [
        "outer begins attempt 1",
        "inner has w-1",
        "inner begins attempt 1",
        "handler",
        "inner sees \"prints\"",
        "outer sees \"prints\"",
    ];
    assert_eq!(log.lines(), lines);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_middleware_is_the_failure_of_the_task_and_its_handler_does_not_run() {
    let log = Log::default();
    let pool = Pool::start(|worker| {
        watched(worker, &log, &Arc::default())
            .wrap(|_, _| async { Err(TaskError::fatal("no token")) })
    });
    let failed = pool.await.unwrap().run(work("prints")).await.result.unwrap_err();
    assert_eq!(failed.failure().unwrap().message(), "no token");
    assert_eq!(log.lines(), ["outer begins attempt 1", "outer sees Exception: no token"]);
}

#[tokio::test(start_paused = true)]
async fn a_mapped_error_is_retried_as_it_says() {
    let log = Log::default();
    let pool = Pool::start(|worker| {
        let map = |ctx: Context, next: Next| async move {
            let is_first = ctx.attempt() == 1;
            next.run(ctx).await.map_err(|error| match is_first {
                true => error,
                false => TaskError::with_exception("printer", "NoPaper", "buy some").no_retry(),
            })
        };
        watched(worker, &log, &Arc::default()).wrap(map)
    });
    let failed = pool.await.unwrap().run(work("fails")).await.result.unwrap_err();
    assert_eq!(failed.failure().unwrap().to_string(), "NoPaper: buy some");
    let lines = [
        "outer begins attempt 1",
        "handler",
        "outer sees Exception: no paper",
        "outer begins attempt 2",
        "handler",
        "outer sees NoPaper: buy some",
    ];
    assert_eq!(log.lines(), lines);
}

#[tokio::test(start_paused = true)]
async fn wrong_arguments_are_an_error_that_middlewares_see() {
    let log = Log::default();
    let pool = pool(&log).await;
    let arguments = countersign::Arguments::of(&(1,)).unwrap();
    let task = pool.client().enqueue_named("test.work", arguments).queue("testing");
    let failed = task.await.unwrap().result().await.unwrap_err();
    assert_eq!(failed.failure().unwrap().exc_type, "TypeError");
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "one attempt: {lines:?}");
    assert!(lines[1].starts_with("outer sees TypeError"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_and_a_hard_limit_end_the_task_and_not_the_middleware() {
    for (kind, exc_type) in [("panics", "HandlerPanicked"), ("hangs", "TimeLimitExceeded")] {
        let log = Log::default();
        let failed = pool(&log).await.run(work(kind)).await.result.unwrap_err();
        assert_eq!(failed.failure().unwrap().exc_type, exc_type);
        assert_eq!(log.lines(), ["outer begins attempt 1", "handler"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspended_task_passes_its_middlewares_again_when_it_is_resumed() {
    let log = Log::default();
    let pool = pool(&log).await;
    pool.on("work", |request| Some(request.approve("ana")));
    assert_eq!(pool.run(work("asks")).await.result.unwrap(), "approved: true");
    let lines = log.lines();
    assert_eq!(lines.last().unwrap(), "outer sees \"approved: true\"");
    let count = |text: &str| lines.iter().filter(|line| line.starts_with(text)).count();
    assert_eq!(count("outer sees"), 1, "{lines:?}");
    assert!(count("outer begins attempt 1") > 1, "{lines:?}");
    assert_eq!(count("outer begins"), count("handler"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_terminated_task_is_revoked_through_its_middlewares() {
    let (log, running) = (Log::default(), Arc::new(Notify::new()));
    let pool = Pool::start(|worker| watched(worker, &log, &running)).await.unwrap();
    let task = pool.client().enqueue(work("hangs")).queue("testing").await.unwrap();
    running.notified().await;
    pool.client().revoke(&[task.id().clone()], Revoke::Terminate).await.unwrap();
    assert!(task.result().await.unwrap_err().is_revoked());
    assert_eq!(log.lines(), ["outer begins attempt 1", "handler"]);
}
