//! The marks of revoked tasks.

use futures_util::future::BoxFuture;
use rusqlite::params;
use tokio::sync::{broadcast, mpsc};

use super::db::{Db, RETRY_DELAY};
use super::fault::TxResult;
use super::notifications::Event;
use super::store::EmbeddedStore;
use super::txn::Txn;
use crate::backend::backoff::Backoff;
use crate::backend::{Revocation, Revocations};
use crate::error::Error;
use crate::task::{Revoke, TaskId};

/// A mark outlives any message of its task that is still in a queue. In milliseconds.
const RETENTION: i64 = 7 * 24 * 60 * 60 * 1000;
/// A younger mark is not written again. In milliseconds.
const FRESH: i64 = 60 * 1000;
/// The number of batches that may wait for the worker.
const CHANNEL_CAPACITY: usize = 64;

impl Revocations for EmbeddedStore {
    /// Notifies of the marks that are new or over a minute old: every worker that receives a broadcast
    /// calls this.
    fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> BoxFuture<'_, Result<(), Error>> {
        let ids = ids.to_vec();
        Box::pin(self.db.write(move |txn| {
            let even_running = revoke == Revoke::Terminate;
            let mark = "INSERT INTO revoked (id, even_running, at) VALUES (?1, ?2, ?3) \
                        ON CONFLICT (id) DO UPDATE SET at = excluded.at, \
                        even_running = max(even_running, excluded.even_running) \
                        WHERE excluded.even_running > even_running OR at < ?4";
            let mut new = Vec::new();
            for id in &ids {
                let fresh = txn.now - FRESH;
                if txn.execute(mark, params![id.as_str(), even_running, txn.now, fresh])? > 0 {
                    new.push(Revocation { id: id.clone(), revoke });
                }
            }
            txn.execute("DELETE FROM revoked WHERE at < ?", [txn.now - RETENTION])?;
            if !new.is_empty() {
                txn.notify(Event::Revoked(new));
            }
            Ok(())
        }))
    }

    fn watch_revocations(&self) -> mpsc::Receiver<Vec<Revocation>> {
        let (sender, receiver) = mpsc::channel(CHANNEL_CAPACITY);
        let events = self.db.shared().notifications.revoked.subscribe();
        let following = follow(self.db.clone(), events, sender);
        let closing = self.closing.clone();
        let following = async move { closing.run_until_cancelled(following).await };
        self.tasks.spawn_on(following, &self.runtime);
        receiver
    }
}

fn all_revoked(txn: &Txn<'_>) -> TxResult<Vec<Revocation>> {
    let list = "SELECT id, even_running FROM revoked WHERE at >= ?";
    txn.all(list, [txn.now - RETENTION], |row| {
        let revoke = if row.get(1)? { Revoke::Terminate } else { Revoke::IfQueued };
        Ok(Revocation { id: TaskId::from(row.get::<_, String>(0)?), revoke })
    })
}

/// Sends all existing marks, then each new one, until the receiver is dropped or this future is.
async fn follow(
    db: Db,
    mut events: broadcast::Receiver<Vec<Revocation>>,
    sender: mpsc::Sender<Vec<Revocation>>,
) {
    let mut received = Vec::new();
    loop {
        let marks = if received.is_empty() { read_all(&db).await } else { received };
        if sender.send(marks).await.is_err() {
            return;
        }
        received = match events.recv().await {
            Ok(marks) => marks,
            Err(broadcast::error::RecvError::Lagged(_)) => Vec::new(),
            Err(broadcast::error::RecvError::Closed) => return,
        };
    }
}

async fn read_all(db: &Db) -> Vec<Revocation> {
    let mut backoff = Backoff::new(RETRY_DELAY);
    loop {
        match db.read(|txn| all_revoked(txn)).await {
            Ok(marks) => return marks,
            Err(error) => {
                let what = "cannot read the revoked tasks; retrying";
                db.shared().warnings.warn(what, &error);
            }
        }
        backoff.wait().await;
    }
}
