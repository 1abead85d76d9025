//! SIGTERM, SIGINT and SIGHUP as futures.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// Signals within this time count as one, because supervisors signal both the process and its group.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// Completes at the first SIGTERM, SIGINT (Ctrl-C) or SIGHUP after the call. A SIGHUP that was ignored
/// when the process started, as under `nohup`, stays ignored.
///
/// If signal handlers cannot be installed, it never completes, and logs an error.
pub fn shutdown_signal() -> impl Future<Output = ()> {
    let mut signals = Signals::listen();
    async move { signals.next().await }
}

/// Returns two futures: the first signal requests a drain; another one, at least a second later, forces the
/// shutdown. Both listen from the call on.
pub fn drain_signals() -> (impl Future<Output = ()>, impl Future<Output = ()>) {
    let mut signals = Signals::listen();
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let (drain, force) = (first.clone(), second.clone());
    tokio::spawn(async move {
        signals.next().await;
        // Read before the drain begins: an observer may measure the second from the beginning of the drain.
        let begun = Instant::now();
        first.cancel();
        loop {
            signals.next().await;
            if begun.elapsed() >= SAME_SIGNAL {
                return second.cancel();
            }
        }
    });
    (drain.cancelled_owned(), force.cancelled_owned())
}

#[cfg(unix)]
struct Signals(Vec<tokio::signal::unix::Signal>);

#[cfg(unix)]
impl Signals {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            let log = |error: &_| tracing::error!("cannot listen for {kind:?}: {error}");
            signal(kind).inspect_err(log).ok()
        };
        let mut kinds = vec![SignalKind::terminate(), SignalKind::interrupt()];
        if !is_hangup_ignored() {
            kinds.push(SignalKind::hangup());
        }
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

/// Returns whether SIGHUP is ignored, by the mask that Linux reports. Elsewhere it counts as not ignored.
#[cfg(unix)]
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // SIGHUP is signal 1, the lowest bit.
    mask.is_some_and(|mask| mask & 1 == 1)
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
