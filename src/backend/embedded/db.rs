//! One SQLite database, and who may use it: in memory whoever calls, under a lock; of a file one
//! thread that writes and one that reads.
//!
//! Whatever waits to be written goes into one transaction: sixty-four callers wait for one sync of
//! the disk. Nobody is answered before it. When one piece of it fails, all are undone and done once
//! more, each by itself: that is rare, and a savepoint for each would cost more than the piece.

use std::fmt;
use std::future::Future;
use std::iter::once;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rusqlite::{CachedStatement, Connection, ErrorCode, Params};
use tokio::sync::oneshot;

use super::bells::{Bells, Ring};
use super::clock::Clock;
use super::life::Life;
use super::{file, upkeep};
use crate::error::{Error, Kind};

/// Calls that share a transaction at most.
const BATCH: usize = 1024;
/// Whoever was answered just now may ask again at once: so long they are waited for, so that they
/// pay for one sync of the disk, and not for two.
const GATHER: Duration = Duration::from_micros(100);
/// How long the writer waits for calls before it looks whether another process has written.
const GLANCE: Duration = Duration::from_millis(40);
const UPKEEP: Duration = Duration::from_secs(1);
const COMMITS_BETWEEN_UPKEEP: u32 = 1024;

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

/// The database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Db {
    shared: Arc<Shared>,
    access: Access,
    /// Nothing is begun any more.
    closed: Arc<AtomicBool>,
    /// Under which this process has messages in its hands; see `upkeep::session`. 0: it has none.
    pub(super) session: Arc<AtomicI64>,
    /// Whose process this is, where a test plays several in one.
    pub(super) life: Life,
}

/// What every thread of the database has.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) bells: Bells,
    pub(super) clock: Clock,
    /// Other processes may use it, too.
    pub(super) is_file: bool,
    /// Tells this process from them.
    pub(super) identity: i64,
    /// Of the process that keeps it up: that of a file.
    pub(super) session: Arc<AtomicI64>,
    /// The file, as people are told of it.
    pub(super) shown: String,
}

#[derive(Clone)]
enum Access {
    Memory(Arc<Memory>),
    File { writes: Sender<Work>, reads: Sender<Work> },
}

type Work = Box<dyn Deed + Send>;

/// What is to be done, perhaps twice: what the first time wrote is undone then. And who is told.
trait Deed {
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

impl<W, T, N> Deed for Piece<W, T, N>
where
    W: FnMut(&mut Txn<'_>) -> Done<T>,
    N: FnOnce(Result<T, Error>),
{
    fn attempt(&mut self, txn: &mut Txn<'_>) -> bool {
        let done = (self.work)(txn).map_err(|fault| txn.shared.error(fault));
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

impl Txn<'_> {
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

    /// Does all of these. False: one has failed, and nothing is done.
    fn all_at_once(&mut self, works: &mut [Work]) -> Done<bool> {
        self.execute("BEGIN IMMEDIATE", [])?;
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
        self.execute("BEGIN IMMEDIATE", [])?;
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

impl Shared {
    fn new(clock: Clock, is_file: bool, shown: String) -> Arc<Self> {
        let (bells, identity) = (Bells::default(), rand::rng().random());
        Arc::new(Self { bells, clock, is_file, identity, session: Arc::default(), shown })
    }

    /// What callers are told. Most of it passes: a disk is emptied, a lock is given back.
    fn error(&self, fault: Fault) -> Error {
        let error = match fault {
            Fault::Refused(error) => return error,
            Fault::Sql(error) => error,
        };
        Kind::Connection { peer: self.shown.clone(), cause: cause(&error) }.into()
    }
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

impl Db {
    /// A database that is gone with its last user.
    pub(super) fn in_memory() -> Result<Self, Error> {
        let shown = "the database in memory".to_owned();
        let connection = file::in_memory(&shown)?;
        let shared = Shared::new(Clock::of_runtime(), false, shown);
        let memory = Memory { connection: Mutex::new(connection), commits: AtomicU32::new(0) };
        Ok(Self::of(shared, Access::Memory(Arc::new(memory))))
    }

    /// Opens a file, and makes it if it is not there.
    ///
    /// # Errors
    /// It is not ours, newer, damaged, on a network file system, or cannot be written.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let shown = format!("the database {}", path.display());
        let (writer, reader) = (file::open(path)?, file::open_for_reading(path)?);
        let shared = Shared::new(Clock::of_machine(upkeep::latest(&reader)), true, shown.clone());
        let (writes, to_write) = channel();
        let (reads, to_read) = channel();
        let thread_failed = |error: std::io::Error| {
            let cause = format!("cannot start a thread: {error}");
            Error::new(Kind::Connection { peer: shown.clone(), cause })
        };
        let threads = Arc::clone(&shared);
        thread::Builder::new()
            .name("countersign-writer".into())
            .spawn(move || write_all(&writer, &to_write, &threads))
            .map_err(thread_failed)?;
        let threads = Arc::clone(&shared);
        thread::Builder::new()
            .name("countersign-reader".into())
            .spawn(move || read_all(&reader, &to_read, &threads))
            .map_err(thread_failed)?;
        Ok(Self::of(shared, Access::File { writes, reads }))
    }

    fn of(shared: Arc<Shared>, access: Access) -> Self {
        let (session, life) = (Arc::clone(&shared.session), Life::default());
        Self { shared, access, closed: Arc::default(), session, life }
    }

    /// The same database as another process has it.
    #[cfg(feature = "faults")]
    pub(super) fn of_another(&self, life: Life) -> Self {
        Self { closed: Arc::default(), session: Arc::default(), life, ..self.clone() }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Does a piece of work; returns once it is durable. It begins when this is called on a file,
    /// and when it is first polled in memory. Dropped, it may happen all the same.
    pub(super) fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Txn<'_>) -> Done<T> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send + 'static {
        let (tell, told) = oneshot::channel();
        let db = self.clone();
        let begin = move || db.post(work, move |done| drop(tell.send(done)));
        self.answered(begin, told)
    }

    /// Likewise, of what changes nothing.
    pub(super) fn read<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Txn<'_>) -> Done<T> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send + 'static {
        let (tell, told) = oneshot::channel();
        let db = self.clone();
        let begin = move || db.look(work, move |done| drop(tell.send(done)));
        self.answered(begin, told)
    }

    fn answered<T: Send + 'static>(
        &self,
        begin: impl FnOnce() + Send + 'static,
        told: oneshot::Receiver<Result<T, Error>>,
    ) -> impl Future<Output = Result<T, Error>> + Send + 'static {
        let begin = if self.shared.is_file {
            begin();
            None
        } else {
            Some(begin)
        };
        let life = self.life.clone();
        async move {
            if let Some(begin) = begin {
                life.goes_on().await;
                begin();
            }
            let told = told.await.unwrap_or_else(|_| Err(Kind::Closed.into()));
            life.goes_on().await;
            told
        }
    }

    /// Does a piece of work, and tells `then` when it is durable. Returns at once on a file.
    pub(super) fn post<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Txn<'_>) -> Done<T> + Send + 'static,
        then: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        self.hand_over(work_of(work, then), false);
    }

    /// Likewise, of what changes nothing.
    pub(super) fn look<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Txn<'_>) -> Done<T> + Send + 'static,
        then: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        self.hand_over(work_of(work, then), true);
    }

    /// Dropped, a piece of work tells nobody: who waits for it sees that as closed.
    fn hand_over(&self, work: Work, changes_nothing: bool) {
        if self.is_closed() || self.life.is_over() {
            return;
        }
        match &self.access {
            Access::Memory(memory) => memory.commit(work, &self.shared),
            Access::File { reads, .. } if changes_nothing => drop(reads.send(work)),
            Access::File { writes, .. } => drop(writes.send(work)),
        }
    }

    /// Gives back what this process has in its hands. Later calls fail as closed.
    pub(super) async fn close(&self) {
        let session = self.session.load(Ordering::Acquire);
        let _ = self.write(move |txn| upkeep::leave(txn, session)).await;
        self.session.store(0, Ordering::Release);
        self.closed.store(true, Ordering::Release);
    }
}

/// A database in memory. Its users take turns.
struct Memory {
    connection: Mutex<Connection>,
    /// Nobody is there to look after it between the calls.
    commits: AtomicU32,
}

impl Memory {
    fn commit(&self, work: Work, shared: &Arc<Shared>) {
        let mut works = vec![work];
        if self.commits.fetch_add(1, Ordering::Relaxed).is_multiple_of(COMMITS_BETWEEN_UPKEEP) {
            works.push(work_of(upkeep::keep_up, drop));
        }
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let told = commit(&connection, works, shared);
        drop(connection);
        told.tell(shared);
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db").field("shown", &self.shared.shown).finish_non_exhaustive()
    }
}

fn work_of<T: Send + 'static>(
    work: impl FnMut(&mut Txn<'_>) -> Done<T> + Send + 'static,
    then: impl FnOnce(Result<T, Error>) + Send + 'static,
) -> Work {
    Box::new(Piece { work, done: None, then })
}

/// Does all of these in one transaction, and tells what became of it. When it cannot be committed,
/// all have failed.
fn commit(connection: &Connection, mut works: Vec<Work>, shared: &Arc<Shared>) -> Told {
    let mut txn = Txn { connection, now: shared.clock.now(), shared, rings: Vec::new() };
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
    Told { works, failed, rings }
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
struct Told {
    works: Vec<Work>,
    failed: Option<Failed>,
    rings: Vec<Ring>,
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
    fn tell(self, shared: &Shared) {
        for work in self.works {
            work.tell(self.failed.as_ref().map_or(Ok(()), |failed| Err(failed.error(shared))));
        }
        for ring in self.rings {
            shared.bells.ring(ring);
        }
    }
}

/// The thread that writes: all that waits at a time, and now and then what nobody asks for.
fn write_all(connection: &Connection, works: &Receiver<Work>, shared: &Arc<Shared>) {
    let mut others = upkeep::Others::of(connection);
    let (mut glanced, mut kept_up, mut pause) = (Instant::now(), Instant::now(), UPKEEP);
    let mut answered = 0;
    loop {
        match works.recv_timeout(GLANCE) {
            Ok(first) => {
                let mut batch: Vec<_> = once(first).chain(works.try_iter()).take(BATCH).collect();
                if batch.len() < answered {
                    thread::sleep(GATHER);
                    batch.extend(works.try_iter().take(BATCH - batch.len()));
                }
                answered = batch.len();
                commit(connection, batch, shared).tell(shared);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if glanced.elapsed() >= GLANCE {
            glanced = Instant::now();
            others.listen(connection, shared);
        }
        if kept_up.elapsed() >= pause {
            let (tell, told) = channel();
            let keep_up = work_of(upkeep::keep_up, move |done| drop(tell.send(done)));
            commit(connection, vec![keep_up], shared).tell(shared);
            let is_more = matches!(told.try_recv(), Ok(Ok(true)));
            pause = if is_more { GLANCE } else { UPKEEP };
            kept_up = Instant::now();
        }
    }
}

/// The thread that reads: each question by itself, as the file is then.
fn read_all(connection: &Connection, works: &Receiver<Work>, shared: &Arc<Shared>) {
    while let Ok(mut work) = works.recv() {
        let mut txn = Txn { connection, now: shared.clock.now(), shared, rings: Vec::new() };
        work.attempt(&mut txn);
        work.tell(Ok(()));
    }
}
