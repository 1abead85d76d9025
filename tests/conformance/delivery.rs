//! Messages in transit: unchanged, in order, and settled only with a proof.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use countersign::TaskId;
use countersign::backend::{Capability, Deliveries, Expiry, PublishRequest, Queue};
use countersign::config::QueueType;
use countersign::protocol::{Message, Properties};
use serde_json::{Value, json};
use tokio::task::yield_now;

use crate::case::{Case, case};
use crate::child_consumer::ChildConsumer;
use crate::fixture::{
    Fixture, eventually, message, publish_request, race, settle, settle_next, text,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_message_arrives_complete),
        case(a_body_may_be_any_bytes),
        case(messages_arrive_in_order),
        case(concurrently_published_messages_arrive_once_each),
        case(a_confirm_is_the_proof_for_its_task),
        case(the_proof_of_another_task_returns_the_delivery),
        case(an_acked_message_is_not_redelivered),
        case(an_early_acked_message_is_not_redelivered),
        case(a_requeued_message_is_redelivered_and_marked),
        case(messages_are_redelivered_until_acked_in_any_order),
        case(unsettled_deliveries_are_limited_by_the_prefetch),
        case(a_higher_priority_comes_first),
        case(a_delayed_message_does_not_come_before_its_time),
        case(delays_of_one_queue_do_not_block_each_other),
        case(an_expired_message_moves_to_the_other_queue),
        case(fetched_messages_return_to_the_head_of_the_queue),
        case(a_fetched_and_acked_message_is_gone),
        case(stopping_returns_the_prefetched_messages),
        case(next_is_cancel_safe),
        case(another_process_receives_a_message).needs(Capability::SeveralProcesses),
        case(two_consumers_get_each_message_once).needs(Capability::SeveralProcesses),
        case(messages_of_a_closed_process_are_redelivered).needs(Capability::SeveralProcesses),
        case(messages_of_a_killed_process_are_redelivered).needs(Capability::SeveralProcesses),
    ]
}

async fn a_message_arrives_complete(fixture: Fixture) {
    let id = TaskId::random();
    let Value::Object(headers) = json!({
        "id": id, "task": "billing.refund", "retries": 3, "big": 1_u64 << 40, "less": -7,
        "timelimit": [null, 2.5], "stamps": {"a": ["b", true, false]}, "none": null,
        "grüße": "日本\n\u{0}\"'", "empty": "", "list": [], "table": {},
    }) else {
        unreachable!()
    };
    let some = |text: &str| Some(text.to_owned());
    let properties = Properties {
        content_type: some("application/json"),
        content_encoding: some("utf-8"),
        correlation_id: some("correlated"),
        reply_to: some("cs:reply:another"),
        expiration: some("3600000"),
        message_id: some("the message"),
        app_id: some("app"),
        user_id: None,
        kind: some("a kind"),
        priority: Some(0),
        timestamp: Some(1_763_000_000),
    };
    let sent = Message {
        id,
        headers: headers.into(),
        body: Bytes::from_static(b"[[], {}, {}]"),
        properties,
    };
    fixture.publish(sent.clone()).await;
    let delivery = fixture.consume(1).next().await.unwrap();
    assert_eq!((&delivery.message, delivery.id()), (&sent, &sent.id));
    assert!(!delivery.redelivered);
}

async fn a_body_may_be_any_bytes(fixture: Fixture) {
    let every: Vec<u8> = (0..=u8::MAX).collect();
    let large: Vec<u8> = every.iter().copied().cycle().take(3 << 20).collect();
    let bodies = [Vec::new(), every, large, b"\0".to_vec()];
    for body in &bodies {
        fixture.publish(message(body.clone())).await;
    }
    let mut deliveries = fixture.consume(1);
    for body in &bodies {
        let delivery = deliveries.next().await.unwrap();
        assert!(delivery.message.body == *body, "{} bytes differ", body.len());
        settle(&fixture.store, delivery);
    }
}

async fn messages_arrive_in_order(fixture: Fixture) {
    let mut deliveries = fixture.consume(10);
    for n in 0..50 {
        fixture.send(&n.to_string()).await;
    }
    for n in 0..50 {
        assert_eq!(settle_next(&fixture.store, &mut deliveries).await, n.to_string());
    }
}

async fn concurrently_published_messages_arrive_once_each(fixture: Fixture) {
    let Fixture { broker, store, queue, .. } = &fixture;
    let published = race(200, |n| {
        let (broker, request) = (broker.clone(), publish_request(message(n.to_string()), queue));
        async move { broker.publish(request).await.is_ok() }
    });
    assert!(published.await.into_iter().all(|is_ok| is_ok));
    let mut deliveries = fixture.consume(64);
    let mut arrived = HashSet::new();
    for _ in 0..200 {
        assert!(arrived.insert(settle_next(store, &mut deliveries).await), "twice");
    }
    assert_eq!(deliveries.stop().await.len(), 0);
    fixture.until_ready(0).await;
}

async fn a_confirm_is_the_proof_for_its_task(fixture: Fixture) {
    let mut deliveries = fixture.consume(1);
    let first = fixture.send("first").await;
    let delivery = deliveries.next().await.unwrap();
    // A copy is published to another queue: its confirm allows the ack.
    let copy = publish_request(first.clone(), &fixture.queue.dead());
    let proof = fixture.broker.publish(copy).await.unwrap();
    let _ = delivery.ack(proof).unwrap();
    fixture.send("second").await;
    assert_eq!(settle_next(&fixture.store, &mut deliveries).await, "second");
}

async fn the_proof_of_another_task_returns_the_delivery(fixture: Fixture) {
    let sent = fixture.send("a").await;
    let mut delivery = fixture.consume(1).next().await.unwrap();
    let other = || fixture.store.ignore_result(&TaskId::random());
    assert!(!delivery.ack_early(&other()));
    let delivery = delivery.ack(other()).unwrap_err();
    assert_eq!(delivery.message, sent);
    settle(&fixture.store, *delivery);
    eventually("the message is gone", async || is_empty(&fixture).await).await;
}

async fn an_acked_message_is_not_redelivered(fixture: Fixture) {
    fixture.send("a").await;
    let mut deliveries = fixture.consume(1);
    assert_eq!(settle_next(&fixture.store, &mut deliveries).await, "a");
    assert_eq!(deliveries.stop().await.len(), 0);
    eventually("the message is gone", async || is_empty(&fixture).await).await;
    fixture.send("b").await;
    assert_eq!(settle_next(&fixture.store, &mut fixture.consume(1)).await, "b");
}

async fn an_early_acked_message_is_not_redelivered(fixture: Fixture) {
    fixture.send("a").await;
    let mut deliveries = fixture.consume(1);
    let mut delivery = deliveries.next().await.unwrap();
    let proof = fixture.store.ignore_result(delivery.id());
    assert!(delivery.ack_early(&proof));
    assert_eq!(text(&delivery), "a");
    drop(delivery);
    fixture.send("b").await;
    assert_eq!(settle_next(&fixture.store, &mut deliveries).await, "b");
}

async fn a_requeued_message_is_redelivered_and_marked(fixture: Fixture) {
    let sent = fixture.send("a").await;
    let mut deliveries = fixture.consume(1);
    let first = deliveries.next().await.unwrap();
    assert!(!first.redelivered);
    drop(first);
    let second = deliveries.next().await.unwrap();
    assert_eq!((&second.message, second.redelivered), (&sent, true));
    let _ = second.release();
    let third = deliveries.next().await.unwrap();
    assert_eq!((&third.message, third.redelivered), (&sent, true));
}

async fn messages_are_redelivered_until_acked_in_any_order(fixture: Fixture) {
    const COUNT: usize = 40;
    for n in 0..COUNT {
        fixture.send(&n.to_string()).await;
    }
    let mut deliveries = fixture.consume(10);
    let (mut held, mut settled) = (Vec::new(), HashSet::new());
    while settled.len() < COUNT {
        held.push(deliveries.next().await.unwrap());
        if held.len() < 5 && settled.len() + held.len() < COUNT {
            continue;
        }
        // The last one first; and some only after their redelivery.
        for delivery in held.drain(..).rev() {
            let n: usize = text(&delivery).parse().unwrap();
            if n.is_multiple_of(3) && !delivery.redelivered {
                drop(delivery);
            } else {
                assert!(settled.insert(n), "{n} was redelivered after its ack");
                settle(&fixture.store, delivery);
            }
        }
    }
    drop(deliveries.stop().await);
    eventually("all messages are gone", async || is_empty(&fixture).await).await;
}

/// If a consumer held more of them, none would be left for the other.
async fn unsettled_deliveries_are_limited_by_the_prefetch(fixture: Fixture) {
    for body in ["a", "b", "c", "d", "e"] {
        fixture.send(body).await;
    }
    let mut few = fixture.consume(2);
    let held = [few.next().await.unwrap(), few.next().await.unwrap()];
    let mut many = fixture.consume(100);
    for body in ["c", "d", "e"] {
        assert_eq!(settle_next(&fixture.store, &mut many).await, body);
    }
    drop(many.stop().await);
    fixture.send("f").await;
    fixture.send("g").await;
    fixture.until_ready(2).await;
    let [first, _second] = held;
    settle(&fixture.store, first);
    assert_eq!(text(&few.next().await.unwrap()), "f");
}

async fn a_higher_priority_comes_first(fixture: Fixture) {
    let queue = Queue { max_priority: Some(10), ..fixture.queue.clone() };
    for (n, priority) in [(0, 0), (1, 5), (2, 9), (3, 5), (4, 1)] {
        let mut message = message(n.to_string());
        message.properties.priority = Some(priority);
        let _ = fixture.broker.publish(publish_request(message, &queue)).await.unwrap();
    }
    fixture.until_ready(5).await;
    let mut deliveries = fixture.broker.consume(&queue, 1);
    for n in ["2", "1", "3", "4", "0"] {
        assert_eq!(settle_next(&fixture.store, &mut deliveries).await, n);
    }
}

async fn delayed(fixture: &Fixture, body: &str, delay: Duration) {
    let request = publish_request(message(body.to_owned()), &fixture.queue);
    let _ = fixture.broker.publish(PublishRequest { delay: Some(delay), ..request }).await.unwrap();
}

async fn a_delayed_message_does_not_come_before_its_time(fixture: Fixture) {
    let mut deliveries = fixture.consume(1);
    for milliseconds in [30, 400, 1000] {
        let (begun, delay) = (Instant::now(), Duration::from_millis(milliseconds));
        delayed(&fixture, "late", delay).await;
        assert_eq!(settle_next(&fixture.store, &mut deliveries).await, "late");
        // Clocks count whole milliseconds.
        assert!(begun.elapsed() + Duration::from_millis(1) >= delay, "{delay:?}");
    }
}

async fn an_expired_message_moves_to_the_other_queue(fixture: Fixture) {
    let after = Duration::from_millis(300);
    let expiry = Some(Expiry { after, to: Box::new(fixture.queue.clone()) });
    let name = format!("{}.waiting", fixture.queue.name);
    let waiting = Queue { expiry, kind: QueueType::Quorum, ..Queue::new(name) };
    let begun = Instant::now();
    for body in ["a", "b"] {
        let request = publish_request(message(body), &waiting);
        let request = PublishRequest { delay: Some(after), ..request };
        let _ = fixture.broker.publish(request).await.unwrap();
    }
    let mut deliveries = fixture.consume(10);
    for body in ["a", "b"] {
        assert_eq!(settle_next(&fixture.store, &mut deliveries).await, body);
    }
    assert!(begun.elapsed() + Duration::from_millis(1) >= after, "early");
}

async fn delays_of_one_queue_do_not_block_each_other(fixture: Fixture) {
    delayed(&fixture, "tomorrow", Duration::from_secs(24 * 3600)).await;
    delayed(&fixture, "later", Duration::from_secs(1)).await;
    delayed(&fixture, "soon", Duration::from_millis(100)).await;
    fixture.send("now").await;
    let mut deliveries = fixture.consume(1);
    let mut arrived = HashSet::new();
    for _ in 0..3 {
        arrived.insert(settle_next(&fixture.store, &mut deliveries).await);
    }
    assert_eq!(arrived, ["now", "soon", "later"].map(str::to_owned).into());
}

async fn is_empty(fixture: &Fixture) -> bool {
    let (fetched, flushed) = fixture.broker.fetch(&fixture.queue.name, 1).await.unwrap();
    let is_empty = fetched.is_empty();
    drop(fetched);
    flushed.wait().await;
    is_empty
}

async fn fetched_messages_return_to_the_head_of_the_queue(fixture: Fixture) {
    for n in 0..5 {
        fixture.send(&n.to_string()).await;
    }
    for (count, found) in [(3, 3), (0, 0), (10, 5)] {
        let (fetched, flushed) = fixture.broker.fetch(&fixture.queue.name, count).await.unwrap();
        let bodies: Vec<_> = fetched.iter().map(text).collect();
        assert_eq!(bodies, ["0", "1", "2", "3", "4"][..found]);
        drop(fetched);
        flushed.wait().await;
    }
    fixture.until_ready(5).await;
    let mut deliveries = fixture.consume(1);
    for n in 0..5 {
        assert_eq!(settle_next(&fixture.store, &mut deliveries).await, n.to_string());
    }
}

async fn a_fetched_and_acked_message_is_gone(fixture: Fixture) {
    for n in 0..4 {
        fixture.send(&n.to_string()).await;
    }
    let (fetched, flushed) = fixture.broker.fetch(&fixture.queue.name, 3).await.unwrap();
    for (n, delivery) in fetched.into_iter().enumerate() {
        if n == 1 {
            settle(&fixture.store, delivery);
        }
    }
    flushed.wait().await;
    let (left, flushed) = fixture.broker.fetch(&fixture.queue.name, 10).await.unwrap();
    let shown: Vec<_> = left.iter().map(|it| (text(it), it.redelivered)).collect();
    let wanted = [("0", true), ("2", true), ("3", false)];
    assert_eq!(shown, wanted.map(|(body, redelivered)| (body.to_owned(), redelivered)));
    drop(left);
    flushed.wait().await;
}

async fn stopping_returns_the_prefetched_messages(fixture: Fixture) {
    for n in 0..4 {
        fixture.send(&n.to_string()).await;
    }
    let mut deliveries = fixture.consume(3);
    let first = deliveries.next().await.unwrap();
    fixture.until_ready(1).await;
    let left = deliveries.stop().await;
    assert_eq!(left.iter().map(text).collect::<Vec<_>>(), ["1", "2"]);
    // Nothing more is delivered, although the prefetch has room.
    settle(&fixture.store, first);
    left.into_iter().for_each(|delivery| settle(&fixture.store, delivery));
    let (fetched, _flushed) = fixture.broker.fetch(&fixture.queue.name, 10).await.unwrap();
    assert_eq!(fetched.iter().map(text).collect::<Vec<_>>(), ["3"]);
}

async fn next_is_cancel_safe(fixture: Fixture) {
    let mut deliveries = fixture.consume(2);
    for n in 0..20 {
        fixture.send(&n.to_string()).await;
    }
    for n in 0..20 {
        let delivery = loop {
            tokio::select! {
                delivery = deliveries.next() => break delivery.unwrap(),
                () = yield_now() => {}
            }
        };
        assert_eq!(text(&delivery), n.to_string());
        settle(&fixture.store, delivery);
    }
}

async fn another_process_receives_a_message(fixture: Fixture) {
    let other = fixture.open().await;
    let mut theirs = other.broker.consume(&fixture.queue, 1);
    theirs.consuming().wait_for(|consuming| *consuming).await.unwrap();
    let sent = fixture.send("a").await;
    let delivery = theirs.next().await.unwrap();
    assert_eq!((&delivery.message, delivery.redelivered), (&sent, false));
    settle(&other.store, delivery);
    delayed(&fixture, "later", Duration::from_millis(100)).await;
    assert_eq!(settle_next(&other.store, &mut theirs).await, "later");
}

async fn two_consumers_get_each_message_once(fixture: Fixture) {
    const COUNT: usize = 60;
    let other = fixture.open().await;
    let (mut ours, mut theirs) = (fixture.consume(1), other.broker.consume(&fixture.queue, 1));
    for n in 0..COUNT {
        fixture.send(&n.to_string()).await;
    }
    // While each holds its first message, neither receives more.
    let firsts = [ours.next().await, theirs.next().await];
    let mut taken: HashSet<_> = firsts.map(|delivery| settled(&fixture, delivery)).into();
    assert_eq!(taken.len(), 2, "twice");
    while taken.len() < COUNT {
        let delivery = tokio::select! {
            delivery = ours.next() => delivery,
            delivery = theirs.next() => delivery,
        };
        assert!(taken.insert(settled(&fixture, delivery)), "twice");
    }
}

fn settled(fixture: &Fixture, delivery: Option<countersign::backend::Delivery>) -> String {
    let delivery = delivery.unwrap();
    assert!(!delivery.redelivered);
    let body = text(&delivery);
    settle(&fixture.store, delivery);
    body
}

async fn messages_of_a_closed_process_are_redelivered(fixture: Fixture) {
    let other = fixture.open().await;
    let sent = [fixture.send("a").await, fixture.send("b").await];
    let mut theirs: Deliveries = other.broker.consume(&fixture.queue, 2);
    let held = theirs.next().await.unwrap();
    fixture.until_ready(0).await;
    drop((held, theirs));
    other.broker.close().await;
    other.store.close().await;
    let mut ours = fixture.consume(2);
    let came = [ours.next().await.unwrap(), ours.next().await.unwrap()];
    let ids: HashSet<_> = came.iter().map(|delivery| delivery.id().clone()).collect();
    assert_eq!(ids, sent.map(|message| message.id).into());
}

async fn messages_of_a_killed_process_are_redelivered(fixture: Fixture) {
    let sent = fixture.send("a").await;
    let consumer = ChildConsumer::start(&fixture.config, &fixture.queue.name).await;
    consumer.kill().await;
    let delivery = fixture.consume(1).next().await.unwrap();
    assert_eq!((&delivery.message, delivery.redelivered), (&sent, true));
}
