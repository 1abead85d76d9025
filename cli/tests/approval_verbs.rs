//! `countersign approvals`, run as people and services run it.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use std::process::Stdio;

use countersign::approval::{ApprovalRequest, ApprovalStatus};
use countersign::{Client, Config};
use serde_json::{Value, json};
use support::{Server, TIMEOUT, file, servers};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const POLICY: &str = "[[approvals.policy]]\nname = \"all\"\naction = \"*\"\nthen = \"approve\"\n";

/// Has a Redis of its own, because the verbs list all requests in the store.
struct Fixture {
    redis: Server,
    client: Client,
    settings: String,
}

impl Fixture {
    async fn start(policies: &str) -> Self {
        let redis = Server::redis().await;
        let config = Config::new(&servers().broker_url, redis.url()).unwrap();
        let client = Client::connect(&config).await.unwrap();
        let key = file("seal.key", "0123456789abcdef0123456789abcdef\n");
        let settings = format!("[approvals]\nseal_key_file = \"{key}\"\n{policies}");
        Self { client, redis, settings: file("c.toml", &settings) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command.args(["approvals", "--config", &self.settings]).args(arguments);
        command.env("COUNTERSIGN_STORE_URL", self.redis.url()).env("RUST_LOG", "info,lapin=off");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    /// Runs a verb; returns its exit code and the records on its standard output.
    async fn run(&self, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
        let output = timeout(TIMEOUT, self.command(arguments).output()).await.unwrap().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let records = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        (output.status.code(), records.unwrap())
    }

    async fn request(&self, title: &str) -> String {
        let requested = self.client.request_approval(ApprovalRequest::new(title)).await.unwrap();
        requested.id().to_string()
    }
}

/// A verb that runs until it is stopped, with its standard output.
struct Running {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    async fn next(&mut self) -> Value {
        let line = timeout(TIMEOUT, self.lines.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line.unwrap()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extensions_and_withdrawals_are_audited() {
    let fixture = Fixture::start("").await;
    let id = fixture.request("Deploy?").await;
    let parsed = countersign::ApprovalId::parse(&id).unwrap();
    let before = fixture.client.approval(&parsed).await.unwrap();
    let (code, records) = fixture.run(&["extend", &id, "--by", "ana", "48h"]).await;
    assert_eq!((code, &records[0]["answer"]), (Some(0), &json!("applied")));
    let after = fixture.client.approval(&parsed).await.unwrap();
    assert!(after.at > before.at, "{before:?} {after:?}");
    let (code, records) = fixture.run(&["withdraw", &id, "--by", "bob"]).await;
    assert_eq!((code, &records[0]["taken"]), (Some(0), &json!(true)));
    for late in [&["withdraw", &id, "--by", "ana"][..], &["extend", &id, "--by", "ana", "1h"]] {
        let (code, records) = fixture.run(late).await;
        assert_eq!((code, &records[0]["answer"]), (Some(1), &json!("the request was withdrawn")));
    }
    let status = fixture.client.approval(&parsed).await.unwrap().status;
    assert!(matches!(status, ApprovalStatus::Decided(_)) && status.as_str() == "withdrawn");
    let later =
        ApprovalRequest { expires_in: Duration::from_hours(72), ..ApprovalRequest::new("Later?") };
    let later = fixture.client.request_approval(later).await.unwrap();
    let (code, records) = fixture.run(&["list", "--limit", "1"]).await;
    assert_eq!((code, &records[0]["id"]), (Some(0), &json!(later.id())), "the open one");
    let (code, records) = fixture.run(&["audit"]).await;
    let entries: Vec<_> =
        records.iter().map(|it| (&it["what"], &it["by"], &it["approval"])).collect();
    let [withdraw, bob, extend, ana, id] =
        ["withdraw", "bob", "extend", "ana", &id].map(|text| json!(text));
    let refused = json!("refused");
    let late = (&refused, &ana, &id);
    let wanted = vec![late, late, (&withdraw, &bob, &id), (&extend, &ana, &id)];
    assert_eq!((code, entries), (Some(0), wanted));
    let kinds: Vec<_> = records.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["refused", "refused", "decision", "decision"]);
    assert_eq!(records[1]["why"], "withdrawn");
    let (code, records) = fixture.run(&["audit", "--limit", "1"]).await;
    assert_eq!((code, records.len()), (Some(0), 1));
    assert_eq!(fixture.run(&["extend", "ap_x", "--by", "ana", "1h"]).await.0, Some(1));
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn approvers_and_configured_operators_may_extend() {
    let fixture = Fixture::start("operators = [\"eve\", \"dan\"]\n").await;
    let request =
        ApprovalRequest { approvers: vec!["ana".into()], ..ApprovalRequest::new("Deploy?") };
    let requested = fixture.client.request_approval(request).await.unwrap();
    let id = requested.id().to_string();
    let not_allowed = "this person may not decide this request";
    for (by, time, code, expected) in [
        ("bob", "48h", 1, not_allowed),
        ("eve", "48h", 0, "applied"),
        ("ana", "72h", 0, "applied"),
        ("ana", "1h", 1, "cannot be moved earlier"),
        ("bob", "1h", 1, not_allowed),
    ] {
        let (found, records) = fixture.run(&["extend", &id, "--by", by, time]).await;
        let answer = records[0]["answer"].as_str().unwrap();
        assert!(found == Some(code) && answer.contains(expected), "{by} {time}: {answer}");
    }
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_shows_new_requests_and_warnings() {
    let fixture = Fixture::start("").await;
    let first = fixture.request("First?").await;
    let mut watch = Running::start(fixture.command(&["watch"]));
    let seen = watch.next().await;
    assert_eq!((&seen["id"], &seen["warned"]), (&json!(first), &Value::Null));
    let second = fixture.request("Second?").await;
    assert_eq!(watch.next().await["id"], json!(second));
    // Simulates that most of the time until the deadline has passed.
    let redis = redis::Client::open(fixture.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut set = redis::cmd("HSET");
    let _: () = set
        .arg(format!("cs:ask:{{cs}}:{first}"))
        .arg(&["at", "0"])
        .query_async(&mut redis)
        .await
        .unwrap();
    // The verb of earlier versions.
    let service = Running::start(fixture.command(&["clerk"]));
    let seen = watch.next().await;
    let warned = json!("90 % of its time has passed");
    assert_eq!((&seen["id"], &seen["warned"]), (&json!(first), &warned));
    drop((watch, service));
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_newer_version_hides_no_other() {
    let fixture = Fixture::start("").await;
    let [first, newer, decided] = [
        fixture.request("First?").await,
        fixture.request("Newer?").await,
        fixture.request("Decided?").await,
    ];
    let (code, _) = fixture.run(&["withdraw", &decided, "--by", "ana"]).await;
    assert_eq!(code, Some(0));
    let redis = redis::Client::open(fixture.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    for id in [&newer, &decided] {
        let key = format!("cs:ask:{{cs}}:{id}");
        let mut get = redis::cmd("HGET");
        let text: String = get.arg(&key).arg("document").query_async(&mut redis).await.unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document["v"] = json!(ApprovalRequest::VERSION + 1);
        let mut set = redis::cmd("HSET");
        let set = set.arg(&key).arg("document").arg(document.to_string());
        let _: () = set.query_async(&mut redis).await.unwrap();
    }
    let (code, records) = fixture.run(&["list"]).await;
    assert_eq!((code, records.len()), (Some(0), 2), "{records:?}");
    assert_eq!((&records[0]["id"], &records[0]["state"]), (&json!(first), &json!("pending")));
    assert_eq!((&records[1]["id"], &records[1]["state"]), (&json!(newer), &json!("unreadable")));
    assert!(records[1]["title"].as_str().unwrap().contains("newer Countersign"), "{records:?}");
    let mut watch = Running::start(fixture.command(&["watch"]));
    assert_eq!(watch.next().await["id"], json!(first));
    assert_eq!(watch.next().await["state"], "unreadable");
    drop(watch);
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_approval_service_decides_and_seals_until_it_is_stopped() {
    let fixture = Fixture::start(POLICY).await;
    let (code, _) = fixture.run(&["audit", "--export-seal", "/nowhere"]).await;
    assert_eq!(code, Some(1), "nothing is sealed yet");
    let mut service = Running::start(fixture.command(&["serve"]));
    let id = countersign::ApprovalId::parse(&fixture.request("Deploy?").await).unwrap();
    let resolution = fixture.client.requested_approval(&id).wait(TIMEOUT).await.unwrap();
    assert_eq!((resolution.approved, resolution.by.as_deref()), (true, Some("policy:all")));
    let sealed = async {
        while fixture.client.newest_seal().await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, sealed).await.unwrap();
    let id = service.process.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    assert_eq!(timeout(TIMEOUT, service.process.wait()).await.unwrap().unwrap().code(), Some(0));

    let seal = file("seal", "");
    assert_eq!(fixture.run(&["audit", "--export-seal", &seal]).await.0, Some(0));
    let verify = ["audit", "--verify", "--seal", &seal];
    let (code, records) = fixture.run(&verify).await;
    assert_eq!(
        (code, &records[0]["unchanged"], &records[0]["sealed"]),
        (Some(0), &json!(true), &json!(1))
    );
    let redis = redis::Client::open(fixture.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("DEL").arg("cs:audit:{cs}").query_async(&mut redis).await.unwrap();
    let (code, records) = fixture.run(&["audit", "--verify"]).await;
    assert_eq!((code, &records[0]["unchanged"]), (Some(1), &json!(false)));
    let _: () = redis::cmd("DEL").arg("cs:seal:{cs}").query_async(&mut redis).await.unwrap();
    assert_eq!(fixture.run(&["audit", "--verify"]).await.0, Some(0), "no seal shows the change");
    let (code, records) = fixture.run(&verify).await;
    assert_eq!(code, Some(1));
    assert!(
        records[0]["faults"][0].as_str().unwrap().contains("the audit was truncated"),
        "{records:?}"
    );
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_policy_or_key_is_a_configuration_error() {
    let fixture = Fixture::start("[[approvals.policy]]\nname = \"a\"\nthen = \"aprove\"\n").await;
    let mut command = fixture.command(&["serve"]);
    command.env("COUNTERSIGN_APPROVALS_SEAL_KEY_FILE", file("short.key", "short"));
    let output = command.output().await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    for part in ["did you mean approve?", "openssl rand -hex 32"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_another_type_hides_and_stops_no_other() {
    let fixture = Fixture::start(POLICY).await;
    let mut ids = Vec::new();
    for title in ["A string?", "Its decision?", "Not UTF-8?", "Sound?"] {
        ids.push(fixture.request(title).await);
    }
    let redis = redis::Client::open(fixture.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut tamper = redis::pipe();
    tamper.cmd("SET").arg(format!("cs:ask:{{cs}}:{}", ids[0])).arg("x");
    tamper.cmd("RPUSH").arg(format!("cs:dec:{{cs}}:{}", ids[1])).arg("x");
    let garbage: &[u8] = b"\xff\xfe";
    tamper.cmd("HSET").arg(format!("cs:ask:{{cs}}:{}", ids[2])).arg("document").arg(garbage);
    tamper.cmd("ZADD").arg("cs:pending:{cs}").arg(1).arg(garbage);
    tamper.cmd("XADD").arg("cs:audit:{cs}").arg("*").arg("what").arg(garbage);
    let () = tamper.query_async(&mut redis).await.unwrap();
    let (code, records) = fixture.run(&["list"]).await;
    assert_eq!((code, records.len()), (Some(0), 4), "{records:?}");
    let state = |id: &str| records.iter().find(|it| it["id"] == *id).unwrap()["state"].clone();
    for id in &ids[..3] {
        assert_eq!(state(id), "unreadable", "{records:?}");
    }
    assert_eq!(state(&ids[3]), "pending");
    let (code, entries) = fixture.run(&["audit"]).await;
    assert_eq!((code, entries.len()), (Some(0), 1), "{entries:?}");
    // A later request is also decided: none of these requests stops the service.
    let later = countersign::ApprovalId::parse(&fixture.request("Later?").await).unwrap();
    let service = Running::start(fixture.command(&["serve"]));
    for id in [countersign::ApprovalId::parse(&ids[3]).unwrap(), later] {
        let resolution = fixture.client.requested_approval(&id).wait(TIMEOUT).await.unwrap();
        assert_eq!(resolution.by.as_deref(), Some("policy:all"));
    }
    drop(service);
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn approving_a_decided_request_reports_its_decision() {
    let fixture = Fixture::start("").await;
    let id = fixture.request("Deploy?").await;
    assert_eq!(fixture.run(&["reject", &id, "--by", "ana", "-m", "no"]).await.0, Some(0));
    // There is no terminal: a confirmation prompt would be a usage error.
    let (code, records) = fixture.run(&["approve", &id, "--by", "bob"]).await;
    assert_eq!(code, Some(1), "{records:?}");
    let answer = records[0]["answer"].as_str().unwrap();
    assert!(answer.starts_with("already decided: reject by ana"), "{answer}");
    assert_eq!(records[0]["taken"], json!(false));
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_every_field_of_the_digest() {
    let fixture = Fixture::start("").await;
    let request = ApprovalRequest {
        approvers: vec!["ana".into(), "bob".into()],
        quorum: 2,
        on_timeout: countersign::approval::OnTimeout::Approve,
        ..ApprovalRequest::new("Deploy?")
    };
    let changed = ApprovalRequest { quorum: 1, ..request.clone() };
    assert_ne!(request.digest(), changed.digest());
    let handle = fixture.client.request_approval(request.clone()).await.unwrap();
    let (code, records) = fixture.run(&["get", handle.id().as_str()]).await;
    assert_eq!(code, Some(0));
    let shown = &records[0];
    assert_eq!(shown["on_timeout"], "approve");
    assert_eq!((&shown["quorum"], &shown["risk"]), (&json!(2), &json!("medium")));
    assert_eq!((&shown["approvers"], &shown["schema"]), (&json!(["ana", "bob"]), &Value::Null));
    assert_eq!((&shown["self_approval"], &shown["editable"]), (&json!(false), &json!(false)));
    assert_eq!(shown["digest"], json!(request.digest()));
    fixture.client.close().await;
}

#[tokio::test]
async fn policies_test_shows_which_rule_applies_and_why() {
    let rules = "[[approvals.policy]]\nname = \"guard\"\ntask = \"bank.*\"\nthen = \"ask\"\n\
                 min = { \"/amount\" = 20000 }\n\
                 [[approvals.policy]]\nname = \"rest\"\naction = \"*\"\nthen = \"approve\"\n";
    let rules = file("rules.toml", rules);
    let test = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command.args(["policies", "test", &rules, "--task", "bank.pay"]).args(arguments);
        let output = timeout(TIMEOUT, command.output()).await.unwrap().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let records: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), records, stderr)
    };
    for (arguments, fires, then, why) in [
        (&["--args", "[]", "--kwargs", "{\"amount\": 19999}"][..], 1, "approve", "under 20000"),
        (&["--args", "[]", "--kwargs", "{\"amount\": 20000}"], 0, "ask", "all conditions match"),
        (&["--args", "[25000]", "--parameters", "amount,to"], 0, "ask", "all conditions match"),
        (&["--args", "[25000]"], 0, "ask", "there is no /amount"),
        (&["--args", "{\"amount\": \"7\"}"], 0, "ask", "/amount is \"7\", not a number"),
    ] {
        let (code, records, stderr) = test(arguments).await;
        assert_eq!((code, records.len()), (Some(0), 3), "{stderr}");
        assert_eq!(records[fires]["fires"], json!(true), "{arguments:?}: {records:?}");
        assert_eq!(records[2]["then"], then, "{arguments:?}: {records:?}");
        assert!(records[0]["why"].as_str().unwrap().contains(why), "{arguments:?}: {records:?}");
    }
    let (code, _, stderr) = test(&["--args", "{"]).await;
    assert_eq!(code, Some(2), "{stderr}");
}

#[tokio::test]
async fn config_check_refuses_a_reason_that_is_too_long() {
    let reason = "x".repeat(4097);
    let text = format!(
        "[broker]\nurl = \"sqlite::memory:\"\n[[approvals.policy]]\nname = \"a\"\n\
         then = \"reject\"\nreason = \"{reason}\"\n"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("COUNTERSIGN_")) {
        command.env_remove(name);
    }
    let output = command.args(["config", "check", "-C", &file("c.toml", &text)]).output();
    let output = timeout(TIMEOUT, output).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("the reason is over 4096 bytes"), "{stderr}");
}
