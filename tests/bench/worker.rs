//! Our side's worker: a deployable one like any other, logs and signals included.

mod ask;
mod speak;
mod work;

use std::process::ExitCode;
use std::time::Duration;

use ask::{Ask, QUESTION};
use countersign::{Context, Policy, TaskResult};
use speak::{Speak, now};
use work::Work;

const TIME_TO_DECIDE: Duration = Duration::from_secs(60 * 60);

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

async fn ask(ctx: Context, _: Ask) -> TaskResult<u64> {
    let approval = ctx.approval(QUESTION).ask("Go on?").expires_in(TIME_TO_DECIDE);
    approval.await?.approved()?;
    Ok(now())
}

fn main() -> ExitCode {
    countersign::run_worker("bench", |worker| {
        worker
            .handle(work, Policy::default())
            .handle(speak, Policy::default())
            .handle(ask, Policy::default())
    })
}
