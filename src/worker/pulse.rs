//! A worker's signs of life: a small file that `health` reads, renewed every two seconds, and an
//! entry in the store for who is not on this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Crew;
use crate::backend::Presence;
use crate::client::hostname;
use crate::clock;

/// How often the store is told that the worker is there; it is overdue after four of these.
const ANNOUNCE: Duration = Duration::from_secs(5);
const RETRACT_DEADLINE: Duration = Duration::from_secs(1);
const BEAT: Duration = Duration::from_secs(2);
/// A worker that has missed this many seconds is not alive.
const STALE: Duration = Duration::from_secs(10);

/// How a worker of this machine is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    /// Its process.
    pub pid: u32,
    /// Both connections to the broker are up.
    pub broker: bool,
    /// The broker delivers from every queue.
    pub consuming: bool,
    /// The store answers.
    pub store: bool,
    /// What the broker refuses to the worker's user: the object and the permission.
    #[serde(default)]
    pub refused: Option<String>,
    /// It takes no more tasks.
    pub draining: bool,
    /// Tasks that run now.
    pub running: usize,
    /// Tasks that came to an end since it started.
    pub finished: u64,
    /// When it said so.
    pub at: Timestamp,
}

impl Health {
    /// The file that the worker of this name renews every two seconds: in `folder` (setting
    /// `worker.health_dir`), or in the temporary folder of the system.
    #[must_use]
    pub fn file(name: &str, folder: Option<&Path>) -> PathBuf {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '_' };
        let name: String = name.chars().map(safe).collect();
        let folder = folder.map_or_else(std::env::temp_dir, Path::to_owned);
        folder.join(format!("countersign-{name}.health"))
    }

    /// Reads the sign of life of the worker of this name.
    ///
    /// # Errors
    /// A line for people: there is none, or it is unreadable.
    pub fn read(name: &str, folder: Option<&Path>) -> Result<Self, String> {
        let file = Self::file(name, folder);
        let text = std::fs::read_to_string(&file).map_err(|error| {
            format!(
                "no worker {name} here ({}: {error}); if it runs, its log says why it cannot write \
                 this file, and the setting worker.health_dir names another folder",
                file.display()
            )
        })?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// It has given a sign of life in the last 10 s.
    #[must_use]
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        Duration::try_from(now.duration_since(self.at)).unwrap_or_default() <= STALE
    }

    /// Why this worker is not ready to take tasks, if it is not.
    #[must_use]
    pub fn fault(&self, now: Timestamp) -> Option<&'static str> {
        match self {
            _ if !self.is_fresh(now) => Some("it has given no sign of life for over 10 s"),
            Self { broker: false, .. } => Some("it is not connected to the broker"),
            Self { draining: true, .. } => Some("it is draining"),
            Self { refused: Some(_), .. } => {
                Some("the broker refuses access to it: its log names the permission")
            }
            Self { consuming: false, .. } => Some("it does not consume every queue"),
            Self { store: false, .. } => Some("it is not connected to the store"),
            _ => None,
        }
    }
}

/// The running pulse of a worker.
pub(super) struct Pulse {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Pulse {
    /// Ends it and removes its traces.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

pub(super) fn start(crew: &Arc<Crew>, consuming: Vec<watch::Receiver<bool>>) -> Pulse {
    let stop = CancellationToken::new();
    let (crew, stopped, started) = (Arc::clone(crew), stop.clone(), clock::now());
    let task = tokio::spawn(async move {
        let file = Health::file(&crew.name, crew.config.worker.health_dir.as_deref());
        let there = announce(&crew, started);
        let beats = async { tokio::join!(beat(&crew, consuming, &file), there) };
        stopped.run_until_cancelled(beats).await;
        let _ = tokio::fs::remove_file(&file).await;
        let gone = crew.backends.store.retract(presence(&crew, started));
        let _ = timeout(RETRACT_DEADLINE, gone).await;
    });
    Pulse { stop, task }
}

/// From now on the worker says that it drains: at once, not at the next beat.
pub(super) fn say_draining(crew: &Crew) {
    crew.draining.store(true, Ordering::Relaxed);
    crew.health.send_modify(|health| {
        if let Some(health) = health {
            health.draining = true;
        }
    });
}

/// Tells all who ask the store that this worker is there. A failure is made up for by the next.
async fn announce(crew: &Crew, started: Timestamp) {
    crew.client.connected().await;
    let mut ticks = interval(ANNOUNCE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let announced = crew.backends.store.announce(presence(crew, started), ANNOUNCE * 4);
        if let Err(error) = announced.await {
            debug!("cannot tell that this worker is there: {error}");
        }
    }
}

fn presence(crew: &Crew, started: Timestamp) -> Presence {
    Presence {
        name: crew.name.clone(),
        host: hostname(),
        pid: std::process::id(),
        queues: crew.queues.iter().map(|(queue, _)| queue.name.clone()).collect(),
        tasks: task_types(crew),
        concurrency: crew.gate.size(),
        running: crew.tasks.len(),
        finished: crew.finished.load(Ordering::Relaxed),
        draining: crew.draining.load(Ordering::Relaxed),
        started,
        at: clock::now(),
    }
}

fn task_types(crew: &Crew) -> Vec<String> {
    let mut names: Vec<_> = crew.handlers.keys().map(|name| (*name).to_owned()).collect();
    names.sort_unstable();
    names
}

async fn beat(crew: &Crew, mut consuming: Vec<watch::Receiver<bool>>, file: &PathBuf) {
    crew.client.connected().await;
    for queue in &mut consuming {
        let _ = queue.wait_for(|consuming| *consuming).await;
    }
    let queues: Vec<_> = crew.queues.iter().map(|(queue, _)| queue.name.as_str()).collect();
    info!(name = %crew.name, ?queues, slots = crew.gate.size(), "ready");
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_written = true;
    loop {
        ticks.tick().await;
        let health = Health {
            pid: std::process::id(),
            broker: crew.backends.broker.is_connected(),
            consuming: consuming.iter().all(|queue| *queue.borrow()),
            store: crew.backends.store.is_connected(),
            refused: crew.backends.broker.refusal(),
            draining: crew.draining.load(Ordering::Relaxed),
            running: crew.tasks.len(),
            finished: crew.finished.load(Ordering::Relaxed),
            at: clock::now(),
        };
        crew.health.send_replace(Some(health.clone()));
        let written = write(file, &health).await;
        if let Err(error) = &written
            && is_written
        {
            warn!(
                "cannot write the health file {}: {error}; health probes of this worker fail until it \
                 can be written; name another folder by the setting worker.health_dir",
                file.display()
            );
        }
        is_written = written.is_ok();
    }
}

/// Written beside and renamed, so that a reader never sees half of it.
async fn write(file: &PathBuf, health: &Health) -> std::io::Result<()> {
    let beside = file.with_extension(format!("{}.new", std::process::id()));
    tokio::fs::write(&beside, serde_json::to_vec(health)?).await?;
    tokio::fs::rename(&beside, file).await
}
