//! Our side's worker: a deployable one like any other, logs and signals included.

mod speak;
mod work;

use std::process::ExitCode;

use countersign::{Context, Policy, TaskResult};
use speak::{Speak, now};
use work::Work;

async fn work(_: Context, task: Work) -> TaskResult<usize> {
    Ok(task.perform().await)
}

async fn speak(ctx: Context, Speak { entries }: Speak) -> TaskResult<(u64, u64)> {
    let (output, begun) = (ctx.stream(), now());
    for _ in 0..entries {
        output.send(&now()).await?;
    }
    Ok((begun, now()))
}

fn main() -> ExitCode {
    countersign::run_worker("bench", |worker| {
        worker.handle(work, Policy::default()).handle(speak, Policy::default())
    })
}
