//! One SQLite database, and who may use it: in memory whoever calls, under a lock; of a file one
//! thread that writes and one that reads (`threads`).
//!
//! Whatever waits to be written goes into one transaction: sixty-four callers wait for one sync of
//! the disk. Nobody is answered before it.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::availability::Availability;
use super::bells::Bells;
use super::clock::Clock;
use super::identity::Identity;
use super::life::Life;
use super::session::{self, Session};
use super::threads::{self, Call};
use super::txn::{Done, Txn, Work, commit, work_of};
use super::warnings::Warnings;
use super::{file, upkeep};
use crate::error::{Error, Kind};

/// How often a maintenance pass runs.
pub(super) const MAINTENANCE: Duration = Duration::from_millis(2500);
const COMMITS_BETWEEN_UPKEEP: u32 = 1024;
/// How long closing waits: for what is still being written, and for both connections to be closed.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

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
    /// Whether it takes writes.
    pub(super) availability: Availability,
    pub(super) warnings: Warnings,
}

#[derive(Clone)]
enum Access {
    Memory(Arc<Memory>),
    File { writes: Sender<Call>, reads: Sender<Call> },
}

impl Shared {
    pub(super) fn in_memory(sessions_expire: bool) -> Arc<Self> {
        let shown = "the database in memory".to_owned();
        Self::new(Clock::of_runtime(), false, sessions_expire, shown)
    }

    fn new(clock: Clock, is_file: bool, sessions_expire: bool, shown: String) -> Arc<Self> {
        let (bells, identity) = (Bells::default(), rand::rng().random());
        Arc::new(Self {
            bells,
            clock,
            is_file,
            identity,
            sessions_expire,
            session: Arc::default(),
            shown,
            availability: Availability::default(),
            warnings: Warnings::default(),
        })
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
        let (writes, reads) = threads::start(writer, reader, Identity::of(path), &shared)?;
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
            Access::File { reads, .. } if changes_nothing => drop(reads.send(Call::Work(work))),
            Access::File { writes, .. } => drop(writes.send(Call::Work(work))),
        }
    }

    /// Ends this process's session, so that what it holds goes back to its queues, and closes the
    /// connections. Later calls fail as closed. Takes at most [`CLOSE_DEADLINE`]: a session that
    /// cannot be ended is overdue soon.
    pub(super) async fn close(&self) {
        let session = self.session.id();
        let ending = self.write(move |txn| session::end(txn, session));
        let closing = async {
            if let Err(error) = ending.await {
                self.shared.warnings.warn("cannot return what this process holds", &error);
            }
            self.closed.store(true, Ordering::Release);
            if let Access::File { writes, reads } = &self.access {
                // The last one to be closed moves the log into the file: the one that may write.
                for calls in [reads, writes] {
                    let (end, ended) = oneshot::channel();
                    let _ = calls.send(Call::End(end));
                    let _ = ended.await;
                }
            }
        };
        if timeout(CLOSE_DEADLINE, closing).await.is_err() {
            self.shared.warnings.warn(&self.shared.shown, &"it does not answer, and is left open");
        }
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
