//! What one person says to a question.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ApprovalId, Choice, Digest, Question, name_fault};

/// What the name of a policy begins with, where it decides.
const POLICY: &str = "policy:";
/// A reason is held under this, in bytes.
pub(crate) const MAX_REASON: usize = 4 * 1024;

/// One person's decision on a question as it was read: it carries the question's digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Which decision: the same one sent again changes nothing, and is answered alike.
    pub id: String,
    /// On which question.
    pub approval: ApprovalId,
    /// The digest of the action that the person saw.
    pub digest: Digest,
    /// The nonce of the request that the person saw: the decision counts for no other request, not even
    /// for one that asks the same under the same id. Without one, the decision is about the request that
    /// is there when it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Who decides.
    pub by: String,
    /// What.
    pub choice: Choice,
    /// Why. A rejection has one.
    pub reason: Option<String>,
    /// A policy decides, and says that it counts towards a quorum of people. Otherwise a policy approves only
    /// what one approval is enough for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_quorum: bool,
    /// The arguments that are approved in place of those that were asked for.
    pub edited: Option<Value>,
    /// The digest of the action with those. Written when the decision is taken; records from before
    /// there was one have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited_digest: Option<Digest>,
}

impl Decision {
    pub(crate) fn on(question: &Question, by: &str, choice: Choice) -> Self {
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            approval: question.id.clone(),
            digest: question.digest(),
            nonce: None,
            by: by.to_owned(),
            choice,
            reason: None,
            in_quorum: false,
            edited: None,
            edited_digest: None,
        }
    }

    /// Says why, too.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// What is wrong with it, if anything is: a line for the person.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let reason = self.reason.as_deref().unwrap_or_default();
        if self.choice == Choice::Reject && reason.trim().is_empty() {
            return Some("a rejection needs a reason".into());
        }
        if reason.len() > MAX_REASON {
            return Some(format!("the reason is over {MAX_REASON} bytes"));
        }
        name_fault(&self.by)
    }
}

/// Whether this is the name that a policy decides under.
#[must_use]
pub fn is_policy(by: &str) -> bool {
    by.starts_with(POLICY)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_decision_from_before_edits_had_digests_is_readable() {
        let question = Question::new("Pay?");
        let decision =
            Decision { edited: Some(json!(1)), ..Decision::on(&question, "ana", Choice::Approve) };
        let record = json!(decision);
        assert!(record.get("edited_digest").is_none());
        assert_eq!(serde_json::from_value::<Decision>(record).unwrap(), decision);
    }
}
