//! The fuzz targets. Ordinary tests run the corpus through the same functions.

use std::collections::BTreeMap;

use amq_protocol::frame::{AMQPFrame, parse_frame};
use countersign::TaskId;
use countersign::backend::{guard_frames, read_message};
use countersign::protocol::{Arguments, Document, Envelope, Headers, Message, Properties};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Small, so that decompression bombs reach it early.
const LIMIT: usize = 64 * 1024;

/// Input: a line of JSON with the headers, then the body. A decoded message must be unchanged when it is sent
/// on.
pub(crate) fn decode(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (headers, body) = data.split_at(end);
    let headers: Headers = serde_json::from_slice(headers).unwrap_or_else(|_| task());
    let message = Message {
        id: TaskId::from("fuzz"),
        headers: headers.into(),
        body: body.strip_prefix(b"\n").unwrap_or(body).to_vec().into(),
        properties: Properties::default(),
    };
    match Envelope::decode(&message, LIMIT) {
        Ok(envelope) => {
            let again = Envelope::decode(&envelope.encode(), 2 * LIMIT);
            let again = again.expect("a decoded message can be sent on");
            assert_eq!(texts(&envelope.arguments), texts(&again.arguments));
            assert_eq!(envelope.embed.get(), again.embed.get());
            assert_eq!(envelope.attempt, again.attempt);
            fill(&envelope.arguments);
        }
        Err(unreadable) => assert!(!unreadable.reason.is_empty() && unreadable.reason.len() < 2000),
    }
}

/// `{"args": [..], "kwargs": {..}}`
pub(crate) fn arguments(data: &[u8]) {
    if let Ok(arguments) = serde_json::from_slice::<Arguments>(data) {
        fill(&arguments);
    }
}

/// A result document.
pub(crate) fn document(data: &[u8]) {
    if let Ok(document) = Document::parse(TaskId::from("fuzz"), data.to_vec().into()) {
        let _ = document.failure();
        let _ = document.reason();
        let _ = document.output::<Value>();
        let _ = document.output::<Everything>();
        let _ = document.output::<Vec<u8>>();
    }
}

/// Input: the size of the chunks, then the bytes that a broker sends after it has accepted the connection.
/// lapin's parser must accept every method and every content header that the guard passes.
pub(crate) fn frames(data: &[u8]) {
    const OPEN_OK: &[u8] = b"\x01\0\0\0\0\0\x05\0\x0a\0\x29\0\xce";
    let Some((chunk, frames)) = data.split_first() else { return };
    let sent = [OPEN_OK, frames].concat();
    let (read, refused) = guard_frames(&sent, usize::from(*chunk) + 1);
    let whole = guard_frames(&sent, sent.len());
    assert_eq!((&read, &refused), (&whole.0, &whole.1), "the chunks make no difference");
    let mut rest = read.as_slice();
    while let Some(prefix) = rest.first_chunk::<7>() {
        let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
        let Some((frame, after)) = rest.split_at_checked(size as usize + 8) else { return };
        assert!(frame.len() <= 131_072 || prefix[0] == 1, "it fits into lapin's buffer");
        rest = after;
        if !matches!(prefix[0], 1 | 2) {
            continue;
        }
        let (left, parsed) = parse_frame(frame).expect("lapin's parser accepts it");
        assert!(left.is_empty());
        if let AMQPFrame::Header(_, header) = parsed {
            let message = read_message(&header.properties, b"[[], {}, {}]".to_vec());
            let _ = Envelope::decode(&message, LIMIT);
            assert!(message.headers.keys().all(|name| name.len() <= 255), "it can be sent on");
        }
    }
}

fn task() -> Headers {
    [("task".to_owned(), Value::from("fuzz"))].into_iter().collect()
}

fn texts(arguments: &Arguments) -> (Vec<&str>, Vec<(&String, &str)>) {
    let args = arguments.args.iter().map(|value| value.get()).collect();
    let kwargs = arguments.kwargs.iter().map(|(name, value)| (name, value.get())).collect();
    (args, kwargs)
}

#[derive(Deserialize, Serialize)]
struct Everything {
    text: String,
    integer: i64,
    #[serde(default)]
    float: f64,
    option: Option<Box<Everything>>,
    #[serde(default)]
    bytes: Vec<u8>,
    #[serde(default)]
    map: BTreeMap<String, Value>,
    choice: Option<Choice>,
}

#[derive(Deserialize, Serialize)]
enum Choice {
    Unit,
    One(String),
    Two(u8, u8),
    Named { x: u8 },
}

#[derive(Deserialize)]
struct Flat {
    #[serde(default)]
    _x: i64,
    #[serde(flatten)]
    _rest: BTreeMap<String, Value>,
}

fn fill(arguments: &Arguments) {
    let _ = arguments.read::<Everything>("f");
    let _ = arguments.read::<Flat>("f");
    let _ = arguments.read::<Value>("f");
    let _ = arguments.read::<(Value, String)>("f");
    let _ = arguments.read::<Vec<Value>>("f");
    let _ = arguments.read::<()>("f");
    let whole = arguments.read::<Arguments>("f").expect("anything is arguments");
    assert_eq!(texts(&whole), texts(arguments));
}
