//! The wake messages of suspended tasks.

use std::time::Duration;

use tokio::time::advance;

use super::super::broker::EmbeddedBroker;
use super::*;
use crate::backend::{Broker as _, ClaimResult, PublishRequest, Queue, SuspendResult};
use crate::protocol::{Message, SuspendHeader, SuspendKind};

const QUEUE: &str = "q.resume";

/// A task that is suspended by the store, and its wake messages.
struct Fixture {
    store: EmbeddedStore,
    broker: EmbeddedBroker,
    envelope: Envelope,
}

impl Fixture {
    fn new() -> Self {
        let store = in_memory();
        let broker = EmbeddedBroker::start(store.db.clone());
        let envelope = Envelope::new("t", Arguments::of(&("order-1", 7)).unwrap());
        Self { store, broker, envelope }
    }

    async fn claim(&self) {
        let (id, digest) = (&self.envelope.id, self.envelope.digest());
        let claimed = self.store.claim_first(id, &digest, true, "a", HOUR).await.unwrap();
        assert!(matches!(claimed, ClaimResult::Claimed { number: 0, .. }), "{claimed:?}");
    }

    fn wake(&self, number: u64) -> Message {
        let header = SuspendHeader { kind: SuspendKind::Wake, number };
        SuspendHeader::sent(header.on(self.envelope.encode()), 17)
    }

    async fn send(&self, number: u64, delay: Duration) {
        let (message, queue, delay) = (self.wake(number), Queue::new(QUEUE), Some(delay));
        let request = PublishRequest { message, queue, delay, timeout: HOUR };
        let _ = self.broker.publish(request).await.unwrap();
    }

    async fn suspend(&self, number: u64) {
        let request = SuspendRequest {
            digest: self.envelope.digest(),
            message: self.envelope.encode(),
            ..suspend_request(&self.envelope.id, number, Vec::new())
        };
        let request = SuspendRequest { alarm: Some(24 * HOUR), ..request };
        let suspended = self.store.suspend(request).await.unwrap();
        assert!(matches!(suspended, SuspendResult::Waiting(..)), "{suspended:?}");
    }

    /// Returns the messages that are delivered now.
    async fn delivered(&self) -> Vec<Message> {
        let (deliveries, _barrier) = self.broker.fetch(QUEUE, 10).await.unwrap();
        deliveries.into_iter().map(|delivery| delivery.message.clone()).collect()
    }

    /// Returns the number of delayed messages that are rows of their own.
    async fn rows(&self) -> i64 {
        let count = "SELECT count(*) FROM messages WHERE due IS NOT NULL";
        let count = self.store.db.read(move |txn| txn.first(count, [], |row| row.get(0)));
        count.await.unwrap().unwrap_or(0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_wake_message_is_stored_with_its_record_and_delivered_complete_when_due() {
    let fixture = Fixture::new();
    fixture.claim().await;
    fixture.send(1, HOUR).await;
    fixture.suspend(1).await;
    assert_eq!(fixture.rows().await, 0);
    advance(HOUR - Duration::from_secs(1)).await;
    assert_eq!(fixture.delivered().await, []);
    advance(Duration::from_secs(1)).await;
    assert_eq!(fixture.delivered().await, [fixture.wake(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_wake_message_before_the_suspension_carries_the_task() {
    let fixture = Fixture::new();
    fixture.claim().await;
    fixture.send(1, Duration::from_secs(1)).await;
    advance(2 * HOUR).await;
    assert_eq!(fixture.delivered().await, [fixture.wake(1)]);
    let (header, digest) =
        (SuspendHeader { kind: SuspendKind::Wake, number: 1 }, fixture.envelope.digest());
    let id = &fixture.envelope.id;
    let claimed =
        fixture.store.claim_suspended(id, header, Some(&digest), "b", HOUR).await.unwrap();
    let ClaimResult::Claimed { number: 1, message: Some(message), .. } = claimed else {
        panic!("{claimed:?}");
    };
    assert_eq!(*message, fixture.envelope.encode());
}

#[tokio::test(start_paused = true)]
async fn the_sooner_one_of_a_number_and_the_newest_number_count() {
    let fixture = Fixture::new();
    fixture.claim().await;
    fixture.send(1, HOUR).await;
    fixture.suspend(1).await;
    fixture.send(1, 2 * HOUR).await;
    fixture.send(1, Duration::from_secs(5)).await;
    advance(Duration::from_secs(5)).await;
    assert_eq!(fixture.delivered().await, [fixture.wake(1)]);
    fixture.send(2, HOUR).await;
    fixture.send(1, 2 * HOUR).await;
    assert_eq!(fixture.rows().await, 1, "an older one is a message of its own");
    advance(HOUR).await;
    assert!(fixture.delivered().await.contains(&fixture.wake(2)));
}

#[tokio::test(start_paused = true)]
async fn a_wake_message_without_a_record_of_its_task_is_a_message_of_its_own() {
    let fixture = Fixture::new();
    fixture.send(1, HOUR).await;
    assert_eq!(fixture.rows().await, 1);
    advance(HOUR).await;
    assert_eq!(fixture.delivered().await, [fixture.wake(1)]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_task_removes_its_wake_message() {
    let fixture = Fixture::new();
    fixture.claim().await;
    fixture.send(1, HOUR).await;
    fixture.suspend(1).await;
    let id = &fixture.envelope.id;
    fixture.store.end_suspended(id, Some(&fixture.envelope.digest())).await.unwrap();
    advance(2 * HOUR).await;
    assert_eq!(fixture.delivered().await, []);
}

/// A record of an older version has the message as JSON, and its wake message is a row.
#[tokio::test(start_paused = true)]
async fn a_record_of_an_older_version_is_resumed() {
    let fixture = Fixture::new();
    fixture.claim().await;
    fixture.suspend(1).await;
    let json = fixture.envelope.encode().to_json();
    let older = "UPDATE parks SET v = 1, packed = NULL, asked = '', message = ?";
    fixture.store.db.write(move |txn| txn.execute(older, [&json])).await.unwrap();
    fixture.send(1, HOUR).await;
    assert_eq!(fixture.rows().await, 1);
    advance(25 * HOUR).await;
    let header = SuspendHeader { kind: SuspendKind::Resume, number: 1 };
    let id = &fixture.envelope.id;
    let claimed = fixture.store.claim_suspended(id, header, None, "b", HOUR).await.unwrap();
    let ClaimResult::Claimed { message: Some(message), .. } = claimed else {
        panic!("{claimed:?}");
    };
    assert_eq!(*message, fixture.envelope.encode());
}
