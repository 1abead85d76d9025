//! The one task that is measured: it pauses, mostly not at all, and answers with its argument's length.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) const NAME: &str = "bench.work";

/// With about 256 bytes of arguments.
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
