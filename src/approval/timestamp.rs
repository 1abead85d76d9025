//! Times of the stores, which are in milliseconds.

use jiff::Timestamp;

/// Returns the time of this number of milliseconds since the epoch, or the nearest one that can be written.
pub(crate) fn timestamp(milliseconds: i64) -> Timestamp {
    let nearest = if milliseconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_millisecond(milliseconds).unwrap_or(nearest)
}
