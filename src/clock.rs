//! The clock of this process. The deadlines of approvals use the store's clock, never this one.

use jiff::Timestamp;

use crate::failpoints;

/// Returns the current time by the clock of this machine.
pub(crate) fn now() -> Timestamp {
    failpoints::shifted(read())
}

#[cfg(not(feature = "testing"))]
fn read() -> Timestamp {
    Timestamp::now()
}

/// Follows the clock of the runtime, which a test may pause.
#[cfg(feature = "testing")]
fn read() -> Timestamp {
    use std::cell::Cell;

    use jiff::SignedDuration;
    use tokio::time::Instant;

    thread_local! {
        static BEGAN: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    // The runtime of an earlier test on this thread may have been ahead.
    let stored = BEGAN.get().filter(|(_, since)| *since <= now);
    let (began, since) = stored.unwrap_or_else(|| (Timestamp::now(), now));
    BEGAN.set(Some((began, since)));
    let passed = SignedDuration::try_from(now.duration_since(since)).unwrap_or_default();
    began.saturating_add(passed).unwrap_or(began)
}
