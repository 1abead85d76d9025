//! What a test does about the questions of tasks.

use std::time::Duration;

use countersign::approval::Answer;
use countersign::protocol::State;
use countersign::{ApprovalId, Asked, Client, TaskId};
use tokio::time::timeout;

/// The first park of a fresh broker makes the whole delay ladder: 31 queues, each on the disk.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until deciders see the question.
pub async fn shown(client: &Client, id: &ApprovalId) -> Asked {
    let wait = async {
        loop {
            match client.approval(id).await {
                Ok(asked) => return asked,
                Err(error) => assert!(error.is_no_approval(), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it asks")
}

/// Waits until deciders see the question, and approves it.
pub async fn approve(client: &Client, id: &ApprovalId) {
    let asked = shown(client, id).await;
    assert_eq!(client.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
}

/// Waits until the task says that it is parked.
pub async fn parked(client: &Client, id: &TaskId) {
    let wait = async {
        loop {
            let state = client.status(id).await.unwrap().map(|status| status.state);
            let is_over = state.as_ref().is_some_and(State::is_terminal);
            assert!(!is_over, "not parked: {state:?}");
            if state.is_some_and(|state| state.as_str() == "PARKED") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it says that it is parked");
}
