//! Our side's worker: a deployable one like any other, logs and signals included.

mod work;

use std::process::ExitCode;

use countersign::{Context, Policy, TaskResult};
use work::Work;

async fn work(_: Context, task: Work) -> TaskResult<usize> {
    Ok(task.perform().await)
}

fn main() -> ExitCode {
    countersign::run_worker("bench", |worker| worker.handle(work, Policy::default()))
}
