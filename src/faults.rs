//! Places to die at, for tests. Without the feature `faults` there are none: no build that is to be
//! used has it.

/// Ends this process as `kill -9` does, if its environment names this place.
#[cfg(feature = "faults")]
pub(crate) fn point(place: &str) {
    if std::env::var("COUNTERSIGN_TEST_FAULT").is_ok_and(|named| named == place) {
        std::process::abort();
    }
}

#[cfg(not(feature = "faults"))]
pub(crate) const fn point(_place: &str) {}
