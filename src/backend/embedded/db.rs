//! One SQLite database, and who may use it: in memory whoever calls, under a lock; of a file one
//! thread that writes and one that reads.
//!
//! Whatever waits to be written goes into one transaction: sixty-four callers wait for one sync of
//! the disk. Nobody is answered before it.

use std::fmt;
use std::future::Future;
use std::iter::once;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::bells::Bells;
use super::clock::Clock;
use super::life::Life;
use super::session::{self, Session};
use super::txn::{Done, Txn, Work, commit, work_of};
use super::{file, upkeep};
use crate::error::{Error, Kind};

/// Calls that share a transaction at most.
const BATCH: usize = 1024;
/// Whoever was answered just now may ask again at once: so long they are waited for, so that they
/// pay for one sync of the disk, and not for two.
const GATHER: Duration = Duration::from_micros(100);
/// How long the writer waits for calls before it looks whether another process has written.
const GLANCE: Duration = Duration::from_millis(50);
/// How often a maintenance pass runs.
pub(super) const MAINTENANCE: Duration = Duration::from_millis(2500);
const COMMITS_BETWEEN_UPKEEP: u32 = 1024;

/// The database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Db {
    shared: Arc<Shared>,
    access: Access,
    /// Nothing is begun any more.
    closed: Arc<AtomicBool>,
    /// The session under which this process holds messages.
    pub(super) session: Arc<Session>,
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
    /// Sessions that are not renewed are ended. In memory there is one process, unless a test plays
    /// several.
    pub(super) sessions_expire: bool,
    /// The session of the process that this is: the one that the writing thread renews.
    pub(super) session: Arc<Session>,
    /// The file, as people are told of it.
    pub(super) shown: String,
}

#[derive(Clone)]
enum Access {
    Memory(Arc<Memory>),
    File { writes: Sender<Work>, reads: Sender<Work> },
}

impl Shared {
    pub(super) fn in_memory(sessions_expire: bool) -> Arc<Self> {
        let shown = "the database in memory".to_owned();
        Self::new(Clock::of_runtime(), false, sessions_expire, shown)
    }

    fn new(clock: Clock, is_file: bool, sessions_expire: bool, shown: String) -> Arc<Self> {
        let (bells, identity) = (Bells::default(), rand::rng().random());
        let session = Arc::default();
        Arc::new(Self { bells, clock, is_file, identity, sessions_expire, session, shown })
    }
}

impl Db {
    /// A database that is gone with its last user.
    pub(super) fn in_memory() -> Result<Self, Error> {
        Self::in_memory_of(Shared::in_memory(false))
    }

    /// A database in memory that a test lets several processes use.
    #[cfg(feature = "faults")]
    pub(super) fn in_memory_for_several() -> Result<Self, Error> {
        Self::in_memory_of(Shared::in_memory(true))
    }

    fn in_memory_of(shared: Arc<Shared>) -> Result<Self, Error> {
        let connection = file::in_memory(&shared.shown)?;
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
        let shared =
            Shared::new(Clock::of_machine(upkeep::latest(&reader)), true, true, shown.clone());
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
        let session = self.session.id();
        let _ = self.write(move |txn| session::end(txn, session)).await;
        self.session.lose(session);
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
            let of = Arc::clone(&shared.session);
            works.push(work_of(move |txn| upkeep::keep_up(txn, &of), drop));
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

/// The thread that writes: all that waits at a time, and now and then what nobody asks for.
fn write_all(connection: &Connection, works: &Receiver<Work>, shared: &Arc<Shared>) {
    let mut others = upkeep::Others::of(connection);
    let (mut glanced, mut kept_up, mut pause) = (Instant::now(), Instant::now(), MAINTENANCE);
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
            let of = Arc::clone(&shared.session);
            let work = move |txn: &mut Txn<'_>| upkeep::keep_up(txn, &of);
            let keep_up = work_of(work, move |done| drop(tell.send(done)));
            commit(connection, vec![keep_up], shared).tell(shared);
            let is_more = matches!(told.try_recv(), Ok(Ok(true)));
            pause = if is_more { GLANCE } else { MAINTENANCE };
            kept_up = Instant::now();
        }
    }
}

/// The thread that reads: each question by itself, as the file is then.
fn read_all(connection: &Connection, works: &Receiver<Work>, shared: &Arc<Shared>) {
    while let Ok(mut work) = works.recv() {
        let mut txn = Txn::of(connection, shared);
        work.attempt(&mut txn);
        work.tell(Ok(()));
    }
}
