//! `countersign approvals`, run as people and services run it.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::process::Stdio;
use std::time::Duration;

use countersign::approval::{Question, Standing};
use countersign::{Client, Config};
use serde_json::{Value, json};
use support::{Server, file, servers};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const POLICY: &str = "[[approvals.policy]]\nname = \"all\"\naction = \"*\"\nthen = \"approve\"\n";

/// A Redis of its own, for the verbs look at all questions that there are.
struct Office {
    redis: Server,
    client: Client,
    settings: String,
}

impl Office {
    async fn open(policies: &str) -> Self {
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

    /// Exit code, and what was printed on standard output.
    async fn say(&self, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
        let output = timeout(PATIENCE, self.command(arguments).output()).await.unwrap().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let records = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        (output.status.code(), records.unwrap())
    }

    async fn ask(&self, title: &str) -> String {
        let requested = self.client.request_approval(Question::new(title)).await.unwrap();
        requested.id().to_string()
    }
}

/// A verb that runs until it is stopped, and what it prints.
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
        let line = timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line.unwrap()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_extended_and_withdrawn_and_the_audit_has_both() {
    let office = Office::open("").await;
    let id = office.ask("Deploy?").await;
    let parsed = countersign::ApprovalId::parse(&id).unwrap();
    let before = office.client.approval(&parsed).await.unwrap();
    let (code, said) = office.say(&["extend", &id, "--by", "ana", "48h"]).await;
    assert_eq!((code, &said[0]["answer"]), (Some(0), &json!("applied")));
    let after = office.client.approval(&parsed).await.unwrap();
    assert!(after.at > before.at, "{before:?} {after:?}");
    let (code, said) = office.say(&["withdraw", &id, "--by", "bob"]).await;
    assert_eq!((code, &said[0]["taken"]), (Some(0), &json!(true)));
    for late in [&["withdraw", &id, "--by", "ana"][..], &["extend", &id, "--by", "ana", "1h"]] {
        let (code, said) = office.say(late).await;
        assert_eq!((code, &said[0]["answer"]), (Some(1), &json!("it was withdrawn")));
    }
    let standing = office.client.approval(&parsed).await.unwrap().standing;
    assert!(matches!(standing, Standing::Decided(_)) && standing.as_str() == "withdrawn");
    let later = Question { expires_in: 72 * 3_600_000, ..Question::new("Later?") };
    let later = office.client.request_approval(later).await.unwrap();
    let (code, said) = office.say(&["list", "--limit", "1"]).await;
    assert_eq!((code, &said[0]["id"]), (Some(0), &json!(later.id())), "the open one");
    let (code, said) = office.say(&["audit"]).await;
    let told: Vec<_> = said.iter().map(|it| (&it["what"], &it["by"], &it["approval"])).collect();
    let [withdraw, bob, extend, ana, id] =
        ["withdraw", "bob", "extend", "ana", &id].map(|text| json!(text));
    assert_eq!((code, told), (Some(0), vec![(&withdraw, &bob, &id), (&extend, &ana, &id)]));
    let (code, said) = office.say(&["audit", "--limit", "1"]).await;
    assert_eq!((code, said.len()), (Some(0), 1));
    assert_eq!(office.say(&["extend", "ap_x", "--by", "ana", "1h"]).await.0, Some(1));
    office.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn approvers_and_operators_of_the_configuration_extend() {
    let office = Office::open("operators = [\"eve\", \"dan\"]\n").await;
    let question = Question { approvers: vec!["ana".into()], ..Question::new("Deploy?") };
    let requested = office.client.request_approval(question).await.unwrap();
    let id = requested.id().to_string();
    let not_allowed = "this person may not decide it";
    for (by, time, code, answer) in [
        ("bob", "48h", 1, not_allowed),
        ("eve", "48h", 0, "applied"),
        ("ana", "72h", 0, "applied"),
        ("ana", "1h", 1, "is never brought forward"),
        ("bob", "1h", 1, not_allowed),
    ] {
        let (found, said) = office.say(&["extend", &id, "--by", by, time]).await;
        let told = said[0]["answer"].as_str().unwrap();
        assert!(found == Some(code) && told.contains(answer), "{by} {time}: {told}");
    }
    office.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_watched_as_they_come_and_warnings_are_shown() {
    let office = Office::open("").await;
    let first = office.ask("First?").await;
    let mut watch = Running::start(office.command(&["watch"]));
    let seen = watch.next().await;
    assert_eq!((&seen["id"], &seen["warned"]), (&json!(first), &Value::Null));
    let second = office.ask("Second?").await;
    assert_eq!(watch.next().await["id"], json!(second));
    // As if most of its time had passed.
    let redis = redis::Client::open(office.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut set = redis::cmd("HSET");
    let _: () = set
        .arg(format!("cs:ask:{{cs}}:{first}"))
        .arg(&["at", "0"])
        .query_async(&mut redis)
        .await
        .unwrap();
    let clerk = Running::start(office.command(&["clerk"]));
    let seen = watch.next().await;
    let warned = json!("90 % of its time has passed");
    assert_eq!((&seen["id"], &seen["warned"]), (&json!(first), &warned));
    drop((watch, clerk));
    office.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_of_a_newer_version_hides_none_of_the_others() {
    let office = Office::open("").await;
    let [first, newer, decided] =
        [office.ask("First?").await, office.ask("Newer?").await, office.ask("Decided?").await];
    let (code, _) = office.say(&["withdraw", &decided, "--by", "ana"]).await;
    assert_eq!(code, Some(0));
    let redis = redis::Client::open(office.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    for id in [&newer, &decided] {
        let key = format!("cs:ask:{{cs}}:{id}");
        let mut get = redis::cmd("HGET");
        let text: String = get.arg(&key).arg("document").query_async(&mut redis).await.unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document["v"] = json!(Question::VERSION + 1);
        let mut set = redis::cmd("HSET");
        let set = set.arg(&key).arg("document").arg(document.to_string());
        let _: () = set.query_async(&mut redis).await.unwrap();
    }
    let (code, said) = office.say(&["list"]).await;
    assert_eq!((code, said.len()), (Some(0), 2), "{said:?}");
    assert_eq!((&said[0]["id"], &said[0]["state"]), (&json!(first), &json!("pending")));
    assert_eq!((&said[1]["id"], &said[1]["state"]), (&json!(newer), &json!("unreadable")));
    assert!(said[1]["title"].as_str().unwrap().contains("newer Countersign"), "{said:?}");
    let mut watch = Running::start(office.command(&["watch"]));
    assert_eq!(watch.next().await["id"], json!(first));
    assert_eq!(watch.next().await["state"], "unreadable");
    drop(watch);
    office.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clerk_decides_and_seals_until_it_is_told_to_stop() {
    let office = Office::open(POLICY).await;
    let (code, _) = office.say(&["audit", "--export-seal", "/nowhere"]).await;
    assert_eq!(code, Some(1), "nothing is sealed yet");
    let mut clerk = Running::start(office.command(&["clerk"]));
    let id = countersign::ApprovalId::parse(&office.ask("Deploy?").await).unwrap();
    let resolution = office.client.requested_approval(&id).wait(PATIENCE).await.unwrap();
    assert_eq!((resolution.approved, resolution.by.as_deref()), (true, Some("policy:all")));
    let sealed = async {
        while office.client.newest_seal().await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, sealed).await.unwrap();
    let id = clerk.process.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    assert_eq!(timeout(PATIENCE, clerk.process.wait()).await.unwrap().unwrap().code(), Some(0));

    let seal = file("seal", "");
    assert_eq!(office.say(&["audit", "--export-seal", &seal]).await.0, Some(0));
    let verify = ["audit", "--verify", "--seal", &seal];
    let (code, said) = office.say(&verify).await;
    assert_eq!(
        (code, &said[0]["unchanged"], &said[0]["sealed"]),
        (Some(0), &json!(true), &json!(1))
    );
    let redis = redis::Client::open(office.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("DEL").arg("cs:audit:{cs}").query_async(&mut redis).await.unwrap();
    let (code, said) = office.say(&["audit", "--verify"]).await;
    assert_eq!((code, &said[0]["unchanged"]), (Some(1), &json!(false)));
    let _: () = redis::cmd("DEL").arg("cs:seal:{cs}").query_async(&mut redis).await.unwrap();
    assert_eq!(office.say(&["audit", "--verify"]).await.0, Some(0), "nobody could know");
    let (code, said) = office.say(&verify).await;
    assert_eq!(code, Some(1));
    assert!(said[0]["faults"][0].as_str().unwrap().contains("its tail is cut"), "{said:?}");
    office.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_or_a_key_that_is_wrong_is_a_fault_of_the_configuration() {
    let office = Office::open("[[approvals.policy]]\nname = \"a\"\nthen = \"aprove\"\n").await;
    let mut command = office.command(&["clerk"]);
    command.env("COUNTERSIGN_APPROVALS_SEAL_KEY_FILE", file("short.key", "short"));
    let output = command.output().await.unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{told}");
    for part in ["did you mean approve?", "openssl rand -hex 32"] {
        assert!(told.contains(part), "{told}");
    }
    office.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_another_type_hides_and_stops_none_of_the_others() {
    let office = Office::open(POLICY).await;
    let mut ids = Vec::new();
    for title in ["A string?", "Its decision?", "Not UTF-8?", "Sound?"] {
        ids.push(office.ask(title).await);
    }
    let redis = redis::Client::open(office.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut tamper = redis::pipe();
    tamper.cmd("SET").arg(format!("cs:ask:{{cs}}:{}", ids[0])).arg("x");
    tamper.cmd("RPUSH").arg(format!("cs:dec:{{cs}}:{}", ids[1])).arg("x");
    let garbage: &[u8] = b"\xff\xfe";
    tamper.cmd("HSET").arg(format!("cs:ask:{{cs}}:{}", ids[2])).arg("document").arg(garbage);
    tamper.cmd("ZADD").arg("cs:pending:{cs}").arg(1).arg(garbage);
    tamper.cmd("XADD").arg("cs:audit:{cs}").arg("*").arg("what").arg(garbage);
    let () = tamper.query_async(&mut redis).await.unwrap();
    let (code, said) = office.say(&["list"]).await;
    assert_eq!((code, said.len()), (Some(0), 4), "{said:?}");
    let state = |id: &str| said.iter().find(|it| it["id"] == *id).unwrap()["state"].clone();
    for id in &ids[..3] {
        assert_eq!(state(id), "unreadable", "{said:?}");
    }
    assert_eq!(state(&ids[3]), "pending");
    let (code, told) = office.say(&["audit"]).await;
    assert_eq!((code, told.len()), (Some(0), 1), "{told:?}");
    // Another one can be asked, and is decided: none of these stops the service.
    let later = countersign::ApprovalId::parse(&office.ask("Later?").await).unwrap();
    let clerk = Running::start(office.command(&["clerk"]));
    for id in [countersign::ApprovalId::parse(&ids[3]).unwrap(), later] {
        let resolution = office.client.requested_approval(&id).wait(PATIENCE).await.unwrap();
        assert_eq!(resolution.by.as_deref(), Some("policy:all"));
    }
    drop(clerk);
    office.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decided_request_is_not_confirmed_but_said_to_be_decided() {
    let office = Office::open("").await;
    let id = office.ask("Deploy?").await;
    assert_eq!(office.say(&["reject", &id, "--by", "ana", "-m", "no"]).await.0, Some(0));
    // No terminal is here: to be asked for a confirmation would be a usage error.
    let (code, said) = office.say(&["approve", &id, "--by", "bob"]).await;
    assert_eq!(code, Some(1), "{said:?}");
    let answer = said[0]["answer"].as_str().unwrap();
    assert!(answer.starts_with("already decided: reject by ana"), "{answer}");
    assert_eq!(said[0]["taken"], json!(false));
    office.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_the_digest_covers_is_shown() {
    let office = Office::open("").await;
    let question = Question {
        approvers: vec!["ana".into(), "bob".into()],
        quorum: 2,
        on_timeout: countersign::approval::OnTimeout::Approve,
        ..Question::new("Deploy?")
    };
    let changed = Question { quorum: 1, ..question.clone() };
    assert_ne!(question.digest(), changed.digest());
    let asked = office.client.request_approval(question.clone()).await.unwrap();
    let (code, said) = office.say(&["get", asked.id().as_str()]).await;
    assert_eq!(code, Some(0));
    let shown = &said[0];
    assert_eq!(shown["on_timeout"], "approve");
    assert_eq!((&shown["quorum"], &shown["risk"]), (&json!(2), &json!("medium")));
    assert_eq!((&shown["approvers"], &shown["schema"]), (&json!(["ana", "bob"]), &Value::Null));
    assert_eq!((&shown["self_approval"], &shown["editable"]), (&json!(false), &json!(false)));
    assert_eq!(shown["digest"], json!(question.digest()));
    office.client.close().await;
}

#[tokio::test]
async fn a_test_of_policies_shows_which_rule_fires_and_why() {
    let rules = "[[approvals.policy]]\nname = \"guard\"\ntask = \"bank.*\"\nthen = \"ask\"\n\
                 min = { \"/amount\" = 20000 }\n\
                 [[approvals.policy]]\nname = \"rest\"\naction = \"*\"\nthen = \"approve\"\n";
    let rules = file("rules.toml", rules);
    let test = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command.args(["policies", "test", &rules, "--task", "bank.pay"]).args(arguments);
        let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let records: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), records, told)
    };
    for (arguments, fires, then, why) in [
        (&["--args", "[]", "--kwargs", "{\"amount\": 19999}"][..], 1, "approve", "under 20000"),
        (&["--args", "[]", "--kwargs", "{\"amount\": 20000}"], 0, "ask", "every condition holds"),
        (&["--args", "[25000]", "--parameters", "amount,to"], 0, "ask", "every condition holds"),
        (&["--args", "[25000]"], 0, "ask", "there is no /amount"),
        (&["--args", "{\"amount\": \"7\"}"], 0, "ask", "/amount is \"7\", no number"),
    ] {
        let (code, records, told) = test(arguments).await;
        assert_eq!((code, records.len()), (Some(0), 3), "{told}");
        assert_eq!(records[fires]["fires"], json!(true), "{arguments:?}: {records:?}");
        assert_eq!(records[2]["then"], then, "{arguments:?}: {records:?}");
        assert!(records[0]["why"].as_str().unwrap().contains(why), "{arguments:?}: {records:?}");
    }
    let (code, _, told) = test(&["--args", "{"]).await;
    assert_eq!(code, Some(2), "{told}");
}

#[tokio::test]
async fn a_reason_that_no_decision_can_carry_is_refused_by_the_check() {
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
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{told}");
    assert!(told.contains("the reason is over 4096 bytes"), "{told}");
}
