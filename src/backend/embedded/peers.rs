//! The events that processes on one file write for each other.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};

use super::fault::TxResult;
use super::notifications::Event;
use super::shared::Shared;
use super::txn::Txn;
use crate::approval::ApprovalId;
use crate::clock;
use crate::protocol::Document;
use crate::task::TaskId;

const READ_LIMIT: usize = 1_000;
/// After this many checks that found the log unchanged, the database is read nevertheless: a commit
/// becomes visible to others only after its bytes are synced, which a slow disk or a stopped process
/// delays for any time, and that does not change the time of the file.
const MAX_QUIET_POLLS: u32 = 10;
/// A modification time older than this cannot be shared by a later write.
const TICKS: SignedDuration = SignedDuration::from_millis(100);

const ENDED: i64 = 1;
const DECIDED: i64 = 2;
const NEW_REQUEST: i64 = 3;
const REVOKED: i64 = 4;
const STREAM: i64 = 5;

/// Stores events in the file for the other processes. They detect arrivals in queues without an event.
pub(super) fn write_events(txn: &Txn<'_>, events: &[Event]) -> TxResult<()> {
    let shared = txn.shared();
    if !shared.is_file {
        return Ok(());
    }
    let mut ended = Vec::new();
    for event in events {
        let (what, name) = match event {
            Event::Queue(_) | Event::Queues | Event::Forgotten(_) => continue,
            Event::Ended(document) => {
                ended.push(document.id.as_str());
                continue;
            }
            Event::Decided(id) => (DECIDED, id.as_ref().map_or("", ApprovalId::as_str)),
            Event::NewRequest(id) => (NEW_REQUEST, id.as_ref().map_or("", ApprovalId::as_str)),
            Event::Revoked(_) => (REVOKED, ""),
            Event::Stream(task) => (STREAM, task.as_str()),
        };
        add(txn, what, name)?;
    }
    if !ended.is_empty() {
        add(txn, ENDED, &serde_json::json!(ended).to_string())?;
    }
    Ok(())
}

fn add(txn: &Txn<'_>, what: i64, name: &str) -> TxResult<()> {
    let insert = "INSERT INTO rings (session, what, name) VALUES (?, ?, ?)";
    txn.execute(insert, params![txn.shared().identity, what, name])?;
    Ok(())
}

/// The position up to which this process has read the events of others.
#[derive(Debug)]
pub(super) struct Peers {
    /// The log that every commit is written to. It stays the same file while any process has it open.
    path: PathBuf,
    log: Option<File>,
    written: Option<Timestamp>,
    version: Option<i64>,
    position: i64,
    /// How many times in a row the log was unchanged.
    quiet: u32,
}

impl Peers {
    pub(super) fn of(connection: &Connection) -> Self {
        let path = format!("{}-wal", connection.path().unwrap_or_default()).into();
        Self { path, log: None, written: None, version: None, position: 0, quiet: 0 }
    }

    /// Returns whether no process has written since the last call. Makes one system call; it does not use
    /// the database, which would need its locks.
    fn is_quiet(&mut self) -> bool {
        if self.log.is_none() {
            self.log = File::open(&self.path).ok();
        }
        let written = self.log.as_ref().and_then(|log| log.metadata().ok()?.modified().ok());
        let written = written.and_then(|at| Timestamp::try_from(at).ok());
        let known = std::mem::replace(&mut self.written, written);
        // Two writes may have the same time: file times have the resolution of a system tick.
        let is_past = written.is_some_and(|at| clock::now().duration_since(at) > TICKS);
        is_past && known == written
    }

    /// Sends the events that other processes have stored since, if one of them has changed the file.
    pub(super) fn poll(&mut self, connection: &Connection, shared: &Arc<Shared>) {
        if self.is_quiet() && self.quiet < MAX_QUIET_POLLS {
            self.quiet += 1;
            return;
        }
        self.quiet = 0;
        if let Err(error) = self.read_changes(connection, shared) {
            shared.warnings.warn("cannot read the events of other processes", &error);
        }
    }

    fn read_changes(
        &mut self,
        connection: &Connection,
        shared: &Arc<Shared>,
    ) -> rusqlite::Result<()> {
        let version = connection
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |row| row.get::<_, i64>(0))?;
        if self.version == Some(version) {
            return Ok(());
        }
        self.read_events(connection, shared)?;
        self.version = Some(version);
        Ok(())
    }

    fn read_events(
        &mut self,
        connection: &Connection,
        shared: &Arc<Shared>,
    ) -> rusqlite::Result<()> {
        shared.notifications.notify(Event::Queues);
        let mut events = connection.prepare_cached(
            "SELECT seq, session, what, name FROM rings WHERE seq > ? ORDER BY seq LIMIT ?",
        )?;
        let events = events.query_map(params![self.position, READ_LIMIT], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?, row.get(3)?))
        })?;
        let events: Vec<(i64, i64, i64, String)> = events.collect::<Result<_, _>>()?;
        let is_gap = events.first().is_some_and(|(seq, ..)| *seq != self.position + 1);
        if is_gap || events.len() == READ_LIMIT {
            let newest = "SELECT coalesce(max(seq), 0) FROM rings";
            let newest = connection.prepare_cached(newest)?.query_row([], |row| row.get(0))?;
            shared.notifications.notify_all();
            let waited: Vec<_> = shared.notifications.waiters().ids().cloned().collect();
            waited.iter().try_for_each(|id| resolve(connection, shared, id))?;
            self.position = newest;
            return Ok(());
        }
        for (seq, by, what, name) in events {
            match what {
                _ if by == shared.identity => {}
                ENDED => {
                    let ids: Vec<TaskId> = serde_json::from_str(&name).unwrap_or_default();
                    for id in ids {
                        if shared.notifications.waiters().is_waited(&id) {
                            resolve(connection, shared, &id)?;
                        }
                    }
                }
                DECIDED => shared.notifications.notify(Event::Decided(ApprovalId::parse(&name))),
                NEW_REQUEST => {
                    shared.notifications.notify(Event::NewRequest(ApprovalId::parse(&name)))
                }
                REVOKED => shared.notifications.notify(Event::Revoked(Vec::new())),
                STREAM => shared.notifications.notify(Event::Stream(TaskId::from(&name))),
                // An event of a newer version.
                _ => {}
            }
            // If reading fails before this, the event is read again.
            self.position = seq;
        }
        Ok(())
    }
}

/// Resolves the waiters of a task, if it has ended.
fn resolve(connection: &Connection, shared: &Shared, id: &TaskId) -> rusqlite::Result<()> {
    let mut read = connection.prepare_cached("SELECT json FROM results WHERE id = ?")?;
    let mut rows = read.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(()) };
    let json: Vec<u8> = row.get(0)?;
    if let Ok(document) = Document::parse(id.clone(), Bytes::from(json))
        && document.state.is_terminal()
    {
        shared.notifications.notify(Event::Ended(Box::new(document)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot::{Receiver, channel};

    use super::super::db::Db;
    use super::super::file;
    use super::super::tests::Folder;
    use super::*;
    use crate::backend::Origin;
    use crate::error::Error;
    use crate::protocol::{Arguments, Envelope};

    /// What the caller of a task receives when the task has ended.
    type Ended = Receiver<Result<Box<Document>, Error>>;

    /// A task, and a process in which a caller awaits its result.
    fn awaited() -> (TaskId, Arc<Shared>, Ended) {
        let id = Envelope::new("t", Arguments::default()).id;
        let shared = Shared::in_memory(false);
        let (sender, ended) = channel();
        shared.notifications.waiters().add(id.clone(), Origin::Foreign, None, sender);
        (id, shared, ended)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_unreadable_result_is_read_again() {
        let folder = Folder::new();
        let db = Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap();
        let (id, shared, mut ended) = awaited();
        let connection = file::open(&folder.file()).unwrap();
        let mut peers = Peers::of(&connection);
        end_elsewhere(&db, &id).await;
        connection.execute_batch("ALTER TABLE results RENAME TO unreadable").unwrap();
        assert!(peers.read_changes(&connection, &shared).is_err());
        connection.execute_batch("ALTER TABLE unreadable RENAME TO results").unwrap();
        peers.read_changes(&connection, &shared).unwrap();
        assert!(ended.try_recv().is_ok(), "the end of the task is heard");
    }

    /// Stores the end of a task, as another process would.
    async fn end_elsewhere(db: &Db, id: &TaskId) {
        let json = r#"{"status": "SUCCESS", "result": 1}"#;
        let (task, ids) = (id.clone(), serde_json::json!([id.as_str()]).to_string());
        db.write(move |txn| {
            let result = "INSERT INTO results (id, state, json) VALUES (?, 'SUCCESS', ?)";
            txn.execute(result, params![task.as_str(), json.as_bytes()])?;
            add(txn, ENDED, &ids)
        })
        .await
        .unwrap();
    }

    /// As on a slow disk: the bytes of a commit are in the log before it is visible to others.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_with_an_old_file_time_is_detected() {
        let folder = Folder::new();
        let db = Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap();
        let (id, shared, mut ended) = awaited();

        let connection = file::open(&folder.file()).unwrap();
        let mut peers = Peers::of(&connection);
        peers.poll(&connection, &shared);
        let log = File::options().write(true).open(&peers.path).unwrap();
        let before = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        log.set_modified(before).unwrap();
        peers.poll(&connection, &shared);
        end_elsewhere(&db, &id).await;
        log.set_modified(before).unwrap();
        for _ in 0..=MAX_QUIET_POLLS {
            peers.poll(&connection, &shared);
        }
        assert!(ended.try_recv().is_ok(), "the end of the task is heard");
    }
}
