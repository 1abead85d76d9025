//! Publishing with retries.

use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::state::WorkerState;
use crate::backend::{PublishRequest, Queue, Recorded};
use crate::error::Error;
use crate::protocol::Message;
use crate::task::TaskId;

const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);

/// Publishes with retries until the broker has confirmed. If the user may not declare a queue with an expiry,
/// the message is delayed on its way to the queue behind it: an administrator may have declared only the
/// exchanges of delayed delivery.
///
/// # Errors
/// The broker refuses the message itself, or the broker's user lacks the permission.
pub(super) async fn publish(
    state: &WorkerState,
    message: Message,
    queue: Queue,
    delay: Option<Duration>,
) -> Result<Recorded, Error> {
    publish_encoded(state, &message.id, || message.clone(), queue, delay).await
}

/// Like [`publish`], for a message that each attempt encodes anew: usually there is one attempt.
pub(super) async fn publish_encoded(
    state: &WorkerState,
    id: &TaskId,
    encode: impl Fn() -> Message,
    mut queue: Queue,
    delay: Option<Duration>,
) -> Result<Recorded, Error> {
    let mut retry_delay = FIRST_RETRY_DELAY;
    loop {
        let request = PublishRequest {
            message: encode(),
            queue: queue.clone(),
            delay,
            timeout: state.config.publish_timeout,
        };
        match state.backends.broker.publish(request).await {
            Ok(recorded) => return Ok(recorded),
            Err(error) if error.is_refusal() || error.is_access_refused() => {
                match queue.expiry.take().filter(|_| error.is_access_refused()) {
                    Some(expiry) => queue = *expiry.to,
                    None => return Err(error),
                }
                continue;
            }
            Err(error) => warn!(task.id = %id, "{error}; trying again"),
        }
        sleep(retry_delay.mul_f64(rand::random())).await;
        retry_delay = (retry_delay * 2).min(MAX_RETRY_DELAY);
    }
}
