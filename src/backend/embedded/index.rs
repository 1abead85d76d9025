//! Finding tasks. Failures are stored among the marks, as `failed:<task id>`.

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rusqlite::params;

use super::fault::TxResult;
use super::marks;
use super::store::EmbeddedStore;
use super::suspension_records;
use super::txn::Txn;
use crate::approval::ApprovalId;
use crate::backend::{FailedTask, SuspendedTask, TaskIndex};
use crate::error::Error;
use crate::task::TaskId;

/// Sorts after every other character.
const LAST: char = '\u{10ffff}';

/// How long a failure is kept where results do not expire, in milliseconds.
const FAILURE_RETENTION: i64 = 30 * 24 * 60 * 60 * 1000;

/// A row of the table of suspensions: task, waits, alarm, queue, message, packed message.
type Row = (String, String, Option<i64>, String, Option<String>, Option<Vec<u8>>);

const SUSPENDED: &str = "SELECT task, waits, alarm, queue, message, packed FROM parks \
     WHERE NOT ended AND (waits <> '' OR alarm IS NOT NULL) \
     AND (holder IS NULL OR until IS NULL OR until <= ?1)";

impl TaskIndex for EmbeddedStore {
    fn record_failure(&self, failed: FailedTask) -> BoxFuture<'_, Result<(), Error>> {
        let retention = self.retention.results.unwrap_or(FAILURE_RETENTION);
        Box::pin(self.db.write(move |txn| {
            let json = serde_json::to_string(&failed).unwrap_or_default();
            marks::set(txn, &failure_name(&failed.id), &json, retention)
        }))
    }

    fn failed_tasks(&self, limit: usize) -> BoxFuture<'_, Result<Vec<FailedTask>, Error>> {
        let list = "SELECT value FROM marks WHERE name >= 'failed:' AND name < 'failed;' \
                    AND expires >= ? ORDER BY expires DESC LIMIT ?";
        Box::pin(self.db.read(move |txn| {
            let texts = txn.all(list, [txn.now, rows(limit)], |row| row.get::<_, String>(0))?;
            Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
        }))
    }

    fn failed_task(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<FailedTask>, Error>> {
        let name = failure_name(id);
        Box::pin(self.db.read(move |txn| {
            let json = marks::get(txn, &name)?;
            Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
        }))
    }

    fn suspended_tasks(&self, limit: usize) -> BoxFuture<'_, Result<Vec<SuspendedTask>, Error>> {
        Box::pin(self.db.read(move |txn| {
            let list = format!("{SUSPENDED} LIMIT ?2");
            // A row that was not written by Countersign hides none of the others.
            let found =
                txn.all(&list, params![txn.now, rows(limit)], |found| Ok(row(found).ok()))?;
            Ok(found.into_iter().flatten().map(suspended).collect())
        }))
    }

    fn suspended_task(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<SuspendedTask>, Error>> {
        let id = id.clone();
        Box::pin(self.db.read(move |txn| {
            let find = format!("{SUSPENDED} AND task = ?2");
            let found = txn.first(&find, params![txn.now, id.as_str()], row)?;
            Ok(found.map(suspended))
        }))
    }

    fn task_ids(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<TaskId>, Error>> {
        let prefix = prefix.to_owned();
        Box::pin(self.db.read(move |txn| {
            let list = "SELECT id FROM results WHERE id >= ?1 AND id < ?2 \
                        AND (expires IS NULL OR expires >= ?3) \
                        UNION SELECT task FROM parks WHERE task >= ?1 AND task < ?2 LIMIT ?4";
            let range = params![prefix, format!("{prefix}{LAST}"), txn.now, rows(limit)];
            let found = txn.all(list, range, |row| row.get::<_, String>(0))?;
            Ok(found.into_iter().map(TaskId::from).collect())
        }))
    }

    fn approval_ids(
        &self,
        prefix: &str,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>> {
        let prefix = prefix.to_owned();
        Box::pin(self.db.read(move |txn| {
            let list = "SELECT id FROM questions WHERE id >= ? AND id < ? ORDER BY id LIMIT ?";
            let range = params![prefix, format!("{prefix}{LAST}"), rows(limit)];
            let found = txn.all(list, range, |row| row.get::<_, String>(0))?;
            Ok(found.iter().filter_map(|id| ApprovalId::parse(id)).collect())
        }))
    }
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
}

fn suspended((task, waits, alarm, queue, message, packed): Row) -> SuspendedTask {
    let id = TaskId::from(task);
    let message = suspension_records::decode(&id, message.as_deref(), packed.as_deref());
    let message = message.and_then(Result::ok);
    let name = message.and_then(|message| message.headers.get("task")?.as_str().map(str::to_owned));
    let approvals = waits.split_whitespace().filter_map(ApprovalId::parse).collect();
    let wakes_at = alarm.and_then(|at| Timestamp::from_millisecond(at).ok());
    SuspendedTask { id, name, queue, approvals, wakes_at }
}

fn failure_name(id: &TaskId) -> String {
    format!("failed:{id}")
}

/// Deletes the record of a task's failure.
pub(super) fn delete_failure(txn: &Txn<'_>, id: &TaskId) -> TxResult<()> {
    marks::delete(txn, &failure_name(id))
}
