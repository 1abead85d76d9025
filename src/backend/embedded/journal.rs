//! What the runs of a task leave: the values of its steps, and its stream.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use rusqlite::params;

use super::bells::Ring;
use super::txn::{Done, Txn};
use crate::backend::kept::{ENDED, is_ended, is_of};
use crate::backend::{Kept, Line, RunOwner, Said, Scope, StreamEntry};
use crate::error::{Error, Kind};
use crate::protocol::TaskDigest;
use crate::task::TaskId;

const HOUR: i64 = 60 * 60 * 1000;
const WEEK: i64 = 7 * 24 * HOUR;
/// About so many entries of a stream are kept: the last.
const ENTRIES: i64 = 10_000;
const READ_AT_ONCE: i64 = 64;
const BODY: &str = "body";
const STEP: &str = "step ";
/// The head that says whose stream it is.
const OWNER: &str = "digest";

/// Until when what a task leaves is kept, in milliseconds from now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    /// How long results are kept; `None`: for ever.
    pub(super) results: Option<i64>,
}

impl Retention {
    /// Of a task that has not ended: after its last write.
    pub(super) fn running(self) -> i64 {
        self.results.unwrap_or(0).saturating_add(WEEK)
    }

    /// After its end.
    fn ended(self) -> i64 {
        self.results.map_or(WEEK, |results| results.max(HOUR))
    }
}

/// Keeps what a task has left at least this much longer. An hour more or less does not matter.
pub(super) fn keep(txn: &Txn<'_>, task: &TaskId, kept: i64) -> Done<()> {
    let keep = "INSERT INTO left_by (task, expires) VALUES (?1, ?2) \
                ON CONFLICT (task) DO UPDATE SET expires = ?2 WHERE expires < ?2 - ?3";
    let expires = txn.now.saturating_add(kept);
    txn.execute(keep, params![task.as_str(), expires, HOUR])?;
    Ok(())
}

/// The task has ended: what it has left goes with its result.
pub(super) fn ended(
    txn: &Txn<'_>,
    task: &TaskId,
    digest: &TaskDigest,
    retention: Retention,
) -> Done<()> {
    if !is_of(journal_owner(txn, task)?.as_deref(), Some(digest)) {
        return Ok(());
    }
    let (digest, ended) = (digest.as_str(), format!("{digest}{ENDED}"));
    let note = "UPDATE left_by SET expires = ?, \
                digest = CASE WHEN digest = ? THEN ? ELSE digest END WHERE task = ?";
    let expires = txn.now.saturating_add(retention.ended());
    txn.execute(note, params![expires, digest, ended, task.as_str()])?;
    let note = "UPDATE heads SET execution = ? WHERE task = ? AND scope = ? AND execution = ?";
    txn.execute(note, params![ended, task.as_str(), OWNER, digest])?;
    Ok(())
}

/// Deletes everything that a task has left.
pub(super) fn forget(txn: &Txn<'_>, task: &str) -> Done<()> {
    for table in ["steps", "entries", "heads", "left_by"] {
        txn.execute(&format!("DELETE FROM {table} WHERE task = ?"), [task])?;
    }
    Ok(())
}

/// Whether a task has left anything.
pub(super) fn is_left(txn: &Txn<'_>, task: &TaskId) -> Done<bool> {
    let find = "SELECT 1 FROM left_by WHERE task = ?1 AND expires >= ?2 AND \
                (EXISTS (SELECT 1 FROM steps WHERE task = ?1) \
                OR EXISTS (SELECT 1 FROM heads WHERE task = ?1))";
    Ok(txn.first(find, params![task.as_str(), txn.now], |_| Ok(()))?.is_some())
}

/// Whose journal it is, where that is known.
fn journal_owner(txn: &Txn<'_>, task: &TaskId) -> Done<Option<String>> {
    let find = "SELECT digest FROM left_by WHERE task = ?";
    Ok(txn.first(find, [task.as_str()], |row| row.get(0))?.flatten())
}

/// Makes the journal the writer's: one of another task, or of an earlier life of the same one, is
/// emptied. One of an older version stays as it is.
fn own_journal(txn: &Txn<'_>, task: &TaskId, writer: &RunOwner) -> Done<()> {
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

/// Records what a step answered; returns the record that was there.
pub(super) fn record(
    txn: &Txn<'_>,
    task: &TaskId,
    writer: &RunOwner,
    (step, entry): (&str, &[u8]),
    retention: Retention,
) -> Done<Option<Bytes>> {
    keep(txn, task, retention.running())?;
    own_journal(txn, task, writer)?;
    let insert = "INSERT OR IGNORE INTO steps (task, name, entry) VALUES (?, ?, ?)";
    if txn.execute(insert, params![task.as_str(), step, entry])? == 1 {
        return Ok(None);
    }
    let find = "SELECT entry FROM steps WHERE task = ? AND name = ?";
    let found = txn.first(find, [task.as_str(), step], |row| row.get::<_, Vec<u8>>(0))?;
    Ok(found.map(Bytes::from))
}

/// What earlier runs of a task have left; with a digest, of the task with that one.
pub(super) fn kept(txn: &Txn<'_>, task: &TaskId, digest: Option<&TaskDigest>) -> Done<Kept> {
    let steps = "SELECT name, entry FROM steps WHERE task = ?";
    let mut steps = txn.all(steps, [task.as_str()], |row| {
        Ok((row.get::<_, String>(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?)))
    })?;
    if !is_of(journal_owner(txn, task)?.as_deref(), digest) {
        steps.clear();
    }
    let scopes = "SELECT scope FROM heads WHERE task = ?";
    let mut scopes = txn.all(scopes, [task.as_str()], |row| row.get::<_, String>(0))?;
    let owner = stream_owner(txn, task)?.map(|(owner, _)| owner);
    if !is_of(owner.as_deref(), digest) {
        scopes.clear();
    }
    let streamed = scopes.iter().filter_map(|scope| scope.strip_prefix(STEP));
    Ok(Kept {
        steps: steps.into_iter().collect::<HashMap<_, _>>(),
        streamed: streamed.map(str::to_owned).collect::<HashSet<_>>(),
    })
}

/// The last that was written in one scope of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    run: u32,
    execution: String,
    written: u64,
}

/// Where a line goes on; `None`: it was written before, or a later execution has taken its place.
/// With it, whether the scope begins again.
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

/// Whose stream it is, where that is known, and the number before its first entry.
fn stream_owner(txn: &Txn<'_>, task: &TaskId) -> Done<Option<(String, i64)>> {
    let find = "SELECT execution, written FROM heads WHERE task = ? AND scope = ?";
    txn.first(find, [task.as_str(), OWNER], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Makes the stream the writer's, as [`own_journal`] does. Its numbers go on, for those who follow it.
fn own_stream(txn: &Txn<'_>, task: &TaskId, writer: &RunOwner) -> Done<()> {
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

/// Appends a line to a task's stream, once.
pub(super) fn append(
    txn: &mut Txn<'_>,
    task: &TaskId,
    writer: &RunOwner,
    line: &Line,
    retention: Retention,
) -> Done<()> {
    let (scope, execution) = match &line.scope {
        Scope::Body => (BODY.to_owned(), "-".to_owned()),
        Scope::Step { name, execution } => (format!("{STEP}{name}"), format!("{execution:x}")),
    };
    own_stream(txn, task, writer)?;
    let find = "SELECT run, execution, written FROM heads WHERE task = ? AND scope = ?";
    let head = txn.first(find, [task.as_str(), &scope], |row| {
        Ok(Head { run: row.get(0)?, execution: row.get(1)?, written: row.get(2)? })
    })?;
    let Some((head, is_restarted)) = follow(head, &execution, line.number) else { return Ok(()) };
    keep(txn, task, retention.running())?;
    let mut last = last_number(txn, task)?;
    let mut push = |said: Said, json: &[u8]| -> Done<()> {
        last += 1;
        let insert = "INSERT INTO entries (task, number, said, scope, run, json) \
                      VALUES (?, ?, ?, ?, ?, ?)";
        let Head { run, .. } = head;
        txn.execute(insert, params![task.as_str(), last, said.as_str(), scope, run, json])?;
        Ok(())
    };
    if is_restarted {
        push(Said::Restarted, b"null")?;
    }
    if line.number > 0 {
        push(line.said, &line.json)?;
    }
    let old = "DELETE FROM entries WHERE task = ? AND number <= ?";
    txn.execute(old, params![task.as_str(), last - ENTRIES])?;
    let note = "INSERT OR REPLACE INTO heads (task, scope, run, execution, written) \
                VALUES (?, ?, ?, ?, ?)";
    let Head { run, execution, written } = head;
    txn.execute(note, params![task.as_str(), scope, run, execution, written])?;
    txn.ring(Ring::Stream(task.clone()));
    Ok(())
}

/// The number of a stream's last entry; 0 when there is none.
pub(super) fn last_number(txn: &Txn<'_>, task: &TaskId) -> Done<i64> {
    let last = "SELECT max(number) FROM entries WHERE task = ?";
    let last = txn.first(last, [task.as_str()], |row| row.get::<_, Option<i64>>(0))?;
    match last.flatten() {
        Some(last) => Ok(last),
        None => Ok(stream_owner(txn, task)?.map_or(0, |(_, before)| before)),
    }
}

/// The first entries after that number.
pub(super) fn entries(txn: &Txn<'_>, task: &TaskId, after: u64) -> Done<Vec<StreamEntry>> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let list = "SELECT number, said, scope, run, json FROM entries \
                WHERE task = ? AND number > ? ORDER BY number LIMIT ?";
    let rows = txn.all(list, params![task.as_str(), after, READ_AT_ONCE], |row| {
        let texts: (String, String) = (row.get(1)?, row.get(2)?);
        Ok((row.get::<_, u64>(0)?, texts, row.get::<_, u32>(3)?, row.get::<_, Vec<u8>>(4)?))
    })?;
    let read = |(number, (said, scope), run, json): (u64, (String, String), u32, Vec<u8>)| {
        let fault = |cause: String| {
            Error::new(Kind::Codec { what: format!("stream entry {number}"), cause })
        };
        let said = Said::named(&said).ok_or_else(|| fault("of no known kind".to_owned()))?;
        let value = serde_json::from_slice(&json).map_err(|error| fault(error.to_string()))?;
        let step = scope.strip_prefix(STEP).map(str::to_owned);
        Ok(StreamEntry { number, said, step, run, value })
    };
    Ok(rows.into_iter().map(read).collect::<Result<_, Error>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_once_and_another_execution_begins_again() {
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
