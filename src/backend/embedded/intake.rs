//! Consuming one queue, and settling what was delivered.

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

use super::backoff::Backoff;
use super::bells::Ring;
use super::broker::{Leased, lease, promote, queue_row};
use super::db::Db;
use super::session;
use super::txn::{Done, Txn};
use crate::backend::{Delivery, Queue, Receipt};
use crate::error::Error;
use crate::lifecycle::Settlement;

/// How long a consumer that is stopped waits for the database, before it says that it is stopped.
const STOP_PATIENCE: Duration = Duration::from_millis(500);
const SETTLED_AT_ONCE: usize = 512;
const NO_LIMIT: usize = usize::MAX;
/// How often others may run before what they settled is settled with the first.
const YIELDS: usize = 8;

pub(super) type Stop = oneshot::Receiver<oneshot::Sender<()>>;
type Settled = mpsc::UnboundedReceiver<Settlement>;

/// One consumer.
pub(super) struct Intake {
    pub(super) db: Db,
    pub(super) queue: Queue,
    /// How many messages may be unsettled at a time.
    pub(super) room: usize,
    pub(super) deliver: mpsc::Sender<Delivery>,
    pub(super) consuming: watch::Sender<bool>,
}

/// How this process is known while it consumes.
#[derive(Clone, Copy)]
struct Consumer {
    session: i64,
    queue: i64,
    token: i64,
}

/// What one transaction came to.
struct Turn {
    leased: Vec<Leased>,
    /// In so many milliseconds something that was delayed arrives.
    next: Option<i64>,
}

/// A transaction under way; `None`: the session is lost, or the database is closed.
type Turning = BoxFuture<'static, Option<Turn>>;

enum Ended {
    /// Nothing is delivered any more. What is unsettled is settled later.
    Stopped { by: Option<oneshot::Sender<()>>, turning: Option<Turning>, settled: Settled },
    /// Another process has ended this one's session: all that it held is delivered again.
    Lost,
}

impl Leased {
    fn tag(&self) -> u64 {
        self.seq.unsigned_abs()
    }

    /// As it is handed out, with the right to settle it. Read here, and not in the one thread that
    /// writes.
    pub(super) fn delivered(self, settlements: &mpsc::UnboundedSender<Settlement>) -> Delivery {
        let receipt = Receipt { tag: self.tag(), settlements: settlements.clone() };
        let redelivered = self.redelivered;
        Delivery::new(self.read(), redelivered, receipt)
    }
}

impl Intake {
    /// Delivers until it is stopped; then waits until all that it delivered is settled.
    pub(super) async fn run(self, mut stop: Stop, closing: CancellationToken) {
        loop {
            let registering = closing.run_until_cancelled(self.register());
            let consumer = tokio::select! {
                biased;
                stopped = &mut stop => return answer(stopped.ok()),
                consumer = registering => match consumer {
                    Some(consumer) => consumer,
                    None => return,
                },
            };
            info!(prefetch = self.room, "consuming {}", self.queue.name);
            self.consuming.send_replace(true);
            let ended = self.session(consumer, &mut stop, &closing).await;
            self.consuming.send_replace(false);
            match ended {
                Ended::Stopped { by, turning, settled } => {
                    return self.finish(consumer, by, turning, settled).await;
                }
                Ended::Lost => warn!(
                    "another process has ended the session of this one: what {} delivered here is \
                     delivered again",
                    self.queue.name
                ),
            }
        }
    }

    async fn register(&self) -> Consumer {
        let mut backoff = Backoff::default();
        loop {
            let (wanted, of) = (self.queue.clone(), Arc::clone(&self.db.session));
            let registered = self.db.write(move |txn| {
                let session = session::begin(txn, &of)?;
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
    ) -> Ended {
        let bell = self.db.shared().bells.arrivals(consumer.queue);
        let (settlements, mut settled) = mpsc::unbounded_channel();
        let (mut unsettled, mut batch) = (0, Vec::new());
        let mut stopped = pin!(async {
            tokio::select! {
                stopped = stop => stopped.ok(),
                () = closing.cancelled() => None,
            }
        });
        loop {
            // Deliveries of a session that was lost are in the channel until the worker has a slot:
            // what does not fit beside them is not leased.
            let wanted = self.room - unsettled;
            let room = Arc::new(AtomicUsize::new(wanted.min(self.deliver.capacity())));
            let mut turning: Turning =
                Box::pin(turn(self.db.clone(), consumer, batch.into(), Arc::clone(&room)));
            batch = Vec::new();
            let turn = tokio::select! {
                biased;
                by = &mut stopped => {
                    // It goes on, but if it is tried again it leases nothing.
                    room.store(0, Ordering::Release);
                    return Ended::Stopped { by, turning: Some(turning), settled };
                }
                turn = &mut turning => turn,
            };
            let Some(turn) = turn else { return Ended::Lost };
            unsettled += turn.leased.len();
            for leased in turn.leased {
                // There is room for every unsettled one.
                let _ = self.deliver.try_send(leased.delivered(&settlements));
            }
            let due = async {
                match turn.next {
                    Some(left) => sleep(Duration::from_millis(left.unsigned_abs())).await,
                    None => std::future::pending().await,
                }
            };
            let fits = async {
                if wanted == 0 || self.deliver.capacity() > 0 {
                    std::future::pending::<()>().await;
                }
                drop(self.deliver.reserve().await);
            };
            tokio::select! {
                biased;
                by = &mut stopped => return Ended::Stopped { by, turning: None, settled },
                _ = settled.recv_many(&mut batch, SETTLED_AT_ONCE) => {
                    // Tasks that are ready to run now may add theirs.
                    for _ in 0..YIELDS {
                        tokio::task::yield_now().await;
                    }
                    while batch.len() < SETTLED_AT_ONCE && let Ok(one) = settled.try_recv() {
                        batch.push(one);
                    }
                    unsettled -= batch.len();
                }
                () = bell.notified() => {}
                () = due => {}
                () = fits => {}
            }
        }
    }

    /// Says that the queue is consumed no more, and settles what was delivered. Whoever stops it is
    /// answered soon, even when the database takes no writes: nothing is delivered from then on.
    async fn finish(
        self,
        consumer: Consumer,
        by: Option<oneshot::Sender<()>>,
        turning: Option<Turning>,
        settled: Settled,
    ) {
        let Self { db, deliver, .. } = self;
        let Consumer { session, token, .. } = consumer;
        let writing = db.clone();
        let mut leaving = pin!(async move {
            let turn = match turning {
                Some(turning) => turning.await,
                None => None,
            };
            let leased = turn.into_iter().flat_map(|turn| turn.leased);
            let returned: Vec<_> = leased.map(|it| Settlement::Requeue(it.tag())).collect();
            until_written(&writing, "cannot stop consuming", move |txn| {
                settle(txn, session, &returned)?;
                txn.execute("DELETE FROM consumers WHERE token = ?", [token])?;
                Ok(())
            })
            .await;
        });
        let has_left = timeout(STOP_PATIENCE, leaving.as_mut()).await.is_ok();
        drop(deliver);
        answer(by);
        if !has_left {
            leaving.await;
        }
        settle_all(db, session, settled).await;
    }
}

/// Settles, and takes as many messages as there is room for, in one transaction. `None`: this
/// process has lost its session, or the database is closed.
async fn turn(
    db: Db,
    consumer: Consumer,
    batch: Arc<[Settlement]>,
    room: Arc<AtomicUsize>,
) -> Option<Turn> {
    let mut backoff = Backoff::default();
    loop {
        let (batch, room, of) = (Arc::clone(&batch), Arc::clone(&room), Arc::clone(&db.session));
        let turn = db.write(move |txn| {
            let Consumer { session, queue, .. } = consumer;
            // This process may have been stopped since it asked.
            if !session::is_held(txn, &of, session)? {
                return Ok(None);
            }
            settle(txn, session, &batch)?;
            promote(txn, queue)?;
            let leased = match room.load(Ordering::Acquire) {
                0 => Vec::new(),
                room => lease(txn, queue, session, room, NO_LIMIT)?,
            };
            let next = "SELECT min(due) FROM messages WHERE queue = ? AND due IS NOT NULL";
            let next = txn.first(next, [queue], |row| row.get::<_, Option<i64>>(0))?.flatten();
            Ok(Some(Turn { leased, next: next.map(|due| (due - txn.now).max(1)) }))
        });
        match turn.await {
            Ok(turn) => return turn,
            Err(error) if is_closed(&db, &error) => return None,
            Err(error) => db.shared().warnings.warn("cannot take messages", &error),
        }
        backoff.wait().await;
    }
}

fn is_closed(db: &Db, error: &Error) -> bool {
    !error.is_connection() && db.is_closed()
}

fn settle(txn: &mut Txn<'_>, session: i64, batch: &[Settlement]) -> Done<()> {
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
                queue.into_iter().for_each(|queue| txn.ring(Ring::Queue(queue)));
            }
        }
    }
    Ok(())
}

/// Settles until nobody holds a delivery any more.
pub(super) async fn settle_all(db: Db, session: i64, mut settled: Settled) {
    let mut batch = Vec::new();
    while settled.recv_many(&mut batch, SETTLED_AT_ONCE).await > 0 {
        let settling: Arc<[Settlement]> = std::mem::take(&mut batch).into();
        until_written(&db, "cannot settle", move |txn| settle(txn, session, &settling)).await;
    }
}

/// Tries a piece of work until it is durable, or can never be. What is not settled then is delivered
/// again.
async fn until_written(
    db: &Db,
    what: &str,
    work: impl Fn(&mut Txn<'_>) -> Done<()> + Clone + Send + 'static,
) {
    let mut backoff = Backoff::default();
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

fn answer(stopped: Option<oneshot::Sender<()>>) {
    if let Some(stopped) = stopped {
        let _ = stopped.send(());
    }
}
