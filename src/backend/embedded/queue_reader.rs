//! Consuming one queue, and settling its deliveries.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rusqlite::params;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::db::{Db, RETRY_DELAY};
use super::fault::TxResult;
use super::messages::{Leased, lease, promote, queue_row};
use super::notifications::Event;
use super::txn::Txn;
use super::{session_rows, wakes};
use crate::backend::backoff::Backoff;
use crate::backend::{Delivery, Queue, Receipt};
use crate::error::Error;
use crate::lifecycle::Settlement;

/// How long stopping a consumer waits for the database before it reports the consumer as stopped.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_SETTLED: usize = 512;
const NO_LIMIT: usize = usize::MAX;
/// How often other tasks may run first, so that their settlements share the transaction.
const YIELDS: usize = 8;

pub(super) type Stop = oneshot::Receiver<oneshot::Sender<()>>;
type Settled = mpsc::UnboundedReceiver<Settlement>;

/// One consumer.
pub(super) struct QueueReader {
    pub(super) db: Db,
    pub(super) queue: Queue,
    /// The most messages that may be unsettled at a time.
    pub(super) capacity: usize,
    pub(super) deliver: mpsc::Sender<Delivery>,
    pub(super) consuming: watch::Sender<bool>,
}

/// The rows that identify this consumer in the database.
#[derive(Clone, Copy)]
struct Consumer {
    session: i64,
    queue: i64,
    token: i64,
}

/// The result of one transaction.
struct LeasedBatch {
    leased: Vec<Leased>,
    /// The milliseconds until the next delayed message is due.
    next: Option<i64>,
}

/// A transaction in progress; `None`: the session is lost, or the database is closed.
type PendingBatch = BoxFuture<'static, Option<LeasedBatch>>;

enum ReadEnd {
    /// Deliveries have stopped. Unsettled messages are settled later.
    Stopped { by: Option<oneshot::Sender<()>>, pending: Option<PendingBatch>, settled: Settled },
    /// Another process has ended this one's session: all messages that it held are redelivered.
    Lost,
}

impl Leased {
    fn tag(&self) -> u64 {
        self.seq.unsigned_abs()
    }

    /// Converts the row to a delivery, with the right to settle it. Decoding happens here, and not in
    /// the single writer thread.
    pub(super) fn delivered(self, settlements: &mpsc::UnboundedSender<Settlement>) -> Delivery {
        let receipt = Receipt { tag: self.tag(), settlements: settlements.clone() };
        let redelivered = self.redelivered;
        Delivery::new(self.read(), redelivered, receipt)
    }
}

impl QueueReader {
    /// Delivers until it is stopped; then waits until all of its deliveries are settled.
    pub(super) async fn run(self, mut stop: Stop, closing: CancellationToken) {
        loop {
            let registering = closing.run_until_cancelled(self.register());
            let consumer = tokio::select! {
                biased;
                stopped = &mut stop => return confirm_stop(stopped.ok()),
                consumer = registering => match consumer {
                    Some(consumer) => consumer,
                    None => return,
                },
            };
            info!(prefetch = self.capacity, "consuming {}", self.queue.name);
            self.consuming.send_replace(true);
            let ended = self.session(consumer, &mut stop, &closing).await;
            self.consuming.send_replace(false);
            match ended {
                ReadEnd::Stopped { by, pending, settled } => {
                    return self.finish(consumer, by, pending, settled).await;
                }
                ReadEnd::Lost => warn!(
                    queue = self.queue.name,
                    "another process ended the session of this process; its messages are redelivered"
                ),
            }
        }
    }

    async fn register(&self) -> Consumer {
        let mut backoff = Backoff::new(RETRY_DELAY);
        loop {
            let (wanted, of) = (self.queue.clone(), Arc::clone(&self.db.session));
            let registered = self.db.write(move |txn| {
                let session = session_rows::begin(txn, &of)?;
                let (queue, _) = queue_row(txn, &wanted)?;
                let insert = "INSERT INTO consumers (session, queue) VALUES (?, ?)";
                txn.execute(insert, [session, queue])?;
                Ok(Consumer { session, queue, token: txn.inserted() })
            });
            match registered.await {
                Ok(consumer) => return consumer,
                Err(error) => {
                    let what = format!("cannot consume {}", self.queue.name);
                    self.db.shared().warnings.warn(&what, &error);
                }
            }
            backoff.wait().await;
        }
    }

    async fn session(
        &self,
        consumer: Consumer,
        stop: &mut Stop,
        closing: &CancellationToken,
    ) -> ReadEnd {
        let arrivals = self.db.shared().notifications.arrivals(consumer.queue);
        let (settlements, mut settled) = mpsc::unbounded_channel();
        let (mut unsettled, mut batch) = (0, Vec::new());
        let mut stopped = pin!(async {
            tokio::select! {
                stopped = stop => stopped.ok(),
                () = closing.cancelled() => None,
            }
        });
        loop {
            // Deliveries of a lost session stay in the channel until the worker has a permit: messages
            // that do not fit into the remaining capacity are not leased.
            let wanted = self.capacity - unsettled;
            let offered = wanted.min(self.deliver.capacity());
            let capacity = Arc::new(AtomicUsize::new(offered));
            let (db, settling) = (self.db.clone(), batch.into());
            let mut pending: PendingBatch =
                Box::pin(settle_and_lease(db, consumer, settling, Arc::clone(&capacity)));
            batch = Vec::new();
            let next_batch = tokio::select! {
                biased;
                by = &mut stopped => {
                    // The transaction continues, but if it is retried it leases nothing.
                    capacity.store(0, Ordering::Release);
                    return ReadEnd::Stopped { by, pending: Some(pending), settled };
                }
                next_batch = &mut pending => next_batch,
            };
            let Some(next_batch) = next_batch else { return ReadEnd::Lost };
            unsettled += next_batch.leased.len();
            let is_limited = offered < wanted && next_batch.leased.len() == offered;
            for leased in next_batch.leased {
                // The channel has capacity for every unsettled one.
                let _ = self.deliver.try_send(leased.delivered(&settlements));
            }
            let due = async {
                match next_batch.next {
                    Some(left) => sleep(Duration::from_millis(left.unsigned_abs())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                by = &mut stopped => return ReadEnd::Stopped { by, pending: None, settled },
                _ = settled.recv_many(&mut batch, MAX_SETTLED) => {
                    // Tasks that are ready to run now may add settlements.
                    for _ in 0..YIELDS {
                        tokio::task::yield_now().await;
                    }
                    while batch.len() < MAX_SETTLED && let Ok(one) = settled.try_recv() {
                        batch.push(one);
                    }
                    unsettled -= batch.len();
                }
                () = arrivals.notified() => {}
                () = due => {}
                () = self.freed(is_limited) => {}
            }
        }
    }

    /// Completes when the channel has capacity, if the last batch was limited by it; never otherwise.
    /// Stale deliveries may have been taken out since, so the capacity then and now may differ.
    async fn freed(&self, is_limited: bool) {
        if !is_limited {
            std::future::pending::<()>().await;
        }
        drop(self.deliver.reserve().await);
    }

    /// Ends the registration of the consumer, and settles its deliveries. The caller that stops it gets
    /// a reply soon, even when the database takes no writes: nothing is delivered from then on.
    async fn finish(
        self,
        consumer: Consumer,
        by: Option<oneshot::Sender<()>>,
        pending: Option<PendingBatch>,
        settled: Settled,
    ) {
        let Self { db, deliver, .. } = self;
        let Consumer { session, token, .. } = consumer;
        let writing = db.clone();
        let mut stopping = pin!(async move {
            let next_batch = match pending {
                Some(pending) => pending.await,
                None => None,
            };
            let leased = next_batch.into_iter().flat_map(|next_batch| next_batch.leased);
            let returned: Vec<_> = leased.map(|it| Settlement::Requeue(it.tag())).collect();
            write_with_retry(&writing, "cannot stop consuming", move |txn| {
                settle(txn, session, &returned)?;
                txn.execute("DELETE FROM consumers WHERE token = ?", [token])?;
                Ok(())
            })
            .await;
        });
        let has_stopped = timeout(STOP_TIMEOUT, stopping.as_mut()).await.is_ok();
        drop(deliver);
        confirm_stop(by);
        if !has_stopped {
            stopping.await;
        }
        settle_all(db, session, settled).await;
    }
}

/// Settles, and leases as many messages as fit into the capacity, in one transaction. `None`: this process
/// has lost its session, or the database is closed.
async fn settle_and_lease(
    db: Db,
    consumer: Consumer,
    batch: Arc<[Settlement]>,
    capacity: Arc<AtomicUsize>,
) -> Option<LeasedBatch> {
    let mut backoff = Backoff::new(RETRY_DELAY);
    loop {
        let (batch, capacity, of) =
            (Arc::clone(&batch), Arc::clone(&capacity), Arc::clone(&db.session));
        let next_batch = db.write(move |txn| {
            let Consumer { session, queue, .. } = consumer;
            // This process may have been stopped since it queued the work.
            if !session_rows::is_held(txn, &of, session)? {
                return Ok(None);
            }
            settle(txn, session, &batch)?;
            promote(txn, queue)?;
            let leased = match capacity.load(Ordering::Acquire) {
                0 => Vec::new(),
                capacity => lease(txn, queue, session, capacity, NO_LIMIT)?,
            };
            let next = "SELECT min(due) FROM messages WHERE queue = ? AND due IS NOT NULL";
            let next = txn.first(next, [queue], |row| row.get::<_, Option<i64>>(0))?.flatten();
            let next = next.into_iter().chain(wakes::next(txn, queue)?).min();
            Ok(Some(LeasedBatch { leased, next: next.map(|due| (due - txn.now).max(1)) }))
        });
        match next_batch.await {
            Ok(next_batch) => return next_batch,
            Err(error) if is_closed(&db, &error) => return None,
            Err(error) => db.shared().warnings.warn("cannot lease messages", &error),
        }
        backoff.wait().await;
    }
}

fn is_closed(db: &Db, error: &Error) -> bool {
    !error.is_connection() && db.is_closed()
}

fn settle(txn: &mut Txn<'_>, session: i64, batch: &[Settlement]) -> TxResult<()> {
    let seq = |tag: u64| i64::try_from(tag).unwrap_or(0);
    for settlement in batch {
        match settlement {
            Settlement::Ack(tag) => {
                let done = "DELETE FROM messages WHERE seq = ? AND holder = ?";
                txn.execute(done, [seq(*tag), session])?;
            }
            Settlement::Requeue(tag) => {
                let back = "UPDATE messages SET holder = NULL WHERE seq = ? AND holder = ? \
                            RETURNING queue";
                let queue = txn.first(back, params![seq(*tag), session], |row| row.get(0))?;
                queue.into_iter().for_each(|queue| txn.notify(Event::Queue(queue)));
            }
        }
    }
    Ok(())
}

/// Settles until all deliveries are settled.
pub(super) async fn settle_all(db: Db, session: i64, mut settled: Settled) {
    let mut batch = Vec::new();
    while settled.recv_many(&mut batch, MAX_SETTLED).await > 0 {
        let settling: Arc<[Settlement]> = std::mem::take(&mut batch).into();
        write_with_retry(&db, "cannot settle", move |txn| settle(txn, session, &settling)).await;
    }
}

/// Retries a piece of work until it is durable, or fails permanently. Messages that are not settled
/// then are redelivered.
async fn write_with_retry(
    db: &Db,
    what: &str,
    work: impl Fn(&mut Txn<'_>) -> TxResult<()> + Clone + Send + 'static,
) {
    let mut backoff = Backoff::new(RETRY_DELAY);
    while let Err(error) = db.write(work.clone()).await {
        if is_closed(db, &error) {
            return;
        }
        db.shared().warnings.warn(what, &error);
        if !error.is_connection() {
            return;
        }
        backoff.wait().await;
    }
}

fn confirm_stop(stopped: Option<oneshot::Sender<()>>) {
    if let Some(stopped) = stopped {
        let _ = stopped.send(());
    }
}
