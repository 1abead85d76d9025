//! Another process, which takes a message and is killed with it in its hands. It is this program
//! again, told by its environment to be that.

use std::env;
use std::process::Stdio;

use countersign::Config;
use countersign::backend::{Queue, connect};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const BROKER: &str = "CONFORMANCE_HOLDER_BROKER";
const STORE: &str = "CONFORMANCE_HOLDER_STORE";
const QUEUE: &str = "CONFORMANCE_HOLDER_QUEUE";
const HOLDS: &str = "it holds a message";

/// A process that has a message in its hands. Killed when dropped.
pub(crate) struct Holder {
    process: Child,
}

impl Holder {
    /// One that has taken the first message of this queue.
    pub(crate) async fn start(config: &Config, queue: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "holder::holds_a_message", "--nocapture"]);
        command.env(BROKER, config.broker_url.reveal()).env(STORE, config.store_url.reveal());
        command.env(QUEUE, queue).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        while !lines.next_line().await.unwrap().expect("it holds a message").contains(HOLDS) {}
        Self { process }
    }

    /// As `kill -9` does.
    pub(crate) async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }
}

/// Does nothing, unless this process was started to do it.
#[tokio::test(flavor = "multi_thread")]
async fn holds_a_message() {
    let (Ok(broker), Ok(store), Ok(queue)) = (env::var(BROKER), env::var(STORE), env::var(QUEUE))
    else {
        return;
    };
    let backends = connect(&Config::new(&broker, &store).unwrap()).unwrap();
    let _held = backends.broker.consume(&Queue::new(queue), 1).next().await.unwrap();
    println!("{HOLDS}");
    std::future::pending::<()>().await;
}
