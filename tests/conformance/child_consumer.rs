//! A child process that receives a message and is killed while it holds it.

use std::process::Stdio;

use countersign::Config;
use support::roles::{self, hold::HOLDS};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

/// A process that holds a message. Killed when dropped.
pub(crate) struct ChildConsumer {
    process: Child,
}

impl ChildConsumer {
    /// Starts a process, and waits until it has received the first message of this queue.
    pub(crate) async fn start(config: &Config, queue: &str) -> Self {
        let urls = [config.broker_url.reveal(), config.store_url.reveal()];
        let mut command = roles::command("hold", &[urls[0], urls[1], queue]);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some(HOLDS));
        Self { process }
    }

    /// Kills it as `kill -9` does.
    pub(crate) async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }
}
