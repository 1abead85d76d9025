//! Delayed delivery: messages pass through a series of queues whose TTLs are powers of two.
//!
//! The levels from one second on are Kombu's exchanges and queues, so that Celery producers share them
//! with ours (kombu, `transport/native_delayed_delivery.py`). Below a second there are three levels of
//! our own. A per-message TTL does not work: RabbitMQ expires messages only at the head of a queue.
//!
//! ```text
//! level exchange -> level queue (TTL) -> ... -> celery_delayed_delivery
//!   -> countersign_delayed.<queue> -> <queue>
//!        | the queue was deleted: alternate exchange
//!        v
//!      countersign_undelivered -> <queue>.dead
//! ```
//!
//! The last levels use at-least-once dead-lettering: a message that no queue accepts would be retried
//! forever, and 32 such messages block a level for all tasks. So each queue has its own arrival
//! exchange, whose alternate exchange leads to the queue's dead-letter queue when the queue is gone.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use tokio::time::timeout;

use super::channel_pool::{BorrowedChannel, ChannelPool};
use super::codec::short;
use super::topology::{self, DeclareError, access_refused, arrival_exchange, declare_error, is};
use crate::backend::Queue;

const LEVELS: u32 = 28;
const DELIVERY_EXCHANGE: &str = "celery_delayed_delivery";
/// The exchange where messages leave the levels below a second.
const SUB_SECOND_DELIVERY: &str = "countersign_delay_delivery";
/// The exchange for messages whose queue is gone.
const UNDELIVERED_EXCHANGE: &str = "countersign_undelivered";
const SUB_SECOND: [u64; 3] = [100, 250, 500];
const DEADLINE: Duration = Duration::from_secs(120);
const BIND_DEADLINE: Duration = Duration::from_secs(30);
const NOT_FOUND: u16 = 404;
/// The permissions that a binding requires.
const BINDING: &str = "write (on the target) and read (on the source)";

/// The exchange and routing key of a delayed message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DelayRoute {
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// The longest delay that the levels can hold: 8.5 years.
pub(super) const LONGEST: Duration = Duration::from_secs((1 << LEVELS) - 1);

/// Returns the route that reaches `queue` after about `delay`: rounded up to a level below a second,
/// down to a whole second above. As with Kombu, the message's `eta` gives the remaining delay on
/// arrival.
pub(super) fn route(queue: &Queue, delay: Duration) -> DelayRoute {
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    if let Some(level) = SUB_SECOND.iter().find(|level| millis <= **level) {
        return DelayRoute { exchange: sub_second(*level), routing_key: queue.name.clone() };
    }
    let seconds = (millis / 1000).clamp(1, LONGEST.as_secs());
    let mut routing_key = String::with_capacity(2 * LEVELS as usize + queue.name.len());
    for level in (0..LEVELS).rev() {
        routing_key.push_str(if seconds >> level & 1 == 1 { "1." } else { "0." });
    }
    routing_key.push_str(&queue.name);
    // Kombu starts at the top level. The levels above the first 1 only forward the message, each with a
    // match of all words; for a delay of an hour that was most of the broker's cost.
    DelayRoute { exchange: level_name(seconds.ilog2()), routing_key }
}

fn level_name(level: u32) -> String {
    format!("celery_delayed_{level}")
}

fn sub_second(millis: u64) -> String {
    format!("countersign_delay_{millis}ms")
}

/// Declares the exchanges and queues of all levels. Idempotent; existing ones require no configure
/// permission. On a fresh broker this takes seconds, because it creates 31 quorum queues.
pub(super) async fn declare_levels(channels: &ChannelPool) -> Result<(), DeclareError> {
    let declaring = async {
        let mut declarer = Declarer::open(channels).await?;
        declarer.exchange(DELIVERY_EXCHANGE, ExchangeKind::Topic, &[]).await?;
        declarer.exchange(SUB_SECOND_DELIVERY, ExchangeKind::Direct, &[]).await?;
        for level in 0..LEVELS {
            declarer.level(level).await?;
        }
        for millis in SUB_SECOND {
            declarer.sub_second(millis).await?;
        }
        declarer.finish();
        Ok(())
    };
    within(DEADLINE, "the delayed-delivery exchanges", declaring).await
}

/// Binds an existing `queue` to the exchanges where delayed messages leave the levels, and its
/// dead-letter queue to the exchange for deleted queues. Idempotent.
pub(super) async fn bind(channels: &ChannelPool, queue: &Queue) -> Result<(), DeclareError> {
    topology::declare(channels, &queue.undelivered()).await?;
    let binding = async {
        let mut declarer = Declarer::open(channels).await?;
        declarer.exchange(DELIVERY_EXCHANGE, ExchangeKind::Topic, &[]).await?;
        declarer.exchange(SUB_SECOND_DELIVERY, ExchangeKind::Direct, &[]).await?;
        declarer.exchange(UNDELIVERED_EXCHANGE, ExchangeKind::Topic, &[]).await?;
        let arrival = arrival_exchange(queue);
        let alternate = [("alternate-exchange", text(UNDELIVERED_EXCHANGE))];
        declarer.exchange(&arrival, ExchangeKind::Fanout, &alternate).await?;
        declarer.bind_queue(&queue.name, &arrival, "").await?;
        let dead = queue.undelivered().name;
        let keys = [Some(&queue.name), queue.routing_key.as_ref()];
        for key in keys.into_iter().flatten() {
            // Exactly 28 words before it: `#.billing` would also match the messages of `eu.billing`.
            let delayed = "*.".repeat(LEVELS as usize) + key;
            declarer.bind_exchange(&arrival, DELIVERY_EXCHANGE, &delayed).await?;
            declarer.bind_queue(&dead, UNDELIVERED_EXCHANGE, &delayed).await?;
        }
        declarer.bind_exchange(&arrival, SUB_SECOND_DELIVERY, &queue.name).await?;
        declarer.bind_queue(&dead, UNDELIVERED_EXCHANGE, &queue.name).await?;
        if let (Some(exchange), Some(key)) = (&queue.exchange, &queue.routing_key) {
            declarer.exchange(exchange, ExchangeKind::Topic, &[]).await?;
            declarer.bind_queue(&queue.name, exchange, key).await?;
        }
        declarer.finish();
        Ok(())
    };
    within(BIND_DEADLINE, &format!("the bindings of queue {}", queue.name), binding).await
}

async fn within(
    deadline: Duration,
    what: &str,
    declaring: impl Future<Output = Result<(), DeclareError>>,
) -> Result<(), DeclareError> {
    match timeout(deadline, declaring).await {
        Ok(declared) => declared,
        Err(_) => Err(DeclareError::Unknown(format!("no reply to the declaration of {what}"))),
    }
}

/// Declares on one channel, and opens another when the broker closes it with an error.
struct Declarer<'c> {
    channels: &'c ChannelPool,
    borrowed: BorrowedChannel,
}

impl<'c> Declarer<'c> {
    async fn open(channels: &'c ChannelPool) -> Result<Self, DeclareError> {
        let borrowed = channels.take().await.map_err(DeclareError::Unknown)?;
        Ok(Self { channels, borrowed })
    }

    fn finish(self) {
        self.borrowed.put_back();
    }

    async fn reopen(&mut self) -> Result<(), DeclareError> {
        self.borrowed = self.channels.take().await.map_err(DeclareError::Unknown)?;
        Ok(())
    }

    async fn level(&mut self, level: u32) -> Result<(), DeclareError> {
        let name = level_name(level);
        let below = if level == 0 { DELIVERY_EXCHANGE.to_owned() } else { level_name(level - 1) };
        self.exchange(&name, ExchangeKind::Topic, &[]).await?;
        self.delay_queue(&name, 1000 << level, &below).await?;
        let words = "*.".repeat((LEVELS - 1 - level) as usize);
        self.bind_queue(&name, &name, &format!("{words}1.#")).await?;
        self.bind_exchange(&below, &name, &format!("{words}0.#")).await
    }

    async fn sub_second(&mut self, millis: u64) -> Result<(), DeclareError> {
        let name = sub_second(millis);
        self.exchange(&name, ExchangeKind::Fanout, &[]).await?;
        let ttl = i64::try_from(millis).unwrap_or(i64::MAX);
        self.delay_queue(&name, ttl, SUB_SECOND_DELIVERY).await?;
        self.bind_queue(&name, &name, "").await
    }

    async fn exchange(
        &mut self,
        name: &str,
        kind: ExchangeKind,
        pairs: &[(&str, AMQPValue)],
    ) -> Result<(), DeclareError> {
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let create = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let short = short(name).map_err(DeclareError::Refused)?;
        let none = FieldTable::default();
        let result = self
            .borrowed
            .channel
            .exchange_declare(short.clone(), kind.clone(), passive, none)
            .await;
        match result {
            Ok(()) => return Ok(()),
            Err(error) if is(&error, NOT_FOUND) => self.reopen().await?,
            Err(error) => return Err(declare_error(error)),
        }
        let created =
            self.borrowed.channel.exchange_declare(short, kind, create, arguments(pairs)).await;
        created.map_err(access_refused("configure"))
    }

    /// Accepts an existing queue as it is: Kombu may be configured to create classic ones.
    async fn delay_queue(&mut self, name: &str, ttl: i64, to: &str) -> Result<(), DeclareError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let create = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        match self.borrowed.channel.queue_declare(name.into(), passive, FieldTable::default()).await
        {
            Ok(_) => return Ok(()),
            Err(error) if is(&error, NOT_FOUND) => self.reopen().await?,
            Err(error) => return Err(declare_error(error)),
        }
        let arguments = arguments(&[
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-message-ttl", AMQPValue::LongLongInt(ttl)),
            ("x-dead-letter-exchange", text(to)),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]);
        let created = self.borrowed.channel.queue_declare(name.into(), create, arguments).await;
        created.map(drop).map_err(access_refused("configure"))
    }

    async fn bind_queue(&self, queue: &str, from: &str, key: &str) -> Result<(), DeclareError> {
        let refused = DeclareError::Refused;
        let (queue, key) = (short(queue).map_err(refused)?, short(key).map_err(refused)?);
        let (from, none) = (short(from).map_err(refused)?, FieldTable::default());
        let bound =
            self.borrowed.channel.queue_bind(queue, from, key, QueueBindOptions::default(), none);
        bound.await.map_err(access_refused(BINDING))
    }

    async fn bind_exchange(&self, to: &str, from: &str, key: &str) -> Result<(), DeclareError> {
        let refused = DeclareError::Refused;
        let (to, from) = (short(to).map_err(refused)?, short(from).map_err(refused)?);
        let (key, none) = (short(key).map_err(refused)?, FieldTable::default());
        let bound = self.borrowed.channel.exchange_bind(
            to,
            from,
            key,
            ExchangeBindOptions::default(),
            none,
        );
        bound.await.map_err(access_refused(BINDING))
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

fn arguments(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(millis: u64) -> DelayRoute {
        route(&Queue::new("q"), Duration::from_millis(millis))
    }

    #[test]
    fn five_seconds_are_written_as_kombu_writes_them_and_begin_where_they_wait_first() {
        let route = key(5000);
        assert_eq!(route.exchange, "celery_delayed_2");
        assert_eq!(route.routing_key, "0.".repeat(25) + "1.0.1.q");
    }

    #[test]
    fn below_a_second_it_is_rounded_up_and_above_down() {
        assert_eq!(key(1).exchange, "countersign_delay_100ms");
        assert_eq!(key(101).exchange, "countersign_delay_250ms");
        assert_eq!(key(500).exchange, "countersign_delay_500ms");
        assert!(key(501).routing_key.ends_with("0.1.q"));
        assert!(key(2999).routing_key.ends_with("0.1.0.q"));
    }

    #[test]
    fn the_longest_delay_fills_every_level() {
        let route = route(&Queue::new("q"), Duration::MAX);
        assert_eq!(route.routing_key, "1.".repeat(28) + "q");
        assert_eq!(route.exchange, "celery_delayed_27");
    }
}
