//! Small things that are remembered for a while, by name: attempts that were taken, tasks that ran
//! when a worker died, idempotency keys, workers that are there. And marks on revoked tasks.

use std::time::Duration;

use rusqlite::params;
use tokio::sync::{broadcast, mpsc};

use super::backoff::Backoff;
use super::bells::Ring;
use super::db::Db;
use super::txn::{Done, Txn};
use crate::backend::{Crashes, KeyedTask, Presence, Revocation};
use crate::error::{Error, Kind};
use crate::protocol::TaskDigest;
use crate::task::{Revoke, TaskId};

const DAY: i64 = 24 * 60 * 60 * 1000;
/// A mark on a revoked task outlives any that still waits in a queue.
const REVOKED_KEPT: i64 = 7 * DAY;
/// Attempts whose marks are forgotten at once.
const ATTEMPTS: u64 = 1000;
/// Batches that may wait for the worker.
const BACKLOG: usize = 64;

/// Writes a mark unless there is one; says whether it did.
fn claim(txn: &Txn<'_>, name: &str, value: &str, kept: i64) -> Done<bool> {
    let insert = "INSERT INTO marks (name, value, expires) VALUES (?1, ?2, ?3) \
                  ON CONFLICT (name) DO UPDATE SET value = ?2, expires = ?3 \
                  WHERE marks.expires < ?4";
    let expires = txn.now.saturating_add(kept);
    Ok(txn.execute(insert, params![name, value, expires, txn.now])? == 1)
}

fn set(txn: &Txn<'_>, name: &str, value: &str, kept: i64) -> Done<()> {
    let insert = "INSERT INTO marks (name, value, expires) VALUES (?, ?, ?) \
                  ON CONFLICT (name) DO UPDATE SET value = excluded.value, \
                  expires = excluded.expires";
    txn.execute(insert, params![name, value, txn.now.saturating_add(kept)])?;
    Ok(())
}

fn get(txn: &Txn<'_>, name: &str) -> Done<Option<String>> {
    let find = "SELECT value FROM marks WHERE name = ? AND expires >= ?";
    txn.first(find, params![name, txn.now], |row| row.get(0))
}

fn forget(txn: &Txn<'_>, name: &str) -> Done<()> {
    txn.execute("DELETE FROM marks WHERE name = ?", [name])?;
    Ok(())
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Takes an attempt; false when somebody has taken it before. One of another task with the same id does
/// not count; of what an older process wrote, it is not known.
pub(super) fn take(txn: &Txn<'_>, id: &TaskId, digest: &TaskDigest, attempt: u32) -> Done<bool> {
    let (name, digest) = (format!("run:{id}:{attempt}"), digest.as_str());
    let another = "DELETE FROM marks WHERE name = ? AND value <> '' AND value <> ?";
    txn.execute(another, params![name, digest])?;
    claim(txn, &name, digest, DAY)
}

/// Attempts that were taken before would be refused to the message that is sent again.
pub(super) fn forget_attempts(txn: &Txn<'_>, id: &TaskId, attempts: u64) -> Done<()> {
    (1..=attempts.clamp(1, ATTEMPTS)).try_for_each(|n| forget(txn, &format!("run:{id}:{n}")))
}

/// The same of all attempts.
pub(super) fn forget_all_attempts(txn: &Txn<'_>, id: &TaskId) -> Done<()> {
    // The character after the colon ends the range.
    let range = params![format!("run:{id}:"), format!("run:{id};")];
    txn.execute("DELETE FROM marks WHERE name >= ? AND name < ?", range)?;
    Ok(())
}

pub(super) fn note_run(txn: &Txn<'_>, id: &TaskId, alone: bool) -> Done<()> {
    let Crashes { runs, alone: before } = crashes(txn, id)?;
    let counts = format!("{} {}", runs.saturating_add(1), before.saturating_add(alone.into()));
    set(txn, &format!("crash:{id}"), &counts, DAY)
}

/// Takes back one of [`note_run`].
pub(super) fn forget_run(txn: &Txn<'_>, id: &TaskId, alone: bool) -> Done<()> {
    let Crashes { runs, alone: before } = crashes(txn, id)?;
    let counts = format!("{} {}", runs.saturating_sub(1), before.saturating_sub(alone.into()));
    set(txn, &format!("crash:{id}"), &counts, DAY)
}

pub(super) fn crashes(txn: &Txn<'_>, id: &TaskId) -> Done<Crashes> {
    let counts = get(txn, &format!("crash:{id}"))?.unwrap_or_default();
    let mut counts = counts.split(' ').map(|count| count.parse().unwrap_or(0));
    Ok(Crashes { runs: counts.next().unwrap_or(0), alone: counts.next().unwrap_or(0) })
}

pub(super) fn acquit(txn: &Txn<'_>, id: &TaskId) -> Done<()> {
    forget(txn, &format!("crash:{id}"))
}

/// Makes an idempotency key stand for a task; or says for which it stands.
pub(super) fn claim_key(txn: &Txn<'_>, key: &str, id: &TaskId, keep: Duration) -> Done<KeyedTask> {
    let name = format!("key:{key}");
    if claim(txn, &name, &format!("unsent {id}"), milliseconds(keep))? {
        return Ok(KeyedTask { id: id.clone(), sent: false });
    }
    let value = get(txn, &name)?.unwrap_or_default();
    let keyed = value.split_once(' ').map(|(sent, id)| (sent == "sent", TaskId::from(id)));
    let (sent, id) = keyed.ok_or_else(|| {
        let what = format!("idempotency key {key:?}");
        Error::new(Kind::Codec { what, cause: "somebody else has written under its name".into() })
    })?;
    Ok(KeyedTask { id, sent })
}

/// The task of a key is confirmed, unless the key stands for another one by now.
pub(super) fn mark_sent(txn: &Txn<'_>, key: &str, id: &TaskId, keep: Duration) -> Done<()> {
    let name = format!("key:{key}");
    match get(txn, &name)? {
        Some(value) if value != format!("unsent {id}") => Ok(()),
        _ => set(txn, &name, &format!("sent {id}"), milliseconds(keep)),
    }
}

pub(super) fn announce(txn: &Txn<'_>, presence: &Presence, keep: Duration) -> Done<()> {
    let json = serde_json::to_string(presence).unwrap_or_default();
    set(txn, &format!("worker:{}", presence.key()), &json, milliseconds(keep))
}

pub(super) fn retract(txn: &Txn<'_>, presence: &Presence) -> Done<()> {
    forget(txn, &format!("worker:{}", presence.key()))
}

/// Every worker that is not overdue, by key.
pub(super) fn present(txn: &Txn<'_>) -> Done<Vec<Presence>> {
    let list = "SELECT value FROM marks \
                WHERE name >= 'worker:' AND name < 'worker;' AND expires >= ? ORDER BY name";
    let texts = txn.all(list, [txn.now], |row| row.get::<_, String>(0))?;
    Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
}

/// Marks tasks as revoked, and tells the workers.
pub(super) fn revoke(txn: &mut Txn<'_>, ids: &[TaskId], revoke: Revoke) -> Done<()> {
    let even_running = revoke == Revoke::EvenRunning;
    let mark = "INSERT INTO revoked (id, even_running, at) VALUES (?, ?, ?) \
                ON CONFLICT (id) DO UPDATE SET at = excluded.at, \
                even_running = max(even_running, excluded.even_running)";
    for id in ids {
        txn.execute(mark, params![id.as_str(), even_running, txn.now])?;
    }
    txn.execute("DELETE FROM revoked WHERE at < ?", [txn.now - REVOKED_KEPT])?;
    let marks = ids.iter().map(|id| Revocation { id: id.clone(), revoke });
    txn.ring(Ring::Revoked(marks.collect()));
    Ok(())
}

fn all_revoked(txn: &Txn<'_>) -> Done<Vec<Revocation>> {
    let list = "SELECT id, even_running FROM revoked WHERE at >= ?";
    txn.all(list, [txn.now - REVOKED_KEPT], |row| {
        let revoke = if row.get(1)? { Revoke::EvenRunning } else { Revoke::IfQueued };
        Ok(Revocation { id: TaskId::from(row.get::<_, String>(0)?), revoke })
    })
}

/// Tells of all marks there are, then of each new one, until nobody listens or it is dropped.
pub(super) async fn follow_revocations(
    db: Db,
    mut rings: broadcast::Receiver<Vec<Revocation>>,
    tell: mpsc::Sender<Vec<Revocation>>,
) {
    let mut rung = Vec::new();
    loop {
        let marks = if rung.is_empty() { read_all(&db).await } else { rung };
        if tell.send(marks).await.is_err() {
            return;
        }
        rung = match rings.recv().await {
            Ok(marks) => marks,
            Err(broadcast::error::RecvError::Lagged(_)) => Vec::new(),
            Err(broadcast::error::RecvError::Closed) => return,
        };
    }
}

/// What a worker's marks are sent by.
pub(super) fn backlog() -> (mpsc::Sender<Vec<Revocation>>, mpsc::Receiver<Vec<Revocation>>) {
    mpsc::channel(BACKLOG)
}

async fn read_all(db: &Db) -> Vec<Revocation> {
    let mut backoff = Backoff::default();
    loop {
        match db.read(|txn| all_revoked(txn)).await {
            Ok(marks) => return marks,
            Err(error) => {
                let what = "cannot read which tasks were revoked, trying again";
                db.shared().warnings.warn(what, &error);
            }
        }
        backoff.wait().await;
    }
}
