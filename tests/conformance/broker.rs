//! Queues: how they are declared, inspected and purged.

use std::time::Duration;

use countersign::backend::{Capability, Queue, QueueState};
use countersign::config::QueueType;
use support::queue_name;

use crate::case::{Case, case};
use crate::fixture::{Fixture, eventually, message, publish_request, settle_next, text};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_declared_queue_exists_and_is_empty),
        case(a_queue_with_other_priorities_is_a_mismatch),
        case(a_queue_of_another_type_is_a_mismatch).needs(Capability::QueueTypes),
        case(publishing_declares_the_queue_with_its_settings),
        case(publishing_uses_an_existing_queue),
        case(consuming_declares_the_queue),
        case(a_queue_that_does_not_exist_is_none),
        case(a_missing_queue_has_no_messages),
        case(inspect_counts_messages_and_consumers),
        case(purging_deletes_undelivered_messages),
        case(queues_are_separate),
        case(the_broker_reports_its_version),
        case(a_backend_is_connected_until_it_is_closed),
        case(a_closed_broker_takes_nothing),
        case(confirmed_messages_outlive_the_process).needs(Capability::Durability),
        case(remote_control_messages_are_received).needs(Capability::RemoteControl),
        case(remote_control_ends_with_the_broker),
    ]
}

async fn a_declared_queue_exists_and_is_empty(fixture: Fixture) {
    let Fixture { broker, queue, .. } = &fixture;
    for _ in 0..2 {
        broker.declare(queue).await.unwrap();
        let state = broker.inspect(&queue.name).await.unwrap();
        assert_eq!(state, Some(QueueState { ready: 0, consumers: 0 }));
    }
}

async fn a_queue_with_other_priorities_is_a_mismatch(fixture: Fixture) {
    let Fixture { broker, queue, .. } = &fixture;
    let with = |max_priority| Queue { max_priority, ..queue.clone() };
    broker.declare(&with(Some(5))).await.unwrap();
    fixture.send("a").await;
    for other in [with(None), with(Some(9))] {
        let error = broker.declare(&other).await.unwrap_err();
        assert!(error.is_queue_mismatch(), "{error}");
    }
    broker.declare(&with(Some(5))).await.unwrap();
    fixture.until_ready(1).await;
}

async fn a_queue_of_another_type_is_a_mismatch(fixture: Fixture) {
    let Fixture { broker, queue, .. } = &fixture;
    let quorum = Queue { kind: QueueType::Quorum, ..queue.clone() };
    broker.declare(&quorum).await.unwrap();
    let error = broker.declare(queue).await.unwrap_err();
    assert!(error.is_queue_mismatch(), "{error}");
    fixture.send("a").await;
    assert_eq!(settle_next(&fixture.store, &mut fixture.consume(1)).await, "a");
}

async fn publishing_declares_the_queue_with_its_settings(fixture: Fixture) {
    let Fixture { broker, queue, .. } = &fixture;
    let queue = Queue { max_priority: Some(3), ..queue.clone() };
    let _ = broker.publish(publish_request(message("a"), &queue)).await.unwrap();
    fixture.until_ready(1).await;
    broker.declare(&queue).await.unwrap();
    let delayed = Queue { name: queue_name(), ..queue };
    let delay = Some(Duration::from_millis(100));
    let request = publish_request(message("a"), &delayed);
    let _ =
        broker.publish(countersign::backend::PublishRequest { delay, ..request }).await.unwrap();
    broker.declare(&delayed).await.unwrap();
}

async fn publishing_uses_an_existing_queue(fixture: Fixture) {
    let Fixture { broker, queue, .. } = &fixture;
    let prioritised = Queue { max_priority: Some(5), ..queue.clone() };
    broker.declare(&prioritised).await.unwrap();
    fixture.send("a").await;
    broker.declare(&prioritised).await.unwrap();
    assert_eq!(settle_next(&fixture.store, &mut fixture.consume(1)).await, "a");
}

async fn consuming_declares_the_queue(fixture: Fixture) {
    let queue = Queue { max_priority: Some(3), ..fixture.queue.clone() };
    let deliveries = fixture.broker.consume(&queue, 1);
    deliveries.consuming().wait_for(|consuming| *consuming).await.unwrap();
    let state = fixture.broker.inspect(&queue.name).await.unwrap();
    assert_eq!(state, Some(QueueState { ready: 0, consumers: 1 }));
    fixture.broker.declare(&queue).await.unwrap();
}

async fn a_queue_that_does_not_exist_is_none(fixture: Fixture) {
    assert_eq!(fixture.broker.inspect(&fixture.queue.name).await.unwrap(), None);
    // Inspecting a queue does not create it.
    assert_eq!(fixture.broker.inspect(&fixture.queue.name).await.unwrap(), None);
}

async fn a_missing_queue_has_no_messages(fixture: Fixture) {
    let Fixture { broker, queue, .. } = &fixture;
    let (fetched, flushed) = broker.fetch(&queue.name, 10).await.unwrap();
    assert!(fetched.is_empty());
    flushed.wait().await;
    assert_eq!(broker.purge(&queue.name).await.unwrap(), 0);
    assert_eq!(broker.inspect(&queue.name).await.unwrap(), None);
}

async fn inspect_counts_messages_and_consumers(fixture: Fixture) {
    for body in ["a", "b", "c"] {
        fixture.send(body).await;
    }
    fixture.until_ready(3).await;
    let mut deliveries = fixture.consume(1);
    let first = deliveries.next().await.unwrap();
    let shows = async |ready, consumers| {
        let state = QueueState { ready, consumers };
        let found = async || fixture.broker.inspect(&fixture.queue.name).await.unwrap();
        eventually(&format!("{state:?}"), async || found().await == Some(state)).await;
    };
    shows(2, 1).await;
    let second = fixture.consume(1);
    shows(1, 2).await;
    drop(first);
    drop(second.stop().await);
    drop(deliveries.stop().await);
    shows(3, 0).await;
}

async fn purging_deletes_undelivered_messages(fixture: Fixture) {
    for body in ["a", "b", "c"] {
        fixture.send(body).await;
    }
    let mut deliveries = fixture.consume(1);
    let held = deliveries.next().await.unwrap();
    fixture.until_ready(2).await;
    assert_eq!(fixture.broker.purge(&fixture.queue.name).await.unwrap(), 2);
    assert_eq!(fixture.broker.purge(&fixture.queue.name).await.unwrap(), 0);
    fixture.send("d").await;
    drop(held);
    let mut left = [deliveries.next().await.unwrap(), fixture.consume(1).next().await.unwrap()]
        .map(|it| text(&it));
    left.sort();
    assert_eq!(left, ["a", "d"]);
}

/// A name that is a prefix of another one, and a queue's own resume and dead-letter queues.
async fn queues_are_separate(fixture: Fixture) {
    let queue = fixture.queue.clone();
    let longer = Queue::new(format!("{}.more", queue.name));
    let queues = [queue.clone(), longer, queue.resume(), queue.dead()];
    for queue in &queues {
        let _ = fixture
            .broker
            .publish(publish_request(message(queue.name.clone()), queue))
            .await
            .unwrap();
    }
    for queue in &queues {
        let mut deliveries = fixture.broker.consume(queue, 10);
        assert_eq!(settle_next(&fixture.store, &mut deliveries).await, queue.name);
        assert_eq!(deliveries.stop().await.len(), 0);
    }
}

async fn the_broker_reports_its_version(fixture: Fixture) {
    let version = fixture.broker.version().await.unwrap();
    let number = version.split(' ').next_back().unwrap_or_default();
    let parts: Vec<_> = number.split('.').collect();
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    assert!(parts.len() > 1 && parts.iter().take(2).all(is_number), "{version}");
}

async fn a_backend_is_connected_until_it_is_closed(fixture: Fixture) {
    assert!(fixture.broker.is_connected() && fixture.store.is_connected());
    fixture.broker.close().await;
    fixture.store.close().await;
    assert!(!fixture.broker.is_connected(), "the broker is still connected");
    assert!(!fixture.store.is_connected(), "the store is still connected");
}

async fn a_closed_broker_takes_nothing(fixture: Fixture) {
    let mut deliveries = fixture.consume(1);
    deliveries.consuming().wait_for(|consuming| *consuming).await.unwrap();
    let waiting = async { deliveries.next().await.is_none() };
    let ((), is_over) = tokio::join!(fixture.broker.close(), waiting);
    assert!(is_over, "an unexpected message");
    assert!(
        fixture.broker.publish(publish_request(message("late"), &fixture.queue)).await.is_err()
    );
    assert!(fixture.consume(1).next().await.is_none());
}

async fn confirmed_messages_outlive_the_process(fixture: Fixture) {
    let sent = fixture.send("a").await;
    let result = fixture.finish(&sent.id, "SUCCESS", "done").await;
    fixture.broker.close().await;
    fixture.store.close().await;
    let later = fixture.open().await;
    let delivery = later.broker.consume(&fixture.queue, 1).next().await.unwrap();
    assert_eq!((&delivery.message, delivery.redelivered), (&sent, false));
    assert_eq!(later.store.read_result(&sent.id).await.unwrap(), Some(result));
}

/// Publishes as a Celery client does: to all queues that are bound to its fanout exchange.
async fn remote_control_messages_are_received(fixture: Fixture) {
    use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions};
    use lapin::{BasicProperties, Connection, ConnectionProperties, ExchangeKind};

    let mut controls = [fixture.broker.control("a@here"), fixture.broker.control("b@here")];
    let url = fixture.config.broker_url.reveal();
    let caller = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = caller.create_channel().await.unwrap();
    let (exchange, fanout) = ("celery.pidbox", ExchangeKind::Fanout);
    let options = ExchangeDeclareOptions::default();
    channel.exchange_declare(exchange.into(), fanout, options, Default::default()).await.unwrap();
    let body = fixture.queue.name.clone().into_bytes();
    for control in &mut controls {
        let received = async { while control.next().await.unwrap().body != body {} };
        // Messages that are sent before they consume are lost.
        let publishing = async {
            loop {
                let (options, properties) =
                    (BasicPublishOptions::default(), BasicProperties::default());
                let sent =
                    channel.basic_publish(exchange.into(), "".into(), options, &body, properties);
                sent.await.unwrap().await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = received => {}
            () = publishing => {}
        }
    }
}

async fn remote_control_ends_with_the_broker(fixture: Fixture) {
    let mut control = fixture.broker.control("a@here");
    let over = async { while control.next().await.is_some() {} };
    tokio::join!(fixture.broker.close(), over);
}
