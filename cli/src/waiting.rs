//! Prints the approval requests that a task waits for while a command waits for the task.

use std::collections::HashSet;
use std::time::Duration;

use countersign::approval::ApprovalStatus;
use countersign::cli::plain::plain;
use countersign::cli::streams;
use countersign::client::Client;
use countersign::task::TaskId;
use countersign::unstable::now;

use crate::paste;
use crate::table::{relative, short_id};

/// How often the store is read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Awaits `wait`, and until then prints each request that the task waits for, once.
pub(crate) async fn with_requests<T>(
    client: &Client,
    id: &TaskId,
    wait: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        ended = wait => ended,
        never = print_requests(client, id) => match never {},
    }
}

async fn print_requests(client: &Client, id: &TaskId) -> std::convert::Infallible {
    let mut printed = HashSet::new();
    loop {
        // While the store does not answer, nothing is printed.
        let suspended = client.backends().store.suspended_task(id).await.ok().flatten();
        for approval in suspended.into_iter().flat_map(|task| task.approvals) {
            if printed.contains(&approval) {
                continue;
            }
            let Ok(record) = client.approval(&approval).await else { continue };
            if let ApprovalStatus::Open(deadline) = record.status {
                streams::note(format_args!(
                    "countersign: task {} waits for a decision (deadline {}):\n  {}\n  \
                     {}",
                    plain(short_id(id.as_str())),
                    relative(deadline, now()),
                    plain(&record.request.title),
                    paste::approve(approval.as_str()),
                ));
            }
            printed.insert(approval);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
