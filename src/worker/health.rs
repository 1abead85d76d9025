//! The health of a worker: the record that its heartbeat writes, and the handle for code in the same
//! process, for example a health endpoint.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use super::checks::{CHECKS_AT_ONCE, Check, CheckResult};
use crate::clock;
use crate::error::{Error, Kind};

/// A worker whose last heartbeat is older than this is not alive.
const STALE: Duration = Duration::from_secs(10);

/// The health of a worker on this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    /// The id of its process.
    pub pid: u32,
    /// Both connections to the broker are up.
    pub broker: bool,
    /// The broker delivers from every queue.
    pub consuming: bool,
    /// The store answers.
    pub store: bool,
    /// The access that the broker refuses to the worker's user: the object and the permission.
    #[serde(default)]
    pub refused: Option<String>,
    /// It accepts no more tasks.
    pub draining: bool,
    /// Tasks that run now.
    pub running: usize,
    /// Tasks that ended since it started.
    pub finished: u64,
    /// The time of this heartbeat.
    pub at: Timestamp,
}

impl Health {
    /// Returns the path of the file that the worker with this name renews every two seconds: in `folder`
    /// (setting `worker.health_dir`), or in the temporary folder of the system.
    #[must_use]
    pub fn file(name: &str, folder: Option<&Path>) -> PathBuf {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '_' };
        let name: String = name.chars().map(safe).collect();
        let folder = folder.map_or_else(std::env::temp_dir, Path::to_owned);
        folder.join(format!("countersign-{name}.health"))
    }

    /// Reads the last heartbeat of the worker with this name.
    ///
    /// # Errors
    /// A line for people: the file does not exist, or is unreadable.
    pub fn read(name: &str, folder: Option<&Path>) -> Result<Self, String> {
        let file = Self::file(name, folder);
        let text = std::fs::read_to_string(&file).map_err(|error| {
            format!(
                "no worker {name} here ({}: {error}); if it runs, its log says why it cannot write \
                 this file, and the setting worker.health_dir names another folder",
                file.display()
            )
        })?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Returns whether the last heartbeat is at most 10 s old.
    #[must_use]
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        Duration::try_from(now.duration_since(self.at)).unwrap_or_default() <= STALE
    }

    /// Returns why this worker is not ready to accept tasks, or `None` if it is.
    #[must_use]
    pub fn fault(&self, now: Timestamp) -> Option<&'static str> {
        match self {
            _ if !self.is_fresh(now) => Some("its last heartbeat is over 10 s old"),
            Self { broker: false, .. } => Some("it is not connected to the broker"),
            Self { draining: true, .. } => Some("it is draining"),
            Self { refused: Some(_), .. } => {
                Some("the broker refuses access to it: its log names the permission")
            }
            Self { consuming: false, .. } => Some("it does not consume every queue"),
            Self { store: false, .. } => Some("it is not connected to the store"),
            _ => None,
        }
    }
}

/// Reports the health of one worker. Cheap to clone; usable before the worker runs, and after.
#[derive(Clone, Debug)]
pub struct HealthHandle {
    health: watch::Receiver<Option<Health>>,
    checks: Vec<Check>,
}

impl HealthHandle {
    pub(super) fn new(health: watch::Receiver<Option<Health>>, checks: Vec<Check>) -> Self {
        Self { health, checks }
    }

    /// Returns whether the worker may be sent tasks: it is connected to both servers, consumes every
    /// queue and does not drain. For a readiness probe. A lost connection is seen within two seconds, a
    /// drain at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.fault().is_none()
    }

    /// Returns whether the worker need not be restarted: it has not started to consume, or its last
    /// heartbeat is at most 10 s old. For a liveness probe. Unreachable servers are no reason to restart
    /// it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let health = self.health.borrow();
        let fresh = health.as_ref().is_none_or(|health| health.is_fresh(clock::now()));
        fresh && self.health.has_changed().is_ok()
    }

    /// Returns why the worker is not ready, or `None` if it is.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        if self.health.has_changed().is_err() {
            return Some("it has ended");
        }
        match &*self.health.borrow() {
            Some(health) => health.fault(clock::now()),
            None => Some("it has not started to consume"),
        }
    }

    /// Completes when the worker is ready. Cancel safe.
    ///
    /// # Errors
    /// A timeout error that names the missing condition; closed when the worker has ended.
    pub async fn ready(&self, within: Duration) -> Result<(), Error> {
        let mut health = self.health.clone();
        let is_ready = |health: &Option<Health>| {
            health.as_ref().is_some_and(|health| health.fault(clock::now()).is_none())
        };
        match timeout(within, health.wait_for(is_ready)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Kind::Closed.into()),
            Err(_) => {
                let missing = self.fault().unwrap_or("it is now");
                let what = format!("the worker's getting ready ({missing})");
                Err(Kind::Timeout { what, after: within }.into())
            }
        }
    }

    /// Checks the worker itself, and runs every check that was registered before this handle was created:
    /// eight at a time, each for at most 5 s.
    pub async fn run_checks(&self) -> Vec<CheckResult> {
        let own = CheckResult { name: "worker".into(), fault: self.fault().map(str::to_owned) };
        let checks = stream::iter(self.checks.clone()).map(Check::perform);
        let checked: Vec<_> = checks.buffered(CHECKS_AT_ONCE).collect().await;
        std::iter::once(own).chain(checked).collect()
    }
}
