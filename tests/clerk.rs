//! What is decided, and said, without a person.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::approval::{Action, AutoPolicy, Question, Risk, Standing, Then};
use countersign::{ApprovalId, Client, Config, Context, Policy, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{Running, Server, servers};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Pay {
    cents: u64,
}

impl Task for Pay {
    const NAME: &'static str = "test.pay";
    type Output = u64;
}

async fn pay(ctx: Context, task: Pay) -> TaskResult<u64> {
    let asked = ctx.approval("pay").ask("Pay?").action("bank.pay", task);
    Ok(asked.await?.approved()?.cents)
}

fn policy(name: &str, then: Then, max: u64) -> AutoPolicy {
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
    let small = AutoPolicy { task: Some("test.*".into()), ..policy("small", Then::Approve, 50) };
    vec![small, policy("middle", Then::Ask, 500), policy("large", Then::Reject, u64::MAX)]
}

/// On a Redis of its own, since clerks decide whatever they find.
async fn config(redis: &Server) -> Config {
    let mut config = Config::new(&servers().broker_url, redis.url()).unwrap();
    config.hold = Duration::ZERO;
    config.policies = policies();
    config
}

/// As many clerks as `clients`, until `work` is done.
async fn beside<T>(clients: &[&Client], work: impl Future<Output = T>) -> T {
    let clerks = clients.iter().map(|client| client.clerk(std::future::pending()));
    tokio::select! {
        done = tokio::time::timeout(PATIENCE, work) => done.unwrap(),
        _ = futures_util::future::join_all(clerks) => panic!("a clerk has ended"),
    }
}

/// The fields of the audit's entries about this question, the oldest first.
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
    let build = |worker: Worker| worker.handle(pay, Policy::default());
    let running = Running::start_with(&config, build).await;
    let client = &running.client;
    let other = Client::connect(&config).await.unwrap();
    let ask = async |cents| client.enqueue(Pay { cents }).queue(&running.queue).await.unwrap();
    let before = ask(50).await;
    let [small, large] = beside(&[client, &other], async {
        assert_eq!(before.result_within(PATIENCE).await.unwrap(), 50);
        let [small, middle, large] = [ask(49).await, ask(51).await, ask(501).await];
        let ids = [&small, &large].map(|handle| ApprovalId::of(handle.id(), "pay", 0));
        let undecided = ApprovalId::of(middle.id(), "pay", 0);
        assert_eq!(small.result_within(PATIENCE).await.unwrap(), 49);
        let refused = large.result_within(PATIENCE).await.unwrap_err();
        assert!(refused.to_string().contains("refused by policy:large: by large"), "{refused}");
        let asked = client.approval(&undecided).await.unwrap();
        assert!(matches!(asked.standing, Standing::Open(_)));
        client.decide(&asked.approve("ana")).await.unwrap();
        assert_eq!(middle.result_within(PATIENCE).await.unwrap(), 51);
        ids
    })
    .await;
    for (id, choice, name) in [(small, "approve", "small"), (large, "reject", "large")] {
        let digest = client.approval(&id).await.unwrap().question.digest();
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
async fn nothing_irreversible_and_nothing_of_others_is_decided() {
    let redis = Server::redis().await;
    let mut config = config(&redis).await;
    config.policies = vec![policy("all", Then::Approve, 500)];
    let client = Client::connect(&config).await.unwrap();
    let question = |risk, approvers: &[&str]| Question {
        risk,
        approvers: approvers.iter().map(ToString::to_string).collect(),
        action: Action { name: "bank.pay".into(), version: 1, args: json!({ "cents": 1 }) },
        ..Question::new("Pay?")
    };
    let ask = async |question| client.request_approval(question).await.unwrap();
    let irreversible = ask(question(Risk::Irreversible, &[])).await;
    let anas = ask(question(Risk::Low, &["ana"])).await;
    let shared = ask(question(Risk::Low, &["ana", "policy:all"])).await;
    // Asked last: when it is decided, the others have been looked at.
    let last = Question { expires_in: 2 * 24 * 3_600_000, ..question(Risk::High, &[]) };
    let last = ask(last).await;
    beside(&[&client], async {
        assert_eq!(shared.wait(PATIENCE).await.unwrap().by.as_deref(), Some("policy:all"));
        assert!(last.wait(PATIENCE).await.unwrap().approved);
    })
    .await;
    for undecided in [irreversible, anas] {
        let asked = client.approval(undecided.id()).await.unwrap();
        assert!(matches!(asked.standing, Standing::Open(_)), "{asked:?}");
    }
    client.close().await;
}

/// Rewrites a question, as if it had been asked at the beginning of time with this deadline.
async fn ask_long_ago(redis: &Server, id: &ApprovalId, deadline: i64) {
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
async fn people_are_warned_twice_whoever_looks_and_not_of_what_is_decided() {
    let redis = Server::redis().await;
    let config = config(&redis).await;
    let [client, other] =
        [Client::connect(&config).await.unwrap(), Client::connect(&config).await.unwrap()];
    let ask = async || {
        let requested = client.request_approval(Question::new("Now?")).await.unwrap();
        client.approval(requested.id()).await.unwrap()
    };
    let [open, decided] = [ask().await, ask().await];
    client.decide(&decided.approve("ana")).await.unwrap();
    let (id, now) = (&open.question.id, open.read_at);
    for (deadline, percent) in [(now / 2 * 3, 50), (now / 20 * 21, 90)] {
        for id in [id, &decided.question.id] {
            ask_long_ago(&redis, id, deadline).await;
        }
        beside(&[&client, &other], warned(&client, id, percent)).await;
        // Both look at it again.
        beside(&[&client, &other], warned(&client, id, percent)).await;
    }
    let entries = audited(&client, id).await;
    let percents: Vec<_> = entries.iter().map(|entry| field(entry, "percent")).collect();
    assert_eq!(percents, ["50", "90"]);
    assert_eq!(audited(&client, &decided.question.id).await.len(), 1, "its decision");
    client.close().await;
    other.close().await;
}

/// The same task, by a producer that gives its arguments by position.
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
    ctx.approval("transfer").ask("Transfer?").await?.approved()?;
    Ok(task.amount)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_positional_argument_is_seen_under_its_name() {
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
            ..rule("guard", Then::Reject)
        },
        AutoPolicy { max: [("/amount".into(), 500.into())].into(), ..rule("small", Then::Approve) },
        rule("rest", Then::Ask),
    ];
    let build = |worker: Worker| worker.handle(transfer, Policy::default());
    let running = Running::start_with(&config, build).await;
    let client = &running.client;
    let send = async |amount| {
        let task = Positional(amount, "bob".into());
        client.enqueue(task).queue(&running.queue).await.unwrap()
    };
    beside(&[client], async {
        let refused = send(25_000).await.result_within(PATIENCE).await.unwrap_err();
        assert!(refused.to_string().contains("refused by policy:guard"), "{refused}");
        assert_eq!(send(499).await.result_within(PATIENCE).await.unwrap(), 499);
    })
    .await;
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_cannot_be_made_stops_no_other() {
    let redis = Server::redis().await;
    let mut config = config(&redis).await;
    let endless =
        AutoPolicy { reason: Some("x".repeat(5000)), ..policy("endless", Then::Reject, 9) };
    config.policies = vec![endless, policy("all", Then::Approve, 500)];
    let client = Client::connect(&config).await.unwrap();
    let ask = async |cents: u64, hours: u64| {
        let action =
            Action { name: "bank.pay".into(), version: 1, args: json!({ "cents": cents }) };
        let expires_in = hours * 3_600_000;
        let question = Question { action, expires_in, ..Question::new("Pay?") };
        client.request_approval(question).await.unwrap()
    };
    let (undecided, decided) = (ask(5, 1).await, ask(50, 2).await);
    beside(&[&client], async {
        assert!(decided.wait(PATIENCE).await.unwrap().approved);
    })
    .await;
    let asked = client.approval(undecided.id()).await.unwrap();
    assert!(matches!(asked.standing, Standing::Open(_)), "{asked:?}");
    client.close().await;
}
