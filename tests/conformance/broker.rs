//! Queues: how they are made, looked at and emptied.

use std::time::Duration;

use countersign::backend::{Capability, Queue, QueueState};
use countersign::config::QueueType;
use support::queue_name;

use crate::ground::{Ground, eventually, message, parcel, settle_next, text};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_declared_queue_exists_and_is_empty),
        promise(a_queue_with_other_priorities_is_a_mismatch),
        promise(a_queue_of_another_type_is_a_mismatch).needs(Capability::QueueTypes),
        promise(publishing_makes_the_queue_as_it_is_to_be),
        promise(publishing_takes_a_queue_as_it_is),
        promise(consuming_makes_the_queue),
        promise(a_queue_that_does_not_exist_is_none),
        promise(nothing_comes_from_a_queue_that_does_not_exist),
        promise(inspecting_counts_what_waits_and_who_consumes),
        promise(purging_deletes_what_nobody_has_in_his_hands),
        promise(queues_are_apart),
        promise(its_version_is_a_version),
        promise(it_is_connected_until_it_is_closed),
        promise(a_closed_broker_takes_nothing),
        promise(what_was_confirmed_outlives_the_process).needs(Capability::Durability),
        promise(remote_control_is_heard).needs(Capability::RemoteControl),
        promise(remote_control_ends_with_the_broker),
    ]
}

async fn a_declared_queue_exists_and_is_empty(ground: Ground) {
    let Ground { broker, queue, .. } = &ground;
    for _ in 0..2 {
        broker.declare(queue).await.unwrap();
        let state = broker.inspect(&queue.name).await.unwrap();
        assert_eq!(state, Some(QueueState { ready: 0, consumers: 0 }));
    }
}

async fn a_queue_with_other_priorities_is_a_mismatch(ground: Ground) {
    let Ground { broker, queue, .. } = &ground;
    let with = |max_priority| Queue { max_priority, ..queue.clone() };
    broker.declare(&with(Some(5))).await.unwrap();
    ground.send("a").await;
    for other in [with(None), with(Some(9))] {
        let error = broker.declare(&other).await.unwrap_err();
        assert!(error.is_queue_mismatch(), "{error}");
    }
    broker.declare(&with(Some(5))).await.unwrap();
    ground.until_ready(1).await;
}

async fn a_queue_of_another_type_is_a_mismatch(ground: Ground) {
    let Ground { broker, queue, .. } = &ground;
    let quorum = Queue { kind: QueueType::Quorum, ..queue.clone() };
    broker.declare(&quorum).await.unwrap();
    let error = broker.declare(queue).await.unwrap_err();
    assert!(error.is_queue_mismatch(), "{error}");
    ground.send("a").await;
    assert_eq!(settle_next(&ground.store, &mut ground.consume(1)).await, "a");
}

async fn publishing_makes_the_queue_as_it_is_to_be(ground: Ground) {
    let Ground { broker, queue, .. } = &ground;
    let queue = Queue { max_priority: Some(3), ..queue.clone() };
    let _ = broker.publish(parcel(message("a"), &queue)).await.unwrap();
    ground.until_ready(1).await;
    broker.declare(&queue).await.unwrap();
    let delayed = Queue { name: queue_name(), ..queue };
    let delay = Some(Duration::from_millis(100));
    let parcel = parcel(message("a"), &delayed);
    let _ = broker.publish(countersign::backend::Parcel { delay, ..parcel }).await.unwrap();
    broker.declare(&delayed).await.unwrap();
}

async fn publishing_takes_a_queue_as_it_is(ground: Ground) {
    let Ground { broker, queue, .. } = &ground;
    let prioritised = Queue { max_priority: Some(5), ..queue.clone() };
    broker.declare(&prioritised).await.unwrap();
    ground.send("a").await;
    broker.declare(&prioritised).await.unwrap();
    assert_eq!(settle_next(&ground.store, &mut ground.consume(1)).await, "a");
}

async fn consuming_makes_the_queue(ground: Ground) {
    let queue = Queue { max_priority: Some(3), ..ground.queue.clone() };
    let deliveries = ground.broker.consume(&queue, 1);
    deliveries.consuming().wait_for(|consuming| *consuming).await.unwrap();
    let state = ground.broker.inspect(&queue.name).await.unwrap();
    assert_eq!(state, Some(QueueState { ready: 0, consumers: 1 }));
    ground.broker.declare(&queue).await.unwrap();
}

async fn a_queue_that_does_not_exist_is_none(ground: Ground) {
    assert_eq!(ground.broker.inspect(&ground.queue.name).await.unwrap(), None);
    // Nor is it made by being looked for.
    assert_eq!(ground.broker.inspect(&ground.queue.name).await.unwrap(), None);
}

async fn nothing_comes_from_a_queue_that_does_not_exist(ground: Ground) {
    let Ground { broker, queue, .. } = &ground;
    let (fetched, flushed) = broker.fetch(&queue.name, 10).await.unwrap();
    assert!(fetched.is_empty());
    flushed.wait().await;
    assert_eq!(broker.purge(&queue.name).await.unwrap(), 0);
    assert_eq!(broker.inspect(&queue.name).await.unwrap(), None);
}

async fn inspecting_counts_what_waits_and_who_consumes(ground: Ground) {
    for body in ["a", "b", "c"] {
        ground.send(body).await;
    }
    ground.until_ready(3).await;
    let mut deliveries = ground.consume(1);
    let first = deliveries.next().await.unwrap();
    let shows = async |ready, consumers| {
        let state = QueueState { ready, consumers };
        let found = async || ground.broker.inspect(&ground.queue.name).await.unwrap();
        eventually(&format!("{state:?}"), async || found().await == Some(state)).await;
    };
    shows(2, 1).await;
    let second = ground.consume(1);
    shows(1, 2).await;
    drop(first);
    drop(second.stop().await);
    drop(deliveries.stop().await);
    shows(3, 0).await;
}

async fn purging_deletes_what_nobody_has_in_his_hands(ground: Ground) {
    for body in ["a", "b", "c"] {
        ground.send(body).await;
    }
    let mut deliveries = ground.consume(1);
    let held = deliveries.next().await.unwrap();
    ground.until_ready(2).await;
    assert_eq!(ground.broker.purge(&ground.queue.name).await.unwrap(), 2);
    assert_eq!(ground.broker.purge(&ground.queue.name).await.unwrap(), 0);
    ground.send("d").await;
    drop(held);
    let mut left = [deliveries.next().await.unwrap(), ground.consume(1).next().await.unwrap()]
        .map(|it| text(&it));
    left.sort();
    assert_eq!(left, ["a", "d"]);
}

/// A name that is another's beginning, and the queues of one's own: for resuming, for the dead.
async fn queues_are_apart(ground: Ground) {
    let queue = ground.queue.clone();
    let longer = Queue::new(format!("{}.more", queue.name));
    let queues = [queue.clone(), longer, queue.resume(), queue.dead()];
    for queue in &queues {
        let _ = ground.broker.publish(parcel(message(queue.name.clone()), queue)).await.unwrap();
    }
    for queue in &queues {
        let mut deliveries = ground.broker.consume(queue, 10);
        assert_eq!(settle_next(&ground.store, &mut deliveries).await, queue.name);
        assert_eq!(deliveries.stop().await.len(), 0);
    }
}

async fn its_version_is_a_version(ground: Ground) {
    let version = ground.broker.version().await.unwrap();
    let number = version.split(' ').next_back().unwrap_or_default();
    let parts: Vec<_> = number.split('.').collect();
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    assert!(parts.len() > 1 && parts.iter().take(2).all(is_number), "{version}");
}

async fn it_is_connected_until_it_is_closed(ground: Ground) {
    assert!(ground.broker.is_connected() && ground.store.is_connected());
    ground.broker.close().await;
    ground.store.close().await;
    assert!(!ground.broker.is_connected(), "the broker's");
    assert!(!ground.store.is_connected(), "the store's");
}

async fn a_closed_broker_takes_nothing(ground: Ground) {
    let mut deliveries = ground.consume(1);
    deliveries.consuming().wait_for(|consuming| *consuming).await.unwrap();
    let waiting = async { deliveries.next().await.is_none() };
    let ((), is_over) = tokio::join!(ground.broker.close(), waiting);
    assert!(is_over, "a message of nobody");
    assert!(ground.broker.publish(parcel(message("late"), &ground.queue)).await.is_err());
    assert!(ground.consume(1).next().await.is_none());
}

async fn what_was_confirmed_outlives_the_process(ground: Ground) {
    let sent = ground.send("a").await;
    let result = ground.finish(&sent.id, "SUCCESS", "done").await;
    ground.broker.close().await;
    ground.store.close().await;
    let later = ground.open().await;
    let delivery = later.broker.consume(&ground.queue, 1).next().await.unwrap();
    assert_eq!((&delivery.message, delivery.redelivered), (&sent, false));
    assert_eq!(later.store.read(&sent.id).await.unwrap(), Some(result));
}

/// As a Celery client does it: to whoever is bound to its fanout exchange.
async fn remote_control_is_heard(ground: Ground) {
    use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions};
    use lapin::{BasicProperties, Connection, ConnectionProperties, ExchangeKind};

    let mut controls = [ground.broker.control("a@here"), ground.broker.control("b@here")];
    let url = ground.config.broker_url.reveal();
    let caller = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = caller.create_channel().await.unwrap();
    let (exchange, fanout) = ("celery.pidbox", ExchangeKind::Fanout);
    let options = ExchangeDeclareOptions::default();
    channel.exchange_declare(exchange.into(), fanout, options, Default::default()).await.unwrap();
    let said = ground.queue.name.clone().into_bytes();
    for control in &mut controls {
        let heard = async { while control.next().await.unwrap().body != said {} };
        // What is said before they listen is lost.
        let saying = async {
            loop {
                let (options, properties) =
                    (BasicPublishOptions::default(), BasicProperties::default());
                let sent =
                    channel.basic_publish(exchange.into(), "".into(), options, &said, properties);
                sent.await.unwrap().await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = heard => {}
            () = saying => {}
        }
    }
}

async fn remote_control_ends_with_the_broker(ground: Ground) {
    let mut control = ground.broker.control("a@here");
    let over = async { while control.next().await.is_some() {} };
    tokio::join!(ground.broker.close(), over);
}
