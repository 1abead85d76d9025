//! Forgetting tasks: nothing of one that has ended is left, and nothing of another one is deleted.

use countersign::TaskId;
use countersign::backend::{Crashes, Forget, Line, Said, Scope, Taken};
use countersign::protocol::{PARKED, State, Ticket, TicketKind};

use crate::ground::{Ground, HOUR, run};
use crate::parks::parked;
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![promise(a_forgotten_task_leaves_nothing), promise(a_task_that_may_run_is_not_forgotten)]
}

async fn a_forgotten_task_leaves_nothing(ground: Ground) {
    let Ground { store, .. } = &ground;
    let asker = parked(&ground).await;
    let id = asker.id();
    let run = run("one");
    store.record(id, &run, "s", "1".into()).await.unwrap();
    let line = Line { scope: Scope::Body, number: 1, said: Said::Output, json: "1".into() };
    store.append(id, &run, line).await.unwrap();
    for attempt in [1, 2, 3] {
        assert!(store.take(id, &run.digest, attempt).await.unwrap());
    }
    store.note_run(id, true).await.unwrap();
    assert_eq!(store.forget(id).await.unwrap(), Forget::Unfinished(Some(State::named(PARKED))));
    ground.finish(id, "FAILURE", "").await;
    assert_eq!(store.forget(id).await.unwrap(), Forget::Unfinished(Some(State::named(PARKED))));
    assert_eq!(store.kept(id, None).await.unwrap().steps.len(), 1, "nothing was deleted");
    store.end_parked(id, Some(&run.digest)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.forget(id).await.unwrap(), Forget::Forgotten);
        assert!(store.read(id).await.unwrap().is_none());
        let kept = store.kept(id, None).await.unwrap();
        assert!(kept.steps.is_empty() && kept.streamed.is_empty());
        assert_eq!(store.entries(id, 0).await.unwrap(), []);
        assert_eq!(store.crashes(id).await.unwrap(), Crashes::default());
    }
    assert!(store.take(id, &run.digest, 3).await.unwrap());
    // Late messages of it are told from the same message that is sent anew.
    let late = store
        .take_parked(id, Ticket { kind: TicketKind::Wake, number: 1 }, Some(&run.digest), "b", HOUR)
        .await
        .unwrap();
    assert!(matches!(late, Taken::Over(_)), "{late:?}");
    let first = Ticket { kind: TicketKind::Original, number: 0 };
    let anew = store.take_parked(id, first, Some(&run.digest), "b", HOUR).await.unwrap();
    assert!(matches!(anew, Taken::Unclaimed), "{anew:?}");
    let begun = store.begin_park(id, &run.digest, false, "b", HOUR).await.unwrap();
    assert!(matches!(begun, Taken::Claimed { number: 2, .. }), "{begun:?}");
}

async fn a_task_that_may_run_is_not_forgotten(ground: Ground) {
    let Ground { store, .. } = &ground;
    let id = TaskId::random();
    store.record(&id, &run("one"), "s", "1".into()).await.unwrap();
    assert_eq!(store.forget(&id).await.unwrap(), Forget::Unfinished(None));
    ground.finish(&id, "RETRY", "").await;
    assert_eq!(store.forget(&id).await.unwrap(), Forget::Unfinished(Some(State::named("RETRY"))));
    ground.finish(&id, "REVOKED", "").await;
    assert_eq!(store.forget(&id).await.unwrap(), Forget::Forgotten);
    assert_eq!(store.forget(&TaskId::random()).await.unwrap(), Forget::Forgotten);
}
