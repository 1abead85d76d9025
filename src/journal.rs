//! What a task already knows: the values of its finished steps. Pure: the store keeps it.
//!
//! An entry is JSON, `{"v":1,"step":<value>}`, under the step's name.

use std::collections::{HashMap, HashSet};
use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::TaskError;

/// The form of entries that this version writes, and the newest that it reads.
const VERSION: u32 = 1;
/// Where Celery clients find the classes of these failures.
const MODULE: &str = "countersign.errors";

/// How large things may get, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// `limits.step`: the value of one step.
    pub(crate) step: usize,
    /// `limits.journal`: all entries of a task.
    pub(crate) journal: usize,
    /// `limits.stream_entry`: one entry of a stream.
    pub(crate) stream_entry: usize,
}

/// What one run knows of the steps of its task.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    entries: HashMap<String, Bytes>,
    size: usize,
    begun: HashSet<String>,
}

/// Why a step has no value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This run has had a step of this name.
    Duplicate { step: String },
    /// What is recorded is of another type than the handler wants now.
    Mismatch { step: String, cause: String },
    /// What is recorded was written by a newer version of this library.
    Newer { step: String, version: u32 },
    /// The value is no JSON, or is another value once it has been.
    NotJson { step: String, cause: String },
    /// The value is over `limits.step`.
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
    /// What earlier runs have recorded.
    pub(crate) fn new(entries: HashMap<String, Bytes>) -> Self {
        let size = entries.iter().map(|(step, entry)| step.len() + entry.len()).sum();
        Self { entries, size, begun: HashSet::new() }
    }

    /// Begins a step of this run; returns the entry that answers it, if there is one.
    pub(crate) fn begin(&mut self, step: &str) -> Result<Option<Bytes>, Fault> {
        if !self.begun.insert(step.to_owned()) {
            return Err(Fault::Duplicate { step: step.to_owned() });
        }
        Ok(self.entries.get(step).cloned())
    }

    /// Makes room for an entry that is about to be recorded.
    pub(crate) fn admit(&mut self, step: &str, entry: &Bytes, limit: usize) -> Result<(), Fault> {
        let size = self.size + step.len() + entry.len();
        if size > limit {
            return Err(Fault::JournalTooLarge { step: step.to_owned(), size, limit });
        }
        self.size = size;
        Ok(())
    }
}

/// The entry of a step that answered `value`.
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

/// The value in an entry.
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
    /// The name by which Celery clients know it.
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
                write!(f, "this run has had a step {step:?}: give each step a name of its own")
            }
            Self::Mismatch { step, cause } => write!(
                f,
                "what step {step:?} has recorded is of another type than the handler wants \
                 ({cause}): give a step that answers something else another name"
            ),
            Self::Newer { step, version } => write!(
                f,
                "step {step:?} was recorded in form {version} by a newer worker: this one reads \
                 up to {VERSION}"
            ),
            Self::NotJson { step, cause } => {
                write!(f, "the value of step {step:?} does not survive JSON: {cause}")
            }
            Self::StepTooLarge { step, size, limit } => write!(
                f,
                "the value of step {step:?} is {size} bytes, over the limit of {limit} \
                 (limits.step): record where it is kept instead"
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
    /// The fault of a value that was written here and now.
    pub(crate) fn of_own(self) -> Self {
        match self {
            Self::Mismatch { step, cause } => Self::NotJson { step, cause },
            other => other,
        }
    }

    /// As a handler gets it: fatal, for another attempt would find the same.
    pub(crate) fn into_error(self) -> TaskError {
        TaskError::raise(MODULE, self.class(), self.to_string()).never()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64;

    #[test]
    fn an_entry_gives_back_its_value() {
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
    fn an_entry_of_a_newer_form_is_told_from_a_broken_one() {
        let fault = decode::<u8>("hold", br#"{"v":2,"done":{}}"#).unwrap_err();
        assert_eq!(fault, Fault::Newer { step: "hold".into(), version: 2 });
    }

    #[test]
    fn a_name_is_good_for_one_step_of_a_run_recorded_or_not() {
        let entry = encode("a", &1, LIMIT).unwrap();
        let mut journal = Journal::new(HashMap::from([("a".to_owned(), entry.clone())]));
        assert_eq!(journal.begin("a"), Ok(Some(entry)));
        assert_eq!(journal.begin("b"), Ok(None));
        assert_eq!(journal.begin("a"), Err(Fault::Duplicate { step: "a".into() }));
        assert_eq!(journal.begin("b"), Err(Fault::Duplicate { step: "b".into() }));
    }

    #[test]
    fn what_is_too_large_names_its_setting() {
        let fault = encode("big", &"x".repeat(LIMIT), LIMIT).unwrap_err();
        assert!(fault.to_string().contains("limits.step"), "{fault}");
        let entry = encode("a", &1, LIMIT).unwrap();
        let full = entry.len() + 1;
        let mut journal = Journal::new(HashMap::from([("a".to_owned(), entry.clone())]));
        let fault = journal.admit("b", &entry, full).unwrap_err();
        assert!(fault.to_string().contains("limits.journal"), "{fault}");
        assert_eq!(journal.admit("b", &entry, full * 2), Ok(()));
        assert!(journal.admit("c", &entry, full * 2).is_err());
    }
}
