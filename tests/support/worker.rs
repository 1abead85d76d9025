use std::env;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use crate::TIMEOUT;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// A setting of the campaign. A worker would refuse it as an unknown setting.
const CAMPAIGN_SECONDS: &str = "COUNTERSIGN_CAMPAIGN_SECONDS";

/// A `demo` worker in a process of its own. Killed when dropped.
#[derive(Debug)]
pub struct DemoWorker {
    process: Child,
    stdout: watch::Receiver<String>,
    stderr: watch::Receiver<String>,
}

impl DemoWorker {
    /// Starts the built binary with this process's environment and `variables` in addition.
    #[must_use]
    pub fn spawn(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary("demo"));
        command.args(arguments).envs(variables.iter().copied());
        Self::start(command)
    }

    /// Starts a worker with a command that becomes one.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        let mut process = command
            .env_remove(CAMPAIGN_SECONDS)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the demo binary: build it by cargo build --workspace");
        let stdout = collect(process.stdout.take().expect("a piped stdout"));
        let stderr = collect(process.stderr.take().expect("a piped stderr"));
        Self { process, stdout, stderr }
    }

    /// Waits until it reports that it is ready.
    pub async fn ready(&self) {
        self.wait_for_log("ready").await;
    }

    /// Waits until its standard error contains `text`.
    pub async fn wait_for_log(&self, text: &str) {
        self.wait_for_logs(text, 1, TIMEOUT).await;
    }

    /// Waits until its standard error contains `text` this many times.
    pub async fn wait_for_logs(&self, text: &str, times: usize, within: Duration) {
        let mut stderr = self.stderr.clone();
        let enough = |all: &String| all.matches(text).count() >= times;
        let found = timeout(within, stderr.wait_for(enough)).await;
        if !matches!(found, Ok(Ok(_))) {
            panic!("the worker did not log {text:?}; its log:\n{}", self.stderr());
        }
    }

    /// Returns whether its standard error contains `text` within this time and before the process ends.
    pub async fn logs_within(&self, text: &str, within: Duration) -> bool {
        let mut stderr = self.stderr.clone();
        let found = timeout(within, stderr.wait_for(|all| all.contains(text))).await;
        matches!(found, Ok(Ok(_)))
    }

    /// Returns its standard error until now.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.borrow().clone()
    }

    /// Returns the number of threads and of descriptors of the process.
    #[must_use]
    pub fn threads_and_descriptors(&self) -> (usize, usize) {
        let id = self.process.id().expect("a process that has not ended");
        let count = |what: &str| {
            std::fs::read_dir(format!("/proc/{id}/{what}")).expect("Linux's /proc").count()
        };
        (count("task"), count("fd"))
    }

    /// Sends it SIGTERM, on which it drains.
    pub fn sigterm(&self) {
        self.signal("TERM");
    }

    /// Sends it this signal, named as for `kill`.
    pub fn signal(&self, signal: &str) {
        send(signal, &self.process);
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id().expect("a process that has not ended")
    }

    /// Returns its exit status if it has ended. Does not wait.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().expect("a child to wait for")
    }

    /// Kills it; the process has ended when this returns.
    pub async fn kill9(&mut self) {
        self.process.kill().await.expect("a worker that runs");
    }

    /// Waits for its end; returns all of its standard output, which is the drain report.
    pub async fn report(&mut self) -> String {
        self.wait().await;
        // The sender of the channel is dropped when the pipe is read to its end.
        while self.stdout.changed().await.is_ok() {}
        self.stdout.borrow().clone()
    }

    /// Waits for its end and returns its exit code, or `None` if a signal ended it.
    pub async fn wait(&mut self) -> Option<i32> {
        let ended = timeout(TIMEOUT, self.process.wait()).await;
        ended.expect("the worker ends in time").expect("a child to wait for").code()
    }
}

/// Reads a pipe to its end, and publishes the text as it arrives.
fn collect(mut pipe: impl AsyncRead + Unpin + Send + 'static) -> watch::Receiver<String> {
    let (written, text) = watch::channel(String::new());
    tokio::spawn(async move {
        let mut chunk = [0; 4096];
        while let Ok(size @ 1..) = pipe.read(&mut chunk).await {
            let more = String::from_utf8_lossy(&chunk[..size]);
            written.send_modify(|all| all.push_str(&more));
        }
    });
    text
}

/// Returns a binary of the folder above this test's executable, `target/<profile>/deps/<test>`.
///
/// # Panics
/// Panics when the test runs from another place.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the path of this test");
    test.ancestors().nth(2).expect("a target folder").join(name)
}

/// Signals a child that has not been waited for yet, so that no other process can have its id.
pub(crate) fn send(signal: &str, process: &Child) {
    let id = process.id().expect("a process that has not ended");
    let status = std::process::Command::new("sh")
        .args(["-c", &format!("kill -{signal} {id}")])
        .status()
        .expect("a shell");
    assert!(status.success(), "kill -{signal} {id}: {status}");
}
