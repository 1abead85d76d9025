//! Decisions by policies and timeouts, and warnings, without an approver.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::approval::{
    Action, ApprovalRequest, ApprovalStatus, AutoPolicy, PolicyAction, Risk,
};
use countersign::{ApprovalId, Client, Config, Context, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{Running, Server, TIMEOUT, servers};

#[derive(Serialize, Deserialize)]
struct Pay {
    cents: u64,
}

impl Task for Pay {
    const NAME: &'static str = "test.pay";
    type Output = u64;
}

async fn pay(ctx: Context, task: Pay) -> TaskResult<u64> {
    let request = ctx.approval("pay").title("Pay?").action("bank.pay", task);
    Ok(request.await?.approved()?.cents)
}

fn policy(name: &str, then: PolicyAction, max: u64) -> AutoPolicy {
    AutoPolicy {
        name: name.into(),
        task: None,
        action: Some("bank.*".into()),
        requester: None,
        max_risk: None,
        min: [].into(),
        max: [("/cents".to_owned(), max.into())].into(),
        in_quorum: false,
        then,
        reason: Some(format!("by {name}")),
    }
}

fn policies() -> Vec<AutoPolicy> {
    let small =
        AutoPolicy { task: Some("test.*".into()), ..policy("small", PolicyAction::Approve, 50) };
    vec![
        small,
        policy("middle", PolicyAction::Ask, 500),
        policy("large", PolicyAction::Reject, u64::MAX),
    ]
}

/// Uses a Redis of its own, because approval services decide every request in the store.
async fn config(redis: &Server) -> Config {
    let mut config = Config::new(&servers().broker_url, redis.url()).unwrap();
    config.hold = Duration::ZERO;
    config.policies = policies();
    config
}

/// Runs `work` with one approval service per client until `work` is done.
async fn with_services<T>(clients: &[&Client], work: impl Future<Output = T>) -> T {
    let services = clients.iter().map(|client| client.run_approval_service(std::future::pending()));
    tokio::select! {
        done = tokio::time::timeout(TIMEOUT, work) => done.unwrap(),
        _ = futures_util::future::join_all(services) => panic!("an approval service has ended"),
    }
}

/// Returns the fields of the audit entries about this request, oldest first.
async fn audited(client: &Client, id: &ApprovalId) -> Vec<Vec<(String, String)>> {
    let mut entries = client.audit_entries(1000).await.unwrap();
    entries.reverse();
    let about = ("approval".to_owned(), id.to_string());
    let entries = entries.into_iter().map(|entry| entry.fields);
    entries.filter(|fields| fields.contains(&about)).collect()
}

fn field<'f>(fields: &'f [(String, String)], name: &str) -> &'f str {
    &fields.iter().find(|(field, _)| field == name).unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_policy_that_matches_decides_once_and_is_audited() {
    let redis = Server::redis().await;
    let config = config(&redis).await;
    let build = |worker: Worker| worker.handle(pay);
    let running = Running::start_with(&config, build).await;
    let client = &running.client;
    let other = Client::connect(&config).await.unwrap();
    let submit = async |cents| client.enqueue(Pay { cents }).queue(&running.queue).await.unwrap();
    let before = submit(50).await;
    let [small, large] = with_services(&[client, &other], async {
        assert_eq!(before.result_within(TIMEOUT).await.unwrap(), 50);
        let [small, middle, large] = [submit(49).await, submit(51).await, submit(501).await];
        let ids = [&small, &large].map(|handle| ApprovalId::of(handle.id(), "pay", 0));
        let undecided = ApprovalId::of(middle.id(), "pay", 0);
        assert_eq!(small.result_within(TIMEOUT).await.unwrap(), 49);
        let refused = large.result_within(TIMEOUT).await.unwrap_err();
        assert!(refused.to_string().contains("refused by policy:large: by large"), "{refused}");
        let record = client.approval(&undecided).await.unwrap();
        assert!(matches!(record.status, ApprovalStatus::Open(_)));
        client.decide(&record.approve("ana")).await.unwrap();
        assert_eq!(middle.result_within(TIMEOUT).await.unwrap(), 51);
        ids
    })
    .await;
    for (id, choice, name) in [(small, "approve", "small"), (large, "reject", "large")] {
        let digest = client.approval(&id).await.unwrap().request.digest();
        let entries = audited(client, &id).await;
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert_eq!(field(&entries[0], "what"), choice);
        assert_eq!(field(&entries[0], "by"), format!("policy:{name}"));
        assert_eq!(field(&entries[0], "digest"), digest.as_str());
    }
    other.close().await;
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_decide_no_irreversible_request_and_none_of_named_approvers() {
    let redis = Server::redis().await;
    let mut config = config(&redis).await;
    config.policies = vec![policy("all", PolicyAction::Approve, 500)];
    let client = Client::connect(&config).await.unwrap();
    let request = |risk, approvers: &[&str]| ApprovalRequest {
        risk,
        approvers: approvers.iter().map(ToString::to_string).collect(),
        action: Action { name: "bank.pay".into(), version: 1, args: json!({ "cents": 1 }) },
        ..ApprovalRequest::new("Pay?")
    };
    let submit = async |request| client.request_approval(request).await.unwrap();
    let irreversible = submit(request(Risk::Irreversible, &[])).await;
    let named = submit(request(Risk::Low, &["ana"])).await;
    let shared = submit(request(Risk::Low, &["ana", "policy:all"])).await;
    // Requested last: when it is decided, the service has checked the others.
    let last = ApprovalRequest { expires_in: Duration::from_hours(48), ..request(Risk::High, &[]) };
    let last = submit(last).await;
    with_services(&[&client], async {
        assert_eq!(shared.wait(TIMEOUT).await.unwrap().by.as_deref(), Some("policy:all"));
        assert!(last.wait(TIMEOUT).await.unwrap().approved);
    })
    .await;
    for undecided in [irreversible, named] {
        let record = client.approval(undecided.id()).await.unwrap();
        assert!(matches!(record.status, ApprovalStatus::Open(_)), "{record:?}");
    }
    client.close().await;
}

/// Rewrites a request as if it had been made at time 0 with this deadline.
async fn backdate_request(redis: &Server, id: &ApprovalId, deadline: i64) {
    let redis = redis::Client::open(redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut set = redis::cmd("HSET");
    set.arg(format!("cs:ask:{{cs}}:{id}")).arg("at").arg(0).arg("deadline").arg(deadline);
    let _: () = set.query_async(&mut redis).await.unwrap();
}

async fn warned(client: &Client, id: &ApprovalId, percent: u8) {
    while client.approval(id).await.unwrap().warned != Some(percent) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_are_audited_once_per_threshold_and_not_for_decided_requests() {
    let redis = Server::redis().await;
    let config = config(&redis).await;
    let [client, other] =
        [Client::connect(&config).await.unwrap(), Client::connect(&config).await.unwrap()];
    let submit = async || {
        let requested = client.request_approval(ApprovalRequest::new("Now?")).await.unwrap();
        client.approval(requested.id()).await.unwrap()
    };
    let [open, decided] = [submit().await, submit().await];
    client.decide(&decided.approve("ana")).await.unwrap();
    let (id, now) = (&open.request.id, open.read_at.as_millisecond());
    for (deadline, percent) in [(now / 2 * 3, 50), (now / 20 * 21, 90)] {
        for id in [id, &decided.request.id] {
            backdate_request(&redis, id, deadline).await;
        }
        with_services(&[&client, &other], warned(&client, id, percent)).await;
        // Both services check the request again.
        with_services(&[&client, &other], warned(&client, id, percent)).await;
    }
    let entries = audited(&client, id).await;
    let percents: Vec<_> = entries.iter().map(|entry| field(entry, "percent")).collect();
    assert_eq!(percents, ["50", "90"]);
    assert_eq!(audited(&client, &decided.request.id).await.len(), 1, "its decision");
    client.close().await;
    other.close().await;
}

/// The same task, from a producer that sends positional arguments.
#[derive(Serialize, Deserialize)]
struct Positional(u64, String);

impl Task for Positional {
    const NAME: &'static str = "test.transfer";
    type Output = u64;
}

#[derive(Serialize, Deserialize)]
struct Transfer {
    amount: u64,
    to: String,
}

impl Task for Transfer {
    const NAME: &'static str = "test.transfer";
    type Output = u64;
}

async fn transfer(ctx: Context, task: Transfer) -> TaskResult<u64> {
    ctx.approval("transfer").title("Transfer?").await?.approved()?;
    Ok(task.amount)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_reads_a_positional_argument_by_its_name() {
    let redis = Server::redis().await;
    let mut config = config(&redis).await;
    let rule = |name: &str, then| AutoPolicy {
        action: Some("test.transfer".into()),
        max: [].into(),
        ..policy(name, then, 0)
    };
    config.policies = vec![
        AutoPolicy {
            min: [("/amount".into(), 20_000.into())].into(),
            ..rule("guard", PolicyAction::Reject)
        },
        AutoPolicy {
            max: [("/amount".into(), 500.into())].into(),
            ..rule("small", PolicyAction::Approve)
        },
        rule("rest", PolicyAction::Ask),
    ];
    let build = |worker: Worker| worker.handle(transfer);
    let running = Running::start_with(&config, build).await;
    let client = &running.client;
    let send = async |amount| {
        let task = Positional(amount, "bob".into());
        client.enqueue(task).queue(&running.queue).await.unwrap()
    };
    with_services(&[client], async {
        let refused = send(25_000).await.result_within(TIMEOUT).await.unwrap_err();
        assert!(refused.to_string().contains("refused by policy:guard"), "{refused}");
        assert_eq!(send(499).await.result_within(TIMEOUT).await.unwrap(), 499);
    })
    .await;
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_fails_stops_no_other() {
    let redis = Server::redis().await;
    let mut config = config(&redis).await;
    let endless =
        AutoPolicy { reason: Some("x".repeat(5000)), ..policy("endless", PolicyAction::Reject, 9) };
    config.policies = vec![endless, policy("all", PolicyAction::Approve, 500)];
    let client = Client::connect(&config).await.unwrap();
    let submit = async |cents: u64, hours: u64| {
        let action =
            Action { name: "bank.pay".into(), version: 1, args: json!({ "cents": cents }) };
        let expires_in = Duration::from_hours(hours);
        let request = ApprovalRequest { action, expires_in, ..ApprovalRequest::new("Pay?") };
        client.request_approval(request).await.unwrap()
    };
    let (undecided, decided) = (submit(5, 1).await, submit(50, 2).await);
    with_services(&[&client], async {
        assert!(decided.wait(TIMEOUT).await.unwrap().approved);
    })
    .await;
    let record = client.approval(undecided.id()).await.unwrap();
    assert!(matches!(record.status, ApprovalStatus::Open(_)), "{record:?}");
    client.close().await;
}
