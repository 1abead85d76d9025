//! Operations that the broker refuses to this process's user.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

/// Current refusals, by operation. The log reports each one once, and readiness reads them. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Arc<Mutex<BTreeMap<String, String>>>);

impl Refusals {
    /// Records that `what` was refused. Logs it unless the reason is the same as before.
    pub(super) fn note(&self, what: &str, why: &str) {
        if self.locked().insert(what.to_owned(), why.to_owned()).as_deref() != Some(why) {
            error!("RabbitMQ refuses access: {what} does not work: {why}");
        }
    }

    /// Records that `what` has succeeded.
    pub(super) fn clear(&self, what: &str) {
        if self.locked().remove(what).is_some() {
            info!("RabbitMQ grants access again: {what} works");
        }
    }

    /// Returns one current refusal.
    pub(super) fn first(&self) -> Option<String> {
        self.locked().first_key_value().map(|(what, why)| format!("{what}: {why}"))
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
