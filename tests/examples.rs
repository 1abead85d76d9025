//! Runs the examples that start their own worker, unchanged.
#![expect(clippy::expect_used, reason = "a test panics when it fails")]
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::env;

use support::TIMEOUT;
use tokio::process::Command;
use tokio::time::timeout;

/// Runs an example and returns the lines that it prints.
async fn printed(example: &str) -> Vec<String> {
    let test = env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap().join("examples");
    let run = Command::new(folder.join(example)).kill_on_drop(true).output();
    let run = timeout(TIMEOUT, run).await.expect("the example ends");
    let output = run.expect("an example: build it by cargo build --examples");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_runs_once_over_two_attempts() {
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
async fn a_stream_is_followed() {
    let lines = ["(\"thinking\")", "\"hello\"", "\"the\"", "\"world\"", "15 characters"];
    assert_eq!(printed("stream").await, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_waits_for_its_approval() {
    let lines = ["Pay 500 cents to Bob?", "applied", "Bob has 500 cents"];
    assert_eq!(printed("approval").await, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_a_rejection() {
    let lines = ["timeout: false", "rejected: not on a Friday"];
    assert_eq!(printed("outside_approval").await, lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn middlewares_measure_authenticate_and_map_an_error() {
    let lines = [
        "example.charge attempt 1: error",
        "example.charge attempt 2: success",
        "charged 500 cents",
        "example.charge attempt 1: error",
        "PermissionError: wrong x-token",
    ];
    assert_eq!(printed("middleware").await, lines);
}
