//! Messages that no worker could run: look at them, send them again, throw them away.

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::Client;
use crate::backend::{Deed, Delivery, Parcel, Queue, Recorded};
use crate::error::{Error, Kind};
use crate::protocol::{
    Attempt, Canvas, Envelope, Epitaph, History, Message, REASON, State, UNREADABLE,
};
use crate::task::TaskId;

/// A quorum queue of RabbitMQ 4 drops a message at its 21st return: from half of that on, what
/// stays is sent to the same queue again instead, which counts afresh.
const MANY_RETURNS: u64 = 10;
const AT_ONCE: usize = 64;

/// The dead letters of one queue, which are in `<queue>.dead`.
///
/// Whoever looks at them takes them out of the queue and gives them back: to its head, in their
/// order, on a classic queue. Meanwhile nobody else sees them, so two who look at the same time
/// each see a part. One that a quorum queue has handed out ten times is put at its end.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    client: Client,
    queue: Queue,
}

/// One message that no worker could run.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// Its task; made up where the message names none.
    pub id: TaskId,
    /// The task's name, if it was readable.
    pub task: Option<String>,
    /// Why it could not be run.
    pub reason: Option<String>,
    /// The queue it came from.
    pub queue: Option<String>,
    /// When it died, in ISO 8601.
    pub died_at: Option<String>,
    /// The attempt that was the last, from 1.
    pub attempt: Option<u64>,
    /// How those before it failed, oldest first: the first ones and the last ones. Of a task that
    /// killed its workers, also how often.
    pub attempts: Vec<Attempt>,
    /// So many of those between are left out.
    pub attempts_left_out: u64,
    /// Its body's size in bytes.
    pub size: usize,
    /// The message as it came.
    #[serde(skip)]
    pub message: Message,
}

impl DeadLetter {
    pub(crate) fn of(message: &Message) -> Self {
        let Epitaph { task, reason, queue, died_at, attempt, history } =
            Epitaph::read(&message.headers);
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

/// What came of sending a dead letter again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It is on its way, under the id that it had; its failure is no more.
    Sent,
    /// Its task has ended in this state after all, and stays so. The dead letter is left.
    Refused(State),
}

/// What becomes of a letter that was looked at.
enum Fate {
    Stays(Box<Delivery>),
    Gone,
}

impl DeadLetters {
    pub(super) fn new(client: &Client, queue: &str) -> Self {
        Self { client: client.clone(), queue: Queue::configured(queue, client.config()) }
    }

    /// The queue that holds them.
    #[must_use]
    pub fn queue(&self) -> String {
        self.queue.dead().name
    }

    /// How many there are.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn count(&self) -> Result<u64, Error> {
        let state = self.client.backends().broker.inspect(&self.queue()).await?;
        Ok(state.map_or(0, |state| state.ready))
    }

    /// The oldest of them, at most so many, and at most 64 MiB.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn browse(&self, limit: usize) -> Result<Vec<DeadLetter>, Error> {
        let (fetched, flushed) = self.client.backends().broker.fetch(&self.queue(), limit).await?;
        let mut letters = Vec::with_capacity(fetched.len());
        for delivery in fetched {
            letters.push(DeadLetter::of(&delivery.message));
            self.give_back(delivery).await?;
        }
        flushed.wait().await;
        Ok(letters)
    }

    /// The one of this task; `None` when it is not among them.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn find(&self, id: &TaskId) -> Result<Option<DeadLetter>, Error> {
        let mut found = None;
        self.sift(async |delivery| {
            if delivery.id() == id {
                found = Some(DeadLetter::of(&delivery.message));
            }
            Ok(Fate::Stays(delivery.into()))
        })
        .await?;
        Ok(found)
    }

    /// Sends the one of this task again, to the queue that it came from and under its id; `None`
    /// when it is not among them.
    ///
    /// The task's failure is taken back first, and that is noted in the audit stream. A crash in
    /// between leaves the dead letter, to be sent again.
    ///
    /// # Errors
    /// When a server does not answer or refuses: the dead letter is left.
    pub async fn replay(&self, id: &TaskId) -> Result<Option<Replay>, Error> {
        let mut replayed = None;
        self.sift(async |delivery| {
            if delivery.id() != id || replayed.is_some() {
                return Ok(Fate::Stays(delivery.into()));
            }
            let (fate, replay) = self.resend(delivery).await?;
            replayed = Some(replay);
            Ok(fate)
        })
        .await?;
        Ok(replayed)
    }

    /// Sends again all that are there when it begins, oldest first, and tells `told` of each.
    ///
    /// # Errors
    /// When a server does not answer or refuses; those that were told of are on their way.
    pub async fn replay_all(&self, mut told: impl FnMut(&TaskId, &Replay)) -> Result<(), Error> {
        self.sift(async |delivery| {
            let id = delivery.id().clone();
            let (fate, replay) = self.resend(delivery).await?;
            told(&id, &replay);
            Ok(fate)
        })
        .await
    }

    /// Throws the one of this task away, and notes that in the audit stream. Says whether it was
    /// there. The task's failure stays.
    ///
    /// # Errors
    /// When a server does not answer: the dead letter is left.
    pub async fn purge(&self, id: &TaskId) -> Result<bool, Error> {
        let mut purged = false;
        self.sift(async |delivery| {
            if delivery.id() != id {
                return Ok(Fate::Stays(delivery.into()));
            }
            let recorded = self.client.backends().store.audit(self.deed("purge", id)).await?;
            purged = true;
            Ok(delivery.ack(recorded).map_or_else(Fate::Stays, |_| Fate::Gone))
        })
        .await?;
        Ok(purged)
    }

    /// Throws all away, and notes that in the audit stream. Returns how many there were.
    ///
    /// # Errors
    /// When a server does not answer.
    pub async fn purge_all(&self) -> Result<u64, Error> {
        let backends = self.client.backends();
        let _ = backends.store.audit(self.deed("purge", &TaskId::from("*"))).await?;
        backends.broker.purge(&self.queue()).await
    }

    /// Looks at each that is there when it begins. Those that stay are held until the end, or they
    /// would be met again; only as much of them as is needed to give them back.
    async fn sift(
        &self,
        mut decide: impl AsyncFnMut(Delivery) -> Result<Fate, Error>,
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
                if let Fate::Stays(mut delivery) = decide(delivery).await? {
                    if !has_returned_often(&delivery) {
                        delivery.message.body = Bytes::new();
                    }
                    staying.push(delivery);
                }
            }
        }
        for delivery in staying {
            self.give_back(*delivery).await?;
        }
        for flushed in flushes {
            flushed.wait().await;
        }
        Ok(())
    }

    async fn give_back(&self, delivery: Delivery) -> Result<(), Error> {
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
            // Its headers are too large to be sent again.
            Err(error) if error.is_refusal() => {
                let _ = delivery.release();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn resend(&self, delivery: Delivery) -> Result<(Fate, Replay), Error> {
        let Epitaph { queue, attempt, .. } = Epitaph::read(&delivery.message.headers);
        let deed = self.deed("replay", delivery.id());
        let found = self.client.backends().store.reopen(deed, attempt.unwrap_or(1)).await?;
        if let Some(state @ (State::Success | State::Revoked)) = found {
            return Ok((Fate::Stays(delivery.into()), Replay::Refused(state)));
        }
        let queue = queue.map_or_else(
            || self.queue.clone(),
            |queue| Queue::configured(queue, self.client.config()),
        );
        self.reopen_what_follows(&delivery.message).await?;
        let mut message = delivery.message.clone().revived();
        // It may have begun: its journal is read.
        message.mark_returned();
        Ok((self.send(message, queue, delivery).await?, Replay::Sent))
    }

    /// The tasks behind it in its chain were told that they will not run: they will, after all.
    async fn reopen_what_follows(&self, message: &Message) -> Result<(), Error> {
        let envelope = Envelope::decode(message, self.client.config().max_arguments);
        let canvas =
            envelope.ok().and_then(|envelope| Canvas::read(&envelope.embed).ok().flatten());
        for id in canvas.iter().flat_map(Canvas::unreached) {
            self.client.backends().store.reopen(self.deed("replay", &id), 1).await?;
        }
        Ok(())
    }

    /// A confirmed copy, and then the ack.
    async fn send(
        &self,
        message: Message,
        queue: Queue,
        delivery: Delivery,
    ) -> Result<Fate, Error> {
        let recorded = self.publish(message, queue).await?;
        settle(delivery, recorded)
    }

    async fn publish(&self, message: Message, queue: Queue) -> Result<Recorded, Error> {
        let timeout = self.client.config().publish_timeout;
        let parcel = Parcel { message, queue, delay: None, timeout };
        self.client.backends().broker.publish(parcel).await
    }

    fn deed(&self, what: &'static str, id: &TaskId) -> Deed {
        let by = self.client.shared.origin.clone();
        Deed { what, id: id.clone(), queue: self.queue(), by }
    }
}

fn settle(delivery: Delivery, recorded: Recorded) -> Result<Fate, Error> {
    match delivery.ack(recorded) {
        Ok(_settled) => Ok(Fate::Gone),
        Err(_) => Err(Kind::Closed.into()),
    }
}

fn has_returned_often(delivery: &Delivery) -> bool {
    let returns = delivery.message.headers.get("x-delivery-count").and_then(Value::as_u64);
    returns.is_some_and(|returns| returns >= MANY_RETURNS)
}
