//! Tasks that wait for a person.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use countersign::approval::{Answer, ApprovalId, Choice, Question};
use countersign::{
    Client, Config, Context, Handle, Policy, Retry, Task, TaskError, TaskResult, Verdict, Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{Running, parked};

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
    parked(client, handle.id()).await;
    id
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
    let less = json!({ "cents": 400 });
    let digest = asked.question.action.digest_with(&less);
    assert_ne!(digest, asked.question.digest());
    assert_eq!(client.decide(&asked.approve_with("ana", less)).await.unwrap(), Answer::Applied);
    assert_eq!(edited.result_within(PATIENCE).await.unwrap(), 400);
    let decision = client.approval(&asked.question.id).await.unwrap().decision.unwrap();
    assert_eq!(decision.edited_digest.as_ref(), Some(&digest));
    let entries = client.audit_entries(1000).await.unwrap();
    let id = ("approval".to_owned(), asked.question.id.to_string());
    let entry = entries.iter().find(|entry| entry.fields.contains(&id)).unwrap();
    let audited = ("edited_digest".to_owned(), digest.to_string());
    assert!(entry.fields.contains(&audited), "{entry:?}");

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

#[tokio::test(flavor = "multi_thread")]
async fn fifty_deciders_race_and_every_loser_is_told_the_winner() {
    let running = Running::start(|worker| worker.handle(pay, Policy::default())).await;
    let client = &running.client;
    for _ in 0..5 {
        let handle = client.enqueue(Pay { cents: 1 }).queue(&running.queue).await.unwrap();
        let asked = client.approval(&shown(client, &handle, "pay").await).await.unwrap();
        let deciders = (0..50).map(|n| {
            let (client, decision) = (client.clone(), asked.approve(&format!("person-{n}")));
            tokio::spawn(async move { (decision.by.clone(), client.decide(&decision).await) })
        });
        let (mut winners, mut named) = (Vec::new(), Vec::new());
        for decider in deciders.collect::<Vec<_>>() {
            match decider.await.unwrap() {
                (who, Ok(Answer::Applied)) => winners.push(who),
                (_, Ok(Answer::AlreadyDecided { by, .. })) => named.push(by),
                (who, other) => panic!("{who}: {other:?}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(named, vec![winners[0].clone(); 49]);
        assert_eq!(handle.result_within(PATIENCE).await.unwrap(), 1);
    }
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_decides_in_time() {
    let expiring = |ctx: Context, task: Pay| async move {
        let asked = ctx.approval("pay").ask("In a second?").expires_in(Duration::from_secs(1));
        assert_eq!(asked.await?.verdict, Verdict::Expired);
        Ok(task.cents)
    };
    let running = Running::start(|worker| worker.handle(expiring, Policy::default())).await;
    assert_eq!(running.call(Pay { cents: 3 }).await.unwrap(), 3);
    running.drain().await;
}

/// A retry after a resume is not taken for a message of the past.
#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_run_that_fails_is_tried_again_with_the_decision_that_was_made() {
    let flaky = |ctx: Context, task: Pay| async move {
        let decided = ctx.approval("pay").ask("Pay?").await?;
        if ctx.attempt() < 3 {
            return Err("not yet".into());
        }
        Ok(task.cents * u64::from(decided.is_approved()))
    };
    let retry = Retry::exponential(Duration::from_millis(50)).attempts(5);
    let policy = Policy { retry, ..Policy::default() };
    let running = Running::start(|worker| worker.handle(flaky, policy)).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 9 }).queue(&running.queue).await.unwrap();
    let asked = client.approval(&shown(client, &handle, "pay").await).await.unwrap();
    assert_eq!(client.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), 9);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_outside_of_tasks_is_waited_for_as_often_as_one_likes() {
    let running = Running::start(|worker| worker.handle(pay, Policy::default())).await;
    let client = &running.client;
    let requested = client.request_approval(Question::new("Deploy 7?")).await.unwrap();
    let nobody = requested.wait(Duration::from_millis(10)).await.unwrap();
    assert_eq!((nobody.status, nobody.approved), ("timeout", false));
    let (waiting, decider) = (requested.clone(), client.clone());
    let wait = tokio::spawn(async move { waiting.wait(PATIENCE).await });
    let asked = decider.approval(requested.id()).await.unwrap();
    assert_eq!(decider.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
    let first = wait.await.unwrap().unwrap();
    assert_eq!(
        (first.status, first.approved, first.by.as_deref()),
        ("approved", true, Some("ana"))
    );
    assert_eq!(requested.wait(PATIENCE).await.unwrap(), first, "a decision before the wait");
    assert!(client.approval(&ApprovalId::random()).await.unwrap_err().is_no_approval());
    running.drain().await;
}

/// Messages and rings that nobody honest has sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_forged_changes_nothing() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let paying = move |ctx: Context, task: Pay| {
        counted.fetch_add(1, Ordering::SeqCst);
        pay(ctx, task)
    };
    let running = Running::start(|worker| worker.handle(paying, Policy::default())).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 6 }).queue(&running.queue).await.unwrap();
    let id = shown(client, &handle, "pay").await;
    let resume = format!("{}.countersign-resume", running.queue);
    for ticket in ["resume 1", "resume 2", "resume 0", "wake 0", "wake x", "nonsense"] {
        let mut headers = countersign::protocol::Headers::new();
        headers.insert("x-countersign-ticket".into(), ticket.into());
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
    // Behind all of them, by the same way: when it has come, they have.
    let other = client.enqueue(Pay { cents: 1 }).queue(&running.queue).await.unwrap();
    let other_id = shown(client, &other, "pay").await;
    let asked = client.approval(&other_id).await.unwrap();
    assert_eq!(client.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
    assert_eq!(other.result_within(PATIENCE).await.unwrap(), 1);
    let before = runs.load(Ordering::SeqCst);
    assert!(before <= 3, "a forged message ran the task");
    let asked = client.approval(&id).await.unwrap();
    assert_eq!(asked.standing.as_str(), "pending");
    assert_eq!(client.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), 6);
    running.drain().await;
}

/// The decider reads the schema that was asked with; the worker the one that its handler has now.
#[tokio::test(flavor = "multi_thread")]
async fn edited_arguments_fit_the_schema_and_are_asked_anew_when_that_has_changed() {
    let most = Arc::new(AtomicU64::new(1000));
    let limit = Arc::clone(&most);
    let limited = move |ctx: Context, task: Pay| {
        let schema = json!({ "properties": { "cents": {
            "type": "integer", "maximum": limit.load(Ordering::SeqCst),
        } } });
        async move {
            let asked = ctx.approval("pay").ask("Pay?").schema(schema).action("bank.pay", task);
            Ok(asked.await?.approved()?.cents)
        }
    };
    let servers = support::servers();
    let mut config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    config.hold = Duration::ZERO;
    let build = |worker: Worker| worker.handle(limited, Policy::default());
    let running = Running::start_with(&config, build).await;
    let client = &running.client;
    let handle = client.enqueue(Pay { cents: 500 }).queue(&running.queue).await.unwrap();
    let asked = client.approval(&shown(client, &handle, "pay").await).await.unwrap();
    let misfit = asked.approve_with("ana", json!({ "cents": 5000 }));
    let refused = client.decide(&misfit).await.unwrap_err();
    assert!(refused.is_misfit() && refused.to_string().contains("at /cents"), "{refused}");
    assert_eq!(client.approval(&asked.question.id).await.unwrap().standing, asked.standing);
    most.store(100, Ordering::SeqCst);
    let fitting = asked.approve_with("ana", json!({ "cents": 1000 }));
    assert_eq!(client.decide(&fitting).await.unwrap(), Answer::Applied);
    // The handler has another schema by now: what was approved under the old one is asked anew.
    let anew = async {
        loop {
            let again = client.approval(&asked.question.id).await.unwrap();
            if again.question.digest() != asked.question.digest() {
                return again;
            }
            tokio::task::yield_now().await;
        }
    };
    let again = tokio::time::timeout(PATIENCE, anew).await.unwrap();
    let fitting = again.approve_with("ana", json!({ "cents": 100 }));
    assert_eq!(client.decide(&fitting).await.unwrap(), Answer::Applied);
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), 100);

    let question = Question { schema: Some(json!({ "type": 7 })), ..Question::new("Deploy?") };
    let refused = client.request_approval(question).await.unwrap_err();
    assert!(refused.is_decision() && refused.to_string().contains("schema"), "{refused}");
    running.drain().await;
}
