//! The action that an approval request is about.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Digest;

/// The exact action to approve: the approved action is the one that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// The action's name, for example `bank.pay`.
    pub name: String,
    /// The version of the arguments' type.
    pub version: u32,
    /// The arguments of the action.
    pub args: Value,
}

impl Action {
    /// Returns the digest of the action.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest_with(&self.args)
    }

    /// Returns the digest of the same action with these arguments.
    #[must_use]
    pub fn digest_with(&self, args: &Value) -> Digest {
        Digest::of(&json!({ "name": self.name, "version": self.version, "args": args }))
    }
}

/// How much harm a wrong approval can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Risk {
    /// Little harm.
    Low,
    /// The default.
    #[default]
    Medium,
    /// Much harm.
    High,
    /// The action cannot be undone. A passed deadline never approves it.
    Irreversible,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_ignores_the_order_of_keys_and_covers_every_value() {
        let action = |args| Action { name: "pay".into(), version: 1, args };
        let digest = action(json!({"a": 1, "b": {"c": [1, 2], "d": null}})).digest();
        assert_eq!(digest, action(json!({"b": {"d": null, "c": [1, 2]}, "a": 1})).digest());
        assert_ne!(digest, action(json!({"a": 1, "b": {"c": [2, 1], "d": null}})).digest());
        let version = Action { version: 2, ..action(json!({})) };
        assert_ne!(version.digest(), action(json!({})).digest());
        let edited = action(json!({})).digest_with(&json!({"a": 1}));
        assert_eq!(edited, action(json!({"a": 1})).digest());
    }

    #[test]
    fn a_stored_number_retains_its_digest() {
        // serde_json parses these off by one bit without its feature for exact floats.
        for number in [0.907_303_832_202_868_9, 0.481_837_925_201_105_24, 0.432_952_849_813_225_57]
        {
            let action = Action { name: "pay".into(), version: 1, args: json!([number]) };
            let stored: Action = serde_json::from_str(&json!(action).to_string()).unwrap();
            assert_eq!(stored.digest(), action.digest(), "{number:e}");
        }
    }
}
