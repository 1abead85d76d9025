//! The examples that bring their own worker, run as they are.
#![expect(clippy::expect_used, reason = "a test panics when it fails")]
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::env;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// What an example prints.
async fn printed(example: &str) -> Vec<String> {
    let test = env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap().join("examples");
    let run = Command::new(folder.join(example)).kill_on_drop(true).output();
    let run = timeout(PATIENCE, run).await.expect("it ends");
    let output = run.expect("an example: build it by cargo build --examples");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_done_once_over_two_attempts() {
    let lines = [
        "attempt 1",
        "the bank holds 500 cents for o-1",
        "attempt 2",
        "the bank captures the hold of o-1",
        "receipt for the hold of o-1",
    ];
    assert_eq!(printed("step").await, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_along() {
    let lines = ["(\"thinking\")", "\"hello\"", "\"the\"", "\"world\"", "15 characters"];
    assert_eq!(printed("stream").await, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_waits_for_ana() {
    let lines = ["Pay 500 cents to Bob?", "applied", "Bob has 500 cents"];
    assert_eq!(printed("approval").await, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_told_no() {
    let lines = ["timeout: false", "rejected: not on a Friday"];
    assert_eq!(printed("outside_approval").await, lines);
}
