//! Approvers that decide every open request. Several of them race for each approval.

use std::sync::Arc;
use std::time::Duration;

use countersign::Client;
use countersign::approval::DecideResult;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;

const POLL_INTERVAL: Duration = Duration::from_millis(500);
const AT_ONCE: usize = 100;

/// Approves every open request in the name of `by`, until `stop`.
pub(crate) async fn approve_all(
    client: Client,
    by: &'static str,
    ledger: Arc<Ledger>,
    stop: CancellationToken,
) {
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let Ok(pending) = client.pending_approvals(AT_ONCE).await else { continue };
        for (approval, error) in pending.unreadable {
            ledger.violation(format!("approval {approval} cannot be read: {error}"));
        }
        for record in pending.requests {
            let decision = record.approve(by);
            // After an error the decision may or may not be applied; the next round reads it again.
            if let Ok(DecideResult::Applied) = client.decide(&decision).await {
                ledger.applied(decision.approval);
            }
        }
    }
}
