//! Messages on their way: whole, in order, and settled by whoever has the proof.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use countersign::TaskId;
use countersign::backend::{Capability, Deliveries, Parcel, Queue};
use countersign::protocol::{Message, Properties};
use serde_json::{Value, json};
use tokio::task::yield_now;

use crate::ground::{Ground, eventually, message, parcel, race, settle, settle_next, text};
use crate::holder::Holder;
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_message_arrives_whole),
        promise(a_body_may_be_any_bytes),
        promise(messages_arrive_in_the_order_in_which_they_were_sent),
        promise(what_is_published_at_once_arrives_each_once),
        promise(a_confirm_is_the_proof_for_its_task),
        promise(another_tasks_proof_gives_the_delivery_back),
        promise(what_was_acked_does_not_come_again),
        promise(what_was_acked_early_is_done_with),
        promise(what_is_given_back_comes_again_and_says_so),
        promise(in_whatever_order_they_are_settled_each_comes_until_it_is_acked),
        promise(no_more_than_the_prefetch_is_in_our_hands),
        promise(a_higher_priority_comes_first),
        promise(a_delayed_message_does_not_come_before_its_time),
        promise(delays_of_one_queue_do_not_hold_each_other_up),
        promise(fetching_takes_the_head_and_puts_it_back_where_it_was),
        promise(what_was_fetched_and_acked_is_gone),
        promise(stopping_returns_what_was_prefetched),
        promise(next_may_be_dropped),
        promise(one_sends_and_another_takes).needs(Capability::SeveralProcesses),
        promise(two_who_consume_share_each_message_once).needs(Capability::SeveralProcesses),
        promise(what_a_closed_process_left_comes_to_another).needs(Capability::SeveralProcesses),
        promise(what_a_killed_process_held_comes_to_another).needs(Capability::SeveralProcesses),
    ]
}

async fn a_message_arrives_whole(ground: Ground) {
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
        reply_to: some("cs:reply:somebody"),
        expiration: some("3600000"),
        message_id: some("the message"),
        app_id: some("app"),
        user_id: None,
        kind: some("a kind"),
        priority: Some(0),
        timestamp: Some(1_763_000_000),
    };
    let sent = Message { id, headers, body: Bytes::from_static(b"[[], {}, {}]"), properties };
    ground.publish(sent.clone()).await;
    let delivery = ground.consume(1).next().await.unwrap();
    assert_eq!((&delivery.message, delivery.id()), (&sent, &sent.id));
    assert!(!delivery.redelivered);
}

async fn a_body_may_be_any_bytes(ground: Ground) {
    let every: Vec<u8> = (0..=u8::MAX).collect();
    let large: Vec<u8> = every.iter().copied().cycle().take(3 << 20).collect();
    let bodies = [Vec::new(), every, large, b"\0".to_vec()];
    for body in &bodies {
        ground.publish(message(body.clone())).await;
    }
    let mut deliveries = ground.consume(1);
    for body in &bodies {
        let delivery = deliveries.next().await.unwrap();
        assert!(delivery.message.body == *body, "{} bytes are others", body.len());
        settle(&ground.store, delivery);
    }
}

async fn messages_arrive_in_the_order_in_which_they_were_sent(ground: Ground) {
    let mut deliveries = ground.consume(10);
    for n in 0..50 {
        ground.send(&n.to_string()).await;
    }
    for n in 0..50 {
        assert_eq!(settle_next(&ground.store, &mut deliveries).await, n.to_string());
    }
}

async fn what_is_published_at_once_arrives_each_once(ground: Ground) {
    let Ground { broker, store, queue, .. } = &ground;
    let published = race(200, |n| {
        let (broker, parcel) = (broker.clone(), parcel(message(n.to_string()), queue));
        async move { broker.publish(parcel).await.is_ok() }
    });
    assert!(published.await.into_iter().all(|is_ok| is_ok));
    let mut deliveries = ground.consume(64);
    let mut arrived = HashSet::new();
    for _ in 0..200 {
        assert!(arrived.insert(settle_next(store, &mut deliveries).await), "twice");
    }
    assert_eq!(deliveries.stop().await.len(), 0);
    ground.until_ready(0).await;
}

async fn a_confirm_is_the_proof_for_its_task(ground: Ground) {
    let mut deliveries = ground.consume(1);
    let first = ground.send("first").await;
    let delivery = deliveries.next().await.unwrap();
    // A copy of it goes elsewhere: then it may be acked.
    let copy = parcel(first.clone(), &ground.queue.dead());
    let proof = ground.broker.publish(copy).await.unwrap();
    let _ = delivery.ack(proof).unwrap();
    ground.send("second").await;
    assert_eq!(settle_next(&ground.store, &mut deliveries).await, "second");
}

async fn another_tasks_proof_gives_the_delivery_back(ground: Ground) {
    let sent = ground.send("a").await;
    let mut delivery = ground.consume(1).next().await.unwrap();
    let other = || ground.store.ignore(&TaskId::random());
    assert!(!delivery.ack_early(&other()));
    let delivery = delivery.ack(other()).unwrap_err();
    assert_eq!(delivery.message, sent);
    settle(&ground.store, *delivery);
    eventually("it is gone", async || is_empty(&ground).await).await;
}

async fn what_was_acked_does_not_come_again(ground: Ground) {
    ground.send("a").await;
    let mut deliveries = ground.consume(1);
    assert_eq!(settle_next(&ground.store, &mut deliveries).await, "a");
    assert_eq!(deliveries.stop().await.len(), 0);
    eventually("it is gone", async || is_empty(&ground).await).await;
    ground.send("b").await;
    assert_eq!(settle_next(&ground.store, &mut ground.consume(1)).await, "b");
}

async fn what_was_acked_early_is_done_with(ground: Ground) {
    ground.send("a").await;
    let mut deliveries = ground.consume(1);
    let mut delivery = deliveries.next().await.unwrap();
    let proof = ground.store.ignore(delivery.id());
    assert!(delivery.ack_early(&proof));
    assert_eq!(text(&delivery), "a");
    drop(delivery);
    ground.send("b").await;
    assert_eq!(settle_next(&ground.store, &mut deliveries).await, "b");
}

async fn what_is_given_back_comes_again_and_says_so(ground: Ground) {
    let sent = ground.send("a").await;
    let mut deliveries = ground.consume(1);
    let first = deliveries.next().await.unwrap();
    assert!(!first.redelivered);
    drop(first);
    let second = deliveries.next().await.unwrap();
    assert_eq!((&second.message, second.redelivered), (&sent, true));
    let _ = second.release();
    let third = deliveries.next().await.unwrap();
    assert_eq!((&third.message, third.redelivered), (&sent, true));
}

async fn in_whatever_order_they_are_settled_each_comes_until_it_is_acked(ground: Ground) {
    const COUNT: usize = 40;
    for n in 0..COUNT {
        ground.send(&n.to_string()).await;
    }
    let mut deliveries = ground.consume(10);
    let (mut held, mut settled) = (Vec::new(), HashSet::new());
    while settled.len() < COUNT {
        held.push(deliveries.next().await.unwrap());
        if held.len() < 5 && settled.len() + held.len() < COUNT {
            continue;
        }
        // The last first; and some only the second time.
        for delivery in held.drain(..).rev() {
            let n: usize = text(&delivery).parse().unwrap();
            if n.is_multiple_of(3) && !delivery.redelivered {
                drop(delivery);
            } else {
                assert!(settled.insert(n), "{n} comes after it was acked");
                settle(&ground.store, delivery);
            }
        }
    }
    drop(deliveries.stop().await);
    eventually("all are gone", async || is_empty(&ground).await).await;
}

/// Whoever had more of them would have left nothing to the other.
async fn no_more_than_the_prefetch_is_in_our_hands(ground: Ground) {
    for body in ["a", "b", "c", "d", "e"] {
        ground.send(body).await;
    }
    let mut few = ground.consume(2);
    let held = [few.next().await.unwrap(), few.next().await.unwrap()];
    let mut many = ground.consume(100);
    for body in ["c", "d", "e"] {
        assert_eq!(settle_next(&ground.store, &mut many).await, body);
    }
    drop(many.stop().await);
    ground.send("f").await;
    ground.send("g").await;
    ground.until_ready(2).await;
    let [first, _second] = held;
    settle(&ground.store, first);
    assert_eq!(text(&few.next().await.unwrap()), "f");
}

async fn a_higher_priority_comes_first(ground: Ground) {
    let queue = Queue { max_priority: Some(10), ..ground.queue.clone() };
    for (n, priority) in [(0, 0), (1, 5), (2, 9), (3, 5), (4, 1)] {
        let mut message = message(n.to_string());
        message.properties.priority = Some(priority);
        let _ = ground.broker.publish(parcel(message, &queue)).await.unwrap();
    }
    ground.until_ready(5).await;
    let mut deliveries = ground.broker.consume(&queue, 1);
    for n in ["2", "1", "3", "4", "0"] {
        assert_eq!(settle_next(&ground.store, &mut deliveries).await, n);
    }
}

async fn delayed(ground: &Ground, body: &str, delay: Duration) {
    let parcel = parcel(message(body.to_owned()), &ground.queue);
    let _ = ground.broker.publish(Parcel { delay: Some(delay), ..parcel }).await.unwrap();
}

async fn a_delayed_message_does_not_come_before_its_time(ground: Ground) {
    let mut deliveries = ground.consume(1);
    for milliseconds in [30, 400, 1000] {
        let (begun, delay) = (Instant::now(), Duration::from_millis(milliseconds));
        delayed(&ground, "late", delay).await;
        assert_eq!(settle_next(&ground.store, &mut deliveries).await, "late");
        // Clocks count whole milliseconds.
        assert!(begun.elapsed() + Duration::from_millis(1) >= delay, "{delay:?}");
    }
}

async fn delays_of_one_queue_do_not_hold_each_other_up(ground: Ground) {
    delayed(&ground, "tomorrow", Duration::from_secs(24 * 3600)).await;
    delayed(&ground, "later", Duration::from_secs(1)).await;
    delayed(&ground, "soon", Duration::from_millis(100)).await;
    ground.send("now").await;
    let mut deliveries = ground.consume(1);
    let mut arrived = HashSet::new();
    for _ in 0..3 {
        arrived.insert(settle_next(&ground.store, &mut deliveries).await);
    }
    assert_eq!(arrived, ["now", "soon", "later"].map(str::to_owned).into());
}

async fn is_empty(ground: &Ground) -> bool {
    let (fetched, flushed) = ground.broker.fetch(&ground.queue.name, 1).await.unwrap();
    let is_empty = fetched.is_empty();
    drop(fetched);
    flushed.wait().await;
    is_empty
}

async fn fetching_takes_the_head_and_puts_it_back_where_it_was(ground: Ground) {
    for n in 0..5 {
        ground.send(&n.to_string()).await;
    }
    for (count, found) in [(3, 3), (0, 0), (10, 5)] {
        let (fetched, flushed) = ground.broker.fetch(&ground.queue.name, count).await.unwrap();
        let bodies: Vec<_> = fetched.iter().map(text).collect();
        assert_eq!(bodies, ["0", "1", "2", "3", "4"][..found]);
        drop(fetched);
        flushed.wait().await;
    }
    ground.until_ready(5).await;
    let mut deliveries = ground.consume(1);
    for n in 0..5 {
        assert_eq!(settle_next(&ground.store, &mut deliveries).await, n.to_string());
    }
}

async fn what_was_fetched_and_acked_is_gone(ground: Ground) {
    for n in 0..4 {
        ground.send(&n.to_string()).await;
    }
    let (fetched, flushed) = ground.broker.fetch(&ground.queue.name, 3).await.unwrap();
    for (n, delivery) in fetched.into_iter().enumerate() {
        if n == 1 {
            settle(&ground.store, delivery);
        }
    }
    flushed.wait().await;
    let (left, flushed) = ground.broker.fetch(&ground.queue.name, 10).await.unwrap();
    let shown: Vec<_> = left.iter().map(|it| (text(it), it.redelivered)).collect();
    let wanted = [("0", true), ("2", true), ("3", false)];
    assert_eq!(shown, wanted.map(|(body, redelivered)| (body.to_owned(), redelivered)));
    drop(left);
    flushed.wait().await;
}

async fn stopping_returns_what_was_prefetched(ground: Ground) {
    for n in 0..4 {
        ground.send(&n.to_string()).await;
    }
    let mut deliveries = ground.consume(3);
    let first = deliveries.next().await.unwrap();
    ground.until_ready(1).await;
    let left = deliveries.stop().await;
    assert_eq!(left.iter().map(text).collect::<Vec<_>>(), ["1", "2"]);
    // Nothing is delivered any more, though there is room for it.
    settle(&ground.store, first);
    left.into_iter().for_each(|delivery| settle(&ground.store, delivery));
    let (fetched, _flushed) = ground.broker.fetch(&ground.queue.name, 10).await.unwrap();
    assert_eq!(fetched.iter().map(text).collect::<Vec<_>>(), ["3"]);
}

async fn next_may_be_dropped(ground: Ground) {
    let mut deliveries = ground.consume(2);
    for n in 0..20 {
        ground.send(&n.to_string()).await;
    }
    for n in 0..20 {
        let delivery = loop {
            tokio::select! {
                delivery = deliveries.next() => break delivery.unwrap(),
                () = yield_now() => {}
            }
        };
        assert_eq!(text(&delivery), n.to_string());
        settle(&ground.store, delivery);
    }
}

async fn one_sends_and_another_takes(ground: Ground) {
    let other = ground.open().await;
    let mut theirs = other.broker.consume(&ground.queue, 1);
    theirs.consuming().wait_for(|consuming| *consuming).await.unwrap();
    let sent = ground.send("a").await;
    let delivery = theirs.next().await.unwrap();
    assert_eq!((&delivery.message, delivery.redelivered), (&sent, false));
    settle(&other.store, delivery);
    delayed(&ground, "later", Duration::from_millis(100)).await;
    assert_eq!(settle_next(&other.store, &mut theirs).await, "later");
}

async fn two_who_consume_share_each_message_once(ground: Ground) {
    const COUNT: usize = 60;
    let other = ground.open().await;
    let (mut ours, mut theirs) = (ground.consume(1), other.broker.consume(&ground.queue, 1));
    for n in 0..COUNT {
        ground.send(&n.to_string()).await;
    }
    // While each holds its first, neither is given more.
    let firsts = [ours.next().await, theirs.next().await];
    let mut taken: HashSet<_> = firsts.map(|delivery| settled(&ground, delivery)).into();
    assert_eq!(taken.len(), 2, "twice");
    while taken.len() < COUNT {
        let delivery = tokio::select! {
            delivery = ours.next() => delivery,
            delivery = theirs.next() => delivery,
        };
        assert!(taken.insert(settled(&ground, delivery)), "twice");
    }
}

fn settled(ground: &Ground, delivery: Option<countersign::backend::Delivery>) -> String {
    let delivery = delivery.unwrap();
    assert!(!delivery.redelivered);
    let body = text(&delivery);
    settle(&ground.store, delivery);
    body
}

async fn what_a_closed_process_left_comes_to_another(ground: Ground) {
    let other = ground.open().await;
    let sent = [ground.send("a").await, ground.send("b").await];
    let mut theirs: Deliveries = other.broker.consume(&ground.queue, 2);
    let held = theirs.next().await.unwrap();
    ground.until_ready(0).await;
    drop((held, theirs));
    other.broker.close().await;
    other.store.close().await;
    let mut ours = ground.consume(2);
    let came = [ours.next().await.unwrap(), ours.next().await.unwrap()];
    let ids: HashSet<_> = came.iter().map(|delivery| delivery.id().clone()).collect();
    assert_eq!(ids, sent.map(|message| message.id).into());
}

async fn what_a_killed_process_held_comes_to_another(ground: Ground) {
    let sent = ground.send("a").await;
    let holder = Holder::start(&ground.config, &ground.queue.name).await;
    holder.kill().await;
    let delivery = ground.consume(1).next().await.unwrap();
    assert_eq!((&delivery.message, delivery.redelivered), (&sent, true));
}
