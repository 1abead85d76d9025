//! Distinguishes the messages of one task from those of another task with the same id.

use std::fmt;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Envelope;

/// Half of a SHA-256 suffices: the digest does not protect against the producer itself.
const BYTES: usize = 16;

/// A digest of a task's identity: its name, its arguments as the producer wrote them, and its root id.
///
/// Every copy of a message has the same digest: a redelivery, a next attempt, a wake message, and a copy that
/// a Celery worker has decoded and encoded again. White space, escapes in strings, the notation of fractions
/// and the order of keyword arguments make no difference.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskDigest(String);

impl TaskDigest {
    /// The digest of no message: marks a forgotten task, so that every message belongs to another task.
    pub fn of_none() -> Self {
        Self("none".to_owned())
    }

    /// Returns the stored form: 32 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Envelope {
    /// Computes the digest of this task. Reads all of its arguments once.
    #[must_use]
    pub fn digest(&self) -> TaskDigest {
        let mut hash = Sha256::new();
        let root = self.lineage.root_id.as_ref().unwrap_or(&self.id);
        for text in [&*self.name, root.as_str()] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.update((self.arguments.args.len() as u64).to_be_bytes());
        for argument in &self.arguments.args {
            add_json(&mut hash, argument.get());
        }
        let mut named: Vec<_> = self.arguments.kwargs.iter().collect();
        named.sort_by_key(|(name, _)| *name);
        for (name, argument) in named {
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            add_json(&mut hash, argument.get());
        }
        let mut digits = String::with_capacity(2 * BYTES);
        for byte in &hash.finalize()[..BYTES] {
            let _ = write!(digits, "{byte:02x}");
        }
        TaskDigest(digits)
    }
}

impl From<String> for TaskDigest {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for TaskDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hashes a JSON text token by token, each in one notation, and a zero byte. Does not recurse, so any nesting
/// depth is safe.
fn add_json(hash: &mut Sha256, json: &str) {
    let mut rest = json;
    while let Some(first) = rest.bytes().next() {
        let length = match first {
            b'"' => string_length(rest),
            b'-' | b'0'..=b'9' => rest
                .find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'))
                .unwrap_or(rest.len()),
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        match first {
            b' ' | b'\t' | b'\n' | b'\r' => {}
            // A string with a lone surrogate is hashed as it was written.
            b'"' => match serde_json::from_str::<String>(token) {
                Ok(text) => {
                    hash.update([b'"']);
                    hash.update((text.len() as u64).to_be_bytes());
                    hash.update(text);
                }
                Err(_) => hash.update(token),
            },
            b'-' | b'0'..=b'9' if token.contains(['.', 'e', 'E']) => match token.parse::<f64>() {
                Ok(number) => hash.update(format!("{number:?}")),
                Err(_) => hash.update(token),
            },
            _ => hash.update(token),
        }
    }
    hash.update([0]);
}

/// Returns the length of the string that `json` begins with, including its quotes.
fn string_length(json: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in json.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::protocol::{Arguments, Message, SuspendHeader, SuspendKind};
    use crate::task::TaskId;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    fn envelope(args: &[&str], kwargs: &[(&str, &str)]) -> Envelope {
        let args = args.iter().map(|json| raw(json)).collect();
        let kwargs = kwargs.iter().map(|(name, json)| ((*name).to_owned(), raw(json))).collect();
        let mut envelope = Envelope::new("demo.add", Arguments { args, kwargs });
        envelope.id = TaskId::from("x");
        envelope
    }

    #[test]
    fn copies_of_a_message_have_one_digest() {
        let first = envelope(&[r#"{"to": "é", "n": [1, 2.50]}"#], &[("a", "1"), ("b", "1e5")]);
        let digest = first.digest();
        assert_eq!(digest.as_str().len(), 32);
        let again =
            envelope(&["{\"to\":\"\\u00e9\",\n\"n\":[1,2.5]}"], &[("b", "100000.0"), ("a", " 1")]);
        assert_eq!(again.digest(), digest);

        let header = SuspendHeader { kind: SuspendKind::Wake, number: 3 };
        let wake = header.on(first.encode());
        let stored = Message::from_json("x".into(), &wake.to_json()).unwrap();
        for message in [&wake, &stored] {
            let mut decoded = Envelope::decode(message, 1 << 20).unwrap();
            assert_eq!(decoded.digest(), digest);
            decoded.attempt += 1;
            decoded.lineage.parent_id = Some("x".into());
            assert_eq!(decoded.digest(), digest);
        }
    }

    #[test]
    fn other_tasks_have_other_digests() {
        let one = envelope(&["1"], &[]);
        let mut all = vec![
            one.digest(),
            envelope(&["2"], &[]).digest(),
            envelope(&["\"1\""], &[]).digest(),
            envelope(&["1.0"], &[]).digest(),
            envelope(&["1", "1"], &[]).digest(),
            envelope(&["11"], &[]).digest(),
            envelope(&[], &[("x", "1")]).digest(),
            envelope(&["20000000000000000001"], &[]).digest(),
            envelope(&["20000000000000000002"], &[]).digest(),
            envelope(&["[1,[2]]"], &[]).digest(),
            envelope(&["[1,2]"], &[]).digest(),
            envelope(&["[\"1,2\"]"], &[]).digest(),
            envelope(&["\"a b\""], &[]).digest(),
            envelope(&["\"ab\""], &[]).digest(),
            envelope(&["\"\\ud800\""], &[]).digest(),
            TaskDigest::of_none(),
        ];
        let mut named = one.clone();
        named.name = "demo.sub".to_owned();
        let mut rooted = one;
        rooted.lineage.root_id = Some("y".into());
        all.extend([named.digest(), rooted.digest()]);
        let count = all.len();
        all.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_deep_argument_has_a_digest() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        // No parser used here produces such a value; hashing it must not recurse.
        let mut hash = Sha256::new();
        add_json(&mut hash, &deep);
        add_json(&mut hash, "\"unended \\");
    }
}
