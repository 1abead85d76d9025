//! Tasks that wait for an approver's decision.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use countersign::approval::{ApprovalId, ApprovalRequest, DecideResult, DecisionKind};
use countersign::{
    Client, Config, Context, Handle, Policy, Retry, Task, TaskError, TaskResult, Verdict, Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{Running, TIMEOUT, wait_until_suspended};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pay {
    cents: u64,
}

impl Task for Pay {
    const NAME: &'static str = "test.pay";
    type Output = u64;
}

/// Pays the approved amount.
async fn pay(ctx: Context, task: Pay) -> TaskResult<u64> {
    let request = ctx.approval("pay").title(format!("Pay {} cents?", task.cents));
    let decided = request.action("bank.pay", task).requested_by("rita").await?;
    match &decided.verdict {
        Verdict::Approved { args, .. } => Ok(args.cents),
        verdict => {
            let by = &decided.by;
            Err(TaskError::fatal(format!("{verdict:?} by {by}: {}", decided.reason())))
        }
    }
}

/// Waits until deciders see the request with this name, and returns its id.
async fn suspended_request(client: &Client, handle: &Handle<u64>, name: &str) -> ApprovalId {
    let id = ApprovalId::of(handle.id(), name, 0);
    wait_until_suspended(client, handle.id()).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_task_resumes_and_only_one_decision_counts() {
    let running = Running::start(|worker| worker.handle(pay)).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 500 }).queue(&running.queue).await.unwrap();
    let id = suspended_request(client, &handle, "pay").await;
    let record = client.approval(&id).await.unwrap();
    assert_eq!(record.request.title, "Pay 500 cents?");
    assert_eq!(client.decide(&record.approve("rita")).await.unwrap(), DecideResult::NotAllowed);
    let decision = record.approve("ana");
    assert_eq!(client.decide(&decision).await.unwrap(), DecideResult::Applied);
    assert_eq!(client.decide(&decision).await.unwrap(), DecideResult::Replayed);
    let late = client.decide(&record.reject("bob", "no")).await.unwrap();
    assert!(
        matches!(&late, DecideResult::AlreadyDecided { by, choice: DecisionKind::Approve, .. } if by == "ana"),
        "{late:?}"
    );
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 500);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_with_edited_arguments_and_a_rejection_has_its_reason() {
    let running = Running::start(|worker| worker.handle(pay)).await;
    let client = &running.client;
    let edited = client.enqueue(Pay { cents: 500 }).queue(&running.queue).await.unwrap();
    let record = client.approval(&suspended_request(client, &edited, "pay").await).await.unwrap();
    let less = json!({ "cents": 400 });
    let digest = record.request.action.digest_with(&less);
    assert_ne!(digest, record.request.digest());
    assert_eq!(
        client.decide(&record.approve_with("ana", less)).await.unwrap(),
        DecideResult::Applied
    );
    assert_eq!(edited.result_within(TIMEOUT).await.unwrap(), 400);
    let decision = client.approval(&record.request.id).await.unwrap().decision.unwrap();
    assert_eq!(decision.edited_digest.as_ref(), Some(&digest));
    let entries = client.audit_entries(1000).await.unwrap();
    let id = ("approval".to_owned(), record.request.id.to_string());
    let entry = entries.iter().find(|entry| entry.fields.contains(&id)).unwrap();
    let audited = ("edited_digest".to_owned(), digest.to_string());
    assert!(entry.fields.contains(&audited), "{entry:?}");

    let rejected = client.enqueue(Pay { cents: 900 }).queue(&running.queue).await.unwrap();
    let record = client.approval(&suspended_request(client, &rejected, "pay").await).await.unwrap();
    assert!(client.decide(&record.reject("ana", " ")).await.unwrap_err().is_decision());
    assert_eq!(
        client.decide(&record.reject("ana", "too much")).await.unwrap(),
        DecideResult::Applied
    );
    let error = rejected.result_within(TIMEOUT).await.unwrap_err();
    assert!(error.to_string().contains("Rejected by ana: too much"), "{error}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn approvals_under_join_are_one_suspension_and_each_decision_resumes() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let both = move |ctx: Context, task: Pay| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let first = ctx.approval("first").title("First?");
            let second = ctx.approval("second").title("Second?");
            let (first, second) = tokio::join!(first, second);
            let approved = [first?.is_approved(), second?.is_approved()];
            Ok(task.cents * approved.iter().filter(|approved| **approved).count() as u64)
        }
    };
    let running = Running::start(|worker| worker.handle(both)).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 7 }).queue(&running.queue).await.unwrap();
    let first = suspended_request(client, &handle, "first").await;
    let second = ApprovalId::of(handle.id(), "second", 0);
    for id in [first, second] {
        let record = client.approval(&id).await.unwrap();
        assert_eq!(client.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);
    }
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 14);
    assert!(runs.load(Ordering::SeqCst) <= 3, "once for each decision, at most");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_concurrent_deciders_one_wins_and_the_others_get_its_decision() {
    let running = Running::start(|worker| worker.handle(pay)).await;
    let client = &running.client;
    for _ in 0..5 {
        let handle = client.enqueue(Pay { cents: 1 }).queue(&running.queue).await.unwrap();
        let record =
            client.approval(&suspended_request(client, &handle, "pay").await).await.unwrap();
        let deciders = (0..50).map(|n| {
            let (client, decision) = (client.clone(), record.approve(&format!("person-{n}")));
            tokio::spawn(async move { (decision.by.clone(), client.decide(&decision).await) })
        });
        let (mut winners, mut named) = (Vec::new(), Vec::new());
        for decider in deciders.collect::<Vec<_>>() {
            match decider.await.unwrap() {
                (who, Ok(DecideResult::Applied)) => winners.push(who),
                (_, Ok(DecideResult::AlreadyDecided { by, .. })) => named.push(by),
                (who, other) => panic!("{who}: {other:?}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(named, vec![winners[0].clone(); 49]);
        assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 1);
    }
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_decision_expires() {
    let expiring = |ctx: Context, task: Pay| async move {
        let request = ctx.approval("pay").title("In a second?").expires_in(Duration::from_secs(1));
        assert_eq!(request.await?.verdict, Verdict::Expired);
        Ok(task.cents)
    };
    let running = Running::start(|worker| worker.handle(expiring)).await;
    assert_eq!(running.call(Pay { cents: 3 }).await.unwrap(), 3);
    running.drain().await;
}

/// The worker does not treat a retry after a resume as an outdated message.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_resumed_run_keeps_the_decision() {
    let flaky = |ctx: Context, task: Pay| async move {
        let decided = ctx.approval("pay").title("Pay?").await?;
        if ctx.attempt() < 3 {
            return Err("not yet".into());
        }
        Ok(task.cents * u64::from(decided.is_approved()))
    };
    let retry = Retry::exponential(Duration::from_millis(50)).attempts(5);
    let policy = Policy { retry, ..Policy::default() };
    let running = Running::start(|worker| worker.handle_with_policy(flaky, policy)).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 9 }).queue(&running.queue).await.unwrap();
    let record = client.approval(&suspended_request(client, &handle, "pay").await).await.unwrap();
    assert_eq!(client.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 9);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_made_outside_a_task_can_be_awaited_repeatedly() {
    let running = Running::start(|worker| worker.handle(pay)).await;
    let client = &running.client;
    let requested = client.request_approval(ApprovalRequest::new("Deploy 7?")).await.unwrap();
    let undecided = requested.wait(Duration::from_millis(10)).await.unwrap();
    assert_eq!((undecided.status, undecided.approved), ("timeout", false));
    let (waiting, decider) = (requested.clone(), client.clone());
    let wait = tokio::spawn(async move { waiting.wait(TIMEOUT).await });
    let record = decider.approval(requested.id()).await.unwrap();
    assert_eq!(decider.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);
    let first = wait.await.unwrap().unwrap();
    assert_eq!(
        (first.status, first.approved, first.by.as_deref()),
        ("approved", true, Some("ana"))
    );
    assert_eq!(requested.wait(TIMEOUT).await.unwrap(), first, "a decision before the wait");
    assert!(client.approval(&ApprovalId::random()).await.unwrap_err().is_no_approval());
    running.drain().await;
}

/// Forged messages and forged notifications.
#[tokio::test(flavor = "multi_thread")]
async fn forged_messages_and_notifications_change_nothing() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let paying = move |ctx: Context, task: Pay| {
        counted.fetch_add(1, Ordering::SeqCst);
        pay(ctx, task)
    };
    let running = Running::start(|worker| worker.handle(paying)).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 6 }).queue(&running.queue).await.unwrap();
    let id = suspended_request(client, &handle, "pay").await;
    let resume = format!("{}.countersign-resume", running.queue);
    for header in ["resume 1", "resume 2", "resume 0", "wake 0", "wake x", "nonsense"] {
        let mut headers = countersign::protocol::Headers::new();
        headers.insert("x-countersign-ticket".into(), header.into());
        let forged = client.enqueue(Pay { cents: 1_000_000 }).queue(&resume);
        forged.id(handle.id().as_str()).headers(headers).await.unwrap();
    }
    let redis = redis::Client::open(support::servers().store_url).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("PUBLISH")
        .arg("cs:decided")
        .arg(id.as_str())
        .query_async(&mut redis)
        .await
        .unwrap();
    // This task is queued behind all of them: when it has been processed, so have they.
    let other = client.enqueue(Pay { cents: 1 }).queue(&running.queue).await.unwrap();
    let other_id = suspended_request(client, &other, "pay").await;
    let record = client.approval(&other_id).await.unwrap();
    assert_eq!(client.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);
    assert_eq!(other.result_within(TIMEOUT).await.unwrap(), 1);
    let before = runs.load(Ordering::SeqCst);
    assert!(before <= 3, "a forged message ran the task");
    let record = client.approval(&id).await.unwrap();
    assert_eq!(record.status.as_str(), "pending");
    assert_eq!(client.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 6);
    running.drain().await;
}

/// A decision is checked against the stored schema; the worker checks against its handler's current one.
#[tokio::test(flavor = "multi_thread")]
async fn edited_arguments_must_fit_the_schema_and_a_changed_schema_makes_a_new_request() {
    let most = Arc::new(AtomicU64::new(1000));
    let limit = Arc::clone(&most);
    let limited = move |ctx: Context, task: Pay| {
        let schema = json!({ "properties": { "cents": {
            "type": "integer", "maximum": limit.load(Ordering::SeqCst),
        } } });
        async move {
            let request = ctx.approval("pay").title("Pay?").schema(schema).action("bank.pay", task);
            Ok(request.await?.approved()?.cents)
        }
    };
    let servers = support::servers();
    let mut config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    config.hold = Duration::ZERO;
    let build = |worker: Worker| worker.handle(limited);
    let running = Running::start_with(&config, build).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 500 }).queue(&running.queue).await.unwrap();
    let record = client.approval(&suspended_request(client, &handle, "pay").await).await.unwrap();
    let invalid = record.approve_with("ana", json!({ "cents": 5000 }));
    let refused = client.decide(&invalid).await.unwrap_err();
    assert!(
        refused.is_schema_violation() && refused.to_string().contains("at /cents"),
        "{refused}"
    );
    assert_eq!(client.approval(&record.request.id).await.unwrap().status, record.status);
    most.store(100, Ordering::SeqCst);
    let valid = record.approve_with("ana", json!({ "cents": 1000 }));
    assert_eq!(client.decide(&valid).await.unwrap(), DecideResult::Applied);
    // The handler has another schema now: the approval under the old schema is requested again.
    let changed = async {
        loop {
            let again = client.approval(&record.request.id).await.unwrap();
            if again.request.digest() != record.request.digest() {
                return again;
            }
            tokio::task::yield_now().await;
        }
    };
    let again = tokio::time::timeout(TIMEOUT, changed).await.unwrap();
    let valid = again.approve_with("ana", json!({ "cents": 100 }));
    assert_eq!(client.decide(&valid).await.unwrap(), DecideResult::Applied);
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 100);

    let request =
        ApprovalRequest { schema: Some(json!({ "type": 7 })), ..ApprovalRequest::new("Deploy?") };
    let refused = client.request_approval(request).await.unwrap_err();
    assert!(refused.is_decision() && refused.to_string().contains("schema"), "{refused}");
    running.drain().await;
}
