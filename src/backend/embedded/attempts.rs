//! Attempts that were claimed, and tasks that ran when a worker died. Both are stored as marks.

use futures_util::future::BoxFuture;
use rusqlite::params;

use super::fault::TxResult;
use super::marks;
use super::store::EmbeddedStore;
use super::txn::Txn;
use crate::backend::{Attempts, Crashes};
use crate::error::Error;
use crate::protocol::TaskDigest;
use crate::task::TaskId;

/// How long a mark is kept, in milliseconds: longer than any task is retried.
const RETENTION: i64 = 24 * 60 * 60 * 1000;
/// The most attempts whose marks are deleted at once.
const ATTEMPTS: u64 = 1000;

impl Attempts for EmbeddedStore {
    /// Marks of older processes have no digest, and always count.
    fn claim_attempt(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        attempt: u32,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let (name, digest) = (attempt_name(id, attempt.into()), digest.clone());
        Box::pin(self.db.write(move |txn| {
            let another = "DELETE FROM marks WHERE name = ? AND value <> '' AND value <> ?";
            txn.execute(another, params![name, digest.as_str()])?;
            marks::claim(txn, &name, digest.as_str(), RETENTION)
        }))
    }

    fn record_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>> {
        let name = crash_name(id);
        Box::pin(self.db.write(move |txn| {
            let Crashes { runs, alone: before } = stored_crashes(txn, &name)?;
            let alone = before.saturating_add(alone.into());
            store_crashes(txn, &name, Crashes { runs: runs.saturating_add(1), alone })
        }))
    }

    fn crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<Crashes, Error>> {
        let name = crash_name(id);
        Box::pin(self.db.read(move |txn| stored_crashes(txn, &name)))
    }

    fn forget_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>> {
        let name = crash_name(id);
        Box::pin(self.db.write(move |txn| {
            let Crashes { runs, alone: before } = stored_crashes(txn, &name)?;
            let alone = before.saturating_sub(alone.into());
            store_crashes(txn, &name, Crashes { runs: runs.saturating_sub(1), alone })
        }))
    }

    fn clear_crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<(), Error>> {
        let name = crash_name(id);
        Box::pin(self.db.write(move |txn| marks::delete(txn, &name)))
    }
}

fn attempt_name(id: &TaskId, attempt: u64) -> String {
    format!("run:{id}:{attempt}")
}

fn crash_name(id: &TaskId) -> String {
    format!("crash:{id}")
}

fn stored_crashes(txn: &Txn<'_>, name: &str) -> TxResult<Crashes> {
    let counts = marks::get(txn, name)?.unwrap_or_default();
    let mut counts = counts.split(' ').map(|count| count.parse().unwrap_or(0));
    Ok(Crashes { runs: counts.next().unwrap_or(0), alone: counts.next().unwrap_or(0) })
}

fn store_crashes(txn: &Txn<'_>, name: &str, Crashes { runs, alone }: Crashes) -> TxResult<()> {
    marks::set(txn, name, &format!("{runs} {alone}"), RETENTION)
}

/// Deletes the marks of claimed attempts, which would refuse a message that is sent again.
pub(super) fn delete_attempts(txn: &Txn<'_>, id: &TaskId, attempts: u64) -> TxResult<()> {
    (1..=attempts.clamp(1, ATTEMPTS)).try_for_each(|n| marks::delete(txn, &attempt_name(id, n)))
}

/// Deletes the marks of all attempts, and of the runs that have not ended.
pub(super) fn delete_all(txn: &Txn<'_>, id: &TaskId) -> TxResult<()> {
    // `;` is the character after the colon, and ends the range.
    let range = params![format!("run:{id}:"), format!("run:{id};")];
    txn.execute("DELETE FROM marks WHERE name >= ? AND name < ?", range)?;
    marks::delete(txn, &crash_name(id))
}
