//! Tasks that wait for a person.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::approval::{Answer, ApprovalId, Choice};
use countersign::{Client, Context, Handle, Policy, Task, TaskError, TaskResult, Verdict};
use serde::{Deserialize, Serialize};
use support::Running;

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pay {
    cents: u64,
}

impl Task for Pay {
    const NAME: &'static str = "test.pay";
    type Output = u64;
}

/// Pays what was approved.
async fn pay(ctx: Context, task: Pay) -> TaskResult<u64> {
    let asked = ctx.approval("pay").ask(format!("Pay {} cents?", task.cents));
    let decided = asked.action("bank.pay", task).requested_by("rita").await?;
    match &decided.verdict {
        Verdict::Approved { args, .. } => Ok(args.cents),
        verdict => {
            let by = &decided.by;
            Err(TaskError::fatal(format!("{verdict:?} by {by}: {}", decided.reason())))
        }
    }
}

/// The question of this name, once deciders see it.
async fn shown(client: &Client, handle: &Handle<u64>, name: &str) -> ApprovalId {
    let id = ApprovalId::of(handle.id(), name, 0);
    parked(client, handle).await;
    id
}

/// Waits until the task says that it waits.
async fn parked(client: &Client, handle: &Handle<u64>) {
    let wait = async {
        loop {
            let status = client.status(handle.id()).await.unwrap();
            if status.is_some_and(|status| status.state.as_str() == "PARKED") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_task_goes_on_and_only_one_decision_counts() {
    let running = Running::start(|worker| worker.handle(pay, Policy::default())).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 500 }).queue(&running.queue).await.unwrap();
    let id = shown(client, &handle, "pay").await;
    let asked = client.approval(&id).await.unwrap();
    assert_eq!(asked.question.title, "Pay 500 cents?");
    assert_eq!(client.decide(&asked.approve("rita")).await.unwrap(), Answer::NotAllowed);
    let decision = asked.approve("ana");
    assert_eq!(client.decide(&decision).await.unwrap(), Answer::Applied);
    assert_eq!(client.decide(&decision).await.unwrap(), Answer::Replayed);
    let late = client.decide(&asked.reject("bob", "no")).await.unwrap();
    assert!(
        matches!(&late, Answer::AlreadyDecided { by, choice: Choice::Approve, .. } if by == "ana"),
        "{late:?}"
    );
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), 500);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edited_arguments_are_what_runs_and_a_rejection_says_why() {
    let running = Running::start(|worker| worker.handle(pay, Policy::default())).await;
    let client = &running.client;
    let edited = client.enqueue(Pay { cents: 500 }).queue(&running.queue).await.unwrap();
    let asked = client.approval(&shown(client, &edited, "pay").await).await.unwrap();
    let less = serde_json::json!({ "cents": 400 });
    assert_eq!(client.decide(&asked.approve_with("ana", less)).await.unwrap(), Answer::Applied);
    assert_eq!(edited.result_within(PATIENCE).await.unwrap(), 400);

    let rejected = client.enqueue(Pay { cents: 900 }).queue(&running.queue).await.unwrap();
    let asked = client.approval(&shown(client, &rejected, "pay").await).await.unwrap();
    assert!(client.decide(&asked.reject("ana", " ")).await.unwrap_err().is_decision());
    assert_eq!(client.decide(&asked.reject("ana", "too much")).await.unwrap(), Answer::Applied);
    let error = rejected.result_within(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("Rejected by ana: too much"), "{error}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_under_one_join_are_one_park_and_each_decision_resumes() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let both = move |ctx: Context, task: Pay| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let first = ctx.approval("first").ask("First?");
            let second = ctx.approval("second").ask("Second?");
            let (first, second) = tokio::join!(first, second);
            let approved = [first?.is_approved(), second?.is_approved()];
            Ok(task.cents * approved.iter().filter(|approved| **approved).count() as u64)
        }
    };
    let running = Running::start(|worker| worker.handle(both, Policy::default())).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 7 }).queue(&running.queue).await.unwrap();
    let first = shown(client, &handle, "first").await;
    let second = ApprovalId::of(handle.id(), "second", 0);
    for id in [first, second] {
        let asked = client.approval(&id).await.unwrap();
        assert_eq!(client.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
    }
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), 14);
    assert!(runs.load(Ordering::SeqCst) <= 3, "once for each decision, at most");
    running.drain().await;
}
