//! A task type with a rate limit.

use countersign::Task;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Limited {}

impl Task for Limited {
    const NAME: &'static str = "bench.limited";
    /// The number of times that it was held back.
    type Output = u64;
}
