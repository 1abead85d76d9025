//! Queues, and the messages in them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backoff::Backoff;
use super::bells::Ring;
use super::db::{CLOSE_DEADLINE, Db};
use super::intake::{self, Intake};
use super::session;
use super::txn::{Done, Txn};
use crate::backend::{
    Broker, Control, Deliveries, Fetched, Flushed, Parcel, Queue, QueueState, Recorded, sealed,
};
use crate::error::{Error, Kind};
use crate::protocol::{Headers, Message, Properties};
use crate::task::TaskId;

/// Of messages that are fetched at once, in bytes.
const FETCHED: usize = 64 * 1024 * 1024;
/// Messages that are purged in one transaction.
const SLICE: usize = 1000;

/// The [`Broker`] of a database.
#[derive(Debug)]
pub(super) struct EmbeddedBroker {
    db: Db,
    tasks: TaskTracker,
    closing: CancellationToken,
    /// Closing has waited long enough for what is still being written.
    give_up: CancellationToken,
}

/// What is stored of a message besides its body.
#[derive(Serialize)]
struct Head<'m> {
    id: &'m TaskId,
    headers: &'m Headers,
    properties: &'m Properties,
}

#[derive(Deserialize)]
struct StoredHead {
    id: TaskId,
    headers: Headers,
    properties: Properties,
}

/// A message that was taken out of its queue, as it is stored.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) seq: i64,
    pub(super) redelivered: bool,
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Leased {
    /// What somebody else has written there is delivered as it is, and buried by who reads it.
    pub(super) fn read(self) -> Message {
        let body = Bytes::from(self.body);
        match serde_json::from_slice(&self.head) {
            Ok(StoredHead { id, headers, properties }) => Message { id, headers, body, properties },
            Err(_) => Message {
                id: TaskId::random(),
                headers: Headers::new(),
                body,
                properties: Properties::default(),
            },
        }
    }
}

impl EmbeddedBroker {
    pub(super) fn start(db: Db) -> Self {
        let (closing, give_up) = (CancellationToken::new(), CancellationToken::new());
        Self { db, tasks: TaskTracker::new(), closing, give_up }
    }

    /// Runs until it ends, or until closing has waited long enough for it.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let give_up = self.give_up.clone();
        self.tasks.spawn(async move {
            let _ = give_up.run_until_cancelled(task).await;
        })
    }

    /// Tries until it is durable, for as long as the parcel says, and until the broker is closed.
    /// Only what may pass is tried again.
    async fn put(&self, parcel: Parcel) -> Result<Recorded, Error> {
        if self.closing.is_cancelled() {
            return Err(Kind::Closed.into());
        }
        let (begun, mut backoff) = (Instant::now(), Backoff::default());
        let Message { id, headers, properties, .. } = &parcel.message;
        // Here, and not in the one thread that writes.
        let head = serde_json::to_vec(&Head { id, headers, properties }).unwrap_or_default();
        let (queue, after) = (parcel.queue.name.clone(), parcel.timeout);
        let parcel = Arc::new((parcel, head));
        loop {
            let putting = Arc::clone(&parcel);
            let putting = self.db.write(move |txn| put(txn, &putting.0, &putting.1));
            match timeout(after.saturating_sub(begun.elapsed()), putting).await {
                Ok(Err(error)) if error.is_connection() && begun.elapsed() < after => {
                    self.db.shared().warnings.warn("cannot enqueue, trying again", &error);
                }
                Ok(put) => return put,
                Err(_) => {
                    let what = format!("enqueuing into {queue}");
                    return Err(Kind::Timeout { what, after }.into());
                }
            }
            self.closing.run_until_cancelled(backoff.wait()).await.ok_or(Kind::Closed)?;
        }
    }
}

impl sealed::Sealed for EmbeddedBroker {}

impl Broker for EmbeddedBroker {
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<Recorded, Error>> {
        Box::pin(self.put(parcel))
    }

    fn declare(&self, queue: &Queue) -> BoxFuture<'_, Result<(), Error>> {
        let queue = queue.clone();
        Box::pin(self.db.write(move |txn| {
            let (_, max_priority) = queue_row(txn, &queue)?;
            let wanted = i64::from(queue.max_priority.unwrap_or(0));
            if max_priority == wanted {
                return Ok(());
            }
            let cause = format!("its highest priority is {max_priority}, not {wanted}");
            Err(Error::new(Kind::QueueMismatch { queue: queue.name.clone(), cause }).into())
        }))
    }

    fn fetch(&self, queue: &str, count: usize) -> BoxFuture<'_, Result<Fetched, Error>> {
        let name = queue.to_owned();
        Box::pin(async move {
            let of = Arc::clone(&self.db.session);
            let leased = self.db.write(move |txn| {
                let Some(queue) = queue_id(txn, &name)? else { return Ok((0, Vec::new())) };
                let session = session::begin(txn, &of)?;
                promote(txn, queue)?;
                Ok((session, lease(txn, queue, session, count, FETCHED)?))
            });
            let (session, leased) = leased.await?;
            let (settlements, settled) = mpsc::unbounded_channel();
            let deliveries = leased.into_iter().map(|it| it.delivered(&settlements)).collect();
            let settling = intake::settle_all(self.db.clone(), session, settled);
            Ok((deliveries, Flushed(self.spawn(settling))))
        })
    }

    fn inspect(&self, queue: &str) -> BoxFuture<'_, Result<Option<QueueState>, Error>> {
        let name = queue.to_owned();
        Box::pin(self.db.read(move |txn| {
            let Some(queue) = queue_id(txn, &name)? else { return Ok(None) };
            let ready = "SELECT count(*) FROM messages \
                         WHERE queue = ? AND due IS NULL AND holder IS NULL";
            let arrived = "SELECT count(*) FROM messages WHERE queue = ? AND due <= ?";
            let consumers = "SELECT count(*) FROM consumers WHERE queue = ?";
            let count = |row: &Row<'_>| row.get::<_, u64>(0);
            let ready = txn.first(ready, [queue], count)?.unwrap_or(0);
            let arrived = txn.first(arrived, [queue, txn.now], count)?.unwrap_or(0);
            let consumers = txn.first(consumers, [queue], count)?.unwrap_or(0);
            Ok(Some(QueueState { ready: ready + arrived, consumers }))
        }))
    }

    fn purge(&self, queue: &str) -> BoxFuture<'_, Result<u64, Error>> {
        let name = queue.to_owned();
        Box::pin(async move {
            let mut purged = 0;
            loop {
                let name = name.clone();
                let slice = self.db.write(move |txn| {
                    let Some(queue) = queue_id(txn, &name)? else { return Ok(0) };
                    promote(txn, queue)?;
                    let purge = "DELETE FROM messages WHERE seq IN (SELECT seq FROM messages \
                                 WHERE queue = ? AND due IS NULL AND holder IS NULL LIMIT ?)";
                    txn.execute(purge, params![queue, SLICE])
                });
                let slice = slice.await?;
                purged += slice as u64;
                if slice < SLICE {
                    return Ok(purged);
                }
            }
        })
    }

    fn delete(&self, queue: &Queue) -> BoxFuture<'_, Result<Option<u64>, Error>> {
        let queue = queue.clone();
        Box::pin(async move {
            let (name, dead) = (queue.name.clone(), queue.undelivered());
            let found = self.db.write(move |txn| {
                let Some(id) = queue_id(txn, &name)? else { return Ok(false) };
                let consumers = "SELECT count(*) FROM consumers WHERE queue = ?";
                let consumers =
                    txn.first(consumers, [id], |row| row.get::<_, u64>(0))?.unwrap_or(0);
                if consumers > 0 {
                    let cause = format!("it has {consumers} consumers: stop them first");
                    let queue = name.clone();
                    return Err(Error::new(Kind::QueueMismatch { queue, cause }).into());
                }
                promote(txn, id)?;
                let (dead, _) = queue_row(txn, &dead)?;
                let delayed = "UPDATE messages SET queue = ? WHERE queue = ? AND due IS NOT NULL";
                txn.execute(delayed, [dead, id])?;
                Ok(true)
            });
            if !found.await? {
                return Ok(None);
            }
            let purged = self.purge(&queue.name).await?;
            let name = queue.name;
            let gone = self.db.write(move |txn| {
                let unused = "DELETE FROM queues WHERE name = ?1 AND NOT EXISTS \
                              (SELECT 1 FROM messages WHERE queue = queues.id) AND NOT EXISTS \
                              (SELECT 1 FROM consumers WHERE queue = queues.id)";
                txn.execute(unused, [&name])
            });
            gone.await?;
            Ok(Some(purged))
        })
    }

    fn consume(&self, queue: &Queue, prefetch: u16) -> Deliveries {
        let room = if prefetch == 0 { u16::MAX } else { prefetch };
        let (deliver, incoming) = mpsc::channel(usize::from(room));
        let (tell, consuming) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let (db, queue) = (self.db.clone(), queue.clone());
        let intake = Intake { db, queue, room: usize::from(room), deliver, consuming: tell };
        self.spawn(intake.run(stopped, self.closing.clone()));
        Deliveries { incoming, consuming, stop: Some(stop) }
    }

    fn version(&self) -> BoxFuture<'_, Result<String, Error>> {
        Box::pin(async { Ok(format!("SQLite {}", rusqlite::version())) })
    }

    /// Celery's workers are not here, and nobody broadcasts to them.
    fn control(&self, _node: &str) -> Control {
        let (broadcast, incoming) = mpsc::channel(1);
        let (answers, mut unheard) = mpsc::channel(1);
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            let listening = async { while unheard.recv().await.is_some() {} };
            closing.run_until_cancelled(listening).await;
            drop(broadcast);
        });
        Control { incoming, answers }
    }

    fn connected(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.db.shared().availability.available())
    }

    fn is_connected(&self) -> bool {
        !self.closing.is_cancelled() && self.db.shared().availability.is_available()
    }

    fn connect_error(&self) -> Option<String> {
        None
    }

    /// Takes at most a second: what is not settled then goes back to its queue with the session.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.cancel();
            self.tasks.close();
            if timeout(CLOSE_DEADLINE, self.tasks.wait()).await.is_err() {
                let what = "closing with unsettled messages, which are delivered again";
                self.db.shared().warnings.warn(&self.db.shared().shown, &what);
                self.give_up.cancel();
            }
        })
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

fn put(txn: &mut Txn<'_>, parcel: &Parcel, head: &[u8]) -> Done<Recorded> {
    let Parcel { message, queue, delay, .. } = parcel;
    let (queue, max_priority) = queue_row(txn, queue)?;
    let Message { id, body, properties, .. } = message;
    let priority = properties.priority.map_or(0, i64::from).min(max_priority);
    let delay = delay.map(|delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    let due = delay.filter(|delay| *delay > 0).map(|delay| txn.now.saturating_add(delay));
    let insert = "INSERT INTO messages (queue, rank, due, head, body) VALUES (?, ?, ?, ?, ?)";
    txn.execute(insert, params![queue, -priority, due, head, &body[..]])?;
    txn.ring(Ring::Queue(queue));
    Ok(Recorded::new(id.clone()))
}

fn queue_id(txn: &Txn<'_>, name: &str) -> Done<Option<i64>> {
    txn.first("SELECT id FROM queues WHERE name = ?", [name], |row| row.get(0))
}

/// A queue's number and highest priority. It is made if it is not there.
pub(super) fn queue_row(txn: &Txn<'_>, queue: &Queue) -> Done<(i64, i64)> {
    let find = "SELECT id, max_priority FROM queues WHERE name = ?";
    if let Some(found) = txn.first(find, [&queue.name], |row| Ok((row.get(0)?, row.get(1)?)))? {
        return Ok(found);
    }
    let max_priority = i64::from(queue.max_priority.unwrap_or(0));
    let insert = "INSERT INTO queues (name, max_priority) VALUES (?, ?)";
    txn.execute(insert, params![queue.name, max_priority])?;
    Ok((txn.inserted(), max_priority))
}

/// What was delayed until now arrives.
pub(super) fn promote(txn: &Txn<'_>, queue: i64) -> Done<()> {
    txn.execute("UPDATE messages SET due = NULL WHERE queue = ? AND due <= ?", [queue, txn.now])?;
    Ok(())
}

/// Takes messages off the head of a queue, until there are enough or they are too large.
pub(super) fn lease(
    txn: &Txn<'_>,
    queue: i64,
    session: i64,
    count: usize,
    mut bytes: usize,
) -> Done<Vec<Leased>> {
    let mut select = txn.prepare(
        "SELECT seq, handed_out, head, body FROM messages \
         WHERE queue = ? AND due IS NULL AND holder IS NULL ORDER BY rank, seq LIMIT ?",
    )?;
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let mut rows = select.query(params![queue, count])?;
    let mut leased = Vec::new();
    while let Some(row) = rows.next()? {
        let (head, body): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
        let size = head.len() + body.len();
        if size > bytes && !leased.is_empty() {
            break;
        }
        bytes = bytes.saturating_sub(size);
        let redelivered = row.get::<_, i64>(1)? > 0;
        leased.push(Leased { seq: row.get(0)?, redelivered, head, body });
    }
    drop(rows);
    let hold = "UPDATE messages SET holder = ?, handed_out = handed_out + 1 WHERE seq = ?";
    for Leased { seq, .. } in &leased {
        txn.execute(hold, [session, *seq])?;
    }
    Ok(leased)
}
