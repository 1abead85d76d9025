//! The attempts of a task that failed, in one header of our own, so that whoever finds it dead sees
//! what happened before.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Headers;
use crate::error::Failure;

/// What a message says about the attempts before its own.
const ATTEMPTS: &str = "x-countersign-attempts";
/// The first attempts and the last ones are kept: so many, in so many bytes.
const MOST: usize = 16;
const ROOM: usize = 4 * 1024;
const LONGEST_MESSAGE: usize = 200;
const LONGEST_NAME: usize = 100;

/// One attempt of a task, and how it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which, from 1.
    pub number: u32,
    /// When it failed, in ISO 8601.
    pub at: String,
    /// The exception's type with its module, for example `builtins.ValueError`.
    pub error: String,
    /// What the exception says, or the beginning of that.
    pub message: String,
    /// The worker that ran it; nobody knows of one that died.
    pub worker: Option<String>,
}

/// The attempts of a task that failed, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The first of them and the last.
    pub attempts: Vec<Attempt>,
    /// So many between those are left out.
    pub left_out: u64,
}

impl Attempt {
    /// The attempt of this number failed now, on this worker.
    #[must_use]
    pub fn failed(number: u32, failure: &Failure, at: Timestamp, worker: Option<&str>) -> Self {
        let error = format!("{}.{}", failure.exc_module, failure.exc_type);
        Self {
            number,
            at: at.to_string(),
            error: beginning(&error, LONGEST_NAME),
            message: beginning(&failure.message(), LONGEST_MESSAGE),
            worker: worker.map(|worker| beginning(worker, LONGEST_NAME)),
        }
    }
}

impl History {
    /// Reads what is there; what cannot have been written here says nothing.
    #[must_use]
    pub fn read(headers: &Headers) -> Self {
        let text = headers.get(ATTEMPTS).and_then(Value::as_str);
        let text = text.filter(|text| text.len() <= ROOM);
        let read = text.and_then(|text| serde_json::from_str::<Self>(text).ok());
        read.filter(|history| history.attempts.len() <= MOST).unwrap_or_default()
    }

    /// Adds an attempt to what `headers` say.
    pub fn add(headers: &mut Headers, attempt: Attempt) {
        let mut history = Self::read(headers);
        history.attempts.push(attempt);
        let text = history.fitted();
        headers.insert(ATTEMPTS.into(), Value::String(text));
    }

    /// Takes what is written there off.
    pub fn remove(headers: &mut Headers) {
        headers.remove(ATTEMPTS);
    }

    /// As text, without those in the middle that are too many.
    fn fitted(&mut self) -> String {
        loop {
            let text = serde_json::to_string(self).unwrap_or_default();
            if self.attempts.is_empty() || (self.attempts.len() <= MOST && text.len() <= ROOM) {
                return text;
            }
            self.attempts.remove((self.attempts.len() - 1) / 2);
            self.left_out = self.left_out.saturating_add(1);
        }
    }
}

/// The beginning of a text that somebody else wrote, in at most so many bytes. Nothing in it takes
/// more room in JSON than twice its own.
fn beginning(text: &str, limit: usize) -> String {
    let mut beginning = String::with_capacity(text.len().min(limit));
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if beginning.len() + c.len_utf8() > limit {
            break;
        }
        beginning.push(c);
    }
    beginning
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
    fn an_attempt_comes_back_as_it_was_added() {
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
    fn of_many_attempts_the_first_and_the_last_are_kept() {
        let mut headers = Headers::new();
        for number in 1..=40 {
            History::add(&mut headers, attempt(number, "x"));
        }
        let history = History::read(&headers);
        assert_eq!(numbers(&history), [1, 2, 3, 4, 5, 6, 7, 8, 33, 34, 35, 36, 37, 38, 39, 40]);
        assert_eq!(history.left_out, 24);
    }

    #[test]
    fn whatever_an_exception_says_takes_little_room() {
        for hostile in ["\"".repeat(5000), "\u{1}".repeat(5000), "\u{10ffff}".repeat(5000)] {
            let mut headers = Headers::new();
            for number in 1..=20 {
                let failure = Failure::new(&hostile, &hostile, hostile.as_str());
                let worker = Some(hostile.as_str());
                let at = Timestamp::UNIX_EPOCH;
                History::add(&mut headers, Attempt::failed(number, &failure, at, worker));
            }
            assert!(headers[ATTEMPTS].as_str().unwrap().len() <= ROOM);
            let history = History::read(&headers);
            let kept = numbers(&history);
            assert_eq!((kept.first(), kept.last()), (Some(&1), Some(&20)), "{kept:?}");
            assert_eq!(history.left_out + kept.len() as u64, 20);
        }
    }

    #[test]
    fn a_foreign_header_says_nothing_and_is_written_anew() {
        let long = format!("{{\"left_out\":0,\"attempts\":[]}}{}", " ".repeat(ROOM));
        let many = json!({"left_out": 0, "attempts": vec![json!(attempt(1, "")); MOST + 1]});
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
        let most = json!({"left_out": u64::MAX, "attempts": vec![json!(attempt(1, "")); MOST]});
        headers.insert(ATTEMPTS.into(), most.to_string().into());
        History::add(&mut headers, attempt(2, "x"));
        assert_eq!(History::read(&headers).left_out, u64::MAX);
    }
}
