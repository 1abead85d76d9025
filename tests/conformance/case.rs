//! A conformance case, and how it runs on a backend.

use std::any::{Any, type_name};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use countersign::backend::Capability;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use libtest_mimic::{Failed, Trial};
use support::TIMEOUT;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::backend::Backend;
use crate::fixture::Fixture;

/// A behaviour that every backend has, unless it lacks the needed capability.
pub(crate) struct Case {
    /// The names of its file and its function.
    name: &'static str,
    needs: Option<Capability>,
    run: Box<dyn Fn(Fixture) -> LocalBoxFuture<'static, ()> + Send>,
}

/// Returns the case that this function checks: the function panics if the case fails.
pub(crate) fn case<P, F>(run: P) -> Case
where
    P: Fn(Fixture) -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let path = type_name::<P>();
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    Case { name, needs: None, run: Box::new(move |fixture| Box::pin(run(fixture))) }
}

impl Case {
    /// Skips the case on a backend without this capability.
    pub(crate) fn needs(self, capability: Capability) -> Self {
        Self { needs: Some(capability), ..self }
    }

    /// Returns the test of this case on a backend. A case that needs a missing capability is ignored.
    pub(crate) fn on(
        self,
        backend: &Arc<Backend>,
        missing: &[Capability],
        runtime: &Handle,
    ) -> Trial {
        let lacks = self.needs.filter(|needed| missing.contains(needed));
        let (backend, runtime, name) = (Arc::clone(backend), runtime.clone(), self.name);
        let name = format!("{}::{name}", backend.label());
        let trial = Trial::test(name, move || runtime.block_on(self.run_on(&backend)));
        match lacks {
            Some(lacks) => {
                trial.with_ignored_flag(true).with_kind(format!("no {}", lacks.as_str()))
            }
            None => trial,
        }
    }

    async fn run_on(self, backend: &Backend) -> Result<(), Failed> {
        let (fixture, cleanup) = timeout(TIMEOUT, backend.fixture()).await?;
        let outcome = AssertUnwindSafe((self.run)(fixture)).catch_unwind();
        let outcome = match timeout(TIMEOUT, outcome).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(panic)) => Err(panic_text(&*panic).into()),
            Err(_) => Err(format!("not done after {} s", TIMEOUT.as_secs()).into()),
        };
        cleanup.run(backend).await;
        outcome
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}
