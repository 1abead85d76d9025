//! The task that is parked: it asks one question, and says when it was run again.

use serde::{Deserialize, Serialize};

/// What its question is called.
pub(crate) const QUESTION: &str = "go";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask {}

impl countersign::Task for Ask {
    const NAME: &'static str = "bench.ask";
    /// When its handler was given the decision, in microseconds since 1970.
    type Output = u64;
}
