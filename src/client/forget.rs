//! Forgetting tasks.

use super::Client;
use crate::backend::Forget;
use crate::error::{Error, Kind};
use crate::protocol::PARKED;
use crate::task::TaskId;

impl Client {
    /// Deletes everything that the store has of a task that has ended: its result, the values of its
    /// steps, its stream, its marks, and the record of its suspensions. Its audit entries and decisions
    /// stay. A task that the store does not know is forgotten already.
    ///
    /// Afterwards a message under the same id is a new task, whatever its arguments. A Celery client's
    /// `AsyncResult.forget()` deletes the result only; then a message with other arguments is a new task
    /// just the same.
    ///
    /// Cancelled or failed, the call may have deleted a part. It may be repeated.
    ///
    /// # Errors
    /// [`Error::is_unfinished`] while the task is suspended or has another state that does not end it, or
    /// when it has no result and its runs have left something, so that it may be running. A connection
    /// error when the store does not answer. When what is stored is no result of a task.
    pub async fn forget(&self, id: &TaskId) -> Result<(), Error> {
        let cause = match self.backends().store.forget(id).await? {
            Forget::Forgotten => return Ok(()),
            Forget::Unfinished(Some(state)) if state.as_str() == PARKED => {
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
