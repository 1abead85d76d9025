//! Results of the client's own tasks that were published before a caller waited: a quick task ends
//! before its producer receives the confirm. They only save a read; any of them may be dropped.

use std::collections::HashMap;

use bytes::Bytes;

use crate::protocol::{Document, State};
use crate::task::TaskId;

/// At these limits the older half is dropped.
const RESULTS: usize = 512;
const BYTES: usize = 512 * 1024;

#[derive(Debug, Default)]
pub(in crate::backend) struct EarlyResults {
    young: HashMap<TaskId, Bytes>,
    old: HashMap<TaskId, Bytes>,
    young_bytes: usize,
}

impl EarlyResults {
    pub(in crate::backend) fn keep(&mut self, id: TaskId, text: Bytes) {
        if text.len() > BYTES {
            return;
        }
        if self.young.len() == RESULTS || self.young_bytes + text.len() > BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += text.len();
        self.young.insert(id, text);
    }

    /// Returns the task's success. Any other state may have changed since (a replay takes a failure
    /// back), so the caller reads the record.
    pub(in crate::backend) fn take(&mut self, id: &TaskId) -> Option<Document> {
        let text = self.young.remove(id).or_else(|| self.old.remove(id))?;
        let document = Document::parse(id.clone(), text).ok()?;
        (document.state == State::Success).then_some(document)
    }

    /// Drops the result of a task that was deleted.
    #[cfg(feature = "embedded")]
    pub(in crate::backend) fn forget(&mut self, id: &TaskId) {
        self.young.remove(id);
        self.old.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(status: &str, size: usize) -> Bytes {
        format!(r#"{{"status": "{status}", "result": "{}"}}"#, "x".repeat(size)).into()
    }

    #[test]
    fn a_success_is_given_once_and_a_failure_never() {
        let mut early = EarlyResults::default();
        early.keep("a".into(), text("SUCCESS", 1));
        early.keep("b".into(), text("FAILURE", 1));
        assert!(early.take(&"a".into()).is_some());
        assert!(early.take(&"a".into()).is_none());
        assert!(early.take(&"b".into()).is_none());
    }

    #[test]
    fn the_oldest_make_room_by_number_and_by_size() {
        for size in [1, BYTES / 4] {
            let mut early = EarlyResults::default();
            for n in 0..10 * RESULTS {
                early.keep(n.to_string().into(), text("SUCCESS", size));
            }
            assert!(early.young.len() + early.old.len() <= 2 * RESULTS);
            let bytes: usize = early.young.values().chain(early.old.values()).map(Bytes::len).sum();
            assert!(bytes <= 2 * BYTES, "{bytes}");
            assert!(early.take(&(10 * RESULTS - 1).to_string().into()).is_some());
            assert!(early.take(&"0".into()).is_none());
        }
    }
}
