//! Resume messages that are not known to be sent. The process that sends one clears its entry.

use futures_util::future::BoxFuture;
use rusqlite::params;

use super::fault::{Fault, TxResult};
use super::store::EmbeddedStore;
use super::txn::Txn;
use super::{requests, suspension_records};
use crate::approval::{ApprovalId, ApprovalStatus};
use crate::backend::milliseconds::milliseconds;
use crate::backend::outbox::{OVERDUE, SWEEP_LIMIT};
use crate::backend::{Outbox, Resume};
use crate::error::Error;
use crate::task::TaskId;

impl Outbox for EmbeddedStore {
    fn resume_sent(&self, resume: &Resume) -> BoxFuture<'_, Result<(), Error>> {
        let entry = resume.entry.clone();
        Box::pin(self.db.write(move |txn| {
            txn.execute("DELETE FROM outbox WHERE entry = ?", [&entry])?;
            Ok(())
        }))
    }

    /// Sets the entries to a newer time, which keeps other processes from taking them, too.
    fn overdue_resumes(&self) -> BoxFuture<'_, Result<Vec<Resume>, Error>> {
        Box::pin(self.db.write(|txn| {
            let take = "UPDATE outbox SET at = ?1 WHERE entry IN \
                        (SELECT entry FROM outbox WHERE at <= ?2 ORDER BY at, entry LIMIT ?3) \
                        RETURNING entry";
            let old = txn.now - milliseconds(OVERDUE);
            let read = |row: &rusqlite::Row<'_>| Ok(Resume::read(&row.get::<_, String>(0)?));
            let entries = txn.all(take, params![txn.now, old, SWEEP_LIMIT], read)?;
            let mut resumes: Vec<_> = entries.into_iter().flatten().collect();
            resumes.extend(tidy(txn, SWEEP_LIMIT)?);
            Ok(resumes)
        }))
    }
}

/// Writes an outbox entry: this task is to be resumed once `at` has passed.
pub(super) fn add(
    txn: &Txn<'_>,
    task: &TaskId,
    number: u64,
    queue: &str,
    at: i64,
) -> TxResult<Option<Resume>> {
    let entry = entry(task, number, queue);
    let insert = "INSERT INTO outbox (entry, at) VALUES (?1, ?2) \
                 ON CONFLICT (entry) DO UPDATE SET at = ?2";
    txn.execute(insert, params![entry, at])?;
    Ok(Resume::read(&entry))
}

fn entry(task: &TaskId, number: u64, queue: &str) -> String {
    serde_json::json!([task.as_str(), number.to_string(), queue]).to_string()
}

/// Removes the entry of a message that is not needed any more.
pub(super) fn cancel(txn: &Txn<'_>, task: &TaskId, number: u64, queue: &str) -> TxResult<()> {
    txn.execute("DELETE FROM outbox WHERE entry = ?", [entry(task, number, queue)])?;
    Ok(())
}

/// Checks up to `limit` requests that are listed by a deadline that has passed. A request that was
/// extended is listed by its new deadline; any other leaves the list. A task that waits for an expired
/// request gets an entry in the outbox, so that it is resumed.
pub(super) fn tidy(txn: &Txn<'_>, limit: u32) -> TxResult<Vec<Resume>> {
    let passed = "SELECT id FROM questions WHERE listed < ? ORDER BY listed, id LIMIT ?";
    let passed = txn.all(passed, params![txn.now, limit], |row| row.get::<_, String>(0))?;
    let mut resumes: Vec<Resume> = Vec::new();
    for id in passed.iter().filter_map(|id| ApprovalId::parse(id)) {
        let state = match requests::find(txn, &id) {
            Err(Fault::Sql(error)) if requests::is_malformed(&error) => {
                // It leaves the list of open ones, where it would hold up the others.
                requests::unlist(txn, &id)?;
                continue;
            }
            found => found?,
        };
        let status = state.status(txn.now);
        if let Some(ApprovalStatus::Open(deadline)) = status {
            let list = "UPDATE questions SET listed = ? WHERE id = ?";
            txn.execute(list, params![deadline.as_millisecond(), id.as_str()])?;
            continue;
        }
        let task = state.request.and_then(|request| request.task).map(TaskId::from);
        let is_readable = match &task {
            Some(task) => suspension_records::is_suspended(txn, task)?,
            None => false,
        };
        let Some(task) = task.filter(|_| is_readable) else {
            // No suspended task owns this request, so the end of a task does not remove it.
            requests::expire(txn, &id, false)?;
            continue;
        };
        requests::unlist(txn, &id)?;
        if matches!(status, Some(ApprovalStatus::Expired(_)))
            && let Some((number, queue)) = suspension_records::waiting(txn, &task, &id)?
            && let Some(resume) = add(txn, &task, number, &queue, txn.now)?
            && !resumes.contains(&resume)
        {
            resumes.push(resume);
        }
    }
    Ok(resumes)
}
