//! Live workers, stored as marks that expire, and the queues that they consume.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::marks;
use super::store::EmbeddedStore;
use crate::backend::milliseconds::milliseconds;
use crate::backend::{WorkerInfo, Workers};
use crate::error::Error;

impl Workers for EmbeddedStore {
    fn register_worker(
        &self,
        worker: WorkerInfo,
        keep: Duration,
    ) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.db.write(move |txn| {
            let json = serde_json::to_string(&worker).unwrap_or_default();
            marks::set(txn, &name(&worker), &json, milliseconds(keep))
        }))
    }

    fn unregister_worker(&self, worker: WorkerInfo) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.db.write(move |txn| marks::delete(txn, &name(&worker))))
    }

    /// Returns the workers by key.
    fn list_workers(&self) -> BoxFuture<'_, Result<Vec<WorkerInfo>, Error>> {
        let list = "SELECT value FROM marks \
                    WHERE name >= 'worker:' AND name < 'worker;' AND expires >= ? ORDER BY name";
        Box::pin(self.db.read(move |txn| {
            let texts = txn.all(list, [txn.now], |row| row.get::<_, String>(0))?;
            Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
        }))
    }

    fn seen_queues(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        // Dead-letter and resume queues belong to the queue before the suffix.
        Box::pin(self.db.read(|txn| {
            let names = txn.all("SELECT name FROM queues ORDER BY name", [], |row| row.get(0))?;
            let is_own =
                |name: &String| !name.ends_with(".dead") && !name.ends_with(".countersign-resume");
            Ok(names.into_iter().filter(is_own).collect())
        }))
    }

    fn remember_queue(&self, _: &str) {
        // The `queues` table already has it.
    }
}

fn name(worker: &WorkerInfo) -> String {
    format!("worker:{}", worker.key())
}
