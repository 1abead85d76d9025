//! Helpers for the approval requests of tasks.

use crate::TIMEOUT;
use countersign::approval::DecideResult;
use countersign::protocol::State;
use countersign::{ApprovalId, ApprovalRecord, Client, TaskId};
use tokio::time::timeout;

/// Waits until deciders see the request, and returns it.
pub async fn wait_for_request(client: &Client, id: &ApprovalId) -> ApprovalRecord {
    let wait = async {
        loop {
            match client.approval(id).await {
                Ok(record) => return record,
                Err(error) => assert!(error.is_no_approval(), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, wait).await.expect("the approval is requested")
}

/// Waits until deciders see the request, and approves it.
pub async fn approve(client: &Client, id: &ApprovalId) {
    let record = wait_for_request(client, id).await;
    assert_eq!(client.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);
}

/// Waits until the status of the task says that it is suspended.
pub async fn wait_until_suspended(client: &Client, id: &TaskId) {
    let wait = async {
        loop {
            let state = client.status(id).await.unwrap().map(|status| status.state);
            let is_over = state.as_ref().is_some_and(State::is_terminal);
            assert!(!is_over, "not suspended: {state:?}");
            if state.is_some_and(|state| state.as_str() == "PARKED") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, wait).await.expect("the task is suspended");
}
