//! A promise, and how it is held against a backend.

use std::any::{Any, type_name};
use std::io::Write;
use std::panic::AssertUnwindSafe;

use countersign::backend::Capability;
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::timeout;

use crate::ground::{Ground, PATIENCE};
use crate::land::Land;

/// Promises that are held against a backend at a time.
const AT_ONCE: usize = 8;
/// Asks only for promises with this in their names.
const ONLY: &str = "CONFORMANCE";

/// Something that every backend does, unless it lacks what that needs.
pub(crate) struct Promise {
    /// Its file and its function.
    name: &'static str,
    needs: Option<Capability>,
    keep: Box<dyn Fn(Ground) -> LocalBoxFuture<'static, ()>>,
}

/// The promise that this function checks: it panics when it is broken.
pub(crate) fn promise<P, F>(keep: P) -> Promise
where
    P: Fn(Ground) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let path = type_name::<P>();
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    Promise { name, needs: None, keep: Box::new(move |ground| Box::pin(keep(ground))) }
}

impl Promise {
    /// Passed over on a backend that lacks this.
    pub(crate) fn needs(self, capability: Capability) -> Self {
        Self { needs: Some(capability), ..self }
    }

    /// What is broken, if it is.
    async fn held_against(self, land: &Land) -> Option<String> {
        let (ground, lot) = timeout(PATIENCE, land.ground()).await.expect("a connection");
        let kept = AssertUnwindSafe((self.keep)(ground)).catch_unwind();
        let fault = match timeout(PATIENCE, kept).await {
            Ok(Ok(())) => None,
            Ok(Err(panic)) => Some(said(&*panic)),
            Err(_) => Some(format!("stuck for {} s", PATIENCE.as_secs())),
        };
        lot.give_back(land).await;
        fault.map(|fault| format!("{}: {fault}", self.name))
    }
}

/// Holds all of these against a backend.
pub(crate) async fn keep_all(backend: &str, land: &Land, mut promises: Vec<Promise>) {
    if let Ok(only) = std::env::var(ONLY) {
        promises.retain(|promise| promise.name.contains(&only));
    }
    let lacks = land.lacks().await;
    let is_lacking = |promise: &Promise| promise.needs.is_some_and(|it| lacks.contains(&it));
    let (passed_over, asked): (Vec<_>, Vec<_>) = promises.into_iter().partition(is_lacking);
    let count = asked.len();
    let held = stream::iter(asked).map(|promise| promise.held_against(land));
    let broken: Vec<_> =
        held.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;

    let lacks: Vec<_> = lacks.iter().map(|capability| capability.as_str()).collect();
    let lacks = if lacks.is_empty() { "nothing".to_owned() } else { lacks.join(", ") };
    say(&format!("{backend}: keeps {} of {count} promises; lacks {lacks}", count - broken.len()));
    for Promise { name, needs, .. } in passed_over {
        say(&format!(
            "{backend}: not asked for {name}: needs {}",
            needs.map_or("", |it| it.as_str())
        ));
    }
    assert!(broken.is_empty(), "{backend} breaks promises:\n{}", broken.join("\n"));
}

/// Past the capture of the test's output: what a backend lacks is to be seen.
fn say(line: &str) {
    // Nobody may look.
    let _ = writeln!(std::io::stderr(), "conformance: {line}");
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panics".into())
}
