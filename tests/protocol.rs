//! The codec against any bytes from a network: it returns a value or an error, and never panics.

#![expect(clippy::expect_used, clippy::panic, reason = "a test must be able to fail")]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;
use std::time::Duration;

use countersign::protocol::{Arguments, Document, Envelope, Headers, Message, Properties};
use countersign::{EnvelopeForm, TaskId};
use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const LIMIT: usize = 8 << 20;

fn message(headers: Value, body: impl Into<Vec<u8>>) -> Message {
    let Value::Object(headers) = headers else { panic!("headers are an object") };
    Message {
        id: TaskId::from("t1"),
        headers: headers.into(),
        body: body.into().into(),
        properties: Properties {
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            ..Properties::default()
        },
    }
}

fn reason(message: &Message) -> String {
    Envelope::decode(message, LIMIT).expect_err("this message is unreadable").reason
}

/// A message captured from Celery 5.7.
fn captured() -> Message {
    let headers = json!({
        "lang": "py", "task": "demo.add", "id": "t1", "shadow": null,
        "eta": "2026-11-21T11:37:08.851202+00:00", "expires": null, "group": "g",
        "group_index": 3, "retries": 2, "timelimit": [10, 0.5], "root_id": "r", "parent_id": null,
        "argsrepr": "<hidden>", "kwargsrepr": "{}", "origin": "gen1@vm", "ignore_result": null,
        "replaced_task_nesting": 1, "stamped_headers": ["k"], "stamps": {"k": "v"},
        "custom": {"a": [1]}, "traceparent": "00-01", "x-death": [{"count": 1}],
        "x-first-death-queue": "q", "x-last-death-reason": "expired", "x-delivery-count": 2,
    });
    let mut message =
        message(headers, br#"[[1, "\u00e9"], {"k": {"a":  1}}, {"callbacks": null}]"#);
    message.properties.priority = Some(3);
    message.properties.reply_to = Some("cs:reply:1".into());
    message.properties.app_id = Some("shop".into());
    message.properties.user_id = Some("guest".into());
    message.properties.expiration = Some("60000".into());
    message
}

#[test]
fn a_celery_message_is_decoded_completely() {
    let task = Envelope::decode(&captured(), LIMIT).unwrap();
    assert_eq!((task.id.as_str(), task.name.as_str(), task.attempt), ("t1", "demo.add", 3));
    assert_eq!(task.eta.unwrap().to_string(), "2026-11-21T11:37:08.851202Z");
    assert_eq!(task.limits.hard.unwrap().as_secs(), 10);
    assert_eq!(task.limits.soft.unwrap().as_millis(), 500);
    assert_eq!(task.lineage.root_id.as_ref().unwrap().as_str(), "r");
    assert_eq!((task.lineage.group_id.as_deref(), task.lineage.group_index), (Some("g"), Some(3)));
    assert_eq!((task.priority, task.reply_to.as_deref()), (3, Some("cs:reply:1")));
    assert_eq!(task.traceparent(), Some("00-01"));
    assert!(!task.ignore_result && task.expires.is_none());
}

#[test]
fn a_forwarded_message_keeps_the_producers_headers_and_drops_the_brokers() {
    let before = captured();
    let after = Envelope::decode(&before, LIMIT).unwrap().encode();
    for (name, value) in &*before.headers {
        match name.as_str() {
            "lang" => assert_eq!(after.headers[name], "rust"),
            "ignore_result" => assert_eq!(after.headers[name], false),
            death if death.starts_with("x-") => assert!(!after.headers.contains_key(death)),
            _ => assert_eq!(after.headers.get(name), Some(value), "{name}"),
        }
    }
    assert_eq!(&after.body[..], br#"[[1,"\u00e9"],{"k":{"a":  1}},{"callbacks": null}]"#);
    let properties = &after.properties;
    assert_eq!(properties.correlation_id.as_deref(), Some("t1"));
    assert_eq!(properties.reply_to.as_deref(), Some("cs:reply:1"));
    assert_eq!((properties.priority, properties.app_id.as_deref()), (Some(3), Some("shop")));
    assert_eq!((&properties.user_id, &properties.expiration), (&None, &None));
}

#[test]
fn a_new_task_has_only_the_headers_that_have_a_value() {
    let mut task = Envelope::new("demo.add", Arguments::of(&(1, 2)).unwrap());
    let headers = |task: &Envelope| Value::Object(task.encode().headers.into());
    let id = task.id.as_str().to_owned();
    let expected = json!({"id": id, "lang": "rust", "root_id": id, "task": "demo.add"});
    assert_eq!(headers(&task), expected);
    task.attempt = 3;
    task.ignore_result = true;
    task.limits.hard = Some(Duration::from_secs(2));
    task.lineage.group_id = Some("g".into());
    task.headers.insert("mine".into(), json!([1]));
    let with_values = json!({
        "id": id, "lang": "rust", "root_id": id, "task": "demo.add", "retries": 2, "group": "g",
        "ignore_result": true, "timelimit": [2, null], "mine": [1],
    });
    assert_eq!(headers(&task), with_values);
    let again = Envelope::decode(&task.encode(), LIMIT).unwrap();
    assert_eq!((again.attempt, again.limits, again.ignore_result), (3, task.limits, true));
}

#[test]
fn a_new_task_has_every_header_of_a_celery_client_on_request() {
    let mut task = Envelope::new("demo.add", Arguments::of(&(1, "it's")).unwrap());
    task.form = EnvelopeForm::Celery;
    let message = task.encode();
    let names: Vec<_> = message.headers.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "argsrepr",
            "eta",
            "expires",
            "group",
            "group_index",
            "id",
            "ignore_result",
            "kwargsrepr",
            "lang",
            "origin",
            "parent_id",
            "replaced_task_nesting",
            "retries",
            "root_id",
            "shadow",
            "stamped_headers",
            "stamps",
            "task",
            "timelimit",
        ]
    );
    assert_eq!(message.headers["argsrepr"], r#"(1, "it's")"#);
    assert_eq!(message.headers["root_id"], message.id.as_str());
    assert_eq!(message.headers["timelimit"], json!([null, null]));
    assert!(message.header_bytes() < 2048);
    let body: Value = serde_json::from_slice(&message.body).unwrap();
    let embed = json!({"callbacks": null, "errbacks": null, "chain": null, "chord": null});
    assert_eq!(body, json!([[1, "it's"], {}, embed]));
}

#[test]
fn a_compressed_task_is_forwarded_compressed() {
    let mut task = Envelope::new("t", Arguments::of(&("x".repeat(10_000),)).unwrap());
    task.compressed = true;
    let message = task.encode();
    assert_eq!(message.headers["compression"], "application/x-gzip");
    assert!(message.body.len() < 1000 && message.body.starts_with(&[0x78]));
    let again = Envelope::decode(&message, LIMIT).unwrap();
    assert!(again.compressed && !again.headers.contains_key("compression"));
    assert_eq!(again.arguments.args[0].get().len(), 10_002);
    let small = Envelope::decode(&message, 1000).unwrap_err().reason;
    assert!(small.contains("over the limit of 1000 bytes"), "{small}");
    let mut cut = message;
    cut.body.truncate(20);
    assert!(reason(&cut).contains("cannot decompress the body"));
}

#[test]
fn every_header_of_a_wrong_type_is_refused_by_its_name() {
    let text = [json!(1), json!(1.5), json!(true), json!([]), json!({})];
    let number = [json!("1"), json!(1.5), json!(true), json!([]), json!({}), json!(u64::MAX)];
    let flag = [json!("true"), json!(1), json!([]), json!({})];
    let pair = [json!("1"), json!(true), json!({}), json!([1]), json!([1, "2"]), json!([1, 2, 3])];
    let texts = ["task", "id", "root_id", "parent_id", "group", "origin", "compression"];
    let cases = texts.map(|name| (name, &text[..])).into_iter().chain([
        ("eta", &text[..]),
        ("expires", &text[..]),
        ("retries", &number[..]),
        ("group_index", &number[..]),
        ("ignore_result", &flag[..]),
        ("timelimit", &pair[..]),
    ]);
    for (name, values) in cases {
        for value in values {
            let mut bad = message(json!({"task": "t"}), "[[], {}, {}]");
            bad.headers.insert(name.into(), value.clone());
            let reason = reason(&bad);
            assert!(reason.contains(&format!("header `{name}`")), "{name} = {value}: {reason}");
        }
    }
}

#[test]
fn an_invalid_message_is_refused_with_a_reason() {
    let good = || message(json!({"task": "t"}), "[[], {}, {}]");
    for (content_type, found) in [
        ("application/x-python-serialize", false),
        ("application/x-yaml", false),
        ("text/plain", false),
        ("Application/JSON; charset=utf-8", true),
    ] {
        let mut message = good();
        message.properties.content_type = Some(content_type.into());
        assert_eq!(Envelope::decode(&message, LIMIT).is_ok(), found, "{content_type}");
    }
    let mut utf16 = good();
    utf16.properties.content_encoding = Some("utf-16".into());
    assert!(reason(&utf16).contains("utf-16"));
    let old = message(json!({}), r#"{"task": "t", "id": "1", "args": []}"#);
    assert!(reason(&old).contains("protocol 1"));
    assert!(reason(&message(json!({}), "[[], {}, {}]")).contains("no header `task`"));
    assert!(reason(&message(json!({"task": ""}), "[[], {}, {}]")).contains("no header `task`"));
    assert_eq!(reason(&message(json!({"task": "t"}), "")), "the body is empty");
    let failure = Envelope::decode(&utf16, LIMIT).unwrap_err().failure();
    assert_eq!(failure.exc_type, "DecodeError");
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let body = format!("[[\"{}\"], {{}}, {{}}]", "x".repeat(1000));
    let large = message(json!({"task": "t"}), body.clone());
    assert!(Envelope::decode(&large, body.len()).is_ok());
    let reason = Envelope::decode(&large, body.len() - 1).unwrap_err().reason;
    assert!(reason.contains("over the limit of"), "{reason}");
}

/// Returns the files of one target's corpus.
#[expect(clippy::unwrap_used, reason = "a test panics when it fails")]
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = fs::read_dir(folder).unwrap();
    files.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn the_fuzzing_corpus_passes() {
    let mut seen = 0;
    for (name, target) in [
        ("decode", targets::decode as fn(&[u8])),
        ("arguments", targets::arguments),
        ("document", targets::document),
        ("frames", targets::frames),
    ] {
        for bytes in corpus(name) {
            target(&bytes);
            seen += 1;
        }
    }
    assert!(seen >= 41, "only {seen} files");
}

fn any_json() -> impl Strategy<Value = Value> {
    const TAGS: [&str; 6] = ["bytes", "base64", "uuid", "decimal", "datetime", "zoo"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        (prop::sample::select(&TAGS[..]), any::<String>())
            .prop_map(|(tag, text)| json!({"__type__": tag, "__value__": text})),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_headers() -> impl Strategy<Value = Headers> {
    const KNOWN: [&str; 16] = [
        "task",
        "id",
        "retries",
        "eta",
        "expires",
        "timelimit",
        "group",
        "group_index",
        "root_id",
        "parent_id",
        "origin",
        "ignore_result",
        "compression",
        "argsrepr",
        "stamps",
        "x-death",
    ];
    let name =
        prop_oneof![prop::sample::select(&KNOWN[..]).prop_map(str::to_owned), any::<String>()];
    prop::collection::btree_map(name, any_json(), 0..8)
        .prop_map(|headers| headers.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arguments_survive_the_wire_to_the_byte(
        args in prop::collection::vec(any_json(), 0..5),
        kwargs in prop::collection::btree_map(any::<String>(), any_json(), 0..5),
        compressed: bool,
    ) {
        let raw = |value: Value| serde_json::value::to_raw_value(&value).unwrap();
        let arguments = Arguments {
            args: args.into_iter().map(raw).collect(),
            kwargs: kwargs.into_iter().map(|(name, value)| (name, raw(value))).collect(),
        };
        let mut task = Envelope::new("t", arguments.clone());
        task.compressed = compressed;
        let again = Envelope::decode(&task.encode(), LIMIT).unwrap();
        let texts = |arguments: &Arguments| {
            let args: Vec<_> = arguments.args.iter().map(ToString::to_string).collect();
            let kwargs = arguments.kwargs.iter().map(|(name, it)| format!("{name}={it}"));
            (args, kwargs.collect::<Vec<_>>())
        };
        prop_assert_eq!(texts(&again.arguments), texts(&arguments));
        prop_assert_eq!(again.id, task.id);
        prop_assert_eq!(again.embed.get(), task.embed.get());
    }

    #[test]
    fn hostile_headers_are_decoded_or_refused(headers in any_headers(), body in any_json()) {
        let bytes = serde_json::to_vec(&body).unwrap();
        let hostile = Message { headers: headers.into(), ..message(json!({}), bytes) };
        if let Err(unreadable) = Envelope::decode(&hostile, LIMIT) {
            prop_assert!(!unreadable.reason.is_empty());
        }
    }

    #[test]
    fn hostile_bytes_are_decoded_or_refused(
        body: Vec<u8>,
        method in prop::sample::select(&[
            "application/x-gzip", "application/x-bz2", "application/x-brotli",
            "application/x-lzma", "application/zstd",
        ][..]),
    ) {
        let headers = json!({"task": "t", "compression": method});
        let _ = Envelope::decode(&message(headers, body.clone()), 4096);
        targets::decode(&body);
        targets::arguments(&body);
        targets::document(&body);
    }

    #[test]
    fn hostile_frames_are_made_safe_or_refused(
        file in prop::sample::select(corpus("frames")),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        inserted in prop::option::of((any::<prop::sample::Index>(), any::<[u8; 3]>())),
    ) {
        let mut bytes = file;
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some((at, more)) = inserted {
            let at = at.index(bytes.len());
            bytes.splice(at..at, more);
        }
        targets::frames(&bytes);
    }

    #[test]
    fn any_json_fits_or_is_refused(value in any_json()) {
        let text = serde_json::to_vec(&json!({"args": [value], "kwargs": {}})).unwrap();
        targets::arguments(&text);
        let document = serde_json::to_vec(&json!({"status": "SUCCESS", "result": value})).unwrap();
        targets::document(&document);
    }

    #[test]
    fn results_survive_the_store(value in any_json()) {
        let task = Envelope::new("t", Arguments::default());
        let raw: Box<RawValue> = serde_json::value::to_raw_value(&value).unwrap();
        let document = Document::success(&task, &raw, &[], jiff::Timestamp::UNIX_EPOCH);
        let read = Document::parse(TaskId::from("?"), document.json.clone()).unwrap();
        prop_assert_eq!(&read, &document);
    }
}
