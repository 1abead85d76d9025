//! The task that is suspended: it makes one approval request, and returns the time when it was resumed.

use serde::{Deserialize, Serialize};

/// The name of its approval request.
pub(crate) const APPROVAL: &str = "go";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NeedsApproval {}

impl countersign::Task for NeedsApproval {
    const NAME: &'static str = "bench.approve";
    /// The time when its handler received the decision, in microseconds since 1970.
    type Output = u64;
}
