//! Fingerprints of actions: SHA-256 of canonical JSON.

use std::fmt;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Action, Question};

/// The fingerprint of an action (its name, version and arguments), or of a question: then it begins
/// with its version, `v2:`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    /// Of this action with these arguments.
    pub(super) fn of(action: &Action, args: &Value) -> Self {
        Self(hash(&json!({ "name": action.name, "version": action.version, "args": args })))
    }

    /// Covers the action, who may decide about it, and the outcome when the deadline passes undecided.
    pub(super) fn of_question(question: &Question) -> Self {
        let Question { action, editable, schema, risk, requester, self_approval, .. } = question;
        let Question { approvers, quorum, on_timeout, .. } = question;
        let mut approvers: Vec<_> = approvers.iter().collect();
        approvers.sort();
        approvers.dedup();
        let hash = hash(&json!({
            "v": 2,
            "action": { "name": action.name, "version": action.version, "args": action.args },
            "editable": editable,
            "schema": schema,
            "risk": risk,
            "requester": requester,
            "self_approval": self_approval,
            "approvers": approvers,
            "quorum": quorum,
            "on_timeout": on_timeout,
        }));
        Self(format!("v2:{hash}"))
    }

    /// 64 hexadecimal digits, after the version if there is one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Digest {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The hash of a value, in hexadecimal digits.
pub(super) fn hash(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    hexadecimal(&Sha256::digest(text.as_bytes()))
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

/// Writes JSON with sorted keys and no space, whatever order the value's own map has.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Array(items) => {
            text.push('[');
            for (n, item) in items.iter().enumerate() {
                text.push_str(if n > 0 { "," } else { "" });
                write_canonical(item, text);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.keys().collect();
            names.sort();
            text.push('{');
            for (n, name) in names.into_iter().enumerate() {
                text.push_str(if n > 0 { "," } else { "" });
                let _ = write!(text, "{}:", Value::from(name.as_str()));
                write_canonical(&fields[name], text);
            }
            text.push('}');
        }
        scalar => {
            let _ = write!(text, "{scalar}");
        }
    }
}
