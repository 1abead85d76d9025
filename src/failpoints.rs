//! Failpoints for tests: a test makes the process abort at a named place, or shifts its clock. Only the
//! feature `faults` enables them; release builds do not have it.

use jiff::Timestamp;

/// Aborts this process without cleanup, like `kill -9`, if its environment names this failpoint.
#[cfg(feature = "faults")]
pub(crate) fn point(place: &str) {
    if std::env::var("COUNTERSIGN_TEST_FAULT").is_ok_and(|named| named == place) {
        std::process::abort();
    }
}

#[cfg(not(feature = "faults"))]
pub(crate) const fn point(_place: &str) {}

/// Returns the time, shifted by the number of seconds in the environment.
#[cfg(feature = "faults")]
pub(crate) fn shifted(now: Timestamp) -> Timestamp {
    let shift = std::env::var("COUNTERSIGN_TEST_CLOCK").ok().and_then(|text| text.parse().ok());
    let shift = jiff::SignedDuration::from_secs(shift.unwrap_or(0));
    now.saturating_add(shift).unwrap_or(now)
}

#[cfg(not(feature = "faults"))]
pub(crate) const fn shifted(now: Timestamp) -> Timestamp {
    now
}
