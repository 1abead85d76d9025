//! Revoking tasks.

use super::Client;
use crate::error::Error;
use crate::task::{Revoke, TaskId};

impl Client {
    /// Revokes tasks. A task that has not started never starts; its result is `REVOKED` as soon as a worker
    /// consumes its message. `revoke` decides whether running tasks continue or are terminated: a terminated
    /// task is notified by [`Context::cancelled`](crate::Context::cancelled), and dropped two seconds later.
    ///
    /// The mark is durable: for a week it also applies to workers that start later. Tasks that have ended do
    /// not change.
    ///
    /// # Errors
    /// A connection error if the store does not answer; then the tasks may or may not be revoked. The call
    /// may be repeated.
    pub async fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> Result<(), Error> {
        self.backends().store.revoke(ids, revoke).await
    }
}
