//! Tasks that were running when a worker died, again and again.
//!
//! Only a redelivered task can be one, so nothing else pays. From its second crash on a task runs in
//! isolation, so that the next crash can be attributed to it alone: in a process of its own
//! (`isolation.rs`), or, in a worker without one, while all other tasks wait. A poison task goes to the
//! dead letters.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::Crew;
use crate::backend::{Crashes, Delivery};
use crate::error::Error;
use crate::task::TaskId;

/// From so many runs that did not come back on, a task runs alone.
const SUSPECT: u32 = 2;
/// So many runs alone that did not come back convict it.
const CONVICT: u32 = 2;
/// A suspect waits this long for the others to end; then it runs beside them after all.
const SOLITUDE: Duration = Duration::from_secs(5);
/// How long workers that are alive have to take their notes back before a task counts as poison.
const RECONSIDER: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The room in which tasks run: many at a time, or a suspect alone.
#[derive(Debug, Default)]
pub(super) struct Room {
    inside: Arc<RwLock<()>>,
    one_suspect: tokio::sync::Mutex<()>,
}

/// Somebody's place in the room.
#[derive(Debug)]
pub(super) enum Place<'r> {
    Among {
        _others: Option<OwnedRwLockReadGuard<()>>,
        _mark: Option<CrashMark>,
    },
    Alone {
        _turn: tokio::sync::MutexGuard<'r, ()>,
        _room: Option<OwnedRwLockWriteGuard<()>>,
        _mark: CrashMark,
    },
    /// The only task of its process.
    Isolated {
        _mark: CrashMark,
    },
}

/// What is known of a redelivered task.
#[derive(Debug)]
pub(super) enum Standing<'r> {
    Innocent(Place<'r>),
    /// A process of its own is to run it.
    Quarantined,
    /// It has ended workers so many times.
    Convicted(Crashes),
}

/// The noted run of a redelivered task. A worker that loses the message while the task runs is alive:
/// it takes the note back, as often as it must try, or six restarts of a broker would look like six
/// crashes of this task.
#[derive(Debug)]
pub(super) struct CrashMark {
    _ended: DropGuard,
}

impl CrashMark {
    async fn note(crew: &Arc<Crew>, delivery: &Delivery, alone: bool) -> Self {
        let id = delivery.id().clone();
        if let Err(error) = crew.backends.store.note_run(&id, alone).await {
            warn!(task.id = %id, "cannot note that the task runs: {error}");
        }
        let ended = CancellationToken::new();
        let (worker, lost, over) = (Arc::clone(crew), delivery.lost(), ended.clone());
        tokio::spawn(async move {
            if over.run_until_cancelled(lost).await.is_some() {
                let taking_back =
                    retry(&worker, &id, || worker.backends.store.forget_run(&id, alone));
                worker.give_up.run_until_cancelled(taking_back).await;
            }
        });
        Self { _ended: ended.drop_guard() }
    }
}

/// Finds a place for a task about to run, and notes that it runs if it may be a poison.
pub(super) async fn place<'r>(crew: &'r Arc<Crew>, delivery: &Delivery) -> Standing<'r> {
    if !delivery.redelivered {
        return Standing::Innocent(Place::Among { _others: Some(among(crew).await), _mark: None });
    }
    let id = delivery.id();
    let mut crashes = crew.backends.store.crashes(id).await.unwrap_or_default();
    if crashes.alone >= CONVICT {
        // A worker that is alive may be about to take its note back.
        sleep(RECONSIDER).await;
        crashes = crew.backends.store.crashes(id).await.unwrap_or_default();
    }
    if crashes.alone >= CONVICT {
        return Standing::Convicted(crashes);
    }
    if crew.is_isolated {
        let mark = CrashMark::note(crew, delivery, true).await;
        return Standing::Innocent(Place::Isolated { _mark: mark });
    }
    if crashes.runs >= SUSPECT && crew.isolation.is_some() {
        info!(
            task.id = %id,
            crashes = crashes.runs,
            "task was running during worker crashes; an isolated process runs it",
        );
        return Standing::Quarantined;
    }
    if crashes.runs < SUSPECT {
        let mark = CrashMark::note(crew, delivery, false).await;
        return Standing::Innocent(Place::Among {
            _others: Some(among(crew).await),
            _mark: Some(mark),
        });
    }
    let turn = crew.room.one_suspect.lock().await;
    let room = Arc::clone(&crew.room.inside).write_owned();
    let room = timeout(SOLITUDE, room).await.ok();
    info!(
        task.id = %id,
        crashes = crashes.runs,
        alone = room.is_some(),
        "task was running during worker crashes; running it in isolation",
    );
    let mark = CrashMark::note(crew, delivery, true).await;
    Standing::Innocent(Place::Alone { _turn: turn, _room: room, _mark: mark })
}

/// It came to an end: what was noted is forgotten. A run whose message was taken back leaves the notes
/// of the others alone.
pub(super) async fn acquit(crew: &Arc<Crew>, delivery: &Delivery) {
    if !delivery.redelivered || delivery.is_stale() {
        return;
    }
    let id = delivery.id().clone();
    if let Err(error) = crew.backends.store.acquit(&id).await {
        warn!(task.id = %id, "cannot forget its crashes: {error}; trying again");
        let worker = Arc::clone(crew);
        tokio::spawn(async move {
            let forgetting = retry(&worker, &id, || worker.backends.store.acquit(&id));
            worker.give_up.run_until_cancelled(forgetting).await;
        });
    }
}

/// Tries until it is stored.
async fn retry<F>(crew: &Crew, id: &TaskId, attempt: impl Fn() -> F)
where
    F: Future<Output = Result<(), Error>>,
{
    while let Err(error) = attempt().await {
        warn!(task.id = %id, "cannot change the noted crashes: {error}; trying again");
        crew.backends.store.connected().await;
        sleep(RETRY_PAUSE).await;
    }
}

async fn among(crew: &Crew) -> OwnedRwLockReadGuard<()> {
    Arc::clone(&crew.room.inside).read_owned().await
}
