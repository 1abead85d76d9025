//! The store's reply to a decision.

use std::fmt;

use jiff::Timestamp;

use super::DecisionKind;

/// The result of sending a decision. It is authoritative: [`DecideResult::Applied`] means that this decision
/// decided the request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecideResult {
    /// This decision decided the request.
    Applied,
    /// The vote counts, and the quorum is not reached yet.
    Counted {
        /// The current number of approvals.
        votes: u32,
        /// The number of approvals needed.
        quorum: u32,
    },
    /// The same decision was accepted before.
    Replayed,
    /// Another decision was earlier.
    AlreadyDecided {
        /// The name of the person who decided.
        by: String,
        /// The time of that decision.
        at: Timestamp,
        /// The kind of that decision.
        choice: DecisionKind,
    },
    /// The deadline has passed.
    Expired {
        /// The deadline.
        at: Timestamp,
    },
    /// The request has changed since the approver read it.
    DigestMismatch,
    /// This person may not decide the request or extend its deadline.
    NotAllowed,
    /// The extension would move the deadline to an earlier time, which is refused.
    Earlier {
        /// The current deadline.
        deadline: Timestamp,
    },
    /// The request was withdrawn.
    Withdrawn,
    /// There is no such request.
    Unknown,
}

impl DecideResult {
    /// Returns whether the decision was accepted, by this call or by an earlier one.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Applied | Self::Counted { .. } | Self::Replayed)
    }
}

impl fmt::Display for DecideResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::Counted { votes, quorum } => write!(f, "counted: {votes} of {quorum}"),
            Self::Replayed => f.write_str("this decision was applied before"),
            Self::AlreadyDecided { by, at, choice } => {
                let by: String = by.escape_debug().collect();
                write!(f, "already decided: {} by {by} at {}", choice.as_str(), at)
            }
            Self::Expired { at } => write!(f, "the deadline passed at {at}"),
            Self::DigestMismatch => f.write_str("the request has changed: read it again"),
            Self::NotAllowed => f.write_str("this person may not decide this request"),
            Self::Earlier { deadline } => {
                write!(f, "the deadline is {deadline}, and cannot be moved earlier")
            }
            Self::Withdrawn => f.write_str("the request was withdrawn"),
            Self::Unknown => f.write_str("there is no such approval request"),
        }
    }
}
