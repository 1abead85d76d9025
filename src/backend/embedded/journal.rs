//! Journals: the results of the finished steps of tasks.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rusqlite::params;

use super::fault::TxResult;
use super::store::EmbeddedStore;
use super::txn::Txn;
use super::{retention, streams};
use crate::backend::run_owner::{ENDED, is_of};
use crate::backend::{Journals, RunOwner, TaskHistory};
use crate::error::Error;
use crate::protocol::TaskDigest;
use crate::task::TaskId;

impl Journals for EmbeddedStore {
    fn task_history(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<TaskHistory, Error>> {
        let (id, digest) = (id.clone(), digest.cloned());
        Box::pin(self.retry(move || {
            let (id, digest) = (id.clone(), digest.clone());
            self.db.read(move |txn| history(txn, &id, digest.as_ref()))
        }))
    }

    fn record_step(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        step: &str,
        entry: Bytes,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Error>> {
        let (id, writer, step) = (id.clone(), writer.clone(), step.to_owned());
        let retention = self.retention.running();
        Box::pin(self.retry_until_ok(move |txn| {
            retention::extend(txn, &id, retention)?;
            own_journal(txn, &id, &writer)?;
            let insert = "INSERT OR IGNORE INTO steps (task, name, entry) VALUES (?, ?, ?)";
            if txn.execute(insert, params![id.as_str(), step, &entry[..]])? == 1 {
                return Ok(None);
            }
            let find = "SELECT entry FROM steps WHERE task = ? AND name = ?";
            let found = txn.first(find, [id.as_str(), &step], |row| row.get::<_, Vec<u8>>(0))?;
            Ok(found.map(Bytes::from))
        }))
    }

    fn end_history(&self, id: &TaskId, digest: &TaskDigest) -> BoxFuture<'_, Result<(), Error>> {
        let (id, digest, retention) = (id.clone(), digest.clone(), self.retention.ended());
        Box::pin(self.retry_until_ok(move |txn| {
            if !is_of(journal_owner(txn, &id)?.as_deref(), Some(&digest)) {
                return Ok(());
            }
            let (digest, ended) = (digest.as_str(), format!("{digest}{ENDED}"));
            let note = "UPDATE left_by SET expires = ?, \
                        digest = CASE WHEN digest = ? THEN ? ELSE digest END WHERE task = ?";
            let expires = txn.now.saturating_add(retention);
            txn.execute(note, params![expires, digest, ended, id.as_str()])?;
            let note =
                "UPDATE heads SET execution = ? WHERE task = ? AND scope = ? AND execution = ?";
            txn.execute(note, params![ended, id.as_str(), streams::OWNER, digest])?;
            Ok(())
        }))
    }
}

/// Returns the owner of the journal, if known.
fn journal_owner(txn: &Txn<'_>, task: &TaskId) -> TxResult<Option<String>> {
    let find = "SELECT digest FROM left_by WHERE task = ?";
    Ok(txn.first(find, [task.as_str()], |row| row.get(0))?.flatten())
}

/// Makes `writer` the owner of the journal: one of another task, or of an earlier execution of the same
/// task, is emptied. A journal of an older version stays unchanged.
fn own_journal(txn: &Txn<'_>, task: &TaskId, writer: &RunOwner) -> TxResult<()> {
    let owner = journal_owner(txn, task)?;
    if owner.as_deref() == Some(writer.digest.as_str()) {
        return Ok(());
    }
    if !writer.continues(owner.as_deref()) {
        txn.execute("DELETE FROM steps WHERE task = ?", [task.as_str()])?;
    } else if owner.is_none() {
        let find = "SELECT 1 FROM steps WHERE task = ? LIMIT 1";
        if txn.first(find, [task.as_str()], |_| Ok(()))?.is_some() {
            return Ok(());
        }
    }
    let note = "UPDATE left_by SET digest = ? WHERE task = ?";
    txn.execute(note, params![writer.digest.as_str(), task.as_str()])?;
    Ok(())
}

/// Returns the data that earlier runs of a task have stored; with a digest, only those of that task.
fn history(txn: &Txn<'_>, task: &TaskId, digest: Option<&TaskDigest>) -> TxResult<TaskHistory> {
    let steps = "SELECT name, entry FROM steps WHERE task = ?";
    let mut steps = txn.all(steps, [task.as_str()], |row| {
        Ok((row.get::<_, String>(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?)))
    })?;
    if !is_of(journal_owner(txn, task)?.as_deref(), digest) {
        steps.clear();
    }
    let scopes = "SELECT scope FROM heads WHERE task = ?";
    let mut scopes = txn.all(scopes, [task.as_str()], |row| row.get::<_, String>(0))?;
    let owner = streams::stream_owner(txn, task)?.map(|(owner, _)| owner);
    if !is_of(owner.as_deref(), digest) {
        scopes.clear();
    }
    let streamed = scopes.iter().filter_map(|scope| scope.strip_prefix(streams::STEP));
    Ok(TaskHistory {
        steps: steps.into_iter().collect::<HashMap<_, _>>(),
        streamed: streamed.map(str::to_owned).collect::<HashSet<_>>(),
    })
}
