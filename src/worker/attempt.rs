//! The attempts of a task: when one is due, and the message of the next. Pure, apart from the clock.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::clock;
use crate::protocol::{Envelope, Message, UNKNOWN_SINCE};

/// Header: when the first attempt of a task began. Copied to its retries.
const FIRST_ATTEMPT_AT: &str = "x-countersign-first-began";
/// Header: the retry delay of the next attempt, in milliseconds. Copied with it.
const RETRY_DELAY: &str = "x-countersign-retry-delay";
/// Header: how often the limits of its task type have delayed an attempt. Copied with its copies.
const TIMES_LIMITED: &str = "x-countersign-held-back";
/// A task due within this time is started at once.
const MIN_DELAY: Duration = Duration::from_millis(20);
/// Delayed delivery brings a message to its queue at most this much too early.
const DELIVERED_EARLY: Duration = Duration::from_secs(1);
/// The clock difference that is tolerated before a task counts as expired.
const CLOCK_SKEW: Duration = Duration::from_secs(1);

/// Returns the time until `eta` if it is long enough for delayed delivery, which rounds up to its lowest
/// level.
pub(super) fn delay_until(eta: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(eta.duration_since(now)).ok().filter(|left| *left > MIN_DELAY)
}

/// Returns the time until the task's ETA. A retry comes by delayed delivery, so hardly any time is left;
/// more if a policy of the broker made the message expire early, and then the rest is delayed again. A
/// time longer than the whole retry delay was written by a worker whose clock is ahead, and is ignored.
pub(super) fn eta_delay(envelope: &Envelope) -> Option<Duration> {
    let left = delay_until(envelope.eta?, clock::now())?;
    let retry_delay =
        envelope.headers.get(RETRY_DELAY).and_then(Value::as_u64).map(Duration::from_millis);
    let is_plausible = left <= DELIVERED_EARLY.max(retry_delay.unwrap_or_default());
    (is_plausible || first_attempt_at(envelope).is_none()).then_some(left)
}

/// Returns the start of the first attempt from the header.
pub(super) fn first_attempt_at(envelope: &Envelope) -> Option<Timestamp> {
    envelope.headers.get(FIRST_ATTEMPT_AT).and_then(Value::as_str)?.parse().ok()
}

/// Returns how often the limits of its task type have delayed the attempt.
pub(super) fn times_limited(envelope: &Envelope) -> u32 {
    let times = envelope.headers.get(TIMES_LIMITED).and_then(Value::as_u64);
    times.map_or(0, |times| u32::try_from(times).unwrap_or(u32::MAX))
}

pub(super) fn has_expired(envelope: &Envelope) -> bool {
    let is_over = |at: Timestamp| clock::now() > at.saturating_add(CLOCK_SKEW).unwrap_or(at);
    envelope.expires.is_some_and(is_over)
}

/// Returns `delay`, or the time until the task has expired if that is shorter: it is then revoked without
/// further delay.
pub(super) fn until_expiry(envelope: &Envelope, delay: Duration) -> Duration {
    let left = envelope.expires.map(|at| Duration::try_from(at.duration_since(clock::now())));
    left.map_or(delay, |left| delay.min(left.unwrap_or_default() + CLOCK_SKEW * 2))
}

/// Returns the next attempt of the task, due `delay` from now.
pub(super) fn next_attempt(
    envelope: &Envelope,
    delay: Duration,
    first_attempt_at: Timestamp,
    now: Timestamp,
) -> Envelope {
    let mut next = envelope.clone();
    next.attempt = envelope.attempt.saturating_add(1);
    next.eta = now.saturating_add(delay).ok();
    next.lineage.parent_id = Some(envelope.id.clone());
    next.headers.remove(TIMES_LIMITED);
    next.headers.insert(FIRST_ATTEMPT_AT.into(), Value::String(first_attempt_at.to_string()));
    let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    next.headers.insert(RETRY_DELAY.into(), Value::from(delay));
    next
}

/// Returns a message for the same attempt. It is marked: if this delivery is redelivered too, the later
/// of the two finds the result of the other.
pub(super) fn copy_for_requeue(envelope: &Envelope) -> Message {
    let mut message = envelope.encode();
    message.mark_returned();
    message
}

/// Returns the same attempt, which the limits of its task type have delayed once more.
pub(super) fn limited_again(envelope: &Envelope) -> Envelope {
    let mut copy = envelope.clone();
    let times = times_limited(envelope).saturating_add(1);
    copy.headers.insert(TIMES_LIMITED.into(), Value::from(times));
    copy
}

/// Returns an unknown task for requeueing while its grace period lasts: another worker may have a handler
/// by then.
pub(super) fn requeue_unknown(
    envelope: &Envelope,
    grace: Duration,
    now: Timestamp,
) -> Option<Envelope> {
    let since = envelope.headers.get(UNKNOWN_SINCE).and_then(Value::as_str);
    let since = since.and_then(|text| text.parse::<Timestamp>().ok()).unwrap_or(now);
    let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if waited >= grace {
        return None;
    }
    let mut copy = envelope.clone();
    copy.headers.insert(UNKNOWN_SINCE.into(), Value::String(since.to_string()));
    Some(copy)
}
