//! Celery's remote control: requests that are broadcast to workers, and the answers to them.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Headers;
use crate::task::{Revoke, TaskId};

/// The exchange to which Celery's callers listen for answers; nothing is sent to any other.
pub const REPLY_EXCHANGE: &str = "reply.celery.pidbox";

/// A revocation of 400,000 tasks.
const LIMIT: usize = 16 * 1024 * 1024;

/// What somebody wants of the workers.
#[derive(Debug, Deserialize)]
pub struct Request {
    method: String,
    #[serde(default)]
    arguments: Option<Map<String, Value>>,
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

#[derive(Debug, Deserialize)]
struct ReplyTo {
    exchange: String,
    routing_key: String,
}

/// What a worker is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Say that you are there.
    Ping,
    /// Do not run these.
    Revoke {
        /// Which ones.
        ids: Vec<TaskId>,
        /// What of those that run.
        revoke: Revoke,
    },
    /// Something else, by its name.
    Unknown(String),
    /// One of the above without what it needs: a line for its caller.
    Malformed(String),
}

/// An answer on its way to whoever asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The caller's own key at [`REPLY_EXCHANGE`].
    pub routing_key: String,
    /// Has the ticket by which the caller knows its question.
    pub headers: Headers,
    /// `{"<node>": value}`.
    pub body: Bytes,
}

impl Request {
    /// Reads the body of a control message.
    ///
    /// # Errors
    /// A line for people: it is too large, or no request.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        if body.len() > LIMIT {
            return Err(format!("it has {} bytes, over the limit of {LIMIT}", body.len()));
        }
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }

    /// Whether the worker of this name is meant: everybody, unless it names some or has a pattern.
    /// Patterns of shells are understood; regular expressions match nobody.
    #[must_use]
    pub fn is_for(&self, node: &str) -> bool {
        if let Some(nodes) = self.destination.as_ref().filter(|nodes| !nodes.is_empty()) {
            return nodes.iter().any(|name| name == node);
        }
        match (self.pattern.as_deref(), self.matcher.as_deref()) {
            (Some(pattern), Some("glob")) => fits(pattern.as_bytes(), node.as_bytes()),
            (Some(_), Some(_)) => false,
            _ => true,
        }
    }

    /// What is to be done.
    #[must_use]
    pub fn command(&self) -> Command {
        let argument = |name| self.arguments.as_ref().and_then(|arguments| arguments.get(name));
        let terminate = self.method == "terminate"
            || argument("terminate").is_some_and(|flag| flag.as_bool() == Some(true));
        match self.method.as_str() {
            "ping" => Command::Ping,
            "revoke" | "terminate" => match argument("task_id").and_then(ids) {
                Some(ids) => {
                    let revoke = if terminate { Revoke::EvenRunning } else { Revoke::IfQueued };
                    Command::Revoke { ids, revoke }
                }
                None => Command::Malformed(format!("{}: task_id is no id", self.method)),
            },
            other => Command::Unknown(other.chars().take(80).collect()),
        }
    }

    /// The answer of the worker of this name, if the caller wants one.
    #[must_use]
    pub fn answer(&self, node: &str, value: Value) -> Option<Answer> {
        let to = self.reply_to.as_ref().filter(|to| to.exchange == REPLY_EXCHANGE)?;
        let mut headers = Headers::new();
        headers.insert("ticket".into(), self.ticket.clone().into());
        headers.insert("clock".into(), 1.into());
        let body = Value::Object(Map::from_iter([(node.to_owned(), value)])).to_string();
        Some(Answer { routing_key: to.routing_key.clone(), headers, body: body.into() })
    }
}

/// One id, or a list of them.
fn ids(value: &Value) -> Option<Vec<TaskId>> {
    match value {
        Value::String(id) => Some(vec![TaskId::from(id)]),
        Value::Array(ids) => ids.iter().map(|id| id.as_str().map(TaskId::from)).collect(),
        _ => None,
    }
}

/// Whether a text fits a pattern of `*` and `?`. Linear in what it is given, times the pattern.
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
    fn a_request_is_for_whom_it_names_or_whom_its_pattern_fits() {
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
        assert_eq!(two.command(), Command::Revoke { ids, revoke: Revoke::EvenRunning });
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
    fn an_answer_goes_only_where_callers_listen() {
        let to = |exchange| {
            let to = json!({"exchange": exchange, "routing_key": "k"});
            request(&json!({"method": "ping", "ticket": "t", "reply_to": to}))
        };
        let answer = to(REPLY_EXCHANGE).answer("n@h", json!({"ok": "pong"})).unwrap();
        assert_eq!(&answer.body[..], br#"{"n@h":{"ok":"pong"}}"#);
        assert_eq!((answer.routing_key.as_str(), &answer.headers["ticket"]), ("k", &json!("t")));
        assert_eq!(to("billing").answer("n@h", Value::Null), None);
    }

    #[test]
    fn garbage_is_no_request() {
        for body in [&b""[..], b"[]", b"{", b"{\"method\": 5}", &[b' '; LIMIT + 1]] {
            assert!(Request::read(body).is_err());
        }
    }
}
