//! Quarantined tasks run in a child process of the worker: the next crash is theirs alone, and no other
//! task waits for them.
//!
//! A task that was running during two crashes is moved to `<queue>.countersign-quarantine`. The child
//! consumes only these queues, one message at a time, and ends when they have been empty for a while,
//! or when its standard input ends: its parent drains, or is gone. What is left then is run by the
//! child of another worker.

use std::fmt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Crew;

/// How often the quarantine queues are looked at without a notification: another worker may have died
/// before its child ran what it had moved there.
const LOOK: Duration = Duration::from_secs(30);
/// The same after a child has crashed: the broker returns its message within moments.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A child without work ends after this long.
const IDLE: Duration = Duration::from_secs(10);

/// How the child process of a worker is started.
pub(super) struct Isolation {
    start: Box<dyn Fn() -> std::process::Command + Send + Sync>,
    wake: Notify,
}

impl fmt::Debug for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Isolation")
    }
}

impl Isolation {
    pub(super) fn new(start: impl Fn() -> std::process::Command + Send + Sync + 'static) -> Self {
        Self { start: Box::new(start), wake: Notify::new() }
    }

    /// A task has been moved to a quarantine queue.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::from((self.start)());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
    }
}

/// Starts a child whenever quarantined tasks wait, until `stop`; completes when the last child has
/// ended. `None`: this worker isolates nothing.
pub(super) fn supervise(crew: &Arc<Crew>, stop: CancellationToken) -> Option<JoinHandle<()>> {
    crew.isolation.as_ref()?;
    let crew = Arc::clone(crew);
    Some(tokio::spawn(async move {
        let Some(isolation) = &crew.isolation else { return };
        let mut look = Duration::ZERO;
        while !stop.is_cancelled() {
            let waiting = async {
                let _ = timeout(look, isolation.wake.notified()).await;
                has_work(&crew).await
            };
            look = match stop.run_until_cancelled(waiting).await {
                None => return,
                Some(false) => LOOK,
                Some(true) => match run_child(isolation, &stop).await {
                    Ok(()) => Duration::ZERO,
                    Err(()) => LOOK_AGAIN,
                },
            };
        }
    }))
}

/// Whether tasks wait in a quarantine queue that no child consumes.
async fn has_work(crew: &Crew) -> bool {
    for (queue, _) in &crew.queues {
        match crew.backends.broker.inspect(&queue.quarantine().name).await {
            Ok(Some(state)) if state.ready > 0 && state.consumers == 0 => return true,
            Ok(_) => {}
            Err(error) => warn!("cannot look into the quarantine of {}: {error}", queue.name),
        }
    }
    false
}

/// Runs a child to its end. An error: it crashed, or could not be started.
async fn run_child(isolation: &Isolation, stop: &CancellationToken) -> Result<(), ()> {
    let mut child = isolation.spawn().map_err(|error| {
        error!("cannot start a process for quarantined tasks: {error}; trying again");
    })?;
    info!(pid = child.id(), "started a process for quarantined tasks");
    // Its end is the child's sign to drain.
    let stdin = child.stdin.take();
    let ended = tokio::select! {
        ended = child.wait() => ended,
        () = stop.cancelled() => {
            drop(stdin);
            child.wait().await
        }
    };
    match ended {
        Ok(status) if status.code().is_some() => Ok(()),
        Ok(status) => {
            warn!(
                "the process for quarantined tasks crashed ({status}): its task is delivered again"
            );
            Err(())
        }
        Err(error) => {
            warn!("cannot wait for the process for quarantined tasks: {error}");
            Err(())
        }
    }
}

/// Completes when an isolated worker has had nothing to do for a while.
pub(super) async fn idle(crew: &Crew) {
    let mut finished = 0;
    loop {
        sleep(IDLE).await;
        let now = crew.finished.load(Ordering::Relaxed);
        if crew.tasks.is_empty() && now == finished {
            return;
        }
        finished = now;
    }
}
