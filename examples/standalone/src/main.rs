//! A deployable worker with a state and a middleware, and the test of its handler.

use std::process::ExitCode;

use countersign::{Context, ContextWith, HandlerOutput, Next, Task, TaskError, TaskResult, Worker};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Invoice {
    cents: u64,
}

impl Task for Invoice {
    const NAME: &'static str = "billing.invoice";
    const QUEUE: Option<&'static str> = Some("billing");
    type Output = String;
}

/// The state that the handlers share: usually a database pool.
struct Billing {
    currency: &'static str,
}

async fn invoice(ctx: ContextWith<Billing>, Invoice { cents }: Invoice) -> TaskResult<String> {
    Ok(format!("invoice of {cents} {}", ctx.state().currency))
}

/// Refuses tasks of producers that state no tenant.
async fn require_tenant(ctx: Context, next: Next) -> TaskResult<HandlerOutput> {
    if ctx.header("x-tenant").is_none() {
        return Err(TaskError::fatal("the task has no x-tenant header"));
    }
    next.run(ctx).await
}

fn tasks(worker: Worker) -> Worker<Billing> {
    worker.with_state(Billing { currency: "EUR" }).wrap(require_tenant).handle(invoice)
}

fn main() -> ExitCode {
    countersign::run_worker("billing", tasks)
}

#[cfg(test)]
#[tokio::test(start_paused = true)]
async fn only_tasks_of_a_tenant_are_invoiced() {
    let pool = countersign::testing::Pool::start(tasks).await.unwrap();
    let refused = pool.run(Invoice { cents: 500 }).await.result;
    assert!(refused.unwrap_err().to_string().contains("x-tenant"));
    let tenant = [("x-tenant".to_owned(), "t-1".into())].into_iter().collect();
    let task = pool.client().enqueue(Invoice { cents: 500 }).queue(countersign::testing::QUEUE);
    let invoiced = task.headers(tenant).await.unwrap().await;
    assert_eq!(invoiced.unwrap(), "invoice of 500 EUR");
}
