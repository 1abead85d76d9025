//! Durations in stored form.

use std::time::Duration;

/// Converts to milliseconds: at least one, and few enough that adding them to a time cannot overflow.
pub(in crate::backend) fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).clamp(1, 1 << 52)
}
