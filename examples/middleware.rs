//! Three middlewares: one adds a metric, one authenticates a header, one maps an error.
//!
//! `cargo run --example middleware`; it needs no servers.

use std::time::{Duration, Instant};

use countersign::{
    Client, Context, Error, HandlerOutput, Next, Policy, Retry, Task, TaskError, TaskResult, Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

#[derive(Serialize, Deserialize)]
struct Charge {
    cents: u64,
}

impl Task for Charge {
    const NAME: &'static str = "example.charge";
    const QUEUE: Option<&'static str> = Some("example-middleware");
    type Output = String;

    fn policy() -> Policy {
        let retry = Retry::exponential(Duration::from_secs(60)).attempts(3);
        Policy { retry, ..Policy::default() }
    }
}

/// Fails at the first attempt, as if the bank refused the connection.
async fn charge(ctx: Context, task: Charge) -> TaskResult<String> {
    if ctx.attempt() == 1 {
        return Err(TaskError::with_exception("builtins", "ConnectionError", "connection refused"));
    }
    Ok(format!("charged {} cents", task.cents))
}

/// Measures each run. In production it would record a histogram.
async fn measure(ctx: Context, next: Next) -> TaskResult<HandlerOutput> {
    let (name, attempt, begun) = (ctx.name().to_owned(), ctx.attempt(), Instant::now());
    let result = next.run(ctx).await;
    let outcome = if result.is_ok() { "success" } else { "error" };
    println!("{name} attempt {attempt}: {outcome}");
    tracing::debug!(elapsed = ?begun.elapsed());
    result
}

/// Refuses tasks without the right token.
async fn authenticate(ctx: Context, next: Next) -> TaskResult<HandlerOutput> {
    if ctx.header("x-token").and_then(Value::as_str) != Some("secret") {
        let error = TaskError::with_exception("builtins", "PermissionError", "wrong x-token");
        return Err(error.no_retry());
    }
    next.run(ctx).await
}

/// Retries a refused connection after a short delay.
async fn retry_connections(ctx: Context, next: Next) -> TaskResult<HandlerOutput> {
    next.run(ctx).await.map_err(|error| match error.failure().exc_type.as_str() {
        "ConnectionError" => {
            TaskError::retry_after(Duration::from_millis(10), error.failure().message())
        }
        _ => error,
    })
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::connect("sqlite::memory:").await?;
    let worker = Worker::new(&client)
        .queue("example-middleware")
        .wrap(measure) // the outermost: it also measures tasks that the others refuse
        .wrap(authenticate)
        .wrap(retry_connections)
        .handle(charge);
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));

    let token = [("x-token".to_owned(), Value::from("secret"))].into_iter().collect();
    let charged = client.enqueue(Charge { cents: 500 }).headers(token).await?;
    println!("{}", charged.result().await?);

    let refused = client.enqueue(Charge { cents: 500 }).await?.result().await;
    if let Err(error) = refused
        && let Some(failure) = error.failure()
    {
        println!("{failure}");
    }

    drop(stop);
    let _ = worker.await;
    Ok(())
}
