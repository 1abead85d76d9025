//! Durations on the command line.

use std::time::Duration;

use countersign::config::parse_duration;

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .ok_or_else(|| format!("{text:?} is not a duration such as 500ms, 30s or 5m"))
}
