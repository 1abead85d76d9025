//! Delays: messages climb down a ladder of queues whose TTLs are powers of two.
//!
//! From one second on it is Kombu's ladder, object for object, so that Celery producers and ours
//! share it (kombu, `transport/native_delayed_delivery.py`). Below a second there are three levels
//! of our own. A per-message TTL would not do: RabbitMQ expires messages only at a queue's head.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Connection, ExchangeKind};
use tokio::time::timeout;

use super::codec::short;
use crate::backend::Queue;

const LEVELS: u32 = 28;
const DELIVERY_EXCHANGE: &str = "celery_delayed_delivery";
const SUB_SECOND: [u64; 3] = [100, 250, 500];
const DEADLINE: Duration = Duration::from_secs(30);

/// Where a delayed message is published: exchange and routing key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// The longest delay that the ladder can hold: 8.5 years.
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
    format!("countersign_delayed_{millis}ms")
}

/// Declares what the way of `route` to `queue` needs. Everything is idempotent.
pub(super) async fn declare(connection: &Connection, queue: &Queue) -> Result<(), String> {
    match timeout(DEADLINE, declare_all(connection, queue)).await {
        Ok(declared) => declared,
        Err(_) => Err("no answer to the declaration of the delay ladder".into()),
    }
}

async fn declare_all(connection: &Connection, queue: &Queue) -> Result<(), String> {
    let ladder = Ladder { connection, channel: said(connection.create_channel().await)? };
    ladder.exchange(DELIVERY_EXCHANGE, ExchangeKind::Topic).await?;
    for level in 0..LEVELS {
        ladder.level(level).await?;
    }
    for millis in SUB_SECOND {
        ladder.sub_second(millis).await?;
    }
    // Exactly 28 words before the name: `#.billing` would also take what is meant for `eu.billing`.
    let key = "*.".repeat(LEVELS as usize) + &queue.name;
    ladder.bind_queue(&queue.name, DELIVERY_EXCHANGE, &key).await?;
    let _ = ladder.channel.close(200, "OK".into()).await;
    Ok(())
}

struct Ladder<'c> {
    connection: &'c Connection,
    channel: lapin::Channel,
}

impl Ladder<'_> {
    async fn level(&self, level: u32) -> Result<(), String> {
        let name = level_name(level);
        let below = if level == 0 { DELIVERY_EXCHANGE.to_owned() } else { level_name(level - 1) };
        self.exchange(&name, ExchangeKind::Topic).await?;
        let arguments = arguments(&[
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-message-ttl", AMQPValue::LongLongInt(1000 << level)),
            ("x-dead-letter-exchange", text(&below)),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]);
        self.queue(&name, arguments).await?;
        let words = "*.".repeat((LEVELS - 1 - level) as usize);
        self.bind_queue(&name, &name, &format!("{words}1.#")).await?;
        self.bind_exchange(&below, &name, &format!("{words}0.#")).await
    }

    async fn sub_second(&self, millis: u64) -> Result<(), String> {
        let name = sub_second(millis);
        self.exchange(&name, ExchangeKind::Fanout).await?;
        let arguments = arguments(&[
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-message-ttl", AMQPValue::LongLongInt(i64::try_from(millis).unwrap_or(i64::MAX))),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]);
        self.queue(&name, arguments).await?;
        self.bind_queue(&name, &name, "#").await
    }

    async fn exchange(&self, name: &str, kind: ExchangeKind) -> Result<(), String> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default();
        said(self.channel.exchange_declare(name.into(), kind, options, none).await)
    }

    /// One that exists is taken as it is: Kombu may have been told to make classic ones.
    async fn queue(&self, name: &str, arguments: FieldTable) -> Result<(), String> {
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let probe = said(self.connection.create_channel().await)?;
        if probe.queue_declare(name.into(), look, FieldTable::default()).await.is_ok() {
            let _ = probe.close(200, "OK".into()).await;
            return Ok(());
        }
        let make = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        said(self.channel.queue_declare(name.into(), make, arguments).await).map(drop)
    }

    async fn bind_queue(&self, queue: &str, from: &str, key: &str) -> Result<(), String> {
        let (queue, key, none) = (short(queue)?, short(key)?, FieldTable::default());
        let options = QueueBindOptions::default();
        said(self.channel.queue_bind(queue, from.into(), key, options, none).await)
    }

    async fn bind_exchange(&self, to: &str, from: &str, key: &str) -> Result<(), String> {
        let options = ExchangeBindOptions::default();
        let none = FieldTable::default();
        said(self.channel.exchange_bind(to.into(), from.into(), key.into(), options, none).await)
    }
}

fn said<T>(answer: Result<T, lapin::Error>) -> Result<T, String> {
    answer.map_err(|error| error.to_string())
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
        assert_eq!(key(1).exchange, "countersign_delayed_100ms");
        assert_eq!(key(101).exchange, "countersign_delayed_250ms");
        assert_eq!(key(500).exchange, "countersign_delayed_500ms");
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
