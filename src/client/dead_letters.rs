//! Dead letters: list, replay and delete messages that no worker could run.

use bytes::Bytes;
use serde::Serialize;

use super::Client;
use crate::backend::{AuditAction, Delivery, PublishRequest, Queue, Recorded};
use crate::error::{Error, Kind};
use crate::protocol::{
    Attempt, Canvas, DeadLetterHeaders, Envelope, History, Message, REASON, State, UNREADABLE,
};
use crate::task::TaskId;

/// A quorum queue of RabbitMQ 4 drops a message at its 21st return. From half of that on, a message is
/// published to the same queue again instead of being returned, which resets its count.
const MANY_RETURNS: u64 = 10;
const AT_ONCE: usize = 64;

/// The dead letters of one queue, which are in `<queue>.dead`.
///
/// Each method fetches messages from the queue and returns them: to the head of a classic queue, in their
/// order. Until then other consumers do not see them, so two concurrent readers each see only a part. A
/// quorum queue's message that was delivered ten times is moved to the end of the queue.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    client: Client,
    queue: Queue,
}

/// One message that no worker could run.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// The task's id; random if the message has none.
    pub id: TaskId,
    /// The task's name, if it was readable.
    pub task: Option<String>,
    /// The reason why it could not be run.
    pub reason: Option<String>,
    /// The queue that it was consumed from.
    pub queue: Option<String>,
    /// The time of dead-lettering, in ISO 8601.
    pub died_at: Option<String>,
    /// The last attempt, from 1.
    pub attempt: Option<u64>,
    /// The failures of the previous attempts, oldest first: the first ones and the last ones. For a task
    /// during which workers crashed, this includes the number of crashes.
    pub attempts: Vec<Attempt>,
    /// The number of attempts omitted between those.
    pub attempts_left_out: u64,
    /// The size of the body in bytes.
    pub size: usize,
    /// The message as it was received.
    #[serde(skip)]
    pub message: Message,
}

impl DeadLetter {
    pub(crate) fn of(message: &Message) -> Self {
        let DeadLetterHeaders { task, reason, queue, died_at, attempt, history } =
            DeadLetterHeaders::read(&message.headers);
        let History { attempts, left_out } = history;
        Self {
            id: message.id.clone(),
            task,
            reason,
            queue,
            died_at,
            attempt,
            attempts,
            attempts_left_out: left_out,
            size: message.body.len(),
            message: message.clone(),
        }
    }
}

/// The result of replaying a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Replay {
    /// The message was sent under its old id; the stored failure is removed.
    Sent,
    /// Nothing was sent: the task has ended in this state in the meantime. The state and the dead letter are
    /// kept.
    Refused(State),
}

/// The action of [`DeadLetters::scan`] on an examined message.
enum ScanAction {
    Stays(Box<Delivery>),
    Gone,
}

impl DeadLetters {
    pub(super) fn new(client: &Client, queue: &str) -> Self {
        Self { client: client.clone(), queue: Queue::configured(queue, client.config()) }
    }

    /// Returns the name of the queue that holds the dead letters.
    #[must_use]
    pub fn queue(&self) -> String {
        self.queue.dead().name
    }

    /// Returns the number of dead letters.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub async fn count(&self) -> Result<u64, Error> {
        let state = self.client.backends().broker.inspect(&self.queue()).await?;
        Ok(state.map_or(0, |state| state.ready))
    }

    /// Returns the oldest dead letters, at most `limit` and at most 64 MiB.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub async fn browse(&self, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let (fetched, flushed) = self.client.backends().broker.fetch(&self.queue(), limit).await?;
        let mut letters = Vec::with_capacity(fetched.len());
        for delivery in fetched {
            letters.push(DeadLetter::of(&delivery.message));
            self.return_to_queue(delivery).await?;
        }
        flushed.wait().await;
        Ok(letters)
    }

    /// Returns the dead letter of this task; `None` if there is none.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub async fn find(&self, id: &TaskId) -> Result<Option<DeadLetter>, Error> {
        let mut found = None;
        self.scan(async |delivery| {
            if delivery.id() == id {
                found = Some(DeadLetter::of(&delivery.message));
            }
            Ok(ScanAction::Stays(delivery.into()))
        })
        .await?;
        Ok(found)
    }

    /// Sends the dead letter of this task to the queue that it came from, under its id; `None` if there is
    /// none.
    ///
    /// The stored failure of the task is removed first, and the audit gets an entry. A crash in between
    /// leaves the dead letter, which can be replayed again.
    ///
    /// # Errors
    /// If a server does not answer or refuses; the dead letter is kept.
    pub async fn replay(&self, id: &TaskId) -> Result<Option<Replay>, Error> {
        let mut replayed = None;
        self.scan(async |delivery| {
            if delivery.id() != id || replayed.is_some() {
                return Ok(ScanAction::Stays(delivery.into()));
            }
            let (action, replay) = self.resend(delivery).await?;
            replayed = Some(replay);
            Ok(action)
        })
        .await?;
        Ok(replayed)
    }

    /// Replays all dead letters that exist at the start, oldest first, and calls `on_replay` after each.
    ///
    /// # Errors
    /// If a server does not answer or refuses; those passed to `on_replay` before have been handled.
    pub async fn replay_all(
        &self,
        mut on_replay: impl FnMut(&TaskId, &Replay),
    ) -> Result<(), Error> {
        self.scan(async |delivery| {
            let id = delivery.id().clone();
            let (action, replay) = self.resend(delivery).await?;
            on_replay(&id, &replay);
            Ok(action)
        })
        .await
    }

    /// Deletes the dead letter of this task, and writes an audit entry. Returns whether it existed. The
    /// stored failure of the task stays.
    ///
    /// # Errors
    /// If a server does not answer; the dead letter is kept.
    pub async fn purge(&self, id: &TaskId) -> Result<bool, Error> {
        let mut purged = false;
        self.scan(async |delivery| {
            if delivery.id() != id {
                return Ok(ScanAction::Stays(delivery.into()));
            }
            let recorded =
                self.client.backends().store.record_action(self.audit_action("purge", id)).await?;
            purged = true;
            Ok(delivery.ack(recorded).map_or_else(ScanAction::Stays, |_| ScanAction::Gone))
        })
        .await?;
        Ok(purged)
    }

    /// Deletes all dead letters, and writes an audit entry. Returns how many there were.
    ///
    /// # Errors
    /// If a server does not answer.
    pub async fn purge_all(&self) -> Result<u64, Error> {
        let backends = self.client.backends();
        let _ =
            backends.store.record_action(self.audit_action("purge", &TaskId::from("*"))).await?;
        backends.broker.purge(&self.queue()).await
    }

    /// Examines each message that exists at the start. Messages that stay are held until the end, because a
    /// returned message would be fetched again; their bodies are dropped unless they must be published again.
    async fn scan(
        &self,
        mut decide: impl AsyncFnMut(Delivery) -> Result<ScanAction, Error>,
    ) -> Result<(), Error> {
        let mut left = usize::try_from(self.count().await?).unwrap_or(usize::MAX);
        let (mut staying, mut flushes) = (Vec::new(), Vec::new());
        while left > 0 {
            let (fetched, flushed) =
                self.client.backends().broker.fetch(&self.queue(), left.min(AT_ONCE)).await?;
            if fetched.is_empty() {
                break;
            }
            left -= fetched.len();
            flushes.push(flushed);
            for delivery in fetched {
                if let ScanAction::Stays(mut delivery) = decide(delivery).await? {
                    if !has_returned_often(&delivery) {
                        delivery.message.body = Bytes::new();
                    }
                    staying.push(delivery);
                }
            }
        }
        for delivery in staying {
            self.return_to_queue(*delivery).await?;
        }
        for flushed in flushes {
            flushed.wait().await;
        }
        Ok(())
    }

    async fn return_to_queue(&self, delivery: Delivery) -> Result<(), Error> {
        if !has_returned_often(&delivery) {
            let _ = delivery.release();
            return Ok(());
        }
        let mut copy = delivery.message.clone();
        copy.strip_history();
        if let Some(reason) = copy.headers.remove(UNREADABLE) {
            copy.headers.entry(REASON).or_insert(reason);
        }
        match self.publish(copy, self.queue.dead()).await {
            Ok(recorded) => settle(delivery, recorded).map(drop),
            // Its headers are too large to be published again.
            Err(error) if error.is_refusal() => {
                let _ = delivery.release();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn resend(&self, delivery: Delivery) -> Result<(ScanAction, Replay), Error> {
        let DeadLetterHeaders { queue, attempt, .. } =
            DeadLetterHeaders::read(&delivery.message.headers);
        let action = self.audit_action("replay", delivery.id());
        let found = self.client.backends().store.reopen(action, attempt.unwrap_or(1)).await?;
        if let Some(state @ (State::Success | State::Revoked)) = found {
            return Ok((ScanAction::Stays(delivery.into()), Replay::Refused(state)));
        }
        let queue = queue.map_or_else(
            || self.queue.clone(),
            |queue| Queue::configured(queue, self.client.config()),
        );
        self.reopen_later_tasks(&delivery.message).await?;
        let mut message = delivery.message.clone().revived();
        // The task may have begun: the mark makes the worker read its journal.
        message.mark_returned();
        Ok((self.send(message, queue, delivery).await?, Replay::Sent))
    }

    /// Removes the stored failures of the later tasks of its chain, which can run again.
    async fn reopen_later_tasks(&self, message: &Message) -> Result<(), Error> {
        let envelope = Envelope::decode(message, self.client.config().max_arguments);
        let canvas =
            envelope.ok().and_then(|envelope| Canvas::read(&envelope.embed).ok().flatten());
        for id in canvas.iter().flat_map(Canvas::unreached) {
            self.client.backends().store.reopen(self.audit_action("replay", &id), 1).await?;
        }
        Ok(())
    }

    /// Publishes a copy with a confirm, then acks the dead letter.
    async fn send(
        &self,
        message: Message,
        queue: Queue,
        delivery: Delivery,
    ) -> Result<ScanAction, Error> {
        let recorded = self.publish(message, queue).await?;
        settle(delivery, recorded)
    }

    async fn publish(&self, message: Message, queue: Queue) -> Result<Recorded, Error> {
        let timeout = self.client.config().publish_timeout;
        let publish = PublishRequest { message, queue, delay: None, timeout };
        self.client.backends().broker.publish(publish).await
    }

    fn audit_action(&self, what: &'static str, id: &TaskId) -> AuditAction {
        let by = self.client.shared.origin.clone();
        AuditAction { what, id: id.clone(), queue: self.queue(), by }
    }
}

fn settle(delivery: Delivery, recorded: Recorded) -> Result<ScanAction, Error> {
    match delivery.ack(recorded) {
        Ok(_settled) => Ok(ScanAction::Gone),
        Err(_) => Err(Kind::Closed.into()),
    }
}

fn has_returned_often(delivery: &Delivery) -> bool {
    let returns = delivery.message.delivery_count();
    returns.is_some_and(|returns| returns >= MANY_RETURNS)
}
