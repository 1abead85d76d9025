//! What the broker refuses to this process's user.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

/// Refusals that still stand, by what was to be done. For the log, which has each of them once, and for
/// readiness. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Arc<Mutex<BTreeMap<String, String>>>);

impl Refusals {
    /// `what` was refused. Logged unless it was for the same reason before.
    pub(super) fn note(&self, what: &str, why: &str) {
        if self.locked().insert(what.to_owned(), why.to_owned()).as_deref() != Some(why) {
            error!("RabbitMQ refuses access, {what} does not work: {why}");
        }
    }

    /// `what` has worked.
    pub(super) fn clear(&self, what: &str) {
        if self.locked().remove(what).is_some() {
            info!("RabbitMQ gives access again: {what} works");
        }
    }

    /// One refusal that stands.
    pub(super) fn first(&self) -> Option<String> {
        self.locked().first_key_value().map(|(what, why)| format!("{what}: {why}"))
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
