//! Tasks that were running when a worker died, again and again.
//!
//! Only a redelivered task can be one, so nothing else pays. From its second crash on a task runs
//! alone, so that the next crash convicts it and no innocent; a convict goes to the dead letters.

use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::timeout;
use tracing::{info, warn};

use super::Crew;
use crate::backend::{Crashes, Delivery};
use crate::task::TaskId;

/// From so many runs that did not come back on, a task runs alone.
const SUSPECT: u32 = 2;
/// So many runs alone that did not come back convict it.
const CONVICT: u32 = 2;
/// A suspect waits this long for the others to end; then it runs beside them after all.
const SOLITUDE: Duration = Duration::from_secs(5);

/// The room in which tasks run: many at a time, or a suspect alone.
#[derive(Debug, Default)]
pub(super) struct Room {
    inside: std::sync::Arc<RwLock<()>>,
    one_suspect: tokio::sync::Mutex<()>,
}

/// Somebody's place in the room.
#[derive(Debug)]
pub(super) enum Place<'r> {
    Among { _others: Option<OwnedRwLockReadGuard<()>> },
    Alone { _turn: tokio::sync::MutexGuard<'r, ()>, _room: Option<OwnedRwLockWriteGuard<()>> },
}

/// What is known of a redelivered task.
#[derive(Debug)]
pub(super) enum Standing<'r> {
    Innocent(Place<'r>),
    /// It has ended workers so many times.
    Convicted(Crashes),
}

/// Finds a place for a task about to run, and notes that it runs if it may be a poison.
pub(super) async fn place<'r>(crew: &'r Crew, delivery: &Delivery) -> Standing<'r> {
    if !delivery.redelivered {
        return Standing::Innocent(among(crew).await);
    }
    let id = delivery.id();
    let crashes = crew.backends.store.crashes(id).await.unwrap_or_default();
    if crashes.alone >= CONVICT {
        return Standing::Convicted(crashes);
    }
    if crashes.runs < SUSPECT {
        note(crew, id, false).await;
        return Standing::Innocent(among(crew).await);
    }
    let turn = crew.room.one_suspect.lock().await;
    let room = std::sync::Arc::clone(&crew.room.inside).write_owned();
    let room = timeout(SOLITUDE, room).await.ok();
    info!(task.id = %id, alone = room.is_some(), "ran at {} crashes: runs as a suspect", crashes.runs);
    note(crew, id, true).await;
    Standing::Innocent(Place::Alone { _turn: turn, _room: room })
}

/// It came to an end: what was noted is forgotten.
pub(super) async fn acquit(crew: &Crew, delivery: &Delivery) {
    if delivery.redelivered
        && let Err(error) = crew.backends.store.acquit(delivery.id()).await
    {
        warn!(task.id = %delivery.id(), "cannot forget its crashes: {error}");
    }
}

async fn among(crew: &Crew) -> Place<'static> {
    Place::Among { _others: Some(std::sync::Arc::clone(&crew.room.inside).read_owned().await) }
}

async fn note(crew: &Crew, id: &TaskId, alone: bool) {
    if let Err(error) = crew.backends.store.note_run(id, alone).await {
        warn!(task.id = %id, "cannot note that it runs: {error}");
    }
}
