//! The journal of a task: the results of its finished steps. Pure: the store persists it.
//!
//! An entry is JSON, `{"v":1,"step":<value>}`, under the step's name.

use std::collections::{HashMap, HashSet};
use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::TaskError;

/// The version of the entries that this library writes, and the newest that it reads.
const VERSION: u32 = 1;
/// The Python module in which Celery clients find the classes of these failures.
const MODULE: &str = "countersign.errors";

/// Size limits, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// `limits.step`: the value of one step.
    pub(crate) step: usize,
    /// `limits.journal`: all entries of a task.
    pub(crate) journal: usize,
    /// `limits.stream_entry`: one entry of a stream.
    pub(crate) stream_entry: usize,
}

/// The steps of a task, as one run has read and recorded them.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    entries: HashMap<String, Bytes>,
    size: usize,
    started: HashSet<String>,
}

/// Why a step has no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This run already had a step of this name.
    Duplicate { step: String },
    /// The recorded result has another type than the handler expects.
    Mismatch { step: String, cause: String },
    /// The entry was written by a newer version of this library.
    Newer { step: String, version: u32 },
    /// The result cannot be encoded as JSON, or cannot be decoded from it again.
    NotJson { step: String, cause: String },
    /// The result is over `limits.step`.
    StepTooLarge { step: String, size: usize, limit: usize },
    /// With this step, all entries are over `limits.journal`.
    JournalTooLarge { step: String, size: usize, limit: usize },
}

#[derive(Deserialize, Serialize)]
struct Entry<'a> {
    v: u32,
    #[serde(borrow)]
    step: &'a RawValue,
}

#[derive(Deserialize)]
struct Head {
    v: u32,
}

impl Journal {
    /// Creates a journal from the entries that earlier runs have recorded.
    pub(crate) fn new(entries: HashMap<String, Bytes>) -> Self {
        let size = entries.iter().map(|(step, entry)| step.len() + entry.len()).sum();
        Self { entries, size, started: HashSet::new() }
    }

    /// Begins a step of this run; returns its recorded entry, if there is one.
    pub(crate) fn begin(&mut self, step: &str) -> Result<Option<Bytes>, Fault> {
        if !self.started.insert(step.to_owned()) {
            return Err(Fault::Duplicate { step: step.to_owned() });
        }
        Ok(self.entries.get(step).cloned())
    }

    /// Counts an entry that is about to be recorded against the limit.
    pub(crate) fn reserve(&mut self, step: &str, entry: &Bytes, limit: usize) -> Result<(), Fault> {
        let size = self.size + step.len() + entry.len();
        if size > limit {
            return Err(Fault::JournalTooLarge { step: step.to_owned(), size, limit });
        }
        self.size = size;
        Ok(())
    }
}

/// Returns the entry of a step that returned `value`.
pub(crate) fn encode<T: Serialize>(step: &str, value: &T, limit: usize) -> Result<Bytes, Fault> {
    let not_json =
        |cause: serde_json::Error| Fault::NotJson { step: step.into(), cause: cause.to_string() };
    let json = serde_json::value::to_raw_value(value).map_err(not_json)?;
    let size = json.get().len();
    if size > limit {
        return Err(Fault::StepTooLarge { step: step.to_owned(), size, limit });
    }
    let entry = serde_json::to_vec(&Entry { v: VERSION, step: &json }).map_err(not_json)?;
    Ok(entry.into())
}

/// Returns the result in an entry.
pub(crate) fn decode<T: DeserializeOwned>(step: &str, entry: &[u8]) -> Result<T, Fault> {
    let mismatch =
        |cause: serde_json::Error| Fault::Mismatch { step: step.into(), cause: cause.to_string() };
    let Head { v } = serde_json::from_slice(entry).map_err(mismatch)?;
    if v > VERSION {
        return Err(Fault::Newer { step: step.to_owned(), version: v });
    }
    let Entry { step: value, .. } = serde_json::from_slice(entry).map_err(mismatch)?;
    serde_json::from_str(value.get()).map_err(mismatch)
}

impl Fault {
    /// Returns the class name of the exception in Celery clients.
    fn class(&self) -> &'static str {
        match self {
            Self::Duplicate { .. } => "DuplicateStep",
            Self::Mismatch { .. } => "JournalMismatch",
            Self::Newer { .. } => "JournalTooNew",
            Self::NotJson { .. } => "StepNotJson",
            Self::StepTooLarge { .. } => "StepTooLarge",
            Self::JournalTooLarge { .. } => "JournalTooLarge",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate { step } => {
                write!(
                    f,
                    "step name {step:?} is used twice in one run: give each step a unique name"
                )
            }
            Self::Mismatch { step, cause } => write!(
                f,
                "the recorded result of step {step:?} does not have the type that the handler expects \
                 ({cause}): rename a step when its result type changes"
            ),
            Self::Newer { step, version } => write!(
                f,
                "step {step:?} was recorded in format {version} by a newer worker, and this worker reads \
                 formats up to {VERSION}: upgrade it"
            ),
            Self::NotJson { step, cause } => {
                write!(f, "the result of step {step:?} cannot be encoded as JSON: {cause}")
            }
            Self::StepTooLarge { step, size, limit } => write!(
                f,
                "the result of step {step:?} is {size} bytes, over the limit of {limit} \
                 (limits.step): store it elsewhere, and record a reference"
            ),
            Self::JournalTooLarge { step, size, limit } => write!(
                f,
                "with step {step:?} the task's journal is {size} bytes, over the limit of {limit} \
                 (limits.journal)"
            ),
        }
    }
}

impl Fault {
    /// Returns the fault for a result that this run has just written.
    pub(crate) fn of_new_value(self) -> Self {
        match self {
            Self::Mismatch { step, cause } => Self::NotJson { step, cause },
            other => other,
        }
    }

    /// Converts the fault for the handler. It is not retried, because another attempt would fail the same
    /// way.
    pub(crate) fn into_error(self) -> TaskError {
        TaskError::with_exception(MODULE, self.class(), self.to_string()).no_retry()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64;

    #[test]
    fn an_entry_decodes_to_its_value() {
        let entry = encode("hold", &("h-1", 5), LIMIT).unwrap();
        assert_eq!(&*entry, br#"{"v":1,"step":["h-1",5]}"#);
        assert_eq!(decode::<(String, u8)>("hold", &entry), Ok(("h-1".to_owned(), 5)));
        assert_eq!(decode::<()>("nothing", &encode("nothing", &(), LIMIT).unwrap()), Ok(()));
    }

    #[test]
    fn an_entry_of_another_type_names_its_step() {
        let entry = encode("hold", &5, LIMIT).unwrap();
        let fault = decode::<String>("hold", &entry).unwrap_err();
        assert!(matches!(&fault, Fault::Mismatch { step, .. } if step == "hold"), "{fault}");
        for broken in ["", "[]", "{}", r#"{"v":1}"#, r#"{"v":"1","step":1}"#, "\u{0}"] {
            let fault = decode::<u8>("hold", broken.as_bytes()).unwrap_err();
            assert!(matches!(fault, Fault::Mismatch { .. }), "{broken:?}: {fault}");
        }
    }

    #[test]
    fn a_newer_entry_is_distinguished_from_a_broken_one() {
        let fault = decode::<u8>("hold", br#"{"v":2,"done":{}}"#).unwrap_err();
        assert_eq!(fault, Fault::Newer { step: "hold".into(), version: 2 });
    }

    #[test]
    fn a_step_name_can_be_used_once_per_run() {
        let entry = encode("a", &1, LIMIT).unwrap();
        let mut journal = Journal::new(HashMap::from([("a".to_owned(), entry.clone())]));
        assert_eq!(journal.begin("a"), Ok(Some(entry)));
        assert_eq!(journal.begin("b"), Ok(None));
        assert_eq!(journal.begin("a"), Err(Fault::Duplicate { step: "a".into() }));
        assert_eq!(journal.begin("b"), Err(Fault::Duplicate { step: "b".into() }));
    }

    #[test]
    fn an_entry_over_a_limit_names_its_setting() {
        let fault = encode("big", &"x".repeat(LIMIT), LIMIT).unwrap_err();
        assert!(fault.to_string().contains("limits.step"), "{fault}");
        let entry = encode("a", &1, LIMIT).unwrap();
        let full = entry.len() + 1;
        let mut journal = Journal::new(HashMap::from([("a".to_owned(), entry.clone())]));
        let fault = journal.reserve("b", &entry, full).unwrap_err();
        assert!(fault.to_string().contains("limits.journal"), "{fault}");
        assert_eq!(journal.reserve("b", &entry, full * 2), Ok(()));
        assert!(journal.reserve("c", &entry, full * 2).is_err());
    }
}
