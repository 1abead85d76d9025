//! Countersign's worker: a complete deployable worker with logs and signals.

mod approve;
mod limited;
mod speak;
mod work;

use std::process::ExitCode;
use std::time::Duration;

use approve::{APPROVAL, NeedsApproval};
use countersign::{Context, Policy, Rate, TaskResult};
use limited::Limited;
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

async fn ask(ctx: Context, _: NeedsApproval) -> TaskResult<u64> {
    let approval = ctx.approval(APPROVAL).title("Go on?").expires_in(TIME_TO_DECIDE);
    approval.await?.approved()?;
    Ok(now())
}

/// The rate limit of the limited type, in starts per second.
const PER_SECOND: u32 = 200;
const HELD_BACK: &str = "x-countersign-held-back";

async fn limited(ctx: Context, _: Limited) -> TaskResult<u64> {
    Ok(ctx.header(HELD_BACK).and_then(serde_json::Value::as_u64).unwrap_or(0))
}

fn slow() -> Policy {
    let rate = Some(Rate { tasks: PER_SECOND, per: Duration::from_secs(1) });
    Policy { rate, ..Policy::default() }
}

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    countersign::run_worker("bench", |worker| {
        worker.handle(work).handle(speak).handle(ask).handle_with_policy(limited, slow())
    })
}
