//! The broker over RabbitMQ. The only folder that names lapin.
//!
//! Two connections a process, each under its own supervisor: a blocked publisher must not stop
//! acks. lapin's own recovery stays off (`DESIGN.md` says why).

mod address;
mod codec;
mod consume;
mod control;
mod fetch;
mod frame;
#[cfg(feature = "faults")]
mod fuzz;
mod greeting;
mod guard;
mod job;
mod ladder;
mod link;
mod publish;
mod refusals;
mod topology;
mod transport;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::Connection;
use lapin::uri::AMQPScheme;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::{Broker, Control, Deliveries, Fetched, Parcel, Queue, QueueState, Recorded, sealed};
use crate::error::{Error, Kind};
use crate::protocol::HEADER_LIMIT;
use address::Address;
#[cfg(feature = "faults")]
pub use fuzz::{guard_frames, read_message};
use job::{Answer, Job};
use link::Link;
use refusals::Refusals;
use topology::Declared;
use transport::Tls;

const JOB_BACKLOG: usize = 4096;
const CONTROL_BACKLOG: usize = 64;
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// What is needed to reach RabbitMQ.
#[derive(Clone, Debug)]
pub(crate) struct RabbitSettings {
    addresses: Vec<Address>,
    tls: Option<Tls>,
    connect_timeout: Duration,
    /// A connection that is silent for longer is given up.
    silence_limit: Duration,
    name: String,
}

impl RabbitSettings {
    /// Reads the URLs (joined by `;`). An error is a line for people, without passwords.
    pub(crate) fn new(
        urls: &str,
        ca_pem: Option<&str>,
        connect_timeout: Duration,
        heartbeat: Duration,
        name: &str,
    ) -> Result<Self, String> {
        let heartbeat = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX).max(1);
        let addresses = Address::parse_list(urls, heartbeat)?;
        if addresses.is_empty() {
            return Err("broker URL: it is empty".into());
        }
        let silence_limit = Duration::from_secs(heartbeat.into()) * 2;
        let is_secure = |address: &Address| address.uri.scheme == AMQPScheme::AMQPS;
        let tls = addresses.iter().any(is_secure).then(|| Tls::new(ca_pem)).transpose()?;
        Ok(Self { addresses, tls, connect_timeout, silence_limit, name: name.into() })
    }
}

/// [`Broker`] over RabbitMQ.
#[derive(Debug)]
pub(crate) struct Rabbit {
    publishing: Link,
    consuming: Link,
    /// Taken at close: the publisher ends when its last job is answered.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    publisher: TaskTracker,
    intakes: TaskTracker,
    acks: TaskTracker,
    links: TaskTracker,
    refusals: Refusals,
    runtime: Handle,
    settings: Arc<RabbitSettings>,
}

impl Rabbit {
    /// Starts connecting in the background; never fails for an absent server.
    pub(crate) fn start(settings: RabbitSettings) -> Arc<Self> {
        let settings = Arc::new(settings);
        let links = TaskTracker::new();
        let refusals = Refusals::default();
        let start = |role| Link::start(Arc::clone(&settings), role, &links, refusals.clone());
        let (publishing, consuming) = (start("publish"), start("consume"));
        let (jobs, queue) = mpsc::channel(JOB_BACKLOG);
        let publisher = TaskTracker::new();
        publisher.spawn(publish::run(publishing.clone(), queue));
        Arc::new(Self {
            publishing,
            consuming,
            jobs: Mutex::new(Some(jobs)),
            publisher,
            intakes: TaskTracker::new(),
            acks: TaskTracker::new(),
            links,
            refusals,
            runtime: Handle::current(),
            settings,
        })
    }

    fn jobs(&self) -> Option<mpsc::Sender<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, mut parcel: Parcel) -> Result<Recorded, Error> {
        let size = parcel.message.header_bytes();
        if size > HEADER_LIMIT {
            let (what, setting) = ("the task's header table", "fixed");
            return Err(Kind::TooLarge { what, size, limit: HEADER_LIMIT, setting }.into());
        }
        let deadline = Instant::now() + parcel.timeout;
        loop {
            match self.attempt(&parcel, deadline).await? {
                Answer::Confirmed => return Ok(Recorded::new(parcel.message.id)),
                Answer::Failed(error) => return Err(error),
                Answer::Unknown(why) => {
                    debug!("fate of task {} unknown: {why}; sending it again", parcel.message.id);
                    // A worker that takes this copy reads the stored result first. The original may
                    // still come after it, unmarked: that costs one more run.
                    parcel.message.mark_returned();
                }
            }
        }
    }

    async fn attempt(&self, parcel: &Parcel, deadline: Instant) -> Result<Answer, Error> {
        let (done, answer) = oneshot::channel();
        let jobs = self.jobs().ok_or(Kind::Closed)?;
        // Made once there is room for it: what a message becomes is large to keep waiting.
        let room = jobs.reserve().await.map_err(|_| Kind::Closed)?;
        room.send(Job::new(parcel, deadline, done)?);
        drop(jobs);
        answer.await.map_err(|_| Kind::Closed.into())
    }
}

impl Rabbit {
    /// Asks the broker, over the connection that consumes: the other one may be blocked. `work`
    /// has a deadline of its own; the wait for a connection has one here. Both run on our own
    /// runtime: the caller's may be another one.
    async fn ask<T, Fut>(
        &self,
        work: impl FnOnce(Arc<Connection>) -> Fut + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        Fut: Future<Output = Result<T, String>> + Send,
    {
        let (link, patience) = (self.consuming.clone(), self.settings.connect_timeout);
        let peer = || "RabbitMQ".to_owned();
        let asking = self.runtime.spawn(async move {
            let Ok(live) = timeout(patience, link.live()).await else {
                let cause = format!("no connection within {} s", patience.as_secs_f64());
                return Err(Error::new(Kind::Connection { peer: peer(), cause }));
            };
            let connection = live.ok_or(Kind::Closed)?.connection;
            work(connection).await.map_err(|cause| Kind::Connection { peer: peer(), cause }.into())
        });
        asking.await.map_err(|_| Kind::Closed)?
    }
}

impl sealed::Sealed for Rabbit {}

impl Broker for Rabbit {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<Recorded, Error>> {
        self.send(parcel).boxed()
    }

    fn declare(&self, queue: &Queue) -> BoxFuture<'_, Result<(), Error>> {
        let queue = queue.clone();
        async move {
            let name = queue.name.clone();
            let work = |connection: Arc<Connection>| async move {
                topology::compare(&connection, &queue).await
            };
            match self.ask(work).await? {
                Declared::AsWished => Ok(()),
                Declared::Otherwise(cause) => {
                    Err(Kind::QueueMismatch { queue: name, cause }.into())
                }
            }
        }
        .boxed()
    }

    fn fetch(&self, queue: &str, count: usize) -> BoxFuture<'_, Result<Fetched, Error>> {
        let (queue, acks) = (queue.to_owned(), self.acks.clone());
        let work = move |connection: Arc<Connection>| async move {
            fetch::fetch(&connection, &queue, count, &acks).await
        };
        self.ask(work).boxed()
    }

    fn inspect(&self, queue: &str) -> BoxFuture<'_, Result<Option<QueueState>, Error>> {
        let queue = queue.to_owned();
        let work = move |connection: Arc<Connection>| async move {
            fetch::inspect(&connection, &queue).await
        };
        self.ask(work).boxed()
    }

    fn purge(&self, queue: &str) -> BoxFuture<'_, Result<u64, Error>> {
        let queue = queue.to_owned();
        let work = move |connection: Arc<Connection>| async move {
            fetch::purge(&connection, &queue).await
        };
        self.ask(work).boxed()
    }

    fn delete(&self, queue: &Queue) -> BoxFuture<'_, Result<Option<u64>, Error>> {
        let queue = queue.clone();
        let work = move |connection: Arc<Connection>| async move {
            fetch::delete(&connection, &queue).await
        };
        self.ask(work).boxed()
    }

    fn consume(&self, queue: &Queue, prefetch: u16) -> Deliveries {
        let (deliver, incoming) = mpsc::channel(usize::from(prefetch).max(1));
        let (stop, stopped) = oneshot::channel();
        let (says, consuming) = watch::channel(false);
        let intake = consume::Intake {
            link: self.consuming.clone(),
            queue: queue.clone(),
            prefetch,
            silence_limit: self.settings.silence_limit,
            deliver,
            consuming: says,
            acks: self.acks.clone(),
        };
        self.intakes.spawn_on(intake.run(stopped), &self.runtime);
        Deliveries { incoming, consuming, stop: Some(stop) }
    }

    fn version(&self) -> BoxFuture<'_, Result<String, Error>> {
        let settings = Arc::clone(&self.settings);
        async move {
            let asking = self.runtime.spawn(async move {
                let mut told = Err("it has no address".to_owned());
                for address in &settings.addresses {
                    told = greeting::version(address, settings.tls.as_ref()).await;
                    if told.is_ok() {
                        break;
                    }
                }
                told
            });
            let told = asking.await.map_err(|_| Kind::Closed)?;
            told.map_err(|cause| Kind::Connection { peer: "RabbitMQ".into(), cause }.into())
        }
        .boxed()
    }

    fn control(&self, node: &str) -> Control {
        let (deliver, incoming) = mpsc::channel(CONTROL_BACKLOG);
        let (answers, to_send) = mpsc::channel(CONTROL_BACKLOG);
        let mailbox = control::Mailbox {
            node: node.to_owned(),
            consuming: self.consuming.clone(),
            publishing: self.publishing.clone(),
            deliver,
            answers: to_send,
        };
        self.links.spawn_on(mailbox.run(), &self.runtime);
        Control { incoming, answers }
    }

    fn connected(&self) -> BoxFuture<'_, ()> {
        async {
            self.publishing.live().await;
            self.consuming.live().await;
        }
        .boxed()
    }

    fn refusal(&self) -> Option<String> {
        self.refusals.first()
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
            for tracker in [&self.publisher, &self.intakes, &self.acks, &self.links] {
                tracker.close();
            }
            let flushed = async {
                self.intakes.wait().await;
                self.acks.wait().await;
                self.publisher.wait().await;
            };
            let _ = timeout(CLOSE_DEADLINE, flushed).await;
            self.publishing.close();
            self.consuming.close();
            let _ = timeout(CLOSE_DEADLINE, self.links.wait()).await;
        }
        .boxed()
    }
}
