//! What time it is for this process. Deadlines of approvals are by the store's clock, never by this
//! one.

use jiff::Timestamp;

use crate::faults;

/// Now, by the clock of this machine.
pub(crate) fn now() -> Timestamp {
    faults::shifted(read())
}

#[cfg(not(feature = "testing"))]
fn read() -> Timestamp {
    Timestamp::now()
}

/// Goes with the clock of the runtime, which a test may pause.
#[cfg(feature = "testing")]
fn read() -> Timestamp {
    use std::cell::Cell;

    use jiff::SignedDuration;
    use tokio::time::Instant;

    thread_local! {
        static BEGAN: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    // A runtime of an earlier test on this thread may have been ahead.
    let known = BEGAN.get().filter(|(_, since)| *since <= now);
    let (began, since) = known.unwrap_or_else(|| (Timestamp::now(), now));
    BEGAN.set(Some((began, since)));
    let passed = SignedDuration::try_from(now.duration_since(since)).unwrap_or_default();
    began.saturating_add(passed).unwrap_or(began)
}
