//! Jobs that share a transaction, and its commit.
//!
//! When one job fails, all are rolled back and run once more, each in a savepoint: failures are rare,
//! and a savepoint for every job would cost more than most jobs.

use std::sync::Arc;

use rusqlite::Connection;

use super::fault::{Fault, TxResult, cause, to_error};
use super::notifications::Event;
use super::shared::Shared;
use super::txn::Txn;
use super::{file, peers};
use crate::error::{Error, Kind};

/// A job and its caller, of any type.
pub(super) type Work = Box<dyn Job + Send>;

/// A job that may run twice (the writes of the first run are rolled back), and the callback for its result.
pub(super) trait Job {
    /// Runs the job, and returns whether it succeeded.
    fn attempt(&mut self, txn: &mut Txn<'_>) -> bool;
    /// Calls the callback, after the commit or the failure.
    fn complete(self: Box<Self>, committed: Result<(), Error>);
}

struct Piece<W, T, N> {
    work: W,
    /// `None` until the job has run in a transaction.
    done: Option<Result<T, Error>>,
    callback: N,
}

impl<W, T, N> Job for Piece<W, T, N>
where
    W: FnMut(&mut Txn<'_>) -> TxResult<T>,
    N: FnOnce(Result<T, Error>),
{
    fn attempt(&mut self, txn: &mut Txn<'_>) -> bool {
        let done = (self.work)(txn).map_err(|fault| to_error(fault, txn.shared));
        self.done.insert(done).is_ok()
    }

    fn complete(self: Box<Self>, committed: Result<(), Error>) {
        (self.callback)(match self.done {
            Some(done) => done.and_then(|done| committed.map(|()| done)),
            None => Err(committed.err().unwrap_or_else(|| Kind::Closed.into())),
        });
    }
}

/// Refuses all of these jobs, because the file was deleted or replaced.
pub(super) fn refuse(works: Vec<Work>, cause: String) -> CommitEvents {
    CommitEvents { works, failed: Some(Failed::Permanent(cause)), events: Vec::new(), wrote: false }
}

/// Creates a job from the work and the callback for its result.
pub(super) fn work_of<T: Send + 'static>(
    work: impl FnMut(&mut Txn<'_>) -> TxResult<T> + Send + 'static,
    callback: impl FnOnce(Result<T, Error>) + Send + 'static,
) -> Work {
    Box::new(Piece { work, done: None, callback })
}

/// Runs all jobs in one transaction, and returns whom to notify of its outcome. When it cannot be
/// committed, all jobs have failed.
pub(super) fn commit(
    connection: &Connection,
    mut works: Vec<Work>,
    shared: &Arc<Shared>,
) -> CommitEvents {
    let mut txn = Txn::of(connection, shared);
    let changes = connection.total_changes();
    let ended = commit_all(&mut txn, &mut works);
    let failed = ended.err().map(|fault| {
        if !connection.is_autocommit() {
            let _ = txn.execute("ROLLBACK", []);
        }
        match fault {
            Fault::Sql(error) => Failed::Transient(cause(&error)),
            Fault::Refused(error) => Failed::Permanent(error.to_string()),
        }
    });
    let events = if failed.is_none() { txn.events } else { Vec::new() };
    let wrote = connection.total_changes() > changes;
    CommitEvents { works, failed, events, wrote }
}

fn commit_all(txn: &mut Txn<'_>, works: &mut [Work]) -> TxResult<()> {
    if txn.shared.is_file {
        file::check_version(txn)?;
    }
    if !all_at_once(txn, works)? {
        if works.len() == 1 {
            return Ok(());
        }
        one_by_one(txn, works)?;
    }
    peers::write_events(txn, &txn.events)?;
    txn.execute("COMMIT", [])?;
    Ok(())
}

/// Returns whether the transaction is open. A full disk may have ended it and rolled back all writes.
fn is_open(txn: &Txn<'_>) -> bool {
    !txn.connection.is_autocommit()
}

/// Begins a write transaction. The time is read afterwards: waiting for the lock may have taken
/// long, or the process may have been stopped.
fn begin(txn: &mut Txn<'_>) -> TxResult<()> {
    txn.execute("BEGIN IMMEDIATE", [])?;
    txn.now = txn.shared.clock.now();
    Ok(())
}

/// Runs all jobs. Returns false if one has failed; everything is rolled back then.
fn all_at_once(txn: &mut Txn<'_>, works: &mut [Work]) -> TxResult<bool> {
    begin(txn)?;
    if works.iter_mut().all(|work| work.attempt(txn)) {
        return Ok(true);
    }
    txn.events.clear();
    if is_open(txn) {
        txn.execute("ROLLBACK", [])?;
    }
    Ok(false)
}

/// Runs each job completely or not at all. On an error, all of them are rolled back.
fn one_by_one(txn: &mut Txn<'_>, works: &mut [Work]) -> TxResult<()> {
    begin(txn)?;
    for work in works {
        let event_count = txn.events.len();
        txn.execute("SAVEPOINT work", [])?;
        if !work.attempt(txn) {
            txn.events.truncate(event_count);
            if !is_open(txn) {
                return Err(rolled_back().into());
            }
            txn.execute("ROLLBACK TO work", [])?;
        }
        txn.execute("RELEASE work", [])?;
    }
    Ok(())
}

/// The callbacks and events of a transaction, to be sent when no lock is held.
#[must_use]
pub(super) struct CommitEvents {
    works: Vec<Work>,
    failed: Option<Failed>,
    events: Vec<Event>,
    /// Whether anything was written: an empty transaction can be committed on a full disk.
    wrote: bool,
}

/// Why a transaction could not be committed.
enum Failed {
    /// Temporary: a retry may succeed.
    Transient(String),
    /// Permanent for this process.
    Permanent(String),
}

impl Failed {
    fn error(&self, shared: &Shared) -> Error {
        let file = shared.shown.clone();
        match self {
            Self::Transient(cause) => Kind::Connection { peer: file, cause: cause.clone() }.into(),
            Self::Permanent(cause) => Kind::Storage { what: file, cause: cause.clone() }.into(),
        }
    }
}

impl CommitEvents {
    pub(super) fn publish(self, shared: &Shared) {
        if self.failed.is_some() || self.wrote {
            shared.availability.set(self.failed.is_none(), &shared.shown);
        }
        for work in self.works {
            work.complete(self.failed.as_ref().map_or(Ok(()), |failed| Err(failed.error(shared))));
        }
        for event in self.events {
            shared.notifications.notify(event);
        }
    }
}

/// The error when a full disk has ended a transaction and rolled all of it back.
fn rolled_back() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
    rusqlite::Error::SqliteFailure(
        code,
        Some("a write failed; the transaction was rolled back".into()),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A job that inserts this name, and records its result.
    fn insert_job(name: &'static str, outcomes: &Arc<Mutex<Vec<String>>>) -> Work {
        let outcomes = Arc::clone(outcomes);
        let work = move |txn: &mut Txn<'_>| {
            let insert = "INSERT INTO revoked (id, even_running, at) VALUES (?, 0, 0)";
            txn.execute(insert, [name])?;
            txn.notify(Event::Queues);
            if name == "fails" { Err(Error::new(Kind::Closed).into()) } else { Ok(name) }
        };
        work_of(work, move |done| outcomes.lock().unwrap().push(format!("{done:?}")))
    }

    #[test]
    fn a_failed_job_does_not_affect_others() {
        let shared = Shared::in_memory(false);
        let connection = file::in_memory(&shared.shown).unwrap();
        let outcomes = Arc::default();
        let works = ["first", "fails", "last"].map(|name| insert_job(name, &outcomes)).into();
        let end = commit(&connection, works, &shared);
        assert_eq!(end.events.len(), 2);
        assert!(outcomes.lock().unwrap().is_empty(), "no callback runs while the lock is held");
        end.publish(&shared);
        assert!(matches!(&outcomes.lock().unwrap()[..], [first, fails, last]
            if first == r#"Ok("first")"# && fails.starts_with("Err") && last == r#"Ok("last")"#));
        let stored = "SELECT group_concat(id) FROM revoked";
        let stored: String = connection.query_row(stored, [], |row| row.get(0)).unwrap();
        assert_eq!(stored, "first,last");
    }

    #[test]
    fn a_failed_single_job_writes_nothing() {
        let shared = Shared::in_memory(false);
        let connection = file::in_memory(&shared.shown).unwrap();
        let outcomes = Arc::default();
        commit(&connection, vec![insert_job("fails", &outcomes)], &shared).publish(&shared);
        assert_eq!(outcomes.lock().unwrap().len(), 1);
        assert!(connection.is_autocommit());
        let left = connection.query_row("SELECT count(*) FROM revoked", [], |row| row.get(0));
        assert_eq!(left, Ok(0));
    }
}
