//! One person's decision on an approval request.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ApprovalId, ApprovalRequest, DecisionKind, Digest, name_fault};

/// The prefix of `by` in decisions made by policies.
const POLICY: &str = "policy:";
/// The maximum length of a reason, in bytes.
pub(crate) const MAX_REASON: usize = 4 * 1024;

/// One person's decision on an approval request as they read it: it carries the digest of the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Identifies the decision. Sending the same decision again changes nothing and returns the same result.
    pub id: String,
    /// The approval that the decision is about.
    pub approval: ApprovalId,
    /// The digest of the action that the approver saw.
    pub digest: Digest,
    /// The nonce of the request that the approver saw: the decision counts for no other request, not even for
    /// an identical one under the same id. Without a nonce, the decision applies to the request that the
    /// store has when it receives the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The name of the person who decides.
    pub by: String,
    /// The kind of the decision.
    pub choice: DecisionKind,
    /// The reason. Required for a rejection.
    pub reason: Option<String>,
    /// The decision is made by a policy that counts towards a quorum of approvers. Without this, a policy can
    /// only approve requests with a quorum of one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_quorum: bool,
    /// The arguments that are approved in place of the requested ones.
    pub edited: Option<Value>,
    /// The digest of the action with the edited arguments. Written when the store accepts the decision; older
    /// records do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited_digest: Option<Digest>,
}

impl Decision {
    pub(crate) fn on(request: &ApprovalRequest, by: &str, choice: DecisionKind) -> Self {
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            approval: request.id.clone(),
            digest: request.digest(),
            nonce: None,
            by: by.to_owned(),
            choice,
            reason: None,
            in_quorum: false,
            edited: None,
            edited_digest: None,
        }
    }

    /// Adds the reason.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Returns the error in the decision, as one line of text; `None` if it is valid.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let reason = self.reason.as_deref().unwrap_or_default();
        if self.choice == DecisionKind::Reject && reason.trim().is_empty() {
            return Some("a rejection needs a reason".into());
        }
        if reason.len() > MAX_REASON {
            return Some(format!("the reason is over {MAX_REASON} bytes"));
        }
        name_fault(&self.by)
    }
}

/// Returns whether `by` is the name of a policy.
#[must_use]
pub fn is_policy(by: &str) -> bool {
    by.starts_with(POLICY)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_decision_without_a_digest_of_its_edits_is_readable() {
        let request = ApprovalRequest::new("Pay?");
        let decision = Decision {
            edited: Some(json!(1)),
            ..Decision::on(&request, "ana", DecisionKind::Approve)
        };
        let record = json!(decision);
        assert!(record.get("edited_digest").is_none());
        assert_eq!(serde_json::from_value::<Decision>(record).unwrap(), decision);
    }
}
