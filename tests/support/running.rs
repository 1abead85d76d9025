//! A worker and its producer in one process.

use countersign::{Client, Config, DrainReport, Error, Task, Worker};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{TIMEOUT, queue_name, servers};

/// A worker and a client in this process, on the servers that all tests share.
#[derive(Debug)]
pub struct Running {
    /// The client of the producer.
    pub client: Client,
    /// The queue that the worker consumes.
    pub queue: String,
    stop: oneshot::Sender<()>,
    worker: JoinHandle<Result<DrainReport, Error>>,
}

impl Running {
    /// Starts a worker, which `build` configures.
    pub async fn start(build: impl FnOnce(Worker) -> Worker) -> Self {
        let servers = servers();
        let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
        Self::start_with(&config, build).await
    }

    /// Starts a worker with the settings of the test.
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
        handle.result_within(TIMEOUT).await
    }

    /// Drains the worker and closes the client.
    pub async fn drain(self) -> DrainReport {
        self.stop.send(()).unwrap();
        let drained = self.worker.await.unwrap().unwrap();
        self.client.close().await;
        drained
    }
}
