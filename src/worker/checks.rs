//! Checks of the dependencies of a worker's handlers.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::time::timeout;

/// The number of checks that run concurrently.
pub(super) const CHECKS_AT_ONCE: usize = 8;
const CHECK_DEADLINE: Duration = Duration::from_secs(5);

/// Checks a dependency of the handlers.
#[derive(Clone)]
pub(super) struct Check {
    name: Arc<str>,
    check: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
}

impl Check {
    pub(super) fn new<F, Fut, E>(name: &str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let check = move || check().map(|result| result.map_err(|error| error.to_string())).boxed();
        Self { name: name.into(), check: Arc::new(check) }
    }

    pub(super) async fn perform(self) -> CheckResult {
        let checked = AssertUnwindSafe(async { (self.check)().await }).catch_unwind();
        let fault = match timeout(CHECK_DEADLINE, checked).await {
            Ok(Ok(result)) => result.err(),
            Ok(Err(_)) => Some("it panicked".to_owned()),
            Err(_) => Some(format!("no answer within {} s", CHECK_DEADLINE.as_secs())),
        };
        CheckResult { name: self.name.to_string(), fault }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// The name of the check; `worker` is the worker's own.
    pub name: String,
    /// The fault, as text for people; `None` if the check passed.
    pub fault: Option<String>,
}
