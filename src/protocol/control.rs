//! Celery's remote control: requests that are broadcast to workers, and the replies.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Headers;
use crate::task::{Revoke, TaskId};

/// The exchange on which Celery's callers receive replies; replies are sent to no other.
pub const REPLY_EXCHANGE: &str = "reply.celery.pidbox";

/// The maximum size of a request: enough to revoke 400,000 tasks.
const LIMIT: usize = 16 * 1024 * 1024;

/// A control request to the workers.
#[derive(Debug)]
pub struct Request {
    head: Head,
    arguments: Option<Map<String, Value>>,
    /// The reason why it is refused.
    refusal: Option<String>,
}

/// The fields that are read from every request. They suffice to reply to a request that is too large.
#[derive(Debug, Deserialize)]
struct Head {
    method: String,
    #[serde(default)]
    destination: Option<Vec<String>>,
    #[serde(default)]
    pattern: Option<String>,
    #[serde(default)]
    matcher: Option<String>,
    #[serde(default)]
    ticket: Option<String>,
    #[serde(default)]
    reply_to: Option<ReplyTo>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    arguments: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct ReplyTo {
    exchange: String,
    routing_key: String,
}

/// The command that a worker must perform.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Reply that this worker is alive.
    Ping,
    /// Revoke these tasks.
    Revoke {
        /// The ids of the tasks.
        ids: Vec<TaskId>,
        /// The effect on running tasks.
        revoke: Revoke,
    },
    /// An unknown command, by its name.
    Unknown(String),
    /// A known command with missing or invalid arguments: the error message for the caller.
    Malformed(String),
}

/// A reply to the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlReply {
    /// The caller's own routing key at [`REPLY_EXCHANGE`].
    pub routing_key: String,
    /// Contains the ticket by which the caller matches the reply with its request.
    pub headers: Headers,
    /// `{"<node>": value}`.
    pub body: Bytes,
}

impl Request {
    /// Parses the body of a control message. The command of a message over the size limit is
    /// [`Command::Malformed`], so that its caller gets a reply.
    ///
    /// # Errors
    /// If it is not a control request; the error is a readable message.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        let head: Head = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if body.len() > LIMIT {
            let size = body.len();
            let why = format!("{}: {size} bytes are over the limit of {LIMIT}", head.method);
            return Ok(Self { head, arguments: None, refusal: Some(why) });
        }
        let body: Body = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        Ok(Self { head, arguments: body.arguments, refusal: None })
    }

    /// Returns whether the request addresses the worker with this name: all workers, unless it names some or
    /// has a pattern. Shell patterns are supported; a regular expression matches no worker.
    #[must_use]
    pub fn is_for(&self, node: &str) -> bool {
        if let Some(nodes) = self.head.destination.as_ref().filter(|nodes| !nodes.is_empty()) {
            return nodes.iter().any(|name| name == node);
        }
        match (self.head.pattern.as_deref(), self.head.matcher.as_deref()) {
            (Some(pattern), Some("glob")) => fits(pattern.as_bytes(), node.as_bytes()),
            (Some(_), Some(_)) => false,
            _ => true,
        }
    }

    /// Returns the command to perform.
    #[must_use]
    pub fn command(&self) -> Command {
        if let Some(refusal) = &self.refusal {
            return Command::Malformed(refusal.clone());
        }
        let argument = |name| self.arguments.as_ref().and_then(|arguments| arguments.get(name));
        let terminate = self.head.method == "terminate"
            || argument("terminate").is_some_and(|flag| flag.as_bool() == Some(true));
        match self.head.method.as_str() {
            "ping" => Command::Ping,
            "revoke" | "terminate" => match argument("task_id").and_then(ids) {
                Some(ids) => {
                    let revoke = if terminate { Revoke::Terminate } else { Revoke::IfQueued };
                    Command::Revoke { ids, revoke }
                }
                None => Command::Malformed(format!(
                    "{}: task_id is not a string or a list of strings",
                    self.head.method
                )),
            },
            other => Command::Unknown(other.chars().take(80).collect()),
        }
    }

    /// Returns the reply of the worker with this name, if the caller wants one.
    #[must_use]
    pub fn answer(&self, node: &str, value: Value) -> Option<ControlReply> {
        let to = self.head.reply_to.as_ref().filter(|to| to.exchange == REPLY_EXCHANGE)?;
        let mut headers = Headers::new();
        headers.insert("ticket".into(), self.head.ticket.clone().into());
        headers.insert("clock".into(), 1.into());
        let body = Value::Object(Map::from_iter([(node.to_owned(), value)])).to_string();
        Some(ControlReply { routing_key: to.routing_key.clone(), headers, body: body.into() })
    }
}

/// Parses one id, or a list of ids.
fn ids(value: &Value) -> Option<Vec<TaskId>> {
    match value {
        Value::String(id) => Some(vec![TaskId::from(id)]),
        Value::Array(ids) => ids.iter().map(|id| id.as_str().map(TaskId::from)).collect(),
        _ => None,
    }
}

/// Matches a text with a pattern of `*` and `?`. The time is at most the product of both lengths.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut next) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while next < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, next));
                at += 1;
            }
            Some(b'?') => (at, next) = (at + 1, next + 1),
            Some(byte) if *byte == text[next] => (at, next) = (at + 1, next + 1),
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    (at, next) = (place + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(value: &Value) -> Request {
        Request::read(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_request_addresses_the_named_workers_or_those_that_match_its_pattern() {
        let all = request(&json!({"method": "ping", "destination": null, "pattern": null}));
        assert!(all.is_for("a@b"));
        let named = request(&json!({"method": "ping", "destination": ["a@b"]}));
        assert!(named.is_for("a@b") && !named.is_for("a@c"));
        let glob =
            |pattern| request(&json!({"method": "ping", "pattern": pattern, "matcher": "glob"}));
        assert!(glob("*@b").is_for("a@b") && glob("a*?b*").is_for("aa@b"));
        assert!(!glob("*@c").is_for("a@b") && !glob("a@b?").is_for("a@b"));
        let regex = request(&json!({"method": "ping", "pattern": ".*", "matcher": "pcre"}));
        assert!(!regex.is_for("a@b"));
    }

    #[test]
    fn a_revocation_has_one_id_or_several() {
        let revoke = |arguments| request(&json!({"method": "revoke", "arguments": arguments}));
        let one = revoke(json!({"task_id": "a", "terminate": false, "signal": "SIGTERM"}));
        let ids = vec![TaskId::from("a")];
        assert_eq!(one.command(), Command::Revoke { ids, revoke: Revoke::IfQueued });
        let two = revoke(json!({"task_id": ["a", "b"], "terminate": true}));
        let ids = vec![TaskId::from("a"), TaskId::from("b")];
        assert_eq!(two.command(), Command::Revoke { ids, revoke: Revoke::Terminate });
        for garbage in [json!({}), json!({"task_id": 5}), json!({"task_id": ["a", 5]})] {
            assert!(matches!(revoke(garbage).command(), Command::Malformed(_)));
        }
    }

    #[test]
    fn a_revocation_of_many_tasks_is_read() {
        let ids: Vec<_> = (0..60_000).map(|n| format!("{n:036}")).collect();
        let many = json!({"method": "revoke", "arguments": {"task_id": ids}}).to_string();
        let Ok(request) = Request::read(many.as_bytes()) else { panic!("it was dropped") };
        let Command::Revoke { ids, .. } = request.command() else { panic!("it revokes") };
        assert_eq!(ids.len(), 60_000);
    }

    #[test]
    fn the_reply_to_a_request_that_is_too_large_has_the_reason() {
        let ids: Vec<_> = (0..500_000).map(|n| format!("{n:036}")).collect();
        let to = json!({"exchange": REPLY_EXCHANGE, "routing_key": "k"});
        let request = json!({"method": "revoke", "arguments": {"task_id": ids},
            "destination": ["n@h"], "ticket": "t", "reply_to": to});
        let request = Request::read(request.to_string().as_bytes()).unwrap();
        assert!(request.is_for("n@h") && !request.is_for("m@h"));
        let Command::Malformed(why) = request.command() else { panic!("it is refused") };
        assert!(why.contains("revoke: ") && why.contains("over the limit"), "{why}");
        assert!(request.answer("n@h", json!({"error": why})).is_some());
    }

    #[test]
    fn a_reply_goes_only_to_the_exchange_of_replies() {
        let to = |exchange| {
            let to = json!({"exchange": exchange, "routing_key": "k"});
            request(&json!({"method": "ping", "ticket": "t", "reply_to": to}))
        };
        let reply = to(REPLY_EXCHANGE).answer("n@h", json!({"ok": "pong"})).unwrap();
        assert_eq!(&reply.body[..], br#"{"n@h":{"ok":"pong"}}"#);
        assert_eq!((reply.routing_key.as_str(), &reply.headers["ticket"]), ("k", &json!("t")));
        assert_eq!(to("billing").answer("n@h", Value::Null), None);
    }

    #[test]
    fn an_invalid_body_is_not_a_request() {
        for body in [&b""[..], b"[]", b"{", b"{\"method\": 5}", &[b' '; LIMIT + 1]] {
            assert!(Request::read(body).is_err());
        }
    }
}
