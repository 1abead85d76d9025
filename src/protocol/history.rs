//! The failed attempts of a task, in one header of its message, so that a dead letter shows earlier failures.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Headers;
use crate::error::Failure;

/// The header with the failed attempts.
const ATTEMPTS: &str = "x-countersign-attempts";
/// The maximum number and size in bytes; the first and the last attempts are kept.
const MAX_ATTEMPTS: usize = 16;
const MAX_BYTES: usize = 4 * 1024;
const MAX_MESSAGE: usize = 200;
const MAX_NAME: usize = 100;

/// One failed attempt of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The number of the attempt, from 1.
    pub number: u32,
    /// When it failed, in ISO 8601.
    pub at: String,
    /// The exception's type with its module, for example `builtins.ValueError`.
    pub error: String,
    /// The exception's message, or its beginning.
    pub message: String,
    /// The worker that ran it; unknown for an attempt during which the worker crashed.
    pub worker: Option<String>,
}

/// The failed attempts of a task, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The first and the last attempts.
    pub attempts: Vec<Attempt>,
    /// The number of attempts omitted between those.
    pub left_out: u64,
}

impl Attempt {
    /// Records that the attempt with this number failed at this time, on this worker.
    #[must_use]
    pub fn failed(number: u32, failure: &Failure, at: Timestamp, worker: Option<&str>) -> Self {
        let error = format!("{}.{}", failure.exc_module, failure.exc_type);
        Self {
            number,
            at: at.to_string(),
            error: truncated(&error, MAX_NAME),
            message: truncated(&failure.message(), MAX_MESSAGE),
            worker: worker.map(|worker| truncated(worker, MAX_NAME)),
        }
    }
}

impl History {
    /// Reads the header. Ignores contents that this library cannot have written.
    #[must_use]
    pub fn read(headers: &Headers) -> Self {
        let text = headers.get(ATTEMPTS).and_then(Value::as_str);
        let text = text.filter(|text| text.len() <= MAX_BYTES);
        let read = text.and_then(|text| serde_json::from_str::<Self>(text).ok());
        read.filter(|history| history.attempts.len() <= MAX_ATTEMPTS).unwrap_or_default()
    }

    /// Adds an attempt to the header.
    pub fn add(headers: &mut Headers, attempt: Attempt) {
        let mut history = Self::read(headers);
        history.attempts.push(attempt);
        let text = history.fitted();
        headers.insert(ATTEMPTS.into(), Value::String(text));
    }

    /// Removes the header.
    pub fn remove(headers: &mut Headers) {
        headers.remove(ATTEMPTS);
    }

    /// Returns the header's text; removes attempts in the middle until it fits.
    fn fitted(&mut self) -> String {
        loop {
            let text = serde_json::to_string(self).unwrap_or_default();
            if self.attempts.is_empty()
                || (self.attempts.len() <= MAX_ATTEMPTS && text.len() <= MAX_BYTES)
            {
                return text;
            }
            self.attempts.remove((self.attempts.len() - 1) / 2);
            self.left_out = self.left_out.saturating_add(1);
        }
    }
}

/// Returns the beginning of an untrusted text, in at most `limit` bytes. Its JSON form is at most twice as
/// long, because control characters are replaced.
fn truncated(text: &str, limit: usize) -> String {
    let mut truncated = String::with_capacity(text.len().min(limit));
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if truncated.len() + c.len_utf8() > limit {
            break;
        }
        truncated.push(c);
    }
    truncated
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn attempt(number: u32, message: &str) -> Attempt {
        let failure = Failure::new("builtins", "ValueError", message);
        Attempt::failed(number, &failure, Timestamp::UNIX_EPOCH, Some("a"))
    }

    fn numbers(history: &History) -> Vec<u32> {
        history.attempts.iter().map(|attempt| attempt.number).collect()
    }

    #[test]
    fn an_added_attempt_is_read_back() {
        let mut headers = Headers::new();
        History::add(&mut headers, attempt(1, "first"));
        History::add(&mut headers, attempt(2, "second"));
        let history = History::read(&headers);
        assert_eq!(history.attempts, [attempt(1, "first"), attempt(2, "second")]);
        assert_eq!(history.attempts[0].error, "builtins.ValueError");
        assert_eq!(history.left_out, 0);
        History::remove(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn the_first_and_last_of_many_attempts_remain() {
        let mut headers = Headers::new();
        for number in 1..=40 {
            History::add(&mut headers, attempt(number, "x"));
        }
        let history = History::read(&headers);
        assert_eq!(numbers(&history), [1, 2, 3, 4, 5, 6, 7, 8, 33, 34, 35, 36, 37, 38, 39, 40]);
        assert_eq!(history.left_out, 24);
    }

    #[test]
    fn the_header_size_is_bounded_for_any_exception() {
        for hostile in ["\"".repeat(5000), "\u{1}".repeat(5000), "\u{10ffff}".repeat(5000)] {
            let mut headers = Headers::new();
            for number in 1..=20 {
                let failure = Failure::new(&hostile, &hostile, hostile.as_str());
                let worker = Some(hostile.as_str());
                let at = Timestamp::UNIX_EPOCH;
                History::add(&mut headers, Attempt::failed(number, &failure, at, worker));
            }
            assert!(headers[ATTEMPTS].as_str().unwrap().len() <= MAX_BYTES);
            let history = History::read(&headers);
            let numbers_left = numbers(&history);
            assert_eq!(
                (numbers_left.first(), numbers_left.last()),
                (Some(&1), Some(&20)),
                "{numbers_left:?}"
            );
            assert_eq!(history.left_out + numbers_left.len() as u64, 20);
        }
    }

    #[test]
    fn an_invalid_header_is_ignored_and_rewritten() {
        let long = format!("{{\"left_out\":0,\"attempts\":[]}}{}", " ".repeat(MAX_BYTES));
        let many =
            json!({"left_out": 0, "attempts": vec![json!(attempt(1, "")); MAX_ATTEMPTS + 1]});
        for foreign in [
            json!(null),
            json!(7),
            json!([attempt(1, "")]),
            json!({"attempts": []}),
            json!("no JSON"),
            json!("[".repeat(4000)),
            json!("{\"left_out\":-1,\"attempts\":[]}"),
            json!("{\"left_out\":0,\"attempts\":[{\"number\":\"1\"}]}"),
            json!(many.to_string()),
            json!(long),
        ] {
            let mut headers = Headers::new();
            headers.insert(ATTEMPTS.into(), foreign.clone());
            assert_eq!(History::read(&headers), History::default(), "{foreign}");
            History::add(&mut headers, attempt(3, "x"));
            assert_eq!(numbers(&History::read(&headers)), [3], "{foreign}");
        }
        let mut headers = Headers::new();
        let most =
            json!({"left_out": u64::MAX, "attempts": vec![json!(attempt(1, "")); MAX_ATTEMPTS]});
        headers.insert(ATTEMPTS.into(), most.to_string().into());
        History::add(&mut headers, attempt(2, "x"));
        assert_eq!(History::read(&headers).left_out, u64::MAX);
    }
}
