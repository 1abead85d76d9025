//! Reports of how runs ended, for a program that shows them to a user.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::outcome::Outcome;
use crate::protocol::Envelope;
use crate::task::TaskId;

/// The end of one run of a task.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The task's type.
    pub name: String,
    /// The id of the task.
    pub id: TaskId,
    /// The outcome of the run, for people.
    pub outcome: String,
    /// The duration of the run.
    pub took: Duration,
}

type Report = Arc<dyn Fn(RunReport) + Send + Sync>;

/// Calls the report function, if there is one, at the end of every run. It must not block.
#[derive(Clone, Default)]
pub(super) struct Observer(Option<Report>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

impl Observer {
    #[cfg(feature = "unstable")]
    pub(super) fn new(report: impl Fn(RunReport) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(report)))
    }

    /// Returns the start of a run, or `None` if there is no report function.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.0.is_some().then(Instant::now)
    }

    /// Reports a run that began at `began`.
    pub(super) fn end(&self, began: Option<Instant>, envelope: &Envelope, outcome: &Outcome) {
        if let (Some(report), Some(began), Some(outcome)) = (&self.0, began, shown(outcome)) {
            let (name, id) = (envelope.name.clone(), envelope.id.clone());
            report(RunReport { name, id, outcome, took: began.elapsed() });
        }
    }
}

/// Returns the outcome as text, or `None` if the run has not begun yet.
fn shown(outcome: &Outcome) -> Option<String> {
    let shown = match outcome {
        Outcome::Done(_) => "succeeded",
        Outcome::Failed(_) | Outcome::Refused(_) => "failed",
        Outcome::Retry { delay, .. } => {
            return Some(format!("failed, retry in {:.1} s", delay.as_secs_f64()));
        }
        Outcome::Suspended { .. } => "suspended",
        Outcome::Revoked(_) => "revoked",
        Outcome::Unknown => "failed: no handler",
        Outcome::Poisoned(_) => "failed: it ended its worker",
        Outcome::Released => "returned to its queue",
        Outcome::Postponed(_)
        | Outcome::Limited(_)
        | Outcome::Outdated
        | Outcome::AlreadyEnded(_)
        | Outcome::Repeated
        | Outcome::Occupied(_)
        | Outcome::Quarantined
        | Outcome::SuspensionRefused
        | Outcome::Redelivered => return None,
    };
    Some(shown.to_owned())
}
