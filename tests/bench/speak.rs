//! The task whose stream is measured: each entry contains the time when it was written.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Speak {
    pub(crate) entries: usize,
}

impl countersign::Task for Speak {
    const NAME: &'static str = "bench.speak";
    /// The times when it began and ended, in microseconds since 1970.
    type Output = (u64, u64);
}

/// Returns the microseconds since 1970 by the clock of the host, which all its processes share.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
