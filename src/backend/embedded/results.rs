//! Results, and who waits for them.

use std::time::Duration;

use bytes::Bytes;
use rusqlite::params;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::bells::Ring;
use super::db::Db;
use super::txn::{Done, Txn};
use super::{audit, journal, marks, parks};
use crate::backend::{Deed, Finish, Forget};
use crate::error::{Error, Kind};
use crate::protocol::{Document, PARKED, State};
use crate::task::TaskId;

/// How often all waiters are read again, whatever was or was not heard.
const REREAD: Duration = Duration::from_secs(15);

pub(super) type Answer = oneshot::Sender<Result<Box<Document>, Error>>;

/// Stores a result, unless the task has ended. Kept for so many milliseconds; `None`: for ever.
pub(super) fn finish(txn: &mut Txn<'_>, finish: &Finish, kept: Option<i64>) -> Done<()> {
    let document = &finish.document;
    let find = "SELECT state FROM results WHERE id = ? AND (expires IS NULL OR expires >= ?)";
    let found = params![document.id.as_str(), txn.now];
    let state = txn.first(find, found, |row| Ok(State::named(&row.get::<_, String>(0)?)))?;
    match state {
        Some(State::Success) => return Ok(()),
        Some(State::Failure | State::Revoked) => {
            let done = read(txn, &document.id)?.and_then(|stored| stored.date_done());
            let is_older = done < finish.received && done.is_some();
            if !is_older {
                return Ok(());
            }
        }
        _ => {}
    }
    // However long a decision takes, whoever waits finds the task.
    let kept = kept.filter(|_| document.state.as_str() != PARKED);
    let expires = kept.map(|kept| txn.now.saturating_add(kept));
    let store = "INSERT INTO results (id, state, json, expires) VALUES (?, ?, ?, ?) \
                 ON CONFLICT (id) DO UPDATE SET state = excluded.state, json = excluded.json, \
                 expires = excluded.expires";
    let Document { id, state, json } = document;
    txn.execute(store, params![id.as_str(), state.as_str(), &json[..], expires])?;
    if state.is_terminal() {
        txn.ring(Ring::Ended(Box::new(document.clone())));
    }
    Ok(())
}

/// The document of a task as it is stored now.
pub(super) fn read(txn: &Txn<'_>, id: &TaskId) -> Done<Option<Document>> {
    let find = "SELECT json FROM results WHERE id = ? AND (expires IS NULL OR expires >= ?)";
    let json = txn.first(find, params![id.as_str(), txn.now], |row| row.get::<_, Vec<u8>>(0))?;
    let document = json.map(|json| Document::parse(id.clone(), Bytes::from(json)));
    Ok(document.transpose()?)
}

/// Takes a failure back, and notes who did. A success stays, and a revocation unless it is superseded.
pub(super) fn reopen(txn: &mut Txn<'_>, deed: &Deed, attempts: u64) -> Done<Option<State>> {
    let find = "SELECT state, substr(json, 1, 1024) FROM results \
                WHERE id = ? AND (expires IS NULL OR expires >= ?)";
    let found = txn.first(find, params![deed.id.as_str(), txn.now], |row| {
        Ok((State::named(&row.get::<_, String>(0)?), row.get::<_, Vec<u8>>(1)?))
    })?;
    let (state, was) = found.map_or((None, Vec::new()), |(state, was)| (Some(state), was));
    let is_superseded = deed.what == Deed::SUPERSEDE;
    match state {
        Some(State::Success) => return Ok(state),
        Some(State::Revoked) if !is_superseded => return Ok(state),
        _ => {}
    }
    audit::note(txn, deed, &[("was", &String::from_utf8_lossy(&was))])?;
    if matches!(state, Some(State::Failure | State::Revoked)) {
        txn.execute("DELETE FROM results WHERE id = ?", [deed.id.as_str()])?;
    }
    marks::forget_attempts(txn, &deed.id, attempts)?;
    parks::delete_ended(txn, &deed.id)?;
    Ok(state)
}

/// Deletes the result of a task and everything that its runs have left, unless it may still run.
pub(super) fn forget(txn: &Txn<'_>, id: &TaskId) -> Done<Forget> {
    let state = read(txn, id)?.map(|document| document.state);
    if let Some(state) = state.as_ref().filter(|state| !state.is_terminal()) {
        return Ok(Forget::Unfinished(Some(state.clone())));
    }
    if !parks::forget(txn, id)? {
        return Ok(Forget::Unfinished(Some(State::named(PARKED))));
    }
    if state.is_none() && journal::is_left(txn, id)? && !parks::is_known(txn, id)? {
        return Ok(Forget::Unfinished(None));
    }
    journal::forget(txn, id.as_str())?;
    marks::forget_all_attempts(txn, id)?;
    marks::acquit(txn, id)?;
    txn.execute("DELETE FROM results WHERE id = ?", [id.as_str()])?;
    Ok(Forget::Forgotten)
}

/// Registers a waiter, and then reads.
pub(super) fn watch(
    db: &Db,
    id: TaskId,
    origin: crate::backend::Origin,
    timeout: Option<Duration>,
    answer: Answer,
) {
    if db.is_closed() {
        let _ = answer.send(Err(Kind::Closed.into()));
        return;
    }
    let bells = &db.shared().bells;
    bells.waiters().add(id.clone(), origin, timeout, answer);
    bells.waited.notify_one();
    look(db, id);
}

/// Tells those who wait for a task, if it has ended.
fn look(db: &Db, id: TaskId) {
    let shared = db.shared().clone();
    db.look(
        move |txn| read(txn, &id),
        move |found| match found {
            Ok(Some(document)) if document.state.is_terminal() => {
                shared.bells.ring(Ring::Ended(Box::new(document)));
            }
            Ok(_) => {}
            Err(error) => shared.warnings.warn("cannot read a result that is waited for", &error),
        },
    );
}

/// Ends waits whose time is over, and reads for all of them now and then. Runs until it is dropped.
pub(super) async fn keep_time(db: Db) {
    let bells = &db.shared().bells;
    let mut reread = Instant::now() + REREAD;
    loop {
        let (next, is_idle) = {
            let waiters = bells.waiters();
            (waiters.next_deadline(), waiters.ids().next().is_none())
        };
        let rereading = async {
            if is_idle {
                std::future::pending::<()>().await;
            }
            sleep_until(reread).await;
        };
        let deadline = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = bells.waited.notified() => {}
            () = deadline => drop(bells.waiters().expire(Instant::now())),
            () = rereading => {
                let ids: Vec<_> = {
                    let mut waiters = bells.waiters();
                    drop(waiters.forget_dropped());
                    waiters.ids().cloned().collect()
                };
                ids.into_iter().for_each(|id| look(&db, id));
                reread = Instant::now() + REREAD;
            }
        }
    }
}
