//! The keys of results, and the channels on which results are published.

use std::sync::Arc;

use crate::task::TaskId;

/// The required prefix of a reply channel that a message names.
pub(super) const REPLY_PREFIX: &str = "cs:reply:";

/// Builds the keys of results with Celery's names.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: Arc<str>,
}

impl Keys {
    /// Celery appends `_` to a prefix unless it ends with punctuation.
    pub(super) fn new(prefix: &str) -> Self {
        let joint =
            if prefix.is_empty() || prefix.ends_with([':', '_', '-', '.']) { "" } else { "_" };
        Self { prefix: format!("{prefix}{joint}celery-task-meta-").into() }
    }

    pub(super) fn of(&self, id: &TaskId) -> String {
        [&*self.prefix, id.as_str()].concat()
    }

    pub(super) fn id_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&*self.prefix)
    }
}
