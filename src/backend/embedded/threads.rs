//! The two threads of a file: one writes, one reads. They end, and close their connections, when the
//! database is closed: the last connection of all processes moves the log into the file.

use std::iter::once;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::db::{MAINTENANCE, Shared};
use super::identity::Identity;
use super::txn::{Told, Txn, Work, commit, refuse, work_of};
use super::upkeep::{self, Others};
use super::wal::Wal;
use crate::error::{Error, Kind};

/// Calls that share a transaction at most.
const BATCH: usize = 1024;
/// The group commit delay: callers that were just answered often write again at once, so that they
/// pay for one sync of the disk, and not for two.
const GATHER: Duration = Duration::from_micros(100);
/// How long the writer waits for calls before it looks whether another process has written.
const GLANCE: Duration = Duration::from_millis(50);

/// What a thread is asked to do.
pub(super) enum Call {
    Work(Work),
    /// Closes the connection and ends the thread. Calls that come after this are dropped.
    End(oneshot::Sender<()>),
}

/// Starts both threads; returns how to call the writing one and the reading one.
pub(super) fn start(
    writer: Connection,
    reader: Connection,
    identity: Identity,
    shared: &Arc<Shared>,
) -> Result<(Sender<Call>, Sender<Call>), Error> {
    let ((writes, to_write), (reads, to_read)) = (channel(), channel());
    let failed = |error: std::io::Error| {
        let (peer, cause) = (shared.shown.clone(), format!("cannot start a thread: {error}"));
        Error::new(Kind::Connection { peer, cause })
    };
    let thread = |name: &str| thread::Builder::new().name(format!("countersign-{name}"));
    let of = Arc::clone(shared);
    thread("writer")
        .spawn(move || Writer::new(writer, identity, of).run(&to_write))
        .map_err(failed)?;
    let of = Arc::clone(shared);
    thread("reader").spawn(move || read_all(reader, &to_read, &of)).map_err(failed)?;
    Ok((writes, reads))
}

/// The thread that writes: all that waits at a time, and now and then a maintenance pass.
struct Writer {
    connection: Connection,
    identity: Identity,
    shared: Arc<Shared>,
    others: Others,
    wal: Wal,
    /// When it looked whether another process has written, and when it ran a maintenance pass.
    glanced: Instant,
    maintained: Instant,
    pause: Duration,
}

impl Writer {
    fn new(connection: Connection, identity: Identity, shared: Arc<Shared>) -> Self {
        let (others, wal) = (Others::of(&connection), Wal::of(&connection));
        let (glanced, maintained) = (Instant::now(), Instant::now());
        let pause = MAINTENANCE;
        Self { connection, identity, shared, others, wal, glanced, maintained, pause }
    }

    fn run(mut self, calls: &Receiver<Call>) {
        let mut answered = 0;
        let end = loop {
            let mut end = None;
            match calls.recv_timeout(GLANCE) {
                Ok(first) => {
                    let mut batch = Vec::new();
                    gather(&mut batch, &mut end, once(first).chain(calls.try_iter()));
                    if batch.len() < answered && end.is_none() {
                        thread::sleep(GATHER);
                        gather(&mut batch, &mut end, calls.try_iter());
                    }
                    answered = batch.len();
                    if !batch.is_empty() {
                        self.commit(batch).tell(&self.shared);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break None,
            }
            if end.is_some() {
                break end;
            }
            if self.glanced.elapsed() >= GLANCE {
                self.glanced = Instant::now();
                self.others.listen(&self.connection, &self.shared);
            }
            if self.maintained.elapsed() >= self.pause {
                self.maintain();
            }
        };
        self.wal.fold(&self.connection);
        drop(self.connection);
        if let Some(end) = end {
            let _ = end.send(());
        }
    }

    /// Nothing is written into a file that its path does not name any more: no other process would
    /// see it.
    fn commit(&mut self, works: Vec<Work>) -> Told {
        if let Some(fault) = self.identity.fault() {
            self.shared.availability.set_gone(&self.shared.shown, &fault);
        }
        match self.shared.availability.gone() {
            Some(cause) => refuse(works, cause),
            None => commit(&self.connection, works, &self.shared),
        }
    }

    fn maintain(&mut self) {
        let (tell, told) = channel();
        let of = Arc::clone(&self.shared.session);
        let work = move |txn: &mut Txn<'_>| upkeep::keep_up(txn, &of);
        let keep_up = work_of(work, move |done| drop(tell.send(done)));
        self.commit(vec![keep_up]).tell(&self.shared);
        let is_more = match told.try_recv() {
            Ok(Ok(is_more)) => is_more,
            Ok(Err(error)) if self.shared.availability.gone().is_none() => {
                self.shared.warnings.warn("cannot maintain the database", &error);
                false
            }
            _ => false,
        };
        self.wal.watch(&self.shared);
        self.pause = if is_more { GLANCE } else { MAINTENANCE };
        self.maintained = Instant::now();
    }
}

/// Adds work to a batch, until it is full or the thread is to end.
fn gather(
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

/// The thread that reads: each question by itself, as the file is then.
fn read_all(connection: Connection, calls: &Receiver<Call>, shared: &Arc<Shared>) {
    while let Ok(call) = calls.recv() {
        match (call, shared.availability.gone()) {
            (Call::Work(mut work), None) => {
                let mut txn = Txn::of(&connection, shared);
                work.attempt(&mut txn);
                work.tell(Ok(()));
            }
            (Call::Work(work), Some(cause)) => refuse(vec![work], cause).tell(shared),
            (Call::End(ended), _) => {
                drop(connection);
                let _ = ended.send(());
                return;
            }
        }
    }
}
