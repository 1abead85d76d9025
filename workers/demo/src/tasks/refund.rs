//! `demo.refund(order, cents)`: reserves the money, requests an approval above a limit, and captures it.

use std::time::Duration;

use countersign::approval::Risk;
use countersign::{Context, Task, TaskResult};
use serde::{Deserialize, Serialize};

/// Larger amounts in cents need an approval.
const LIMIT: u64 = 10_000;

#[derive(Serialize, Deserialize)]
pub(crate) struct Refund {
    order: String,
    cents: u64,
}

impl Task for Refund {
    const NAME: &'static str = "demo.refund";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = String;
}

/// The exact action that is approved.
#[derive(Serialize, Deserialize)]
struct Capture {
    order: String,
    cents: u64,
}

pub(crate) async fn refund(ctx: Context, Refund { order, cents }: Refund) -> TaskResult<String> {
    let reserved = ctx.step("reserve", || reserve(&order, cents)).await?;
    ctx.progress(&format!("reserved: {reserved}")).await?;
    let mut capture = Capture { order, cents };
    if cents > LIMIT {
        capture = approved(&ctx, capture).await?;
    }
    let receipt = ctx.step("capture", || pay_out(&capture, &reserved)).await?;
    ctx.progress(&format!("captured: {receipt}")).await?;
    Ok(receipt)
}

async fn approved(ctx: &Context, capture: Capture) -> TaskResult<Capture> {
    let decided = ctx
        .approval("over-limit")
        .title(format!("Refund {} cents for {}?", capture.cents, capture.order))
        .effect("the customer gets the money")
        .risk(Risk::High)
        .expires_in(Duration::from_secs(48 * 60 * 60))
        .action("demo.capture", capture)
        .await?;
    decided.approved()
}

async fn reserve(order: &str, cents: u64) -> TaskResult<String> {
    Ok(format!("hold-{order}-{cents}"))
}

async fn pay_out(capture: &Capture, reserved: &str) -> TaskResult<String> {
    Ok(format!("refunded {} cents for {} ({reserved})", capture.cents, capture.order))
}
