//! Taking tasks back.

use super::Client;
use crate::error::Error;
use crate::task::{Revoke, TaskId};

impl Client {
    /// Revokes tasks: one that has not started never will, and its result is `REVOKED` as soon as
    /// a worker takes it from its queue. Whether one that runs goes on, `revoke` says; it is told
    /// by [`Context::cancelled`](crate::Context::cancelled), and dropped two seconds later.
    ///
    /// The mark is durable: it holds for workers that start later, for a week. Of tasks that have
    /// ended nothing changes.
    ///
    /// # Errors
    /// A connection error when the store does not answer; whether the tasks are revoked is then
    /// not known. Ask again: it changes nothing that is done already.
    pub async fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> Result<(), Error> {
        self.backends().store.revoke(ids, revoke).await
    }
}
