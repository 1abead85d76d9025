//! Whether the database takes writes, for the worker's readiness and for calls that wait until it does.

use tokio::sync::watch;
use tracing::{error, info};

/// The state of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Available,
    /// The last transaction could not be committed. The next one may succeed.
    Failing,
    /// The file was deleted or replaced; contains the reason. This is permanent: other processes cannot
    /// see writes to an open file that has no name.
    Lost(String),
}

/// Shared by all users of one database in this process.
#[derive(Debug)]
pub(super) struct Availability(watch::Sender<State>);

impl Default for Availability {
    fn default() -> Self {
        Self(watch::Sender::new(State::Available))
    }
}

impl Availability {
    /// Returns whether the last writing transaction was committed, and the file still exists.
    pub(super) fn is_available(&self) -> bool {
        *self.0.borrow() == State::Available
    }

    /// Completes when the database is available. Cancel safe.
    pub(super) async fn available(&self) {
        let mut state = self.0.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| *state == State::Available).await;
    }

    /// Records that a writing transaction was committed (`true`), or that one could not be committed.
    pub(super) fn set(&self, committed: bool, shown: &str) {
        let next = if committed { State::Available } else { State::Failing };
        self.0.send_if_modified(|state| {
            let changes = *state != next && !matches!(state, State::Lost(_));
            if changes {
                if committed {
                    info!(database = shown, "the database accepts writes again");
                }
                state.clone_from(&next);
            }
            changes
        });
    }

    /// Records that the file was deleted or replaced.
    pub(super) fn set_lost(&self, shown: &str, fault: &str) {
        self.0.send_if_modified(|state| {
            if matches!(state, State::Lost(_)) {
                return false;
            }
            let cause = format!("{fault} while in use: restart this process");
            error!(
                database = shown,
                cause,
                "the database file was replaced; this process accepts no more tasks and results"
            );
            *state = State::Lost(cause);
            true
        });
    }

    /// Returns why the file is permanently gone, if it is.
    pub(super) fn lost(&self) -> Option<String> {
        match &*self.0.borrow() {
            State::Lost(cause) => Some(cause.clone()),
            State::Available | State::Failing => None,
        }
    }
}
