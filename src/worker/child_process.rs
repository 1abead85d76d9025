//! The child process that runs quarantined tasks.

use std::process::Stdio;

use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How the child process of a worker is started.
pub(super) struct ChildProcess {
    start: Box<dyn Fn() -> std::process::Command + Send + Sync>,
    /// Notified when a task was moved to a quarantine queue.
    moved: Notify,
}

impl ChildProcess {
    pub(super) fn new(start: impl Fn() -> std::process::Command + Send + Sync + 'static) -> Self {
        Self { start: Box::new(start), moved: Notify::new() }
    }

    /// Notifies the supervisor that a task was moved to a quarantine queue.
    pub(super) fn notify(&self) {
        self.moved.notify_one();
    }

    /// Completes when a task was moved to a quarantine queue. Cancel safe.
    pub(super) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Runs a child to its end. Fails if the child crashed or could not be started.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<(), ()> {
        let mut child = self.spawn().map_err(|error| {
            error!("cannot start a process for quarantined tasks: {error}; trying again");
        })?;
        info!(pid = child.id(), "started a process for quarantined tasks");
        // The child drains when its standard input ends.
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

    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::from((self.start)());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
    }
}
