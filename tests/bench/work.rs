//! The task that most cases measure: it sleeps, in most cases for no time, and returns its argument's length.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) const NAME: &str = "bench.work";

/// Its arguments have about 256 bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) payload: String,
    pub(crate) pause_ms: u64,
}

impl countersign::Task for Work {
    const NAME: &'static str = NAME;
    type Output = usize;
}

impl Work {
    pub(crate) async fn perform(&self) -> usize {
        if self.pause_ms > 0 {
            tokio::time::sleep(Duration::from_millis(self.pause_ms)).await;
        }
        self.payload.len()
    }
}
