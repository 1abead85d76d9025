//! Streams of running tasks.

use futures_util::future::BoxFuture;
use rusqlite::params;

use super::fault::TxResult;
use super::notifications::Event;
use super::retention;
use super::store::EmbeddedStore;
use super::txn::Txn;
use crate::backend::run_owner::is_ended;
use crate::backend::{EntryKind, RunOwner, Scope, StreamAppend, StreamEntry, Streams};
use crate::error::{Error, Kind};
use crate::task::TaskId;

/// The number of entries that are kept of a stream: the last ones.
const ENTRIES: i64 = 10_000;
const READ_AT_ONCE: i64 = 64;
const BODY: &str = "body";
pub(super) const STEP: &str = "step ";
/// The head whose row identifies the owner of the stream.
pub(super) const OWNER: &str = "digest";

impl Streams for EmbeddedStore {
    fn append_entry(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        entry: StreamAppend,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let (id, writer) = (id.clone(), writer.clone());
        let retention = self.retention.running();
        Box::pin(self.retry_until_ok(move |txn| {
            let (scope, execution) = match &entry.scope {
                Scope::Body => (BODY.to_owned(), "-".to_owned()),
                Scope::Step { name, execution } => {
                    (format!("{STEP}{name}"), format!("{execution:x}"))
                }
            };
            own_stream(txn, &id, &writer)?;
            let find = "SELECT run, execution, written FROM heads WHERE task = ? AND scope = ?";
            let head = txn.first(find, [id.as_str(), &scope], |row| {
                Ok(Head { run: row.get(0)?, execution: row.get(1)?, written: row.get(2)? })
            })?;
            let Some((head, is_restarted)) = follow(head, &execution, entry.number) else {
                return Ok(());
            };
            retention::extend(txn, &id, retention)?;
            let mut last = last_number(txn, &id)?;
            let mut push = |kind: EntryKind, json: &[u8]| -> TxResult<()> {
                last += 1;
                let insert = "INSERT INTO entries (task, number, said, scope, run, json) \
                              VALUES (?, ?, ?, ?, ?, ?)";
                let Head { run, .. } = head;
                txn.execute(insert, params![id.as_str(), last, kind.as_str(), scope, run, json])?;
                Ok(())
            };
            if is_restarted {
                push(EntryKind::Restarted, b"null")?;
            }
            if entry.number > 0 {
                push(entry.kind, &entry.json)?;
            }
            let old = "DELETE FROM entries WHERE task = ? AND number <= ?";
            txn.execute(old, params![id.as_str(), last - ENTRIES])?;
            let note = "INSERT OR REPLACE INTO heads (task, scope, run, execution, written) \
                        VALUES (?, ?, ?, ?, ?)";
            let Head { run, execution, written } = head;
            txn.execute(note, params![id.as_str(), scope, run, execution, written])?;
            txn.notify(Event::Stream(id.clone()));
            Ok(())
        }))
    }

    fn read_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>> {
        let id = id.clone();
        Box::pin(self.db.read(move |txn| {
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let list = "SELECT number, said, scope, run, json FROM entries \
                        WHERE task = ? AND number > ? ORDER BY number LIMIT ?";
            let rows = txn.all(list, params![id.as_str(), after, READ_AT_ONCE], |row| {
                let texts: (String, String) = (row.get(1)?, row.get(2)?);
                Ok((row.get::<_, u64>(0)?, texts, row.get::<_, u32>(3)?, row.get::<_, Vec<u8>>(4)?))
            })?;
            let read =
                |(number, (kind, scope), run, json): (u64, (String, String), u32, Vec<u8>)| {
                    let fault = |cause: String| {
                        Error::new(Kind::Codec { what: format!("stream entry {number}"), cause })
                    };
                    let kind = EntryKind::named(&kind)
                        .ok_or_else(|| fault("of no known kind".to_owned()))?;
                    let value =
                        serde_json::from_slice(&json).map_err(|error| fault(error.to_string()))?;
                    let step = scope.strip_prefix(STEP).map(str::to_owned);
                    Ok(StreamEntry { number, kind, step, run, value })
                };
            Ok(rows.into_iter().map(read).collect::<Result<_, Error>>()?)
        }))
    }

    fn next_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>> {
        let id = id.clone();
        Box::pin(async move {
            let notify = self.db.shared().notifications.stream(&id);
            loop {
                let mut notified = std::pin::pin!(notify.notified());
                notified.as_mut().enable();
                let found = self.retry(|| self.read_entries(&id, after)).await?;
                if !found.is_empty() {
                    return Ok(found);
                }
                let waited = self.closing.run_until_cancelled(notified).await;
                waited.ok_or(Kind::Closed)?;
            }
        })
    }

    fn last_entry(&self, id: &TaskId) -> BoxFuture<'_, Result<u64, Error>> {
        let id = id.clone();
        Box::pin(self.db.read(move |txn| Ok(last_number(txn, &id)?.unsigned_abs())))
    }
}

/// The last entry that was written in one scope of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    run: u32,
    execution: String,
    written: u64,
}

/// Returns the new head for an entry; `None` if it was written before, or if a later execution has
/// replaced its own. The flag says whether the scope starts again.
fn follow(head: Option<Head>, execution: &str, number: u64) -> Option<(Head, bool)> {
    let execution = execution.to_owned();
    match head {
        None => Some((Head { run: 1, execution, written: number }, false)),
        Some(head) if head.execution == execution => {
            (number > head.written).then_some((Head { written: number, ..head }, false))
        }
        Some(_) if number > 1 => None,
        Some(Head { run, .. }) => Some((Head { run: run + 1, execution, written: number }, true)),
    }
}

/// Returns the owner of the stream, if known, and the number before its first entry.
pub(super) fn stream_owner(txn: &Txn<'_>, task: &TaskId) -> TxResult<Option<(String, i64)>> {
    let find = "SELECT execution, written FROM heads WHERE task = ? AND scope = ?";
    txn.first(find, [task.as_str(), OWNER], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Makes `writer` the owner of the stream, as [`own_journal`] does. Its numbers continue, for its followers.
fn own_stream(txn: &Txn<'_>, task: &TaskId, writer: &RunOwner) -> TxResult<()> {
    let found = stream_owner(txn, task)?;
    let owner = found.as_ref().map(|(owner, _)| &**owner);
    if owner == Some(writer.digest.as_str()) {
        return Ok(());
    }
    let mut before = found.as_ref().map_or(0, |(_, before)| *before);
    if !writer.continues(owner) {
        before = last_number(txn, task)?;
        txn.execute("DELETE FROM entries WHERE task = ?", [task.as_str()])?;
        txn.execute("DELETE FROM heads WHERE task = ?", [task.as_str()])?;
    } else if !owner.is_some_and(|owner| is_ended(owner, &writer.digest)) {
        let find = "SELECT 1 FROM heads WHERE task = ? LIMIT 1";
        if txn.first(find, [task.as_str()], |_| Ok(()))?.is_some() {
            return Ok(());
        }
    }
    let note = "INSERT OR REPLACE INTO heads (task, scope, run, execution, written) \
                VALUES (?, ?, 0, ?, ?)";
    txn.execute(note, params![task.as_str(), OWNER, writer.digest.as_str(), before])?;
    Ok(())
}

/// Returns the number of a stream's last entry; 0 when there is none.
fn last_number(txn: &Txn<'_>, task: &TaskId) -> TxResult<i64> {
    let last = "SELECT max(number) FROM entries WHERE task = ?";
    let last = txn.first(last, [task.as_str()], |row| row.get::<_, Option<i64>>(0))?;
    match last.flatten() {
        Some(last) => Ok(last),
        None => Ok(stream_owner(txn, task)?.map_or(0, |(_, before)| before)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_written_once_and_another_execution_restarts() {
        let (head, restarted) = follow(None, "a", 1).unwrap();
        assert!(!restarted);
        assert_eq!(follow(Some(head.clone()), "a", 1), None);
        let (head, _) = follow(Some(head), "a", 2).unwrap();
        assert_eq!((head.run, head.written), (1, 2));
        let (head, restarted) = follow(Some(head), "b", 1).unwrap();
        assert!(restarted && head.run == 2);
        assert_eq!(follow(Some(head), "a", 3), None, "a later execution has taken its place");
    }
}
