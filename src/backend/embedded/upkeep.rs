//! What nobody asks for: being there, noticing who is not, hearing the other processes, and
//! forgetting what is old.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};
use tracing::warn;

use super::bells::Ring;
use super::db::Shared;
use super::journal;
use super::txn::{Done, Txn};
use crate::approval::{ApprovalId, KEPT};
use crate::clock;
use crate::protocol::Document;
use crate::task::TaskId;

/// How long what a process has in its hands is left to it without a sign of life, in milliseconds.
pub(super) const LEASE: i64 = 10_000;
/// Rows that are forgotten in one transaction.
const SLICE: usize = 200;
/// Rings that others may lag behind.
const RINGS: i64 = 4_000;
const HEARD_AT_ONCE: usize = 1_000;
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
}

impl Others {
    pub(super) fn of(connection: &Connection) -> Self {
        let path = format!("{}-wal", connection.path().unwrap_or_default()).into();
        Self { path, log: None, written: None, version: None, heard: 0 }
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
        if self.is_quiet() {
            return;
        }
        if let Err(error) = self.hear(connection, shared) {
            warn!("cannot look at {}: {error}", shared.shown);
        }
    }

    fn hear(&mut self, connection: &Connection, shared: &Arc<Shared>) -> rusqlite::Result<()> {
        let version = connection
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |row| row.get::<_, i64>(0))?;
        if self.version.replace(version) == Some(version) {
            return Ok(());
        }
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
            self.heard = connection.prepare_cached(newest)?.query_row([], |row| row.get(0))?;
            shared.bells.ring_all();
            let waited: Vec<_> = shared.bells.waiters().ids().cloned().collect();
            return waited.iter().try_for_each(|id| resolve(connection, shared, id));
        }
        for (seq, by, what, name) in rings {
            self.heard = seq;
            if by == shared.identity {
                continue;
            }
            match what {
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

/// Every few seconds: says that this process is there, takes back what others left, and forgets a
/// slice of what is old. True: there is more of that.
pub(super) fn keep_up(txn: &mut Txn<'_>) -> Done<bool> {
    stay(txn)?;
    take_back(txn)?;
    forget(txn)
}

/// Renews this process's session. One that was overdue is another's to take back: what it had in
/// its hands is not ours any more.
fn stay(txn: &mut Txn<'_>) -> Done<()> {
    let session = txn.shared().session.load(Ordering::Acquire);
    if session == 0 {
        return Ok(());
    }
    let until =
        txn.first("SELECT until FROM sessions WHERE id = ?", [session], |row| row.get(0))?;
    let left = until.map(|until: i64| until - txn.now);
    match left {
        Some(left) if left > LEASE * 2 / 3 => {}
        Some(_) => {
            let renew = "UPDATE sessions SET until = ? WHERE id = ?";
            txn.execute(renew, [txn.now + LEASE, session])?;
            let note = "INSERT OR REPLACE INTO marks (name, value, expires) VALUES (?, ?, ?)";
            txn.execute(note, params![CLOCK, txn.now.to_string(), i64::MAX])?;
        }
        None => {
            txn.shared().session.store(0, Ordering::Release);
            txn.ring(Ring::Queues);
        }
    }
    Ok(())
}

/// The session of a process, begun if there is none.
pub(super) fn session(txn: &mut Txn<'_>, of: &AtomicI64) -> Done<i64> {
    let session = of.load(Ordering::Acquire);
    // A transaction that began one may have been undone.
    let find = "SELECT id FROM sessions WHERE id = ?";
    if let Some(session) = txn.first(find, [session], |row| row.get(0))? {
        return Ok(session);
    }
    // Memory is nobody else's.
    let until = if txn.shared().is_file { txn.now + LEASE } else { i64::MAX };
    txn.execute("INSERT INTO sessions (until) VALUES (?)", [until])?;
    let session = txn.inserted();
    of.store(session, Ordering::Release);
    Ok(session)
}

/// What processes had in their hands that are not there any more goes back to its queue.
fn take_back(txn: &mut Txn<'_>) -> Done<()> {
    let gone = "SELECT id FROM sessions WHERE until < ?";
    for session in txn.all(gone, [txn.now], |row| row.get::<_, i64>(0))? {
        warn!("a process is gone: what it had in its hands is delivered again");
        end(txn, session)?;
    }
    Ok(())
}

/// Ends the session of a process: what it had in its hands goes back.
pub(super) fn leave(txn: &mut Txn<'_>, session: i64) -> Done<()> {
    if session == 0 { Ok(()) } else { end(txn, session) }
}

fn end(txn: &mut Txn<'_>, session: i64) -> Done<()> {
    txn.execute("UPDATE messages SET holder = NULL WHERE holder = ?", [session])?;
    txn.execute("DELETE FROM consumers WHERE session = ?", [session])?;
    txn.execute("DELETE FROM sessions WHERE id = ?", [session])?;
    txn.ring(Ring::Queues);
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
