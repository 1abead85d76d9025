//! Delayed delivery: messages pass a series of queues whose TTLs are powers of two.
//!
//! From one second on these are Kombu's exchanges and queues, so that Celery producers and ours share
//! them (kombu, `transport/native_delayed_delivery.py`). Below a second there are three levels of our
//! own. A per-message TTL would not do: RabbitMQ expires messages only at a queue's head.
//!
//! ```text
//! level exchange -> level queue (TTL) -> ... -> celery_delayed_delivery
//!   -> countersign_delayed.<queue> -> <queue>
//!        | the queue was deleted: alternate exchange
//!        v
//!      countersign_undelivered -> <queue>.dead
//! ```
//!
//! The last levels dead-letter at least once: a message that no queue takes would be tried for ever,
//! and 32 of them block a level for everybody. So each queue has an arrival exchange of its own, whose
//! alternate exchange leads to the queue's dead letters when the queue is gone.

use std::time::Duration;

use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ExchangeKind};
use tokio::time::timeout;

use super::codec::short;
use super::topology::{self, Undeclared, access_refused, is, undeclared};
use crate::backend::Queue;

const LEVELS: u32 = 28;
const DELIVERY_EXCHANGE: &str = "celery_delayed_delivery";
/// Where messages of the levels below a second come out.
const SUB_SECOND_DELIVERY: &str = "countersign_delay_delivery";
/// Where messages go whose queue is gone.
const UNDELIVERED_EXCHANGE: &str = "countersign_undelivered";
const SUB_SECOND: [u64; 3] = [100, 250, 500];
const DEADLINE: Duration = Duration::from_secs(120);
const BIND_DEADLINE: Duration = Duration::from_secs(30);
const NOT_FOUND: u16 = 404;
/// What a binding takes.
const BINDING: &str = "write (on where it leads) and read (on where it comes from)";

/// Where a delayed message is published: exchange and routing key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// The longest delay that the levels can hold: 8.5 years.
pub(super) const LONGEST: Duration = Duration::from_secs((1 << LEVELS) - 1);

/// The way to `queue` that takes about `delay`: rounded up to a level below a second, down to a
/// whole second above. As with Kombu, the message's own `eta` tells what is left on arrival.
pub(super) fn route(queue: &Queue, delay: Duration) -> Route {
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    if let Some(level) = SUB_SECOND.iter().find(|level| millis <= **level) {
        return Route { exchange: sub_second(*level), routing_key: queue.name.clone() };
    }
    let seconds = (millis / 1000).clamp(1, LONGEST.as_secs());
    let mut routing_key = String::with_capacity(2 * LEVELS as usize + queue.name.len());
    for level in (0..LEVELS).rev() {
        routing_key.push_str(if seconds >> level & 1 == 1 { "1." } else { "0." });
    }
    routing_key.push_str(&queue.name);
    // Kombu begins at the top. The levels above the first 1 would only pass it on, each by a match
    // of all words: for an hour that was most of what a delay costs the broker.
    Route { exchange: level_name(seconds.ilog2()), routing_key }
}

fn level_name(level: u32) -> String {
    format!("celery_delayed_{level}")
}

fn sub_second(millis: u64) -> String {
    format!("countersign_delay_{millis}ms")
}

/// Where delayed messages of `queue` arrive, whether the queue exists or not.
fn arrival_exchange(queue: &Queue) -> String {
    format!("countersign_delayed.{}", queue.name)
}

/// Declares the exchanges and queues of all levels. Everything is idempotent, and what exists needs no
/// right to configure. On a fresh broker this takes seconds: 31 quorum queues are made.
pub(super) async fn declare_levels(connection: &Connection) -> Result<(), Undeclared> {
    let declaring = async {
        let mut declarer = Declarer::open(connection).await?;
        declarer.exchange(DELIVERY_EXCHANGE, ExchangeKind::Topic, &[]).await?;
        declarer.exchange(SUB_SECOND_DELIVERY, ExchangeKind::Direct, &[]).await?;
        for level in 0..LEVELS {
            declarer.level(level).await?;
        }
        for millis in SUB_SECOND {
            declarer.sub_second(millis).await?;
        }
        declarer.close().await;
        Ok(())
    };
    within(DEADLINE, "the delayed-delivery exchanges", declaring).await
}

/// Binds `queue`, which exists, to where delayed messages come out, and its dead letters to where they
/// go if it is deleted. Everything is idempotent.
pub(super) async fn bind(connection: &Connection, queue: &Queue) -> Result<(), Undeclared> {
    topology::declare(connection, &queue.undelivered()).await?;
    let binding = async {
        let mut declarer = Declarer::open(connection).await?;
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
            // Exactly 28 words before it: `#.billing` would also take what is meant for `eu.billing`.
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
        declarer.close().await;
        Ok(())
    };
    within(BIND_DEADLINE, &format!("the bindings of queue {}", queue.name), binding).await
}

async fn within(
    deadline: Duration,
    what: &str,
    declaring: impl Future<Output = Result<(), Undeclared>>,
) -> Result<(), Undeclared> {
    match timeout(deadline, declaring).await {
        Ok(declared) => declared,
        Err(_) => Err(Undeclared::Unknown(format!("no answer to the declaration of {what}"))),
    }
}

/// Declares on one channel, and opens another when the broker has closed it over an error.
struct Declarer<'c> {
    connection: &'c Connection,
    channel: Channel,
}

impl<'c> Declarer<'c> {
    async fn open(connection: &'c Connection) -> Result<Self, Undeclared> {
        let channel = connection.create_channel().await.map_err(undeclared)?;
        Ok(Self { connection, channel })
    }

    async fn close(self) {
        let _ = self.channel.close(200, "OK".into()).await;
    }

    async fn reopen(&mut self) -> Result<(), Undeclared> {
        self.channel = self.connection.create_channel().await.map_err(undeclared)?;
        Ok(())
    }

    async fn level(&mut self, level: u32) -> Result<(), Undeclared> {
        let name = level_name(level);
        let below = if level == 0 { DELIVERY_EXCHANGE.to_owned() } else { level_name(level - 1) };
        self.exchange(&name, ExchangeKind::Topic, &[]).await?;
        self.delay_queue(&name, 1000 << level, &below).await?;
        let words = "*.".repeat((LEVELS - 1 - level) as usize);
        self.bind_queue(&name, &name, &format!("{words}1.#")).await?;
        self.bind_exchange(&below, &name, &format!("{words}0.#")).await
    }

    async fn sub_second(&mut self, millis: u64) -> Result<(), Undeclared> {
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
    ) -> Result<(), Undeclared> {
        let look = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let make = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let short = short(name).map_err(Undeclared::Refused)?;
        let none = FieldTable::default();
        let looked = self.channel.exchange_declare(short.clone(), kind.clone(), look, none).await;
        match looked {
            Ok(()) => return Ok(()),
            Err(error) if is(&error, NOT_FOUND) => self.reopen().await?,
            Err(error) => return Err(undeclared(error)),
        }
        let made = self.channel.exchange_declare(short, kind, make, arguments(pairs)).await;
        made.map_err(access_refused("configure"))
    }

    /// A queue that exists is taken as it is: Kombu may be configured to make classic ones.
    async fn delay_queue(&mut self, name: &str, ttl: i64, to: &str) -> Result<(), Undeclared> {
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let make = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        match self.channel.queue_declare(name.into(), look, FieldTable::default()).await {
            Ok(_) => return Ok(()),
            Err(error) if is(&error, NOT_FOUND) => self.reopen().await?,
            Err(error) => return Err(undeclared(error)),
        }
        let arguments = arguments(&[
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-message-ttl", AMQPValue::LongLongInt(ttl)),
            ("x-dead-letter-exchange", text(to)),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]);
        let made = self.channel.queue_declare(name.into(), make, arguments).await;
        made.map(drop).map_err(access_refused("configure"))
    }

    async fn bind_queue(&self, queue: &str, from: &str, key: &str) -> Result<(), Undeclared> {
        let refused = Undeclared::Refused;
        let (queue, key) = (short(queue).map_err(refused)?, short(key).map_err(refused)?);
        let (from, none) = (short(from).map_err(refused)?, FieldTable::default());
        let bound = self.channel.queue_bind(queue, from, key, QueueBindOptions::default(), none);
        bound.await.map_err(access_refused(BINDING))
    }

    async fn bind_exchange(&self, to: &str, from: &str, key: &str) -> Result<(), Undeclared> {
        let refused = Undeclared::Refused;
        let (to, from) = (short(to).map_err(refused)?, short(from).map_err(refused)?);
        let (key, none) = (short(key).map_err(refused)?, FieldTable::default());
        let bound = self.channel.exchange_bind(to, from, key, ExchangeBindOptions::default(), none);
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

    fn key(millis: u64) -> Route {
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
