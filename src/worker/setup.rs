//! The settings of a worker, and its start and end.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::checks::Check;
use super::child_process::ChildProcess;
use super::concurrency_limit::ConcurrencyLimit;
use super::consumer::Consumer;
use super::drain::{self, DrainReport, Running};
use super::handler::RegisteredHandler;
use super::health::Health;
use super::isolation_lock::IsolationLock;
use super::middleware::Middleware;
use super::report::Observer;
use super::revoked::{self, Revoked};
use super::runs::Runs;
use super::state::WorkerState;
use super::store_clock::StoreClock;
use super::{heartbeat, isolation, outbox, panics, remote_control, watchdog};
use crate::backend::Queue;
use crate::client::{Client, hostname};
use crate::context::RunServices;
use crate::error::{Error, Kind};
use crate::journal::Limits;

/// A message is settled at least this long before the broker's consumer timeout, or a third of the
/// timeout if that is shorter.
const CONSUMER_TIMEOUT_MARGIN: Duration = Duration::from_secs(120);

/// The settings of a worker, without the state of its handlers.
pub(super) struct Setup {
    pub(super) client: Client,
    pub(super) name: String,
    pub(super) queues: Vec<(Queue, Option<usize>)>,
    pub(super) concurrency: usize,
    pub(super) prefetch: Option<u16>,
    pub(super) drain_deadline: Duration,
    pub(super) unknown_grace: Duration,
    /// Completes when a forced shutdown is requested.
    pub(super) force_shutdown: BoxFuture<'static, ()>,
    pub(super) child_process: Option<ChildProcess>,
    pub(super) is_isolated: bool,
    pub(super) handlers: HashMap<&'static str, RegisteredHandler>,
    pub(super) middlewares: Vec<Middleware>,
    pub(super) health: watch::Sender<Option<Health>>,
    pub(super) checks: Vec<Check>,
    pub(super) observer: Observer,
    pub(super) faults: Vec<String>,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("name", &self.name)
            .field("queues", &self.queues)
            .field("concurrency", &self.concurrency)
            .field("prefetch", &self.prefetch)
            .field("handlers", &self.handlers)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl Setup {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            name: format!("worker@{}", hostname()),
            queues: Vec::new(),
            concurrency: 16,
            prefetch: None,
            drain_deadline: Duration::from_secs(30),
            unknown_grace: Duration::ZERO,
            force_shutdown: Box::pin(std::future::pending()),
            child_process: None,
            is_isolated: false,
            handlers: HashMap::new(),
            middlewares: Vec::new(),
            health: watch::Sender::new(None),
            checks: Vec::new(),
            observer: Observer::default(),
            faults: Vec::new(),
        }
    }

    /// Runs the worker until `shutdown` completes, and drains it.
    pub(super) async fn run(
        self,
        shutdown: impl Future<Output = ()>,
    ) -> Result<DrainReport, Error> {
        let (state, force_shutdown) = self.validate()?;
        watchdog::start();
        panics::record_locations();
        revoked::follow(Arc::clone(&state.revoked), state.backends.store.watch_revocations());
        if !state.is_isolated {
            remote_control::listen(&state);
        }
        let stop = CancellationToken::new();
        let (consumers, consuming) = start_consumers(&state, &stop);
        outbox::sweep(&state, stop.clone());
        let heartbeat = heartbeat::start(&state, consuming);
        let isolation = isolation::supervise(&state, stop.clone());
        let idle = async {
            match state.is_isolated {
                true => isolation::idle(&state).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = idle => {}
        }
        heartbeat::report_draining(&state);
        let running = Running { consumers, isolation, heartbeat };
        Ok(drain::drain(&state, &stop, running, force_shutdown).await)
    }

    fn validate(mut self) -> Result<(Arc<WorkerState>, BoxFuture<'static, ()>), Error> {
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
        let queues =
            self.queues.into_iter().map(|(queue, limit)| (queue, limit.map(ConcurrencyLimit::new)));
        let margin = CONSUMER_TIMEOUT_MARGIN.min(config.consumer_timeout / 3);
        let max_unsettled = config.consumer_timeout.saturating_sub(margin);
        let run_services = RunServices {
            store: Arc::clone(&self.client.backends().store),
            limits: Limits {
                step: config.max_step,
                journal: config.max_journal,
                stream_entry: config.max_stream_entry,
            },
            critical_sections: AtomicUsize::new(0),
            protected_until: Mutex::default(),
        };
        let step_grace = self.handlers.values().map(|handler| handler.policy.step_grace).max();
        let state = WorkerState {
            step_grace: step_grace.unwrap_or_default(),
            backends: self.client.backends().clone(),
            client: self.client,
            config,
            name: self.name,
            queues: queues.collect(),
            prefetch: self.prefetch.unwrap_or(default_prefetch).max(1),
            concurrency_limit: ConcurrencyLimit::new(self.concurrency),
            child_process: self.child_process,
            is_isolated: self.is_isolated,
            max_unsettled,
            drain_deadline: self.drain_deadline,
            unknown_grace: self.unknown_grace,
            isolation_lock: IsolationLock::default(),
            revoked: Arc::new(Revoked::default()),
            runs: Runs::default(),
            store_clock: StoreClock::default(),
            observer: self.observer,
            handlers: self.handlers,
            middlewares: self.middlewares.into(),
            tasks: TaskTracker::new(),
            cancel_runs: CancellationToken::new(),
            drop_runs: CancellationToken::new(),
            end_waits: CancellationToken::new(),
            health: self.health,
            draining: AtomicBool::new(false),
            finished: AtomicU64::new(0),
            protected: AtomicU64::new(0),
            run_services: Arc::new(run_services),
            abandoned: Mutex::default(),
        };
        Ok((Arc::new(state), self.force_shutdown))
    }
}

/// Starts the consumers of all queues and of their companion queues. Returns them, and for each whether
/// the broker delivers to it.
fn start_consumers(
    state: &Arc<WorkerState>,
    stop: &CancellationToken,
) -> (JoinSet<usize>, Vec<watch::Receiver<bool>>) {
    let (mut consumers, mut consuming) = (JoinSet::new(), Vec::new());
    for (queue, limit) in &state.queues {
        let sources = match state.is_isolated {
            true => vec![queue.quarantine()],
            false => vec![queue.clone(), queue.resume()],
        };
        for source in sources {
            let (sender, receiver) = watch::channel(false);
            consuming.push(receiver);
            let (queue, limit) = (queue.clone(), limit.clone());
            let consumer = Consumer { queue, source, limit, consuming: sender };
            consumers.spawn(consumer.run(Arc::clone(state), stop.clone()));
        }
    }
    (consumers, consuming)
}
