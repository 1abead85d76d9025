//! The id of an approval request.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest;
use crate::task::TaskId;

/// Identifies an approval request: `ap_` and a hash. A rerun of a task uses the same ids.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApprovalId(String);

impl ApprovalId {
    /// Returns the id of the `occurrence`th approval called `name` in a run of this task, from 0.
    #[must_use]
    pub fn of(task: &TaskId, name: &str, occurrence: u32) -> Self {
        let hash = digest::hash(&serde_json::json!([task.as_str(), name, occurrence]));
        Self(format!("ap_{}", &hash[..40]))
    }

    /// Returns a random id, for a request that no task makes.
    #[must_use]
    pub fn random() -> Self {
        Self::of(&TaskId::random(), "", 0)
    }

    /// Parses an id; `None` if the text is not a valid one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("ap_")?;
        let is_hex = digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        is_hex.then(|| Self(text.to_owned()))
    }

    /// Takes an id from an index without validation: no request exists under an invalid id.
    pub(crate) fn listed(text: &[u8]) -> Self {
        Self(String::from_utf8_lossy(text).into_owned())
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_depends_on_task_name_and_occurrence() {
        let task = TaskId::from("t");
        let id = ApprovalId::of(&task, "pay", 0);
        assert_eq!(id, ApprovalId::of(&task, "pay", 0));
        assert_ne!(id, ApprovalId::of(&task, "pay", 1));
        assert_ne!(id, ApprovalId::of(&TaskId::from("u"), "pay", 0));
        assert_eq!(ApprovalId::parse(id.as_str()), Some(id));
        for foreign in ["", "ap_", "ap_xyz", "ap_{cs}", "6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f"] {
            assert_eq!(ApprovalId::parse(foreign), None);
        }
    }
}
