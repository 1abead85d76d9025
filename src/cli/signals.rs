//! SIGTERM and SIGINT as futures.

use tokio_util::sync::CancellationToken;

/// Completes at the first SIGTERM or SIGINT (Ctrl-C) after the call.
///
/// Where signals cannot be listened to, it never completes, and the log says so.
pub fn shutdown_signal() -> impl Future<Output = ()> {
    let mut signals = Signals::listen();
    async move { signals.next().await }
}

/// Two futures: the first signal asks for a drain, the second one hurries it. Both listen from the
/// call on.
pub(super) fn drain_signals() -> (impl Future<Output = ()>, impl Future<Output = ()>) {
    let mut signals = Signals::listen();
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let (drain, hurry) = (first.clone(), second.clone());
    tokio::spawn(async move {
        signals.next().await;
        first.cancel();
        signals.next().await;
        second.cancel();
    });
    (drain.cancelled_owned(), hurry.cancelled_owned())
}

#[cfg(unix)]
struct Signals(Vec<tokio::signal::unix::Signal>);

#[cfg(unix)]
impl Signals {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            let said = |error: &_| tracing::error!("cannot listen for {kind:?}: {error}");
            signal(kind).inspect_err(said).ok()
        };
        let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
        Self(kinds.into_iter().filter_map(listen).collect())
    }

    async fn next(&mut self) {
        let mut waits: Vec<_> = self.0.iter_mut().map(|one| Box::pin(one.recv())).collect();
        if waits.is_empty() {
            std::future::pending::<()>().await;
        }
        futures_util::future::select_all(waits.drain(..)).await;
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
