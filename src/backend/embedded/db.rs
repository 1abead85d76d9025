//! One SQLite database, and who may use it: in memory whoever calls, under a lock; of a file one
//! thread that writes and one that reads.
//!
//! Whatever waits to be written goes into one transaction: sixty-four callers wait for one sync of
//! the disk. Nobody is answered before it.

use std::fmt;
use std::future::Future;
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
/// How long the writer waits for calls before it looks whether another process has written.
const GLANCE: Duration = Duration::from_millis(20);
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

/// What is to be done (nothing, when there is no transaction), and then who is told: after the
/// commit, or of the failure.
type Work = Box<dyn FnOnce(Option<&mut Txn<'_>>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

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

    /// Does a piece of work whole or not at all.
    fn whole<T>(&mut self, work: impl FnOnce(&mut Self) -> Done<T>) -> Result<T, Error> {
        let rung = self.rings.len();
        let done = self.execute("SAVEPOINT work", []).and_then(|_| work(self));
        let end = if done.is_ok() { "RELEASE work" } else { "ROLLBACK TO work" };
        let ended = self.execute(end, []);
        match done.and_then(|done| ended.map(|_| done)) {
            Ok(done) => Ok(done),
            Err(fault) => {
                let _ = self.execute("RELEASE work", []);
                self.rings.truncate(rung);
                Err(self.shared.error(fault))
            }
        }
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
        work: impl FnOnce(&mut Txn<'_>) -> Done<T> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send + 'static {
        let (tell, told) = oneshot::channel();
        let db = self.clone();
        let begin = move || db.post(work, move |done| drop(tell.send(done)));
        self.answered(begin, told)
    }

    /// Likewise, of what changes nothing.
    pub(super) fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Txn<'_>) -> Done<T> + Send + 'static,
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
        work: impl FnOnce(&mut Txn<'_>) -> Done<T> + Send + 'static,
        then: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        self.hand_over(work_of(work, then), false);
    }

    /// Likewise, of what changes nothing.
    pub(super) fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Txn<'_>) -> Done<T> + Send + 'static,
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
        let session = Arc::clone(&self.session);
        let _ = self.write(move |txn| upkeep::leave(txn, &session)).await;
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
    work: impl FnOnce(&mut Txn<'_>) -> Done<T> + Send + 'static,
    then: impl FnOnce(Result<T, Error>) + Send + 'static,
) -> Work {
    Box::new(move |txn| {
        let done = txn.map(|txn| txn.whole(work));
        let done = done.unwrap_or_else(|| Err(Kind::Closed.into()));
        Box::new(move |committed| then(committed.and(done)))
    })
}

/// Does all of these in one transaction, and tells what became of it. When it cannot be committed,
/// all have failed.
fn commit(connection: &Connection, works: Vec<Work>, shared: &Arc<Shared>) -> Told {
    let mut txn = Txn { connection, now: shared.clock.now(), shared, rings: Vec::new() };
    let begun = file::check_version(&txn).and_then(|()| txn.execute("BEGIN IMMEDIATE", []));
    let is_begun = begun.is_ok();
    let mut answers = Vec::with_capacity(works.len());
    for work in works {
        // A full disk may have ended the transaction, and with it all that was done before.
        let is_open = is_begun && !connection.is_autocommit();
        answers.push(work(is_open.then_some(&mut txn)));
    }
    let ended =
        begun.and_then(|_| upkeep::note(&txn, &txn.rings)).and_then(|()| txn.execute("COMMIT", []));
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
    Told { answers, failed, rings }
}

/// Whom to tell of a transaction, once no lock is held.
struct Told {
    answers: Vec<Answer>,
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
        for answer in self.answers {
            answer(self.failed.as_ref().map_or(Ok(()), |failed| Err(failed.error(shared))));
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
    loop {
        match works.recv_timeout(GLANCE) {
            Ok(first) => {
                let batch = std::iter::once(first).chain(works.try_iter()).take(BATCH).collect();
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
    while let Ok(work) = works.recv() {
        let mut txn = Txn { connection, now: shared.clock.now(), shared, rings: Vec::new() };
        work(Some(&mut txn))(Ok(()));
    }
}
