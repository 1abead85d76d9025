//! A worker beside its producer.

use std::time::Duration;

use countersign::{Client, Config, Drained, Error, Task, Worker};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{queue_name, servers};

const PATIENCE: Duration = Duration::from_secs(30);

/// A worker and a client in this process, on the servers that all tests share.
#[derive(Debug)]
pub struct Running {
    /// The producer's.
    pub client: Client,
    /// What the worker consumes.
    pub queue: String,
    stop: oneshot::Sender<()>,
    worker: JoinHandle<Result<Drained, Error>>,
}

impl Running {
    /// Starts a worker with what `build` adds to it.
    pub async fn start(build: impl FnOnce(Worker) -> Worker) -> Self {
        let servers = servers();
        let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
        Self::start_with(&config, build).await
    }

    /// The same, with settings of the test's own.
    pub async fn start_with(config: &Config, build: impl FnOnce(Worker) -> Worker) -> Self {
        let client = Client::connect(config).await.unwrap();
        let workers = Client::connect(config).await.unwrap();
        let queue = queue_name();
        let worker = build(Worker::new(&workers).queue(&queue).name(&queue));
        let (stop, stopped) = oneshot::channel();
        let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
        Self { client, queue, stop, worker }
    }

    /// Enqueues a task and waits for its result.
    pub async fn call<T: Task>(&self, task: T) -> Result<T::Output, Error> {
        let handle = self.client.enqueue(task).queue(&self.queue).await?;
        handle.result_within(PATIENCE).await
    }

    /// Drains the worker and closes the client.
    pub async fn drain(self) -> Drained {
        self.stop.send(()).unwrap();
        let drained = self.worker.await.unwrap().unwrap();
        self.client.close().await;
        drained
    }
}
