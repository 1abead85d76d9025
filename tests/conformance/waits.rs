//! Who waits for a result is told of it, whenever it comes.

use std::sync::Arc;
use std::time::Duration;

use countersign::backend::{Capability, Finish, Origin, Store};
use countersign::protocol::{Document, PARKED};
use countersign::{Error, TaskId};
use tokio::sync::oneshot;

use crate::ground::{Ground, PATIENCE, document, finish, race};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(who_waits_before_is_told),
        promise(who_comes_after_is_told),
        promise(who_comes_meanwhile_is_told),
        promise(every_terminal_state_ends_a_wait_and_no_other),
        promise(many_wait_for_one_task),
        promise(one_waits_for_many_tasks),
        promise(a_wait_ends_with_its_timeout_and_the_others_go_on),
        promise(a_wait_that_is_dropped_leaves_the_others_alone),
        promise(a_wait_may_be_awaited_on_any_executor),
        promise(closing_ends_every_wait),
        promise(a_result_of_one_is_heard_by_another).needs(Capability::SeveralProcesses),
        promise(a_result_comes_back_to_who_sent_the_task).needs(Capability::SeveralProcesses),
    ]
}

const ORIGINS: [Origin; 2] = [Origin::Own, Origin::Foreign];

type Wait = oneshot::Receiver<Result<Box<Document>, Error>>;

fn watch(store: &Arc<dyn Store>, id: &TaskId, origin: Origin) -> Wait {
    store.watch(id.clone(), origin, Some(PATIENCE))
}

async fn told(wait: Wait) -> Document {
    *wait.await.unwrap().unwrap()
}

/// Finishes a task of this process's own.
async fn reply(store: &Arc<dyn Store>, to: &str, document: &Document) {
    let finish =
        Finish { document: document.clone(), reply_to: Some(to.to_owned()), received: None };
    let _ = store.finish(finish).await.unwrap();
}

async fn who_waits_before_is_told(ground: Ground) {
    let Ground { store, .. } = &ground;
    for origin in ORIGINS {
        let id = TaskId::random();
        let wait = watch(store, &id, origin);
        let stored = document(&id, "SUCCESS", "done");
        reply(store, store.reply_channel(), &stored).await;
        assert_eq!(told(wait).await, stored, "{origin:?}");
    }
}

async fn who_comes_after_is_told(ground: Ground) {
    let Ground { store, .. } = &ground;
    for origin in ORIGINS {
        let id = TaskId::random();
        let stored = document(&id, "SUCCESS", "done");
        reply(store, store.reply_channel(), &stored).await;
        for _ in 0..2 {
            assert_eq!(told(watch(store, &id, origin)).await, stored, "{origin:?}");
        }
    }
}

async fn who_comes_meanwhile_is_told(ground: Ground) {
    race(200, |n| {
        let (store, id) = (ground.store.clone(), TaskId::random());
        async move {
            let stored = document(&id, "SUCCESS", "done");
            let channel = store.reply_channel().to_owned();
            let ending = reply(&store, &channel, &stored);
            let waiting = async {
                for _ in 0..n % 7 {
                    tokio::task::yield_now().await;
                }
                told(watch(&store, &id, ORIGINS[n % 2])).await
            };
            let ((), found) = tokio::join!(ending, waiting);
            assert_eq!(found, stored);
        }
    })
    .await;
}

async fn every_terminal_state_ends_a_wait_and_no_other(ground: Ground) {
    let Ground { store, .. } = &ground;
    for end in ["SUCCESS", "FAILURE", "REVOKED"] {
        let id = TaskId::random();
        let waits = ORIGINS.map(|origin| watch(store, &id, origin));
        for state in ["STARTED", "RETRY", PARKED, end] {
            reply(store, store.reply_channel(), &document(&id, state, "")).await;
        }
        for wait in waits {
            assert_eq!(told(wait).await, document(&id, end, ""));
        }
    }
}

async fn many_wait_for_one_task(ground: Ground) {
    let Ground { store, .. } = &ground;
    let id = TaskId::random();
    let waits: Vec<_> = (0..500).map(|n| watch(store, &id, ORIGINS[n % 2])).collect();
    let stored = document(&id, "SUCCESS", "done");
    reply(store, store.reply_channel(), &stored).await;
    for wait in waits {
        assert_eq!(told(wait).await, stored);
    }
}

async fn one_waits_for_many_tasks(ground: Ground) {
    let Ground { store, .. } = &ground;
    let ids: Vec<_> = (0..500).map(|_| TaskId::random()).collect();
    let wait = |(n, id)| watch(store, id, ORIGINS[n % 2]);
    let waits: Vec<_> = ids.iter().enumerate().map(wait).collect();
    race(ids.len(), |n| {
        let (store, id) = (store.clone(), ids[n].clone());
        async move { finish(&store, &id, "SUCCESS", &n.to_string()).await }
    })
    .await;
    for (n, (wait, id)) in waits.into_iter().zip(&ids).enumerate() {
        assert_eq!(told(wait).await, document(id, "SUCCESS", &n.to_string()));
    }
}

async fn a_wait_ends_with_its_timeout_and_the_others_go_on(ground: Ground) {
    let Ground { store, .. } = &ground;
    for origin in ORIGINS {
        let id = TaskId::random();
        let long = watch(store, &id, origin);
        let short = store.watch(id.clone(), origin, Some(Duration::from_millis(30)));
        let none = store.watch(TaskId::random(), origin, Some(Duration::ZERO));
        for wait in [short, none] {
            let error = wait.await.unwrap().unwrap_err();
            assert!(error.is_timeout(), "{error}");
        }
        let stored = ground.finish(&id, "SUCCESS", "done").await;
        assert_eq!(told(long).await, stored);
    }
}

async fn a_wait_that_is_dropped_leaves_the_others_alone(ground: Ground) {
    let Ground { store, .. } = &ground;
    for origin in ORIGINS {
        let id = TaskId::random();
        let [first, second, third] = [origin; 3].map(|origin| watch(store, &id, origin));
        drop((first, third));
        let stored = ground.finish(&id, "SUCCESS", "done").await;
        assert_eq!(told(second).await, stored);
    }
}

async fn a_wait_may_be_awaited_on_any_executor(ground: Ground) {
    let id = TaskId::random();
    let wait = watch(&ground.store, &id, Origin::Foreign);
    let elsewhere = std::thread::spawn(move || futures_executor::block_on(told(wait)));
    let stored = ground.finish(&id, "SUCCESS", "done").await;
    let found = tokio::task::spawn_blocking(move || elsewhere.join().unwrap()).await.unwrap();
    assert_eq!(found, stored);
}

async fn closing_ends_every_wait(ground: Ground) {
    let Ground { store, .. } = &ground;
    let endless = |origin| store.watch(TaskId::random(), origin, None);
    let waits = ORIGINS.map(endless);
    store.close().await;
    for wait in waits.into_iter().chain(ORIGINS.map(endless)) {
        let error = wait.await.unwrap().unwrap_err();
        assert!(!error.is_timeout(), "{error}");
    }
}

async fn a_result_of_one_is_heard_by_another(ground: Ground) {
    let other = ground.open().await;
    let id = TaskId::random();
    let waits =
        [watch(&other.store, &id, Origin::Foreign), watch(&ground.store, &id, Origin::Foreign)];
    let stored = ground.finish(&id, "SUCCESS", "done").await;
    for wait in waits {
        assert_eq!(told(wait).await, stored);
    }
    assert_eq!(told(watch(&other.store, &id, Origin::Foreign)).await, stored);
}

async fn a_result_comes_back_to_who_sent_the_task(ground: Ground) {
    let worker = ground.open().await;
    let channel = ground.store.reply_channel();
    let ids: Vec<_> = (0..50).map(|_| TaskId::random()).collect();
    let waits: Vec<_> = ids.iter().map(|id| watch(&ground.store, id, Origin::Own)).collect();
    for (id, wait) in ids.iter().zip(waits) {
        let stored = document(id, "SUCCESS", "done");
        reply(&worker.store, channel, &stored).await;
        assert_eq!(told(wait).await, stored);
    }
}
