//! The status of an approval request, and how it ended.

use jiff::Timestamp;

use super::{ApprovalId, Decision, DecisionKind, Digest};

/// The status of an approval request at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApprovalStatus {
    /// Can be decided until this time.
    Open(Timestamp),
    /// Decided in this way.
    Decided(DecisionKind),
    /// This deadline has passed without a decision.
    Expired(Timestamp),
}

impl ApprovalStatus {
    /// Returns the word used in lists.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open(_) => "pending",
            Self::Decided(DecisionKind::Approve) => "approved",
            Self::Decided(DecisionKind::Reject) => "rejected",
            Self::Decided(DecisionKind::Withdraw) => "withdrawn",
            Self::Expired(_) => "expired",
        }
    }
}

/// How a closed approval request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct ApprovalOutcome {
    /// The approval's id.
    pub approval: ApprovalId,
    /// The digest of the action.
    pub digest: Digest,
    /// The status; never open.
    pub status: ApprovalStatus,
    /// When it ended.
    pub at: Timestamp,
    /// The deciding decision; `None` if the deadline passed or the requesting task withdrew the request.
    pub decision: Option<Decision>,
}
