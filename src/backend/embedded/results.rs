//! Results of tasks, and the waits for them.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rusqlite::params;
use tokio::sync::oneshot;

use super::fault::TxResult;
use super::notifications::Event;
use super::store::EmbeddedStore;
use super::txn::Txn;
use super::{attempts, audit, documents, index, result_waits, retention, suspension_records};
use crate::backend::{AuditAction, Forget, Origin, Recorded, Results, StoreResult};
use crate::error::{Error, Kind};
use crate::protocol::{Document, SUSPENDED, State};
use crate::task::TaskId;

impl Results for EmbeddedStore {
    fn store_result(&self, result: StoreResult) -> BoxFuture<'_, Result<Recorded, Error>> {
        let (id, retention) = (result.document.id.clone(), self.retention.results);
        Box::pin(async move {
            self.retry_until_ok(move |txn| store(txn, &result, retention)).await?;
            Ok(Recorded::new(id))
        })
    }

    fn ignore_result(&self, id: &TaskId) -> Recorded {
        Recorded::new(id.clone())
    }

    fn read_result(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<Document>, Error>> {
        let id = id.clone();
        Box::pin(self.db.read(move |txn| documents::read(txn, &id)))
    }

    fn watch_result(
        &self,
        id: TaskId,
        origin: Origin,
        timeout: Option<Duration>,
    ) -> oneshot::Receiver<Result<Box<Document>, Error>> {
        let (sender, wait) = oneshot::channel();
        if self.db.is_closed() {
            let _ = sender.send(Err(Kind::Closed.into()));
            return wait;
        }
        // Registered before the read, so that no result is missed.
        if self.db.shared().notifications.watch(id.clone(), origin, timeout, sender) {
            result_waits::refresh(&self.db, id);
        }
        wait
    }

    fn reopen(
        &self,
        action: AuditAction,
        attempts: u64,
    ) -> BoxFuture<'_, Result<Option<State>, Error>> {
        Box::pin(self.db.write(move |txn| reopen(txn, &action, attempts)))
    }

    fn forget(&self, id: &TaskId) -> BoxFuture<'_, Result<Forget, Error>> {
        let id = id.clone();
        Box::pin(self.db.write(move |txn| {
            let state = documents::read(txn, &id)?.map(|document| document.state);
            if let Some(state) = state.as_ref().filter(|state| !state.is_terminal()) {
                return Ok(Forget::Unfinished(Some(state.clone())));
            }
            if !suspension_records::forget(txn, &id)? {
                return Ok(Forget::Unfinished(Some(State::named(SUSPENDED))));
            }
            if state.is_none()
                && retention::has_task_data(txn, &id)?
                && !suspension_records::is_known(txn, &id)?
            {
                return Ok(Forget::Unfinished(None));
            }
            retention::delete(txn, id.as_str())?;
            attempts::delete_all(txn, &id)?;
            index::delete_failure(txn, &id)?;
            txn.execute("DELETE FROM results WHERE id = ?", [id.as_str()])?;
            txn.notify(Event::Forgotten(id.clone()));
            Ok(Forget::Forgotten)
        }))
    }

    fn reply_channel(&self) -> &str {
        ""
    }
}

/// Stores a result, unless the task has ended. It expires after `retention` milliseconds; `None`: never.
pub(super) fn store(
    txn: &mut Txn<'_>,
    result: &StoreResult,
    retention: Option<i64>,
) -> TxResult<()> {
    let document = &result.document;
    // A suspended state does not expire: waiters find the task however long a decision takes.
    let retention = retention.filter(|_| document.state.as_str() != SUSPENDED);
    let expires = retention.map(|retention| txn.now.saturating_add(retention));
    let Document { id, state, json } = document;
    let insert = "INSERT INTO results (id, state, json, expires) VALUES (?, ?, ?, ?) \
                  ON CONFLICT (id) DO NOTHING";
    let row = params![id.as_str(), state.as_str(), &json[..], expires];
    if txn.execute(insert, row)? == 0 && !replace(txn, result, expires)? {
        return Ok(());
    }
    if state.is_terminal() {
        txn.notify(Event::Ended(Box::new(document.clone())));
    }
    Ok(())
}

/// Replaces the stored result of a task, and returns true, unless the task has ended.
fn replace(txn: &Txn<'_>, result: &StoreResult, expires: Option<i64>) -> TxResult<bool> {
    let document = &result.document;
    let find = "SELECT state FROM results WHERE id = ? AND (expires IS NULL OR expires >= ?)";
    let found = params![document.id.as_str(), txn.now];
    let state = txn.first(find, found, |row| Ok(State::named(&row.get::<_, String>(0)?)))?;
    match state {
        Some(State::Success) => return Ok(false),
        Some(State::Failure | State::Revoked) => {
            let done = documents::read(txn, &document.id)?.and_then(|stored| stored.date_done());
            let is_older = done < result.received && done.is_some();
            if !is_older {
                return Ok(false);
            }
        }
        _ => {}
    }
    let Document { id, state, json } = document;
    let update = "UPDATE results SET state = ?, json = ?, expires = ? WHERE id = ?";
    txn.execute(update, params![state.as_str(), &json[..], expires, id.as_str()])?;
    Ok(true)
}

/// Deletes a failure, and audits who did it. A success is kept, and so is a revocation unless superseded.
fn reopen(txn: &mut Txn<'_>, action: &AuditAction, attempts: u64) -> TxResult<Option<State>> {
    let find = "SELECT state, substr(json, 1, 1024) FROM results \
                WHERE id = ? AND (expires IS NULL OR expires >= ?)";
    let found = txn.first(find, params![action.id.as_str(), txn.now], |row| {
        Ok((State::named(&row.get::<_, String>(0)?), row.get::<_, Vec<u8>>(1)?))
    })?;
    let (state, was) = found.map_or((None, Vec::new()), |(state, was)| (Some(state), was));
    let is_superseded = action.what == AuditAction::SUPERSEDE;
    match state {
        Some(State::Success) => return Ok(state),
        Some(State::Revoked) if !is_superseded => return Ok(state),
        _ => {}
    }
    audit::add_action(txn, action, &[("was", &String::from_utf8_lossy(&was))])?;
    if matches!(state, Some(State::Failure | State::Revoked)) {
        txn.execute("DELETE FROM results WHERE id = ?", [action.id.as_str()])?;
    }
    attempts::delete_attempts(txn, &action.id, attempts)?;
    suspension_records::delete_ended(txn, &action.id)?;
    Ok(state)
}
