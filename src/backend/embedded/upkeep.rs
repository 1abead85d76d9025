//! Background maintenance: renewing sessions, hearing what other processes have written, and
//! deleting what has expired.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};

use super::bells::Ring;
use super::db::Shared;
use super::journal;
use super::session::{self, Session};
use super::txn::{Done, Txn};
use crate::approval::{ApprovalId, KEPT};
use crate::clock;
use crate::protocol::Document;
use crate::task::TaskId;

/// Rows that are forgotten in one transaction.
const SLICE: usize = 200;
/// Pages that are kept for what is written next, and a quarter of the file.
const UNUSED_PAGES: i64 = 1024;
/// What `PRAGMA auto_vacuum` answers for a file that can give pages back.
const INCREMENTAL: i64 = 2;
/// Rings that others may lag behind.
const RINGS: i64 = 4_000;
const HEARD_AT_ONCE: usize = 1_000;
/// After so many looks at a log that has not changed, the database is asked all the same: a commit is
/// seen by others only after its bytes are synced, which a slow disk or a stopped process delays
/// for any time, and that does not change the time of the file.
const QUIET_LOOKS: u32 = 10;
/// So old a time of a file is that of no later write.
const TICKS: SignedDuration = SignedDuration::from_millis(100);

/// The mark that says what time it is.
const CLOCK: &str = "clock";

const ENDED: i64 = 1;
const DECIDED: i64 = 2;
const ASKED: i64 = 3;
const REVOKED: i64 = 4;
const STREAM: i64 = 5;

/// What the store's clock said when somebody last noted it.
pub(super) fn latest(connection: &Connection) -> Option<i64> {
    let find = "SELECT value FROM marks WHERE name = ?";
    let noted = connection.query_row(find, [CLOCK], |row| row.get::<_, String>(0));
    noted.ok()?.parse().ok()
}

/// Notes in the file what the other processes are to hear. That something arrived in a queue they
/// see by themselves.
pub(super) fn note(txn: &Txn<'_>, rings: &[Ring]) -> Done<()> {
    let shared = txn.shared();
    if !shared.is_file {
        return Ok(());
    }
    let mut ended = Vec::new();
    for ring in rings {
        let (what, name) = match ring {
            Ring::Queue(_) | Ring::Queues => continue,
            Ring::Ended(document) => {
                ended.push(document.id.as_str());
                continue;
            }
            Ring::Decided(id) => (DECIDED, id.as_ref().map_or("", ApprovalId::as_str)),
            Ring::Asked(id) => (ASKED, id.as_ref().map_or("", ApprovalId::as_str)),
            Ring::Revoked(_) => (REVOKED, ""),
            Ring::Stream(task) => (STREAM, task.as_str()),
        };
        add(txn, what, name)?;
    }
    if !ended.is_empty() {
        add(txn, ENDED, &serde_json::json!(ended).to_string())?;
    }
    Ok(())
}

fn add(txn: &Txn<'_>, what: i64, name: &str) -> Done<()> {
    let insert = "INSERT INTO rings (session, what, name) VALUES (?, ?, ?)";
    txn.execute(insert, params![txn.shared().identity, what, name])?;
    Ok(())
}

/// How far this process has heard the others.
#[derive(Debug)]
pub(super) struct Others {
    /// The log that every commit is written to. It stays the same file while anybody has it open.
    path: PathBuf,
    log: Option<File>,
    written: Option<Timestamp>,
    version: Option<i64>,
    heard: i64,
    /// How often in a row the log had not changed.
    quiet: u32,
}

impl Others {
    pub(super) fn of(connection: &Connection) -> Self {
        let path = format!("{}-wal", connection.path().unwrap_or_default()).into();
        Self { path, log: None, written: None, version: None, heard: 0, quiet: 0 }
    }

    /// Nobody has written since this was asked last. One question to the system, and none to the
    /// database, which would ask for its locks.
    fn is_quiet(&mut self) -> bool {
        if self.log.is_none() {
            self.log = File::open(&self.path).ok();
        }
        let written = self.log.as_ref().and_then(|log| log.metadata().ok()?.modified().ok());
        let written = written.and_then(|at| Timestamp::try_from(at).ok());
        let known = std::mem::replace(&mut self.written, written);
        // Two writes may have one time: the system counts it in ticks.
        let is_past = written.is_some_and(|at| clock::now().duration_since(at) > TICKS);
        is_past && known == written
    }

    /// Rings what the others have noted since, if the file has changed by another hand.
    pub(super) fn listen(&mut self, connection: &Connection, shared: &Arc<Shared>) {
        if self.is_quiet() && self.quiet < QUIET_LOOKS {
            self.quiet += 1;
            return;
        }
        self.quiet = 0;
        if let Err(error) = self.hear(connection, shared) {
            shared.warnings.warn("cannot look at the database", &error);
        }
    }

    fn hear(&mut self, connection: &Connection, shared: &Arc<Shared>) -> rusqlite::Result<()> {
        let version = connection
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |row| row.get::<_, i64>(0))?;
        if self.version == Some(version) {
            return Ok(());
        }
        self.hear_rings(connection, shared)?;
        self.version = Some(version);
        Ok(())
    }

    fn hear_rings(
        &mut self,
        connection: &Connection,
        shared: &Arc<Shared>,
    ) -> rusqlite::Result<()> {
        shared.bells.ring(Ring::Queues);
        let mut rings = connection.prepare_cached(
            "SELECT seq, session, what, name FROM rings WHERE seq > ? ORDER BY seq LIMIT ?",
        )?;
        let rings = rings.query_map(params![self.heard, HEARD_AT_ONCE], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?, row.get(3)?))
        })?;
        let rings: Vec<(i64, i64, i64, String)> = rings.collect::<Result<_, _>>()?;
        let is_gap = rings.first().is_some_and(|(seq, ..)| *seq != self.heard + 1);
        if is_gap || rings.len() == HEARD_AT_ONCE {
            let newest = "SELECT coalesce(max(seq), 0) FROM rings";
            let newest = connection.prepare_cached(newest)?.query_row([], |row| row.get(0))?;
            shared.bells.ring_all();
            let waited: Vec<_> = shared.bells.waiters().ids().cloned().collect();
            waited.iter().try_for_each(|id| resolve(connection, shared, id))?;
            self.heard = newest;
            return Ok(());
        }
        for (seq, by, what, name) in rings {
            match what {
                _ if by == shared.identity => {}
                ENDED => {
                    let ids: Vec<TaskId> = serde_json::from_str(&name).unwrap_or_default();
                    for id in ids {
                        if shared.bells.waiters().is_waited(&id) {
                            resolve(connection, shared, &id)?;
                        }
                    }
                }
                DECIDED => shared.bells.ring(Ring::Decided(ApprovalId::parse(&name))),
                ASKED => shared.bells.ring(Ring::Asked(ApprovalId::parse(&name))),
                REVOKED => shared.bells.ring(Ring::Revoked(Vec::new())),
                STREAM => shared.bells.ring(Ring::Stream(TaskId::from(&name))),
                // Of a newer version.
                _ => {}
            }
            // What could not be read is heard again.
            self.heard = seq;
        }
        Ok(())
    }
}

/// Tells those who wait for a task, if it has ended.
fn resolve(connection: &Connection, shared: &Shared, id: &TaskId) -> rusqlite::Result<()> {
    let mut read = connection.prepare_cached("SELECT json FROM results WHERE id = ?")?;
    let mut rows = read.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(()) };
    let json: Vec<u8> = row.get(0)?;
    if let Ok(document) = Document::parse(id.clone(), Bytes::from(json))
        && document.state.is_terminal()
    {
        shared.bells.ring(Ring::Ended(Box::new(document)));
    }
    Ok(())
}

/// One maintenance pass, every few seconds: renews this process's session, ends those that are
/// overdue, and deletes a slice of what has expired. True: there is more to delete.
pub(super) fn keep_up(txn: &mut Txn<'_>, of: &Session) -> Done<bool> {
    session::maintain(txn, of)?;
    let has_expired = forget(txn)?;
    Ok(shrink(txn)? || has_expired)
}

/// Gives pages that are not used any more back to the file system, if they are many. True: there are
/// more. A file of an earlier version keeps them, until `countersign db compact` has rewritten it.
fn shrink(txn: &Txn<'_>) -> Done<bool> {
    let number =
        |pragma| -> Done<i64> { Ok(txn.first(pragma, [], |row| row.get(0))?.unwrap_or_default()) };
    let (free, pages) = (number("PRAGMA freelist_count")?, number("PRAGMA page_count")?);
    if free < UNUSED_PAGES || free < pages / 4 || number("PRAGMA auto_vacuum")? != INCREMENTAL {
        return Ok(false);
    }
    txn.all(&format!("PRAGMA incremental_vacuum({SLICE})"), [], |_| Ok(()))?;
    Ok(true)
}

/// Stores the time, for processes that start after the machine's clock was set back.
pub(super) fn note_clock(txn: &Txn<'_>) -> Done<()> {
    let note = "INSERT OR REPLACE INTO marks (name, value, expires) VALUES (?, ?, ?)";
    txn.execute(note, params![CLOCK, txn.now.to_string(), i64::MAX])?;
    Ok(())
}

fn forget(txn: &mut Txn<'_>) -> Done<bool> {
    let mut is_more = false;
    for (table, key) in [
        ("results", "seq"),
        ("marks", "name"),
        ("parks", "task"),
        ("questions", "id"),
        ("ballots", "id"),
    ] {
        let forget = format!(
            "DELETE FROM {table} WHERE {key} IN \
             (SELECT {key} FROM {table} WHERE expires < ? ORDER BY expires LIMIT {SLICE})"
        );
        is_more |= txn.execute(&forget, [txn.now])? == SLICE;
    }
    let left = "SELECT task FROM left_by WHERE expires < ? ORDER BY expires LIMIT 50";
    for task in txn.all(left, [txn.now], |row| row.get::<_, String>(0))? {
        is_more = true;
        journal::forget(txn, &task)?;
    }
    let kept = i64::try_from(KEPT).unwrap_or(i64::MAX);
    for (table, key, keep) in
        [("rings", "seq", RINGS), ("audit", "seq", kept), ("seals", "number", kept)]
    {
        let forget = format!(
            "DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} \
             WHERE {key} <= (SELECT max({key}) FROM {table}) - ? ORDER BY {key} LIMIT {SLICE})"
        );
        is_more |= txn.execute(&forget, [keep])? == SLICE;
    }
    Ok(is_more)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::db::Db;
    use super::super::file;
    use super::super::tests::Folder;
    use super::*;
    use crate::backend::Origin;
    use crate::protocol::{Arguments, Envelope};

    #[tokio::test(flavor = "multi_thread")]
    async fn an_end_that_could_not_be_read_is_heard_again() {
        let folder = Folder::new();
        let db = Db::open(&folder.file()).unwrap();
        let id = Envelope::new("t", Arguments::default()).id;
        let shared = Shared::in_memory(false);
        let (answer, mut ended) = tokio::sync::oneshot::channel();
        shared.bells.waiters().add(id.clone(), Origin::Foreign, None, answer);
        let connection = file::open(&folder.file()).unwrap();
        let mut others = Others::of(&connection);
        end_elsewhere(&db, &id).await;
        connection.execute_batch("ALTER TABLE results RENAME TO unreadable").unwrap();
        assert!(others.hear(&connection, &shared).is_err());
        connection.execute_batch("ALTER TABLE unreadable RENAME TO results").unwrap();
        others.hear(&connection, &shared).unwrap();
        assert!(ended.try_recv().is_ok(), "the end of the task is heard");
    }

    /// Another process stores the end of a task.
    async fn end_elsewhere(db: &Db, id: &TaskId) {
        let json = r#"{"status": "SUCCESS", "result": 1}"#;
        let (task, said) = (id.clone(), serde_json::json!([id.as_str()]).to_string());
        db.write(move |txn| {
            let result = "INSERT INTO results (id, state, json) VALUES (?, 'SUCCESS', ?)";
            txn.execute(result, params![task.as_str(), json.as_bytes()])?;
            add(txn, ENDED, &said)
        })
        .await
        .unwrap();
    }

    /// As on a slow disk: the bytes of a commit are in the log before others see it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_is_seen_long_after_its_bytes_were_written_is_heard() {
        let folder = Folder::new();
        let db = Db::open(&folder.file()).unwrap();
        let id = Envelope::new("t", Arguments::default()).id;
        let shared = Shared::in_memory(false);
        let (answer, mut ended) = tokio::sync::oneshot::channel();
        shared.bells.waiters().add(id.clone(), Origin::Foreign, None, answer);

        let connection = file::open(&folder.file()).unwrap();
        let mut others = Others::of(&connection);
        others.listen(&connection, &shared);
        let log = File::options().write(true).open(&others.path).unwrap();
        let before = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        log.set_modified(before).unwrap();
        others.listen(&connection, &shared);
        end_elsewhere(&db, &id).await;
        log.set_modified(before).unwrap();
        for _ in 0..=QUIET_LOOKS {
            others.listen(&connection, &shared);
        }
        assert!(ended.try_recv().is_ok(), "the end of the task is heard");
    }
}
