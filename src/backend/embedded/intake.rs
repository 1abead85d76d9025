//! Consuming one queue, and settling what was delivered.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::params;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bells::Ring;
use super::broker::{Leased, lease, promote, queue_row};
use super::db::Db;
use super::session;
use super::txn::{Done, Txn};
use crate::backend::{Delivery, Queue, Receipt};
use crate::error::Error;
use crate::lifecycle::Settlement;

const RETRY_PAUSE: Duration = Duration::from_millis(200);
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

enum Ended {
    /// What is still unsettled is settled later.
    Stopped(Settled),
    /// Another process has taken this one for dead: all that it had is delivered again.
    Lost,
}

impl Leased {
    /// As it is handed out, with the right to settle it. Read here, and not in the one thread that
    /// writes.
    pub(super) fn delivered(self, settlements: &mpsc::UnboundedSender<Settlement>) -> Delivery {
        let tag = self.seq.unsigned_abs();
        let receipt = Receipt { tag, settlements: settlements.clone() };
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
                stopped = &mut stop => return answer(stopped),
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
                Ended::Stopped(settled) => {
                    drop(self.deliver);
                    return settle_all(self.db, consumer.session, settled).await;
                }
                Ended::Lost => warn!("another process has taken what this one had in its hands"),
            }
        }
    }

    async fn register(&self) -> Consumer {
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
                Err(error) => warn!("cannot consume {}: {error}", self.queue.name),
            }
            sleep(RETRY_PAUSE).await;
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
        let mut is_stopped = None;
        while is_stopped.is_none() {
            // Deliveries of a session that was lost are in the channel until the worker has a slot:
            // what does not fit beside them is not leased.
            let wanted = self.room - unsettled;
            let room = wanted.min(self.deliver.capacity());
            let Some(turn) = turn(&self.db, consumer, &batch, room).await else {
                return Ended::Lost;
            };
            unsettled += turn.leased.len();
            for leased in turn.leased {
                // There is room for every unsettled one.
                let _ = self.deliver.try_send(leased.delivered(&settlements));
            }
            batch.clear();
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
                stopped = &mut *stop => is_stopped = Some(stopped.ok()),
                () = closing.cancelled() => is_stopped = Some(None),
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
        let token = consumer.token;
        let left =
            self.db.write(move |txn| txn.execute("DELETE FROM consumers WHERE token = ?", [token]));
        if let Err(error) = left.await {
            warn!("cannot say that {} is consumed no more: {error}", self.queue.name);
        }
        if let Some(Some(stopped)) = is_stopped {
            let _ = stopped.send(());
        }
        Ended::Stopped(settled)
    }
}

/// Settles, and takes as many messages as there is room for, in one transaction. `None`: this
/// process has lost its session.
async fn turn(db: &Db, consumer: Consumer, batch: &[Settlement], room: usize) -> Option<Turn> {
    loop {
        let (batch, of) = (batch.to_vec(), Arc::clone(&db.session));
        let turn = db.write(move |txn| {
            let Consumer { session, queue, .. } = consumer;
            // This process may have been stopped since it asked.
            if !session::is_held(txn, &of, session)? {
                return Ok(None);
            }
            settle(txn, session, &batch)?;
            promote(txn, queue)?;
            let leased = match room {
                0 => Vec::new(),
                room => lease(txn, queue, session, room, NO_LIMIT)?,
            };
            let next = "SELECT min(due) FROM messages WHERE queue = ? AND due IS NOT NULL";
            let next = txn.first(next, [queue], |row| row.get::<_, Option<i64>>(0))?.flatten();
            Ok(Some(Turn { leased, next: next.map(|due| (due - txn.now).max(1)) }))
        });
        match turn.await {
            Ok(turn) => return turn,
            Err(error) if is_closed(db, &error) => return None,
            Err(error) => warn!("cannot take messages: {error}"),
        }
        sleep(RETRY_PAUSE).await;
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
        loop {
            let settling = batch.clone();
            let done = db.write(move |txn| settle(txn, session, &settling));
            match done.await {
                Err(error) if error.is_connection() => warn!("cannot settle: {error}"),
                // Closed: what is not settled is delivered again.
                _ => break,
            }
            sleep(RETRY_PAUSE).await;
        }
        batch.clear();
    }
}

fn answer(stopped: Result<oneshot::Sender<()>, oneshot::error::RecvError>) {
    if let Ok(stopped) = stopped {
        let _ = stopped.send(());
    }
}
