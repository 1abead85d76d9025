//! A transaction, and the pieces of work that share it.
//!
//! When one piece fails, all are undone and done once more, each by itself: that is rare, and a
//! savepoint for each would cost more than most pieces.

use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, ErrorCode, Params};

use super::bells::Ring;
use super::db::Shared;
use super::{file, upkeep};
use crate::error::{Error, Kind};

/// What a piece of work ends with.
pub(super) type Done<T> = Result<T, Fault>;

/// Why a piece of work has failed. All that it wrote is undone.
#[derive(Debug)]
pub(super) enum Fault {
    Sql(rusqlite::Error),
    Refused(Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// A piece of work and its caller, of whatever type.
pub(super) type Work = Box<dyn Job + Send>;

/// What is to be done, perhaps twice: what the first time wrote is undone then. And who is told.
pub(super) trait Job {
    /// Does it, and says whether that went well.
    fn attempt(&mut self, txn: &mut Txn<'_>) -> bool;
    /// After the commit, or of the failure.
    fn tell(self: Box<Self>, committed: Result<(), Error>);
}

struct Piece<W, T, N> {
    work: W,
    /// Nothing, while there was no transaction.
    done: Option<Result<T, Error>>,
    then: N,
}

impl<W, T, N> Job for Piece<W, T, N>
where
    W: FnMut(&mut Txn<'_>) -> Done<T>,
    N: FnOnce(Result<T, Error>),
{
    fn attempt(&mut self, txn: &mut Txn<'_>) -> bool {
        let done = (self.work)(txn).map_err(|fault| told_of(fault, txn.shared));
        self.done.insert(done).is_ok()
    }

    fn tell(self: Box<Self>, committed: Result<(), Error>) {
        (self.then)(match self.done {
            Some(done) => done.and_then(|done| committed.map(|()| done)),
            None => Err(committed.err().unwrap_or_else(|| Kind::Closed.into())),
        });
    }
}

/// A transaction that others may share.
pub(super) struct Txn<'c> {
    connection: &'c Connection,
    /// The store's clock, in milliseconds.
    pub(super) now: i64,
    shared: &'c Arc<Shared>,
    rings: Vec<Ring>,
}

impl<'c> Txn<'c> {
    pub(super) fn of(connection: &'c Connection, shared: &'c Arc<Shared>) -> Self {
        Self { connection, now: shared.clock.now(), shared, rings: Vec::new() }
    }

    /// A statement; prepared once.
    pub(super) fn prepare(&self, sql: &str) -> Done<CachedStatement<'_>> {
        Ok(self.connection.prepare_cached(sql)?)
    }

    /// Runs a statement; says how many rows it has changed.
    pub(super) fn execute(&self, sql: &str, parameters: impl Params) -> Done<usize> {
        Ok(self.prepare(sql)?.execute(parameters)?)
    }

    /// The first row, if there is one.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Done<Option<T>> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(parameters)?;
        Ok(rows.next()?.map(read).transpose()?)
    }

    /// Every row.
    pub(super) fn all<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Done<Vec<T>> {
        let mut statement = self.prepare(sql)?;
        let rows = statement.query_map(parameters, read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The number of the row that was inserted last.
    pub(super) fn inserted(&self) -> i64 {
        self.connection.last_insert_rowid()
    }

    /// Tells those whom it concerns, in this process and others, once this is durable.
    pub(super) fn ring(&mut self, ring: Ring) {
        self.rings.push(ring);
    }

    pub(super) fn shared(&self) -> &Shared {
        self.shared
    }

    /// A full disk may have ended the transaction, and with it all that was done before.
    fn is_open(&self) -> bool {
        !self.connection.is_autocommit()
    }

    /// Begins to write. The time is read after that: the lock may have been waited for, and the
    /// process stopped meanwhile.
    fn begin(&mut self) -> Done<()> {
        self.execute("BEGIN IMMEDIATE", [])?;
        self.now = self.shared.clock.now();
        Ok(())
    }

    /// Does all of these. False: one has failed, and nothing is done.
    fn all_at_once(&mut self, works: &mut [Work]) -> Done<bool> {
        self.begin()?;
        if works.iter_mut().all(|work| work.attempt(self)) {
            return Ok(true);
        }
        self.rings.clear();
        if self.is_open() {
            self.execute("ROLLBACK", [])?;
        }
        Ok(false)
    }

    /// Does each of these whole or not at all. An error: nothing of any is done.
    fn one_by_one(&mut self, works: &mut [Work]) -> Done<()> {
        self.begin()?;
        for work in works {
            let rung = self.rings.len();
            self.execute("SAVEPOINT work", [])?;
            if !work.attempt(self) {
                self.rings.truncate(rung);
                if !self.is_open() {
                    return Err(undone().into());
                }
                self.execute("ROLLBACK TO work", [])?;
            }
            self.execute("RELEASE work", [])?;
        }
        Ok(())
    }
}

/// Refuses all of these, because the file is gone for good.
pub(super) fn refuse(works: Vec<Work>, cause: String) -> Told {
    Told { works, failed: Some(Failed::Stays(cause)), rings: Vec::new(), wrote: false }
}

/// What is to be done, and who is told.
pub(super) fn work_of<T: Send + 'static>(
    work: impl FnMut(&mut Txn<'_>) -> Done<T> + Send + 'static,
    then: impl FnOnce(Result<T, Error>) + Send + 'static,
) -> Work {
    Box::new(Piece { work, done: None, then })
}

/// Does all of these in one transaction, and tells what became of it. When it cannot be committed,
/// all have failed.
pub(super) fn commit(connection: &Connection, mut works: Vec<Work>, shared: &Arc<Shared>) -> Told {
    let mut txn = Txn::of(connection, shared);
    let changes = connection.total_changes();
    let ended = commit_all(&mut txn, &mut works);
    let failed = ended.err().map(|fault| {
        if !connection.is_autocommit() {
            let _ = txn.execute("ROLLBACK", []);
        }
        match fault {
            Fault::Sql(error) => Failed::Passes(cause(&error)),
            Fault::Refused(error) => Failed::Stays(error.to_string()),
        }
    });
    let rings = if failed.is_none() { txn.rings } else { Vec::new() };
    let wrote = connection.total_changes() > changes;
    Told { works, failed, rings, wrote }
}

fn commit_all(txn: &mut Txn<'_>, works: &mut [Work]) -> Done<()> {
    if txn.shared.is_file {
        file::check_version(txn)?;
    }
    if !txn.all_at_once(works)? {
        if works.len() == 1 {
            return Ok(());
        }
        txn.one_by_one(works)?;
    }
    upkeep::note(txn, &txn.rings)?;
    txn.execute("COMMIT", [])?;
    Ok(())
}

/// Whom to tell of a transaction, once no lock is held.
#[must_use]
pub(super) struct Told {
    works: Vec<Work>,
    failed: Option<Failed>,
    rings: Vec<Ring>,
    /// It was more than a look: an empty transaction can be committed on a full disk.
    wrote: bool,
}

/// Why a transaction could not be committed.
enum Failed {
    /// The same may be done later.
    Passes(String),
    /// By another process than this one.
    Stays(String),
}

impl Failed {
    fn error(&self, shared: &Shared) -> Error {
        let file = shared.shown.clone();
        match self {
            Self::Passes(cause) => Kind::Connection { peer: file, cause: cause.clone() }.into(),
            Self::Stays(cause) => Kind::Storage { what: file, cause: cause.clone() }.into(),
        }
    }
}

impl Told {
    pub(super) fn tell(self, shared: &Shared) {
        if self.failed.is_some() || self.wrote {
            shared.availability.set(self.failed.is_none(), &shared.shown);
        }
        for work in self.works {
            work.tell(self.failed.as_ref().map_or(Ok(()), |failed| Err(failed.error(shared))));
        }
        for ring in self.rings {
            shared.bells.ring(ring);
        }
    }
}

/// What callers are told. Most of it passes: a disk is emptied, a lock is given back.
fn told_of(fault: Fault, shared: &Shared) -> Error {
    let error = match fault {
        Fault::Refused(error) => return error,
        Fault::Sql(error) => error,
    };
    Kind::Connection { peer: shared.shown.clone(), cause: cause(&error) }.into()
}

/// A disk that takes no more may end a transaction, and undo all of it.
fn undone() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
    rusqlite::Error::SqliteFailure(code, Some("the disk refused a part, and all was undone".into()))
}

fn cause(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full; nothing is lost: make room".to_owned(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("another process keeps it locked for {} s", file::PATIENCE.as_secs())
        }
        Some(ErrorCode::ReadOnly) => "it is read-only".to_owned(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("it is damaged ({error}): restore it from a copy")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Notes this name, and is told of it.
    fn noting(name: &'static str, told: &Arc<Mutex<Vec<String>>>) -> Work {
        let told = Arc::clone(told);
        let work = move |txn: &mut Txn<'_>| {
            let insert = "INSERT INTO revoked (id, even_running, at) VALUES (?, 0, 0)";
            txn.execute(insert, [name])?;
            txn.ring(Ring::Queues);
            if name == "fails" { Err(Error::new(Kind::Closed).into()) } else { Ok(name) }
        };
        work_of(work, move |done| told.lock().unwrap().push(format!("{done:?}")))
    }

    #[test]
    fn a_piece_that_fails_takes_no_other_with_it() {
        let shared = Shared::in_memory(false);
        let connection = file::in_memory(&shared.shown).unwrap();
        let told = Arc::default();
        let works = ["first", "fails", "last"].map(|name| noting(name, &told)).into();
        let end = commit(&connection, works, &shared);
        assert_eq!(end.rings.len(), 2);
        assert!(told.lock().unwrap().is_empty(), "nobody is told while the lock is held");
        end.tell(&shared);
        assert!(matches!(&told.lock().unwrap()[..], [first, fails, last]
            if first == r#"Ok("first")"# && fails.starts_with("Err") && last == r#"Ok("last")"#));
        let noted = "SELECT group_concat(id) FROM revoked";
        let noted: String = connection.query_row(noted, [], |row| row.get(0)).unwrap();
        assert_eq!(noted, "first,last");
    }

    #[test]
    fn a_lone_piece_that_fails_leaves_nothing() {
        let shared = Shared::in_memory(false);
        let connection = file::in_memory(&shared.shown).unwrap();
        let told = Arc::default();
        commit(&connection, vec![noting("fails", &told)], &shared).tell(&shared);
        assert_eq!(told.lock().unwrap().len(), 1);
        assert!(connection.is_autocommit());
        let left = connection.query_row("SELECT count(*) FROM revoked", [], |row| row.get(0));
        assert_eq!(left, Ok(0));
    }
}
