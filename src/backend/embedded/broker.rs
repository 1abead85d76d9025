//! Queues, and the messages in them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rusqlite::{Row, params};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::db::{CLOSE_DEADLINE, Db, RETRY_DELAY};
use super::queue_reader::{self, QueueReader};
use super::wakes::Wake;
use super::{message_head, messages, session_rows};
use crate::backend::backoff::Backoff;
use crate::backend::{
    Broker, Connection, Control, Deliveries, Fetched, PublishRequest, Queue, QueueState, Recorded,
    SettleBarrier, sealed,
};
use crate::error::{Error, Kind};

/// The most bytes of messages that one fetch takes.
const FETCHED: usize = 64 * 1024 * 1024;
/// The number of messages that are purged in one transaction.
const SLICE: usize = 1000;

/// The [`Broker`] of a database.
#[derive(Debug)]
pub(super) struct EmbeddedBroker {
    db: Db,
    tasks: TaskTracker,
    closing: CancellationToken,
    /// Cancelled when closing has waited long enough for pending writes.
    give_up: CancellationToken,
}

impl EmbeddedBroker {
    pub(super) fn start(db: Db) -> Self {
        let (closing, give_up) = (CancellationToken::new(), CancellationToken::new());
        Self { db, tasks: TaskTracker::new(), closing, give_up }
    }

    /// Runs a task until it ends, or until closing has waited long enough for it.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let give_up = self.give_up.clone();
        self.tasks.spawn(async move {
            let _ = give_up.run_until_cancelled(task).await;
        })
    }

    /// Retries until the message is durable, the timeout of the request passes, or the broker is
    /// closed. Only temporary errors are retried.
    async fn put(&self, request: PublishRequest) -> Result<Recorded, Error> {
        if self.closing.is_cancelled() {
            return Err(Kind::Closed.into());
        }
        let (started, mut backoff) = (Instant::now(), Backoff::new(RETRY_DELAY));
        // Encoded here, and not in the single writer thread.
        let head = message_head::encode(&request.message);
        let wake = Wake::of(&request.message);
        let (queue, after) = (request.queue.name.clone(), request.timeout);
        let request = Arc::new((request, head, wake));
        loop {
            let putting = Arc::clone(&request);
            let putting = self.db.write(move |txn| {
                let (request, head, wake) = &*putting;
                messages::put(txn, request, head, wake.as_ref())
            });
            let error = match timeout(after.saturating_sub(started.elapsed()), putting).await {
                Ok(Err(error)) if error.is_connection() => error,
                Ok(put) => return put,
                Err(_) => {
                    let what = format!("enqueuing into {queue}");
                    return Err(Kind::Timeout { what, after }.into());
                }
            };
            self.db.shared().warnings.warn("cannot enqueue; retrying", &error);
            self.closing.run_until_cancelled(backoff.wait()).await.ok_or(Kind::Closed)?;
            // The error of the last attempt, not a timeout: it names the cause, and nothing was written.
            if started.elapsed() >= after {
                return Err(error);
            }
        }
    }
}

impl sealed::Sealed for EmbeddedBroker {}

impl Broker for EmbeddedBroker {
    fn publish(&self, request: PublishRequest) -> BoxFuture<'_, Result<Recorded, Error>> {
        Box::pin(self.put(request))
    }

    fn declare(&self, queue: &Queue) -> BoxFuture<'_, Result<(), Error>> {
        let queue = queue.clone();
        Box::pin(self.db.write(move |txn| {
            let (_, max_priority) = messages::queue_row(txn, &queue)?;
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
                let Some(queue) = messages::queue_id(txn, &name)? else {
                    return Ok((0, Vec::new()));
                };
                let session = session_rows::begin(txn, &of)?;
                messages::promote(txn, queue)?;
                Ok((session, messages::lease(txn, queue, session, count, FETCHED)?))
            });
            let (session, leased) = leased.await?;
            let (settlements, settled) = mpsc::unbounded_channel();
            let deliveries = leased.into_iter().map(|it| it.delivered(&settlements)).collect();
            let settling = queue_reader::settle_all(self.db.clone(), session, settled);
            Ok((deliveries, SettleBarrier(self.spawn(settling))))
        })
    }

    fn inspect(&self, queue: &str) -> BoxFuture<'_, Result<Option<QueueState>, Error>> {
        let name = queue.to_owned();
        Box::pin(self.db.read(move |txn| {
            let Some(queue) = messages::queue_id(txn, &name)? else { return Ok(None) };
            let ready = "SELECT count(*) FROM messages \
                         WHERE queue = ? AND due IS NULL AND holder IS NULL";
            let arrived = "SELECT (SELECT count(*) FROM messages WHERE queue = ?1 AND due <= ?2) + \
                           (SELECT count(*) FROM parks WHERE wake_queue = ?1 AND wake_at <= ?2)";
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
                    let Some(queue) = messages::queue_id(txn, &name)? else { return Ok(0) };
                    messages::promote(txn, queue)?;
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
                let Some(id) = messages::queue_id(txn, &name)? else { return Ok(false) };
                let consumers = "SELECT count(*) FROM consumers WHERE queue = ?";
                let consumers =
                    txn.first(consumers, [id], |row| row.get::<_, u64>(0))?.unwrap_or(0);
                if consumers > 0 {
                    let cause = format!("it has {consumers} consumers: stop them first");
                    let queue = name.clone();
                    return Err(Error::new(Kind::QueueMismatch { queue, cause }).into());
                }
                messages::promote(txn, id)?;
                let (dead, _) = messages::queue_row(txn, &dead)?;
                let delayed = "UPDATE messages SET queue = ? WHERE queue = ? AND due IS NOT NULL";
                txn.execute(delayed, [dead, id])?;
                let wakes = "UPDATE parks SET wake_queue = ? WHERE wake_queue = ?";
                txn.execute(wakes, [dead, id])?;
                Ok(true)
            });
            if !found.await? {
                return Ok(None);
            }
            let purged = self.purge(&queue.name).await?;
            let name = queue.name;
            let deleted = self.db.write(move |txn| {
                let unused = "DELETE FROM queues WHERE name = ?1 AND NOT EXISTS \
                              (SELECT 1 FROM messages WHERE queue = queues.id) AND NOT EXISTS \
                              (SELECT 1 FROM consumers WHERE queue = queues.id) AND NOT EXISTS \
                              (SELECT 1 FROM parks WHERE wake_queue = queues.id)";
                txn.execute(unused, [&name])
            });
            deleted.await?;
            Ok(Some(purged))
        })
    }

    fn consume(&self, queue: &Queue, prefetch: u16) -> Deliveries {
        let capacity = if prefetch == 0 { u16::MAX } else { prefetch };
        let (deliver, incoming) = mpsc::channel(usize::from(capacity));
        let (consuming_sender, consuming) = watch::channel(false);
        let (stop, stopped) = oneshot::channel();
        let (db, queue) = (self.db.clone(), queue.clone());
        let reader = QueueReader {
            db,
            queue,
            capacity: usize::from(capacity),
            deliver,
            consuming: consuming_sender,
        };
        self.spawn(reader.run(stopped, self.closing.clone()));
        Deliveries { incoming, consuming, stop: Some(stop) }
    }

    fn version(&self) -> BoxFuture<'_, Result<String, Error>> {
        Box::pin(async { Ok(format!("SQLite {}", rusqlite::version())) })
    }

    /// Celery's workers do not use this backend, and no control messages are broadcast.
    fn control(&self, _node: &str) -> Control {
        let (broadcast, incoming) = mpsc::channel(1);
        let (replies, mut replies_receiver) = mpsc::channel(1);
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            let listening = async { while replies_receiver.recv().await.is_some() {} };
            closing.run_until_cancelled(listening).await;
            drop(broadcast);
        });
        Control { incoming, replies }
    }
}

impl Connection for EmbeddedBroker {
    fn connected(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.db.shared().availability.available())
    }

    fn is_connected(&self) -> bool {
        !self.closing.is_cancelled() && self.db.shared().availability.is_available()
    }

    fn connect_error(&self) -> Option<String> {
        None
    }

    /// Takes at most a second: messages that are unsettled then return to their queues with the session.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.cancel();
            self.tasks.close();
            if timeout(CLOSE_DEADLINE, self.tasks.wait()).await.is_err() {
                let what = "closed with unsettled messages; they are redelivered";
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
