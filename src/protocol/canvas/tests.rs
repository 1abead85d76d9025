use serde_json::{Value, json};

use super::*;
use crate::protocol::Arguments;

fn task(embed: &Value) -> Envelope {
    let mut task = Envelope::new("demo.add", Arguments::default());
    task.id = TaskId::from("t1");
    task.lineage.root_id = Some(TaskId::from("r1"));
    task.embed = to_raw_value(embed).unwrap();
    task
}

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn after_success(embed: &Value) -> Result<FollowUps, Failure> {
    let task = task(embed);
    let canvas = Canvas::read(&task.embed)?.unwrap();
    canvas.check(&task, now())?;
    canvas.after_success(&task, &to_raw_value(&5).unwrap(), now())
}

fn sent(embed: &Value) -> Vec<FollowUp> {
    after_success(embed).unwrap().tasks
}

fn args(task: &FollowUp) -> String {
    serde_json::to_string(&task.envelope.arguments.args).unwrap()
}

#[test]
fn the_default_embed_has_no_follow_up_tasks() {
    for embed in [json!({}), Value::Null, json!({"callbacks": [], "chain": null})] {
        assert!(Canvas::read(&task(&embed).embed).unwrap().is_none(), "{embed}");
    }
    let written = Envelope::new("a", Arguments::default()).embed;
    assert!(Canvas::read(&written).unwrap().is_none());
}

#[test]
fn the_next_task_of_a_chain_is_its_last_element_and_carries_the_rest() {
    let next = json!({"task": "b", "args": [2], "kwargs": {"k": 1}, "options": {
        "task_id": "t2", "reply_to": "oid", "queue": "other", "priority": 4, "countdown": 3,
        "expires": 10, "link_error": [{"task": "e"}], "time_limit": 7, "soft_time_limit": null,
        "headers": {"mine": 1}, "stamped_headers": ["s"], "s": ["x"]}});
    let rest = json!({"task": "c", "options": {"task_id": "t3"}});
    let follow_ups = after_success(&json!({"chain": [rest, next]})).unwrap();
    assert_eq!(serde_json::to_value(&follow_ups.children).unwrap(), json!([[["t2", null], null]]));
    let [FollowUp { envelope, queue }] = follow_ups.tasks.as_slice() else { unreachable!() };
    assert_eq!(queue.as_deref(), Some("other"));
    assert_eq!((envelope.id.as_str(), envelope.name.as_str()), ("t2", "b"));
    let lineage = &envelope.lineage;
    assert_eq!(lineage.parent_id, Some(TaskId::from("t1")));
    assert_eq!(lineage.root_id, Some(TaskId::from("r1")));
    assert_eq!(envelope.eta, Some("2026-11-21T10:00:03Z".parse().unwrap()));
    assert_eq!(envelope.expires, Some("2026-11-21T10:00:10Z".parse().unwrap()));
    assert_eq!(
        (envelope.limits.hard, envelope.limits.soft.is_none()),
        (Some(std::time::Duration::from_secs(7)), true)
    );
    assert_eq!((envelope.priority, envelope.reply_to.as_deref()), (4, Some("oid")));
    assert_eq!(envelope.headers["mine"], 1);
    assert_eq!(envelope.headers["stamps"], json!({"s": ["x"]}));
    let embed: Value = serde_json::from_str(envelope.embed.get()).unwrap();
    assert_eq!(embed["chain"][0]["options"]["task_id"], "t3");
    assert_eq!(embed["errbacks"][0]["task"], "e");
    assert_eq!(embed["callbacks"], Value::Null);
}

#[test]
fn numbers_beyond_the_precision_of_a_float_are_unchanged() {
    let big = "123456789012345678901234567890";
    let embed = format!(r#"{{"callbacks": [{{"task": "b", "args": [{big}]}}]}}"#);
    let mut task = task(&Value::Null);
    task.embed = RawValue::from_string(embed).unwrap();
    let canvas = Canvas::read(&task.embed).unwrap().unwrap();
    let result = RawValue::from_string(big.to_owned()).unwrap();
    let follow_ups = canvas.after_success(&task, &result, now()).unwrap();
    assert_eq!(args(&follow_ups.tasks[0]), format!("[{big},{big}]"));
}

#[test]
fn an_immutable_signature_gets_no_result() {
    let tasks = sent(&json!({"callbacks": [{"task": "b", "args": [1], "immutable": true}]}));
    assert_eq!(args(&tasks[0]), "[1]");
    let tasks = sent(&json!({"callbacks": [{"task": "b", "args": [1], "immutable": null}]}));
    assert_eq!(args(&tasks[0]), "[5,1]");
}

#[test]
fn a_missing_id_is_derived_and_always_the_same() {
    let embed = json!({"callbacks": [{"task": "b"}, {"task": "c"}], "chain": [{"task": "d"}]});
    let ids = || sent(&embed).into_iter().map(|task| task.envelope.id).collect::<Vec<_>>();
    let (first, again) = (ids(), ids());
    assert_eq!(first, again);
    let different: std::collections::BTreeSet<_> = first.iter().collect();
    assert_eq!(different.len(), 3);
    let groups: Vec<_> = sent(&embed).iter().map(|t| t.envelope.lineage.group_index).collect();
    assert_eq!(groups, [Some(0), Some(1), None]);
}

#[test]
fn a_chain_in_a_chain_is_flattened_before_the_rest() {
    let inner = json!({"task": "celery.chain", "kwargs": {"tasks": [
        {"task": "b"}, {"task": "celery.chain", "kwargs": {"tasks": [{"task": "c"}]}}]},
        "options": {"task_id": "last", "link_error": [{"task": "e"}]}});
    let tasks = sent(&json!({"chain": [{"task": "d"}, inner]}));
    let [FollowUp { envelope, .. }] = tasks.as_slice() else { unreachable!() };
    assert_eq!((envelope.name.as_str(), args(&tasks[0]).as_str()), ("b", "[5]"));
    let embed: Value = serde_json::from_str(envelope.embed.get()).unwrap();
    let names: Vec<_> = embed["chain"].as_array().unwrap().iter().map(|s| &s["task"]).collect();
    assert_eq!(names, ["d", "c"], "the next one is the last");
    assert_eq!(embed["chain"][1]["options"]["task_id"], "last");
    assert_eq!(embed["chain"][1]["options"]["link_error"][0]["task"], "e");
}

#[test]
fn a_group_is_sent_at_once_and_its_result_has_the_last_of_each_chain() {
    let chain = json!({"task": "celery.chain", "kwargs": {"tasks": [
        {"task": "b", "options": {"task_id": "b1"}}, {"task": "c", "options": {"task_id": "c1"}}]}});
    let group = json!({"task": "celery.group", "options": {"task_id": "g", "root_id": null},
        "kwargs": {"tasks": [chain, {"task": "d", "options": {"task_id": "d1"}}]}});
    let follow_ups = after_success(&json!({"chain": [group]})).unwrap();
    assert_eq!(
        serde_json::to_value(&follow_ups.children).unwrap(),
        json!([[["g", null], [[["c1", [["b1", null], null]], null], [["d1", null], null]]]])
    );
    let [b, d] = follow_ups.tasks.as_slice() else { unreachable!() };
    let place = |task: &FollowUp| {
        (task.envelope.lineage.group_id.clone(), task.envelope.lineage.group_index)
    };
    assert_eq!(place(d), (Some("g".into()), Some(1)));
    assert_eq!(place(b), (None, None), "the chain's last is the member");
    let embed: Value = serde_json::from_str(b.envelope.embed.get()).unwrap();
    assert_eq!(embed["chain"][0]["options"]["group_id"], "g");
    assert_eq!(embed["chain"][0]["options"]["group_index"], 0);
}

#[test]
fn errbacks_are_called_with_the_failed_id() {
    let embed =
        json!({"errbacks": [{"task": "e", "args": ["own"]}, {"task": "f", "immutable": true}]});
    let task = task(&embed);
    let canvas = Canvas::read(&task.embed).unwrap().unwrap();
    let tasks = canvas.after_failure(&task, now()).unwrap().tasks;
    assert_eq!((args(&tasks[0]).as_str(), args(&tasks[1]).as_str()), (r#"["t1","own"]"#, "[]"));
    assert!(canvas.after_success(&task, RawValue::NULL, now()).unwrap().tasks.is_empty());
}

#[test]
fn the_ids_of_tasks_that_never_run_are_returned() {
    let task_of = |id| json!({"task": "x", "options": {"task_id": id}});
    let chord = json!({"task": "celery.chord", "options": {"task_id": "g"}, "kwargs": {
        "header": {"task": "celery.group", "kwargs": {"tasks": [task_of("h1"), task_of("h2")]}},
        "body": task_of("body")}});
    let canvas = Canvas::read(&task(&json!({"chain": [chord, task_of("b"), {"task": 5}]})).embed);
    let ids = canvas.unwrap().unwrap().unreached();
    assert_eq!(ids, ["h1", "h2", "body", "b"].map(TaskId::from));
}

#[test]
fn a_chord_is_refused_before_its_task_runs_and_sent_on_after_another_task() {
    let chord = json!({"task": "celery.chord", "kwargs": {"header": [], "body": {"task": "b"}}});
    for embed in [
        json!({"chord": {"task": "b"}}),
        json!({"callbacks": [chord]}),
        json!({"errbacks": [chord]}),
        json!({"chain": [chord]}),
        json!({"chain": [{"task": "b"}, {"task": "celery.group", "kwargs": {"tasks": []}}]}),
    ] {
        let failure = after_success(&embed).map(drop).unwrap_err();
        assert_eq!(failure.exc_type, "NotImplementedError", "{embed}");
    }
    assert_eq!(sent(&json!({"chain": [chord, {"task": "b"}]})).len(), 1);
}

#[test]
fn an_unreadable_signature_fails_its_task() {
    for embed in [
        json!(5),
        json!({"callbacks": 5}),
        json!({"callbacks": [{"task": 7}]}),
        json!({"callbacks": [{"task": "b", "options": {"countdown": "x"}}]}),
        json!({"callbacks": [{"task": "b", "options": {"countdown": 1e300}}]}),
        json!({"callbacks": [{"task": "b", "options": {"eta": "soon"}}]}),
        json!({"callbacks": [{"task": "b", "options": {"priority": 900}}]}),
        json!({"callbacks": [{"task": "celery.group", "kwargs": {"tasks": {"a": 1}}}]}),
    ] {
        assert!(after_success(&embed).is_err(), "{embed}");
    }
}

#[test]
fn a_tagged_time_is_read() {
    let eta = json!({"__type__": "datetime", "__value__": "2026-11-21T12:00:00+02:00"});
    let tasks = sent(&json!({"callbacks": [{"task": "b", "options": {"eta": eta}}]}));
    assert_eq!(tasks[0].envelope.eta, Some(now()));
}
