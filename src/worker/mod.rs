//! A worker: it takes tasks from its queues, runs their handlers, and settles what came of them.

mod begin;
mod canvas;
mod claim;
mod consumer;
mod copies;
mod dead_letter;
mod detach;
mod drain;
mod execute;
mod gate;
mod handler;
mod isolation;
mod limits;
mod park;
mod pulse;
mod remote;
mod resume;
mod revoked;
mod settle;
mod suspects;
mod unsettled;
mod vitals;
mod watchdog;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::{Backends, Delivery, Queue};
use crate::client::{Client, hostname};
use crate::config::Config;
use crate::context::{Context, Surroundings};
use crate::error::{Error, Kind, TaskResult};
use crate::journal::Limits;
use crate::protocol::{Envelope, Ticket};
use crate::task::{Policy, Task, TaskId};
use consumer::Consumer;
use drain::Running;
use gate::{Gate, Slot};
use handler::Registered;
use isolation::Isolation;
use revoked::Revoked;
use suspects::Room;
use vitals::Check;

pub use drain::Drained;
#[cfg(feature = "cli")]
pub(crate) use drain::longest_drain;
pub use pulse::Health;
pub use vitals::{Checked, Vitals};

/// How long before the broker's consumer timeout a message is settled at the latest; of a short
/// timeout, a third of it.
const CONSUMER_TIMEOUT_MARGIN: Duration = Duration::from_secs(120);

/// A worker about to start: what it consumes, how much at once, and who handles what.
#[must_use = "a worker works when it is run"]
#[derive(Debug)]
pub struct Worker {
    client: Client,
    name: String,
    queues: Vec<(Queue, Option<usize>)>,
    concurrency: usize,
    prefetch: Option<u16>,
    drain_deadline: Duration,
    unknown_grace: Duration,
    hurry: Hurry,
    isolation: Option<Isolation>,
    is_isolated: bool,
    handlers: HashMap<&'static str, Registered>,
    health: watch::Sender<Option<Health>>,
    checks: Vec<Check>,
    faults: Vec<String>,
}

/// Completes when a drain is to be cut short.
struct Hurry(BoxFuture<'static, ()>);

impl fmt::Debug for Hurry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hurry")
    }
}

impl Worker {
    /// A worker on this client's connections. It has no queue until it is given one.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            name: format!("worker@{}", hostname()),
            queues: Vec::new(),
            concurrency: 16,
            prefetch: None,
            drain_deadline: Duration::from_secs(30),
            unknown_grace: Duration::ZERO,
            hurry: Hurry(Box::pin(std::future::pending())),
            isolation: None,
            is_isolated: false,
            handlers: HashMap::new(),
            health: watch::Sender::new(None),
            checks: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// The client it works with.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Consumes this queue too.
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.queues.push((Queue::configured(name, self.client.config()), None));
        self
    }

    /// Consumes this queue too, and runs at most so many of its tasks at once.
    pub fn queue_limited(mut self, name: impl Into<String>, concurrency: usize) -> Self {
        let queue = Queue::configured(name, self.client.config());
        self.queues.push((queue, Some(concurrency)));
        self
    }

    /// How long a task that no handler here knows may wait for a worker that does, before it goes
    /// to the dead letters. Not at all, unless said otherwise; a rolling deploy wants a minute.
    pub fn unknown_grace(mut self, grace: Duration) -> Self {
        self.unknown_grace = grace;
        self
    }

    /// Cuts a drain short when `signal` completes: what still runs is given back at once.
    pub fn hurry(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.hurry = Hurry(Box::pin(signal));
        self
    }

    /// Runs quarantined tasks in a child process that `start` describes, instead of holding all other
    /// tasks back while one runs. A task is quarantined when it was running during two crashes of
    /// workers.
    ///
    /// The child is to build the same worker and to call [`Worker::isolated`] on it, and is to stop
    /// when its standard input ends. [`run_worker`](crate::run_worker) does all of that by itself.
    pub fn isolate(
        mut self,
        start: impl Fn() -> std::process::Command + Send + Sync + 'static,
    ) -> Self {
        self.isolation = Some(Isolation::new(start));
        self
    }

    /// Makes this the child of a worker that isolates quarantined tasks: it consumes only them, one at
    /// a time, and ends when there have been none for ten seconds.
    pub fn isolated(mut self) -> Self {
        self.isolation = None;
        self.is_isolated = true;
        self.concurrency = 1;
        self.prefetch = Some(1);
        self.name.push_str("-quarantine");
        self
    }

    /// How many tasks run at once: 16 unless said otherwise.
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = tasks;
        self
    }

    /// How many unsettled messages of each queue the broker hands out in advance: twice the
    /// concurrency unless said otherwise.
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.prefetch = Some(messages);
        self
    }

    /// How long a drain waits for running tasks: 30 seconds unless said otherwise.
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.drain_deadline = deadline;
        self
    }

    /// What it is called in logs and in the broker's lists.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Asks something that handlers depend on whether it is there, whenever somebody wants to know;
    /// see [`Vitals::examine`].
    ///
    /// ```
    /// # fn with_check(worker: countersign::Worker) -> countersign::Worker {
    /// worker.check("scratch space", || async { std::fs::metadata("/tmp").map(drop) })
    /// # }
    /// ```
    pub fn check<F, Fut, E>(mut self, name: &str, ask: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        self.checks.push(Check::new(name, ask));
        self
    }

    /// How it is doing, for whoever asks while it runs: take them before [`Worker::run`].
    #[must_use]
    pub fn vitals(&self) -> Vitals {
        Vitals::new(self.health.subscribe(), self.checks.clone())
    }

    /// Runs `handler` for every task of its argument's type.
    ///
    /// ```
    /// # use countersign::{Context, Policy, Task, TaskResult, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize)]
    /// struct Add { x: i64, y: i64 }
    ///
    /// impl Task for Add {
    ///     const NAME: &'static str = "demo.add";
    ///     type Output = i64;
    /// }
    ///
    /// async fn add(_ctx: Context, Add { x, y }: Add) -> TaskResult<i64> {
    ///     Ok(x + y)
    /// }
    ///
    /// fn with_add(worker: Worker) -> Worker {
    ///     worker.handle(add, Policy::default())
    /// }
    /// ```
    pub fn handle<T, F, Fut>(self, handler: F, policy: Policy) -> Self
    where
        T: Task,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = TaskResult<T::Output>> + Send + 'static,
    {
        self.register(T::NAME, Registered::future(handler, policy))
    }

    /// Runs a plain function, on the pool of threads for blocking work.
    ///
    /// Nothing can stop it: after its hard limit its failure is recorded, and its slot stays taken
    /// until it returns.
    pub fn handle_blocking<T, F>(self, handler: F, policy: Policy) -> Self
    where
        T: Task,
        F: Fn(Context, T) -> TaskResult<T::Output> + Send + Sync + 'static,
    {
        self.register(T::NAME, Registered::blocking(handler, policy))
    }

    fn register(mut self, name: &'static str, registered: Registered) -> Self {
        if self.handlers.insert(name, registered).is_some() {
            self.faults.push(format!("two handlers are registered for {name}"));
        }
        self
    }

    /// Works until `shutdown` completes, then drains: takes no more, gives back what has not
    /// started, waits for what runs (until the drain deadline), and closes the client. Returns
    /// what the drain did.
    ///
    /// While a server is away it waits for it.
    ///
    /// # Errors
    /// A configuration error, before anything is consumed.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Drained, Error> {
        let (crew, hurry) = self.muster()?;
        watchdog::start();
        revoked::follow(&crew);
        if !crew.is_isolated {
            remote::listen(&crew);
        }
        let stop = CancellationToken::new();
        let mut consumers = JoinSet::new();
        let mut consuming = Vec::new();
        for (queue, limit) in &crew.queues {
            let sources = match crew.is_isolated {
                true => vec![queue.quarantine()],
                false => vec![queue.clone(), queue.resume()],
            };
            for source in sources {
                let (queue, limit) = (queue.clone(), limit.clone());
                let (says, watched) = watch::channel(false);
                consuming.push(watched);
                let consumer = Consumer { queue, source, limit, consuming: says };
                consumers.spawn(consumer.run(Arc::clone(&crew), stop.clone()));
            }
        }
        resume::sweep(&crew, stop.clone());
        let pulse = pulse::start(&crew, consuming);
        let isolation = isolation::supervise(&crew, stop.clone());
        let idle = async {
            match crew.is_isolated {
                true => isolation::idle(&crew).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = idle => {}
        }
        pulse::say_draining(&crew);
        let running = Running { consumers, isolation, pulse };
        Ok(drain::drain(&crew, &stop, running, hurry).await)
    }

    fn muster(mut self) -> Result<(Arc<Crew>, Hurry), Error> {
        let config = self.client.config().clone();
        if self.queues.is_empty() {
            self.faults.push("no queue: a worker consumes only the queues that it is given".into());
        }
        if self.concurrency == 0 {
            self.faults.push("concurrency is 0: nothing would ever run".into());
        }
        let names = self.queues.iter().filter_map(|(queue, _)| queue.check_name().err());
        self.faults.extend(names.collect::<Vec<_>>());
        if !self.faults.is_empty() {
            return Err(Kind::Config(self.faults).into());
        }
        let default_prefetch = u16::try_from(self.concurrency * 2).unwrap_or(u16::MAX);
        let queues = self.queues.into_iter().map(|(queue, slots)| (queue, slots.map(Gate::new)));
        let margin = CONSUMER_TIMEOUT_MARGIN.min(config.consumer_timeout / 3);
        let longest_hold = config.consumer_timeout.saturating_sub(margin);
        let surroundings = Surroundings {
            store: Arc::clone(&self.client.backends().store),
            limits: Limits {
                step: config.max_step,
                journal: config.max_journal,
                stream_entry: config.max_stream_entry,
            },
            sections: AtomicUsize::new(0),
            protected_until: Mutex::default(),
        };
        let step_grace = self.handlers.values().map(|handler| handler.policy.step_grace).max();
        let crew = Crew {
            step_grace: step_grace.unwrap_or_default(),
            backends: self.client.backends().clone(),
            client: self.client,
            config,
            name: self.name,
            queues: queues.collect(),
            prefetch: self.prefetch.unwrap_or(default_prefetch).max(1),
            gate: Gate::new(self.concurrency),
            isolation: self.isolation,
            is_isolated: self.is_isolated,
            longest_hold,
            drain_deadline: self.drain_deadline,
            unknown_grace: self.unknown_grace,
            room: Room::default(),
            revoked: Revoked::default(),
            handlers: self.handlers,
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
            abort: CancellationToken::new(),
            give_up: CancellationToken::new(),
            health: self.health,
            draining: AtomicBool::new(false),
            finished: AtomicU64::new(0),
            protected: AtomicU64::new(0),
            surroundings: Arc::new(surroundings),
            abandoned: Mutex::default(),
        };
        Ok((Arc::new(crew), self.hurry))
    }
}

/// What the tasks of a running worker share.
struct Crew {
    client: Client,
    backends: Backends,
    config: Config,
    name: String,
    queues: Vec<(Queue, Option<Gate>)>,
    prefetch: u16,
    gate: Gate,
    /// Where quarantined tasks run; without it, here and alone.
    isolation: Option<Isolation>,
    /// This is the child that runs them.
    is_isolated: bool,
    /// How long a message may be held, from its delivery.
    longest_hold: Duration,
    drain_deadline: Duration,
    /// The longest that a step of any handler may take once its run is to be dropped.
    step_grace: Duration,
    unknown_grace: Duration,
    room: Room,
    revoked: Revoked,
    handlers: HashMap<&'static str, Registered>,
    tasks: TaskTracker,
    /// Runs are told to end.
    ending: CancellationToken,
    /// Runs are dropped.
    abort: CancellationToken,
    /// Nothing waits for a server any more.
    give_up: CancellationToken,
    health: watch::Sender<Option<Health>>,
    draining: AtomicBool,
    finished: AtomicU64,
    /// Runs that were in a protected section or a step at the drain's deadline.
    protected: AtomicU64,
    surroundings: Arc<Surroundings>,
    abandoned: Mutex<Vec<TaskId>>,
}

impl Crew {
    /// When the steps and protected sections that run now have ended by their own limits, if the runs
    /// are dropped at `cut`; `cut` itself when there are none.
    fn sections_end(&self, cut: Instant) -> Instant {
        if self.surroundings.sections.load(Ordering::Relaxed) == 0 {
            return cut;
        }
        let protected =
            *self.surroundings.protected_until.lock().unwrap_or_else(PoisonError::into_inner);
        (cut + self.step_grace).max(protected.unwrap_or(cut))
    }
}

/// One delivery, from the queue to its end.
async fn process_delivery(crew: Arc<Crew>, queue: Queue, mut delivery: Delivery, slot: Slot) {
    delivery.redelivered |= delivery.message.is_returned();
    let Some((mut delivery, mut claim)) = resume::admit(&crew, &queue, delivery).await else {
        crew.finished.fetch_add(1, Ordering::Relaxed);
        return;
    };
    match Envelope::decode(&delivery.message, crew.config.max_arguments) {
        Ok(mut envelope) => {
            Ticket::remove(&mut envelope.headers);
            let envelope = Arc::new(envelope);
            let outcome =
                execute::execute(&crew, &mut delivery, &envelope, &slot, &queue, &mut claim).await;
            settle::settle(&crew, &queue, delivery, &envelope, outcome, claim).await;
        }
        Err(unreadable) => {
            Box::pin(dead_letter::bury_unreadable(&crew, &queue, delivery, unreadable)).await;
        }
    }
    crew.finished.fetch_add(1, Ordering::Relaxed);
}
