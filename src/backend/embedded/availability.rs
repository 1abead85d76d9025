//! Whether the database takes writes, for the worker's readiness and for those who wait until it does.

use tokio::sync::watch;
use tracing::{error, info};

/// Whether the database takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Available,
    /// The last transaction could not be committed. The next one may be.
    Failing,
    /// The file was deleted or replaced, and why this is so. It stays so: what is written into an
    /// open file without a name is visible to no process.
    Gone(String),
}

/// Shared by everyone who uses one database in this process.
#[derive(Debug)]
pub(super) struct Availability(watch::Sender<State>);

impl Default for Availability {
    fn default() -> Self {
        Self(watch::Sender::new(State::Available))
    }
}

impl Availability {
    /// The last transaction that wrote anything was committed, and the file is still there.
    pub(super) fn is_available(&self) -> bool {
        *self.0.borrow() == State::Available
    }

    /// Completes when that is so. Cancel safe.
    pub(super) async fn available(&self) {
        let mut state = self.0.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| *state == State::Available).await;
    }

    /// A transaction that wrote something was committed (`true`), or one could not be.
    pub(super) fn set(&self, committed: bool, shown: &str) {
        let next = if committed { State::Available } else { State::Failing };
        self.0.send_if_modified(|state| {
            let changes = *state != next && !matches!(state, State::Gone(_));
            if changes {
                if committed {
                    info!("{shown} takes writes again");
                }
                state.clone_from(&next);
            }
            changes
        });
    }

    /// The file is not the one that was opened any more.
    pub(super) fn set_gone(&self, shown: &str, fault: &str) {
        self.0.send_if_modified(|state| {
            if matches!(state, State::Gone(_)) {
                return false;
            }
            let cause = format!("{fault} while it was in use: restart this process");
            error!("{shown}: {cause}; it takes no more tasks and stores no more results");
            *state = State::Gone(cause);
            true
        });
    }

    /// Why it is gone for good, if it is.
    pub(super) fn gone(&self) -> Option<String> {
        match &*self.0.borrow() {
            State::Gone(cause) => Some(cause.clone()),
            State::Available | State::Failing => None,
        }
    }
}
