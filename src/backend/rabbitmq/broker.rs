//! The broker over RabbitMQ.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::channel_pool::ChannelPool;
use super::connection::ConnectionHandle;
use super::publish_job::{PublishJob, PublishResult};
use super::refusals::Refusals;
use super::settings::RabbitSettings;
use super::topology::Declared;
use super::{consume, control, fetch, publish, server_version, topology};
use crate::backend::{
    Broker, Connection, Control, Deliveries, Fetched, PublishRequest, Queue, QueueState, Recorded,
    sealed,
};
use crate::error::{Error, Kind};
use crate::protocol::HEADER_LIMIT;

const JOB_CAPACITY: usize = 4096;
const CONTROL_CAPACITY: usize = 64;
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// [`Broker`] over RabbitMQ.
#[derive(Debug)]
pub(crate) struct Rabbit {
    publishing: ConnectionHandle,
    consuming: ConnectionHandle,
    /// Taken at close: the publisher ends when its last job is answered.
    jobs: Mutex<Option<mpsc::Sender<PublishJob>>>,
    publisher: TaskTracker,
    consumers: TaskTracker,
    acks: TaskTracker,
    connections: TaskTracker,
    refusals: Refusals,
    runtime: Handle,
    settings: Arc<RabbitSettings>,
}

impl Rabbit {
    /// Starts to connect in the background. An unreachable server is not an error.
    pub(crate) fn start(settings: RabbitSettings) -> Arc<Self> {
        let settings = Arc::new(settings);
        let connections = TaskTracker::new();
        let refusals = Refusals::default();
        let start = |role| {
            ConnectionHandle::start(Arc::clone(&settings), role, &connections, refusals.clone())
        };
        let (publishing, consuming) = (start("publish"), start("consume"));
        let (jobs, queue) = mpsc::channel(JOB_CAPACITY);
        let publisher = TaskTracker::new();
        publisher.spawn(publish::run(publishing.clone(), queue));
        Arc::new(Self {
            publishing,
            consuming,
            jobs: Mutex::new(Some(jobs)),
            publisher,
            consumers: TaskTracker::new(),
            acks: TaskTracker::new(),
            connections,
            refusals,
            runtime: Handle::current(),
            settings,
        })
    }

    fn jobs(&self) -> Option<mpsc::Sender<PublishJob>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, mut request: PublishRequest) -> Result<Recorded, Error> {
        let size = request.message.header_bytes();
        if size > HEADER_LIMIT {
            let (what, setting) = ("the task's header table", "fixed");
            return Err(Kind::TooLarge { what, size, limit: HEADER_LIMIT, setting }.into());
        }
        let deadline = Instant::now() + request.timeout;
        loop {
            match self.attempt(&request, deadline).await? {
                PublishResult::Confirmed => return Ok(Recorded::new(request.message.id)),
                PublishResult::Failed(error) => return Err(error),
                PublishResult::Unknown(why) => {
                    debug!(
                        "unknown whether task {} was published: {why}; publishing it again",
                        request.message.id
                    );
                    // A worker that receives this copy reads the stored result first. The original may
                    // still arrive after it, unmarked; then the task runs once more.
                    request.message.mark_returned();
                }
            }
        }
    }

    async fn attempt(
        &self,
        request: &PublishRequest,
        deadline: Instant,
    ) -> Result<PublishResult, Error> {
        let (done, result) = oneshot::channel();
        let jobs = self.jobs().ok_or(Kind::Closed)?;
        // Encoded only once the channel has capacity, because an encoded message is large.
        let permit = jobs.reserve().await.map_err(|_| Kind::Closed)?;
        permit.send(PublishJob::new(request, deadline, done)?);
        drop(jobs);
        result.await.map_err(|_| Kind::Closed.into())
    }
}

impl Rabbit {
    /// Sends a request to the broker over the consuming connection, because the publishing one may be
    /// blocked. `work` has its own deadline; the wait for a connection has one here. Both run on the
    /// broker's own runtime, because the caller's may be another one.
    async fn with_connection<T, Fut>(
        &self,
        work: impl FnOnce(ChannelPool) -> Fut + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        Fut: Future<Output = Result<T, String>> + Send,
    {
        let (handle, connect_timeout) = (self.consuming.clone(), self.settings.connect_timeout);
        let peer = || "RabbitMQ".to_owned();
        let task = self.runtime.spawn(async move {
            let Ok(live) = timeout(connect_timeout, handle.live()).await else {
                let cause = format!("no connection within {} s", connect_timeout.as_secs_f64());
                return Err(Error::new(Kind::Connection { peer: peer(), cause }));
            };
            let channels = live.ok_or(Kind::Closed)?.channels;
            work(channels).await.map_err(|cause| Kind::Connection { peer: peer(), cause }.into())
        });
        task.await.map_err(|_| Kind::Closed)?
    }
}

impl sealed::Sealed for Rabbit {}

impl Broker for Rabbit {
    fn publish(&self, request: PublishRequest) -> BoxFuture<'_, Result<Recorded, Error>> {
        self.send(request).boxed()
    }

    fn declare(&self, queue: &Queue) -> BoxFuture<'_, Result<(), Error>> {
        let queue = queue.clone();
        async move {
            let name = queue.name.clone();
            let work =
                |channels: ChannelPool| async move { topology::compare(&channels, &queue).await };
            match self.with_connection(work).await? {
                Declared::Matches => Ok(()),
                Declared::Differs(cause) => Err(Kind::QueueMismatch { queue: name, cause }.into()),
            }
        }
        .boxed()
    }

    fn fetch(&self, queue: &str, count: usize) -> BoxFuture<'_, Result<Fetched, Error>> {
        let (queue, acks) = (queue.to_owned(), self.acks.clone());
        let work = move |channels: ChannelPool| async move {
            fetch::fetch(&channels, &queue, count, &acks).await
        };
        self.with_connection(work).boxed()
    }

    fn inspect(&self, queue: &str) -> BoxFuture<'_, Result<Option<QueueState>, Error>> {
        let queue = queue.to_owned();
        let work =
            move |channels: ChannelPool| async move { fetch::inspect(&channels, &queue).await };
        self.with_connection(work).boxed()
    }

    fn purge(&self, queue: &str) -> BoxFuture<'_, Result<u64, Error>> {
        let queue = queue.to_owned();
        let work =
            move |channels: ChannelPool| async move { fetch::purge(&channels, &queue).await };
        self.with_connection(work).boxed()
    }

    fn delete(&self, queue: &Queue) -> BoxFuture<'_, Result<Option<u64>, Error>> {
        let queue = queue.clone();
        let work =
            move |channels: ChannelPool| async move { fetch::delete(&channels, &queue).await };
        self.with_connection(work).boxed()
    }

    fn consume(&self, queue: &Queue, prefetch: u16) -> Deliveries {
        let (deliver, incoming) = mpsc::channel(usize::from(prefetch).max(1));
        let (stop, stopped) = oneshot::channel();
        let (consuming_sender, consuming) = watch::channel(false);
        let consumer = consume::QueueConsumer {
            handle: self.consuming.clone(),
            queue: queue.clone(),
            prefetch,
            silence_limit: self.settings.silence_limit,
            deliver,
            consuming: consuming_sender,
            acks: self.acks.clone(),
        };
        self.consumers.spawn_on(consumer.run(stopped), &self.runtime);
        Deliveries { incoming, consuming, stop: Some(stop) }
    }

    fn version(&self) -> BoxFuture<'_, Result<String, Error>> {
        let settings = Arc::clone(&self.settings);
        async move {
            let task = self.runtime.spawn(async move {
                let mut version = Err("no address given".to_owned());
                for address in &settings.addresses {
                    version = server_version::version(address, settings.tls.as_ref()).await;
                    if version.is_ok() {
                        break;
                    }
                }
                version
            });
            let version = task.await.map_err(|_| Kind::Closed)?;
            version.map_err(|cause| Kind::Connection { peer: "RabbitMQ".into(), cause }.into())
        }
        .boxed()
    }

    fn control(&self, node: &str) -> Control {
        let (deliver, incoming) = mpsc::channel(CONTROL_CAPACITY);
        let (replies, replies_receiver) = mpsc::channel(CONTROL_CAPACITY);
        let mailbox = control::Mailbox {
            node: node.to_owned(),
            consuming: self.consuming.clone(),
            publishing: self.publishing.clone(),
            deliver,
            replies: replies_receiver,
        };
        self.connections.spawn_on(mailbox.run(), &self.runtime);
        Control { incoming, replies }
    }

    fn refusal(&self) -> Option<String> {
        self.refusals.first()
    }
}

impl Connection for Rabbit {
    fn connected(&self) -> BoxFuture<'_, ()> {
        async {
            self.publishing.live().await;
            self.consuming.live().await;
        }
        .boxed()
    }

    fn is_connected(&self) -> bool {
        self.publishing.current().is_some() && self.consuming.current().is_some()
    }

    fn connect_error(&self) -> Option<String> {
        self.publishing.connect_error().or_else(|| self.consuming.connect_error())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
            for tracker in [&self.publisher, &self.consumers, &self.acks, &self.connections] {
                tracker.close();
            }
            let flushed = async {
                self.consumers.wait().await;
                self.acks.wait().await;
                self.publisher.wait().await;
            };
            let _ = timeout(CLOSE_DEADLINE, flushed).await;
            self.publishing.close();
            self.consuming.close();
            let _ = timeout(CLOSE_DEADLINE, self.connections.wait()).await;
        }
        .boxed()
    }
}
