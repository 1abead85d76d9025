//! Fingerprints of actions: SHA-256 of canonical JSON.

use std::fmt;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The digest of an action (its name, version and arguments) or of an approval request; the latter begins
/// with its version, `v2:`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    /// The digest of a value.
    pub(super) fn of(value: &Value) -> Self {
        Self(hash(value))
    }

    /// Returns 64 hexadecimal digits, after the version if there is one.
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

/// Hashes a JSON value; returns hexadecimal digits.
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

/// Writes JSON with sorted keys and no white space, independently of the order in the value's map.
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
