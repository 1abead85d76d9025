//! What tests do to a process from inside: it dies at a place, or its clock is wrong. Only the feature
//! `faults` brings that in, and no build that is to be used has it.

use jiff::Timestamp;

/// Ends this process as `kill -9` does, if its environment names this place.
#[cfg(feature = "faults")]
pub(crate) fn point(place: &str) {
    if std::env::var("COUNTERSIGN_TEST_FAULT").is_ok_and(|named| named == place) {
        std::process::abort();
    }
}

#[cfg(not(feature = "faults"))]
pub(crate) const fn point(_place: &str) {}

/// The time by a clock that is wrong by as many seconds as the environment says.
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
