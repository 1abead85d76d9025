//! One SQLite database, and access to it: in memory, callers share a connection (`memory`); a file has one
//! writer thread (`writer`) and a pool of reading connections (`read_pool`).
//!
//! All pending writes share one transaction: sixty-four callers wait for one sync of the disk. Callers
//! get their results only after the sync.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::clock::Clock;
use super::commit::{Work, work_of};
use super::fault::TxResult;
use super::identity::Identity;
use super::memory::Memory;
use super::read_pool::ReadPool;
use super::session::Session;
use super::shared::Shared;
use super::simulated_process::SimulatedProcess;
use super::txn::Txn;
use super::writer::{self, Call};
use super::{file, session_rows, stored_clock};
use crate::backend::{PoolSettings, PoolState};
use crate::error::{Error, Kind};

/// The first delay before a failed operation is retried.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long closing waits: for pending writes, and for both connections to be closed.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// The database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Db {
    shared: Arc<Shared>,
    access: Access,
    /// Set when no new work is accepted.
    closed: Arc<AtomicBool>,
    /// The session under which this process holds messages.
    pub(super) session: Arc<Session>,
    /// The simulated process, where a test simulates several in one.
    pub(super) process: SimulatedProcess,
}

#[derive(Clone)]
enum Access {
    Memory(Arc<Memory>),
    File { writes: Sender<Call>, reads: ReadPool },
}

impl Db {
    /// Creates a database that disappears with its last user.
    pub(super) fn in_memory() -> Result<Self, Error> {
        Self::in_memory_of(Shared::in_memory(false))
    }

    /// Creates a database in memory that several simulated processes use in a test.
    #[cfg(feature = "faults")]
    pub(super) fn in_memory_for_several() -> Result<Self, Error> {
        Self::in_memory_of(Shared::in_memory(true))
    }

    fn in_memory_of(shared: Arc<Shared>) -> Result<Self, Error> {
        let connection = file::in_memory(&shared.shown)?;
        Ok(Self::of(shared, Access::Memory(Arc::new(Memory::new(connection)))))
    }

    /// Opens a file, and creates it if it does not exist.
    ///
    /// # Errors
    /// It is not ours, newer, damaged, on a network file system, or cannot be written.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub(super) fn open(path: &Path, pool: PoolSettings) -> Result<Self, Error> {
        let shown = format!("the database {}", path.display());
        let (writer, reader) = (file::open(path)?, file::open_for_reading(path)?);
        let shared = Shared::new(
            Clock::of_machine(stored_clock::latest(&reader)),
            true,
            true,
            shown.clone(),
        );
        drop(reader);
        let reads = ReadPool::new(path, pool, Arc::clone(&shared), Handle::current())?;
        let writes = writer::start(writer, Identity::of(path), &shared)?;
        Ok(Self::of(shared, Access::File { writes, reads }))
    }

    fn of(shared: Arc<Shared>, access: Access) -> Self {
        let (session, process) = (Arc::clone(&shared.session), SimulatedProcess::default());
        Self { shared, access, closed: Arc::default(), session, process }
    }

    /// Returns the same database for another simulated process.
    #[cfg(feature = "faults")]
    pub(super) fn of_another(&self, process: SimulatedProcess) -> Self {
        Self { closed: Arc::default(), session: Arc::default(), process, ..self.clone() }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Returns the state of the pool of reading connections; nothing for a database in memory.
    pub(super) fn pools(&self) -> Vec<PoolState> {
        match &self.access {
            Access::Memory(_) => Vec::new(),
            Access::File { reads, .. } => vec![reads.state()],
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Runs a job; completes once it is durable. It starts when this is called on a file, and when it
    /// is first polled in memory. If the future is dropped, the job may run nevertheless.
    pub(super) fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Txn<'_>) -> TxResult<T> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send + 'static {
        self.start_and_wait(work, false)
    }

    /// Runs a job that changes nothing.
    pub(super) fn read<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Txn<'_>) -> TxResult<T> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send + 'static {
        self.start_and_wait(work, true)
    }

    fn start_and_wait<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Txn<'_>) -> TxResult<T> + Send + 'static,
        is_read: bool,
    ) -> impl Future<Output = Result<T, Error>> + Send + 'static {
        let (sender, receiver) = oneshot::channel();
        let mut work = Some(work_of(work, move |done| drop(sender.send(done))));
        if self.shared.is_file
            && let Some(work) = work.take()
        {
            self.dispatch(work, is_read);
        }
        let db = self.clone();
        async move {
            if let Some(work) = work {
                db.process.proceed().await;
                db.dispatch_together(work).await;
            }
            let result = receiver.await.unwrap_or_else(|_| Err(Kind::Closed.into()));
            db.process.proceed().await;
            result
        }
    }

    /// Runs a job that changes nothing, and calls `callback`.
    pub(super) fn read_with<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Txn<'_>) -> TxResult<T> + Send + 'static,
        callback: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        self.dispatch(work_of(work, callback), true);
    }

    /// Runs a job in memory, with those that other ready tasks of this runtime add.
    async fn dispatch_together(&self, work: Work) {
        let Access::Memory(memory) = &self.access else { return self.dispatch(work, false) };
        if self.refuses() {
            return;
        }
        memory.add(work);
        // If this future is dropped, the jobs must run nevertheless.
        let running = RunOnDrop { memory, shared: &self.shared };
        yield_now().await;
        drop(running);
    }

    fn refuses(&self) -> bool {
        self.is_closed() || self.process.is_dead()
    }

    /// Queues a job. If it is dropped, its callback is not called: the caller sees that as closed.
    fn dispatch(&self, work: Work, is_read: bool) {
        if self.refuses() {
            return;
        }
        match &self.access {
            Access::Memory(memory) => {
                memory.add(work);
                memory.run(&self.shared);
            }
            Access::File { reads, .. } if is_read => reads.run(work),
            Access::File { writes, .. } => drop(writes.send(Call::Work(work))),
        }
    }

    /// Ends this process's session, so that the messages it holds return to their queues, and closes
    /// the connections. Later calls fail as closed. Takes at most [`CLOSE_DEADLINE`]: a session that
    /// cannot be ended becomes overdue soon.
    pub(super) async fn close(&self) {
        let session = self.session.id();
        let ending = self.write(move |txn| session_rows::end(txn, session));
        let closing = async {
            if let Err(error) = ending.await {
                self.shared.warnings.warn("cannot requeue the messages of this process", &error);
            }
            self.closed.store(true, Ordering::Release);
            if let Access::File { writes, reads } = &self.access {
                // The writer is closed last: the last connection checkpoints the log, and must be able
                // to write.
                reads.close().await;
                let (end, ended) = oneshot::channel();
                let _ = writes.send(Call::End(end));
                let _ = ended.await;
            }
        };
        if timeout(CLOSE_DEADLINE, closing).await.is_err() {
            self.shared.warnings.warn(&self.shared.shown, &"no reply; it was not closed");
        }
        self.session.lose(session);
        self.closed.store(true, Ordering::Release);
    }
}

/// Runs the jobs of a database in memory when it is dropped.
struct RunOnDrop<'d> {
    memory: &'d Memory,
    shared: &'d Arc<Shared>,
}

impl Drop for RunOnDrop<'_> {
    fn drop(&mut self) {
        self.memory.run(self.shared);
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db").field("shown", &self.shared.shown).finish_non_exhaustive()
    }
}
