//! The kinds of decisions.

use serde::{Deserialize, Serialize};

/// The kind of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecisionKind {
    /// The request is approved.
    Approve,
    /// The request is rejected.
    Reject,
    /// The request is withdrawn.
    Withdraw,
}

impl DecisionKind {
    /// Returns the word used in records and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Reject => "reject",
            Self::Withdraw => "withdraw",
        }
    }

    /// Parses the word returned by [`DecisionKind::as_str`].
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        [Self::Approve, Self::Reject, Self::Withdraw].into_iter().find(|it| it.as_str() == word)
    }
}
