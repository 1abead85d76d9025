use super::*;
use crate::protocol::Arguments;

fn task() -> Envelope {
    let mut task = Envelope::new("demo.add", Arguments::default());
    task.id = TaskId::from("t1");
    task
}

fn now() -> Timestamp {
    "2026-11-21T11:37:03.361864Z".parse().unwrap()
}

fn text(document: &Document) -> &str {
    std::str::from_utf8(&document.json).unwrap()
}

/// The expected texts are those of Celery 5.7, except for white space.
#[test]
fn documents_have_the_fields_of_celery_in_its_order() {
    let mut task = task();
    let result: Box<RawValue> = serde_json::from_str("[1, 2]").unwrap();
    let success = Document::success(
        &task,
        &result,
        &[Child { id: TaskId::from("c1"), parent: None, members: None }],
        now(),
    );
    assert_eq!(
        text(&success),
        r#"{"status":"SUCCESS","result":[1, 2],"traceback":null,"children":[[["c1",null],null]],"date_done":"2026-11-21T11:37:03.361864+00:00","task_id":"t1"}"#
    );
    task.lineage.group_id = Some("g".into());
    task.lineage.parent_id = Some("p".into());
    let failure = Failure {
        traceback: Some("Trace".into()),
        args: vec!["boom".into(), 2.into()],
        ..Failure::new("builtins", "ValueError", "")
    };
    assert_eq!(
        text(&Document::failed(&task, &failure, now())),
        r#"{"status":"FAILURE","result":{"exc_type":"ValueError","exc_message":["boom",2],"exc_module":"builtins"},"traceback":"Trace","children":[],"date_done":"2026-11-21T11:37:03.361864+00:00","group_id":"g","parent_id":"p","task_id":"t1"}"#
    );
    assert_eq!(
        text(&Document::started(&task, 7, "w@h")),
        r#"{"status":"STARTED","result":{"hostname":"w@h","pid":7},"traceback":null,"children":[],"date_done":null,"group_id":"g","parent_id":"p","task_id":"t1"}"#
    );
    assert!(text(&Document::retry(&task, &failure, now())).contains(r#""date_done":null"#));
    let revoked = Document::revoked(&task, "expired", now());
    assert!(text(&revoked).contains(
        r#"{"exc_type":"TaskRevokedError","exc_message":["expired"],"exc_module":"celery.exceptions"}"#
    ));
}

#[test]
fn a_written_document_is_read_back() {
    let task = task();
    let result: Box<RawValue> = serde_json::from_str("[1,2]").unwrap();
    let read = |document: Document| Document::parse(TaskId::from("?"), document.json).unwrap();
    let success = read(Document::success(&task, &result, &[], now()));
    assert_eq!((success.id.as_str(), &success.state), ("t1", &State::Success));
    assert_eq!(success.output::<Vec<u8>>().unwrap(), [1, 2]);
    assert!(success.output::<String>().is_err());

    let mut boom = Failure::new("builtins", "ValueError", "boom");
    boom.traceback = Some("somewhere".into());
    let failed = read(Document::failure_of(&task.id, &boom, now()));
    assert_eq!(failed.failure(), boom);
    assert_eq!(failed.output::<u8>().unwrap_err().failure(), Some(&boom));

    let revoked = read(Document::revoked(&task, "terminated", now()));
    assert_eq!(revoked.reason(), "terminated");
    assert!(revoked.output::<u8>().unwrap_err().is_revoked());
    assert!(!read(Document::retry(&task, &boom, now())).state.is_terminal());
}

#[test]
fn failures_in_any_form_are_read() {
    let failure = |result: &str| {
        let json = format!(r#"{{"status": "FAILURE", "result": {result}}}"#);
        Document::parse(TaskId::from("t"), json.into()).unwrap().failure()
    };
    let one = failure(r#"{"exc_type": "E", "exc_message": "text", "exc_module": null}"#);
    assert_eq!((one.exc_type.as_str(), one.message().as_str()), ("E", "text"));
    assert_eq!(one.exc_module, "builtins");
    assert_eq!(failure("null").message(), "");
    assert_eq!(failure(r#""just text""#).message(), "just text");
    assert_eq!(failure("[1]").message(), "[1]");
    assert_eq!(failure(r#"{"exc_message": null}"#).args, Vec::<Value>::new());
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(failure(&deep).exc_type, "Exception");
}

#[test]
fn a_document_of_any_state_is_read_and_an_invalid_one_is_not() {
    let parse = |json: &'static str| Document::parse(TaskId::from("t"), Bytes::from(json));
    let custom = parse(r#"{"status": "WAITING_APPROVAL", "result": {"x": 1}}"#).unwrap();
    assert_eq!(custom.state, State::Custom("WAITING_APPROVAL".into()));
    assert!(!custom.state.is_terminal());
    assert!(custom.output::<Value>().is_err());
    for garbage in
        ["", "{}", "[]", "null", "{\"status\": 1}", "{\"status\": \"S\", \"result\": NaN}"]
    {
        assert!(parse(garbage).is_err(), "{garbage}");
    }
}

#[test]
fn a_result_with_tagged_values_is_read_as_its_type() {
    let json = r#"{"status": "SUCCESS", "result": {"__type__": "decimal", "__value__": "1.5"}}"#;
    let document = Document::parse(TaskId::from("t"), json.into()).unwrap();
    assert_eq!(document.output::<String>().unwrap(), "1.5");
}
