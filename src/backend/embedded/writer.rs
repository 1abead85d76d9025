//! The writer thread of a file. It ends, and closes its connection, when the database is closed: the
//! last connection of all processes checkpoints the log into the file.

use std::iter::once;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::commit::{CommitEvents, Work, commit, refuse, work_of};
use super::identity::Identity;
use super::maintenance;
use super::maintenance::MAINTENANCE;
use super::peers::Peers;
use super::shared::Shared;
use super::txn::Txn;
use super::wal::Wal;
use crate::error::{Error, Kind};

/// The most calls that share a transaction.
const BATCH: usize = 1024;
/// The group commit delay: callers that just got a reply often write again at once. With the delay they
/// wait for one sync of the disk instead of two.
const GROUP_COMMIT_DELAY: Duration = Duration::from_micros(100);
/// How long the writer waits for calls before it checks whether another process has written.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A call to the writer.
pub(super) enum Call {
    Work(Work),
    /// Closes the connection and ends the thread. Later calls are dropped.
    End(oneshot::Sender<()>),
}

/// Starts the writer thread; returns the channel to it.
pub(super) fn start(
    writer: Connection,
    identity: Identity,
    shared: &Arc<Shared>,
) -> Result<Sender<Call>, Error> {
    let (writes, to_write) = channel();
    let of = Arc::clone(shared);
    let run = move || Writer::new(writer, identity, of).run(&to_write);
    thread::Builder::new().name("countersign-writer".to_owned()).spawn(run).map_err(|error| {
        let (peer, cause) = (shared.shown.clone(), format!("cannot start a thread: {error}"));
        Error::new(Kind::Connection { peer, cause })
    })?;
    Ok(writes)
}

/// The writer thread: commits all pending calls together, and runs maintenance passes.
struct Writer {
    connection: Connection,
    identity: Identity,
    shared: Arc<Shared>,
    peers: Peers,
    wal: Wal,
    /// When it last checked whether another process has written, and last ran a maintenance pass.
    polled: Instant,
    maintained: Instant,
    maintenance_interval: Duration,
}

impl Writer {
    fn new(connection: Connection, identity: Identity, shared: Arc<Shared>) -> Self {
        let (peers, wal) = (Peers::of(&connection), Wal::of(&connection));
        let (polled, maintained) = (Instant::now(), Instant::now());
        let maintenance_interval = MAINTENANCE;
        Self { connection, identity, shared, peers, wal, polled, maintained, maintenance_interval }
    }

    fn run(mut self, calls: &Receiver<Call>) {
        let mut last_batch = 0;
        let end = loop {
            let mut end = None;
            match calls.recv_timeout(POLL_INTERVAL) {
                Ok(first) => {
                    let mut batch = Vec::new();
                    collect_batch(&mut batch, &mut end, once(first).chain(calls.try_iter()));
                    if batch.len() < last_batch && end.is_none() {
                        thread::sleep(GROUP_COMMIT_DELAY);
                        collect_batch(&mut batch, &mut end, calls.try_iter());
                    }
                    last_batch = batch.len();
                    if !batch.is_empty() {
                        self.commit(batch).publish(&self.shared);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break None,
            }
            if end.is_some() {
                break end;
            }
            if self.polled.elapsed() >= POLL_INTERVAL {
                self.polled = Instant::now();
                self.peers.poll(&self.connection, &self.shared);
            }
            if self.maintained.elapsed() >= self.maintenance_interval {
                self.maintain();
            }
        };
        self.wal.checkpoint(&self.connection);
        drop(self.connection);
        if let Some(end) = end {
            let _ = end.send(());
        }
    }

    /// Refuses to write when the path does not name this file any more: no other process would see the
    /// changes.
    fn commit(&mut self, works: Vec<Work>) -> CommitEvents {
        if let Some(fault) = self.identity.fault() {
            self.shared.availability.set_lost(&self.shared.shown, &fault);
        }
        match self.shared.availability.lost() {
            Some(cause) => refuse(works, cause),
            None => commit(&self.connection, works, &self.shared),
        }
    }

    fn maintain(&mut self) {
        let (sender, receiver) = channel();
        let of = Arc::clone(&self.shared.session);
        let work = move |txn: &mut Txn<'_>| maintenance::run(txn, &of);
        let maintenance_job = work_of(work, move |done| drop(sender.send(done)));
        self.commit(vec![maintenance_job]).publish(&self.shared);
        let is_more = match receiver.try_recv() {
            Ok(Ok(is_more)) => is_more,
            Ok(Err(error)) if self.shared.availability.lost().is_none() => {
                self.shared.warnings.warn("cannot maintain the database", &error);
                false
            }
            _ => false,
        };
        self.wal.watch(&self.shared);
        self.maintenance_interval = if is_more { POLL_INTERVAL } else { MAINTENANCE };
        self.maintained = Instant::now();
    }
}

/// Adds work to a batch, until it is full or the thread is to end.
fn collect_batch(
    batch: &mut Vec<Work>,
    end: &mut Option<oneshot::Sender<()>>,
    mut calls: impl Iterator<Item = Call>,
) {
    while end.is_none() && batch.len() < BATCH {
        match calls.next() {
            Some(Call::Work(work)) => batch.push(work),
            Some(Call::End(ended)) => *end = Some(ended),
            None => return,
        }
    }
}
