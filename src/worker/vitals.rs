//! How a worker of this process is doing, for whoever asks inside of it: a health endpoint, say.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Health;
use crate::clock;
use crate::error::{Error, Kind};

/// Checks that run at once.
const CHECKS_AT_ONCE: usize = 8;
const CHECK_DEADLINE: Duration = Duration::from_secs(5);

/// Asks something that handlers depend on whether it is there.
#[derive(Clone)]
pub(super) struct Check {
    name: Arc<str>,
    ask: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
}

impl Check {
    pub(super) fn new<F, Fut, E>(name: &str, ask: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let ask = move || ask().map(|answer| answer.map_err(|error| error.to_string())).boxed();
        Self { name: name.into(), ask: Arc::new(ask) }
    }

    async fn perform(self) -> Checked {
        let asked = AssertUnwindSafe(async { (self.ask)().await }).catch_unwind();
        let fault = match timeout(CHECK_DEADLINE, asked).await {
            Ok(Ok(answer)) => answer.err(),
            Ok(Err(_)) => Some("it panicked".to_owned()),
            Err(_) => Some(format!("no answer within {} s", CHECK_DEADLINE.as_secs())),
        };
        Checked { name: self.name.to_string(), fault }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Its name; `worker` is the worker's own.
    pub name: String,
    /// What is wrong, for people.
    pub fault: Option<String>,
}

/// How one worker is doing. Cheap to clone; it may be asked before the worker runs, and after.
#[derive(Clone, Debug)]
pub struct Vitals {
    health: watch::Receiver<Option<Health>>,
    checks: Vec<Check>,
}

impl Vitals {
    pub(super) fn new(health: watch::Receiver<Option<Health>>, checks: Vec<Check>) -> Self {
        Self { health, checks }
    }

    /// It may be sent tasks: connected to both servers, consuming every queue, not draining. What a
    /// readiness probe asks. A lost connection is seen within two seconds, a drain at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.fault().is_none()
    }

    /// It need not be restarted: it has not started to work, or it has given a sign of life in the
    /// last 10 s. What a liveness probe asks. Servers that are away are no reason to restart it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let health = self.health.borrow();
        let fresh = health.as_ref().is_none_or(|health| health.is_fresh(clock::now()));
        fresh && self.health.has_changed().is_ok()
    }

    /// Why it is not ready, if it is not.
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

    /// Completes when it is ready. Cancel safe.
    ///
    /// # Errors
    /// A timeout error that says what was missing; closed when the worker has ended.
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

    /// The worker itself, and every check that it was given before these vitals were taken: eight at
    /// a time, each for at most 5 s.
    pub async fn examine(&self) -> Vec<Checked> {
        let own = Checked { name: "worker".into(), fault: self.fault().map(str::to_owned) };
        let checks = stream::iter(self.checks.clone()).map(Check::perform);
        let checked: Vec<_> = checks.buffered(CHECKS_AT_ONCE).collect().await;
        std::iter::once(own).chain(checked).collect()
    }
}
