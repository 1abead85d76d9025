//! Forgetting tasks.

use super::Client;
use crate::backend::Forget;
use crate::error::{Error, Kind};
use crate::protocol::SUSPENDED;
use crate::task::TaskId;

impl Client {
    /// Deletes everything that the store has of a task that has ended: its result, step results, stream,
    /// attempt marks, and the record of its suspensions. Its audit entries and decisions stay. Succeeds if
    /// the store does not know the task.
    ///
    /// Afterwards a message under the same id is a new task, whatever its arguments. A Celery client's
    /// `AsyncResult.forget()` deletes only the result; then a message with other arguments is also a new
    /// task.
    ///
    /// If the call is cancelled or fails, a part may have been deleted. It may be repeated.
    ///
    /// # Errors
    /// [`Error::is_unfinished`] if the task is suspended or has another state that is not terminal, or if it
    /// has no result and its runs have left data, so that it may be running. A connection error if the store
    /// does not answer. An error if the stored data is not a task result.
    pub async fn forget(&self, id: &TaskId) -> Result<(), Error> {
        let cause = match self.backends().store.forget(id).await? {
            Forget::Forgotten => return Ok(()),
            Forget::Unfinished(Some(state)) if state.as_str() == SUSPENDED => {
                "it is suspended: wait until it has ended, or revoke it".to_owned()
            }
            Forget::Unfinished(Some(state)) => {
                format!(
                    "its state is {state}: wait until it has ended, or revoke it",
                    state = state.as_str()
                )
            }
            Forget::Unfinished(None) => {
                "it has no result, and has recorded steps or written into its \
                                         stream: it may be running"
                    .to_owned()
            }
        };
        Err(Kind::Unfinished { id: id.clone(), cause }.into())
    }
}
