//! What people did, and the seals on it.

use std::sync::Arc;
use std::time::Duration;

use countersign::TaskId;
use countersign::approval::{AuditEntry, Seal, SealKey};
use countersign::backend::{Capability, Deed, Sealing, Store};

use crate::ground::{Ground, HOUR, eventually, race, text};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(what_was_done_is_read_newest_first),
        promise(entries_are_read_on_from_one_oldest_first),
        promise(entries_made_at_once_are_all_there),
        promise(a_noted_deed_is_the_proof_for_its_task),
        promise(seals_form_a_chain),
        promise(a_seal_that_does_not_follow_is_not_added),
        promise(one_at_a_time_may_seal),
        promise(the_right_to_seal_ends),
        promise(what_one_did_another_reads_and_seals).needs(Capability::SeveralProcesses),
    ]
}

fn deed(id: &TaskId, by: &str) -> Deed {
    Deed { what: "purge", id: id.clone(), queue: "q.dead".into(), by: by.into() }
}

async fn note(store: &Arc<dyn Store>, by: &str) {
    let _ = store.audit(deed(&TaskId::from("*"), by)).await.unwrap();
}

fn by(entry: &AuditEntry) -> &str {
    let field = entry.fields.iter().find(|(name, _)| name == "by");
    &field.expect("an entry says who").1
}

fn whose(entries: &[AuditEntry]) -> Vec<&str> {
    entries.iter().map(by).collect()
}

fn key() -> SealKey {
    SealKey::new(&[7; 32]).unwrap()
}

async fn what_was_done_is_read_newest_first(ground: Ground) {
    let Ground { store, .. } = &ground;
    assert_eq!(store.audit_entries(10).await.unwrap(), []);
    let before = store.clock().await.unwrap();
    let id = TaskId::from("an 'odd' {id}\n日本");
    let _ = store.audit(deed(&id, "ana")).await.unwrap();
    note(store, "bob").await;
    note(store, "eve").await;
    let after = store.clock().await.unwrap();
    let entries = store.audit_entries(10).await.unwrap();
    assert_eq!(whose(&entries), ["eve", "bob", "ana"]);
    assert_eq!(whose(&store.audit_entries(2).await.unwrap()), ["eve", "bob"]);
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let wanted = [
        text("what", "purge"),
        text("task", id.as_str()),
        text("queue", "q.dead"),
        text("by", "ana"),
    ];
    assert_eq!(entries[2].fields, wanted);
    assert!(entries.iter().all(|entry| (before..=after).contains(&entry.at)), "{entries:?}");
}

async fn entries_are_read_on_from_one_oldest_first(ground: Ground) {
    let Ground { store, .. } = &ground;
    assert_eq!(store.audit_after(None, 10).await.unwrap(), []);
    for person in ["ana", "bob", "eve", "rita"] {
        note(store, person).await;
    }
    let all = store.audit_after(None, 10).await.unwrap();
    assert_eq!(whose(&all), ["ana", "bob", "eve", "rita"]);
    assert_eq!(store.audit_after(None, 2).await.unwrap(), all[..2]);
    assert_eq!(store.audit_after(Some(&all[0].id), 2).await.unwrap(), all[1..3]);
    assert_eq!(store.audit_after(Some(&all[3].id), 10).await.unwrap(), []);
    note(store, "late").await;
    let new = store.audit_after(Some(&all[3].id), 10).await.unwrap();
    assert_eq!(whose(&new), ["late"]);
}

async fn entries_made_at_once_are_all_there(ground: Ground) {
    race(50, |n| {
        let store = ground.store.clone();
        async move { note(&store, &n.to_string()).await }
    })
    .await;
    let entries = ground.store.audit_after(None, 100).await.unwrap();
    let mut people: Vec<usize> = entries.iter().map(|entry| by(entry).parse().unwrap()).collect();
    people.sort_unstable();
    assert_eq!(people, (0..50).collect::<Vec<_>>());
    let mut backwards = ground.store.audit_entries(100).await.unwrap();
    backwards.reverse();
    assert_eq!(backwards, entries);
    assert!(entries.is_sorted_by_key(|entry| entry.at));
}

async fn a_noted_deed_is_the_proof_for_its_task(ground: Ground) {
    let sent = ground.send("dead").await;
    let mut deliveries = ground.consume(1);
    let delivery = deliveries.next().await.unwrap();
    let _ = delivery.ack(ground.store.audit(deed(&sent.id, "ana")).await.unwrap()).unwrap();
    ground.send("next").await;
    assert_eq!(text(&deliveries.next().await.unwrap()), "next");
}

/// Seals what is new, as the holder of the right.
async fn seal_new(store: &Arc<dyn Store>, last: Option<&Seal>) -> Seal {
    let upto = last.map(|seal| seal.upto.as_str());
    let entries = store.audit_after(upto, 100).await.unwrap();
    let seal = Seal::over(&key(), last, &entries).unwrap();
    let sealed = store.seal("holder", HOUR, Some(seal.clone())).await.unwrap();
    assert_eq!(sealed, Sealing::Yours(Some(seal.clone())));
    seal
}

async fn seals_form_a_chain(ground: Ground) {
    let Ground { store, .. } = &ground;
    assert_eq!(store.newest_seal().await.unwrap(), None);
    assert_eq!(store.seals_after(0, 10).await.unwrap(), []);
    assert_eq!(store.seal("holder", HOUR, None).await.unwrap(), Sealing::Yours(None));
    let mut seals: Vec<Seal> = Vec::new();
    for people in [vec!["ana"], vec!["bob", "eve"], vec!["rita"]] {
        for person in people {
            note(store, person).await;
        }
        seals.push(seal_new(store, seals.last()).await);
        assert_eq!(store.newest_seal().await.unwrap().as_ref(), seals.last());
    }
    assert_eq!(
        seals.iter().map(|seal| (seal.number, seal.count)).collect::<Vec<_>>(),
        [(1, 1), (2, 3), (3, 4)]
    );
    assert_eq!(store.seals_after(0, 10).await.unwrap(), seals);
    assert_eq!(store.seals_after(0, 2).await.unwrap(), seals[..2]);
    assert_eq!(store.seals_after(1, 10).await.unwrap(), seals[1..]);
    assert_eq!(store.seals_after(3, 10).await.unwrap(), []);
}

async fn a_seal_that_does_not_follow_is_not_added(ground: Ground) {
    let Ground { store, .. } = &ground;
    note(store, "ana").await;
    let first = seal_new(store, None).await;
    let forged = |number| Seal { number, mac: "f".repeat(64), ..first.clone() };
    for number in [0, 1, 3, 1 << 40] {
        let sealed = store.seal("holder", HOUR, Some(forged(number))).await.unwrap();
        assert_eq!(sealed, Sealing::Yours(Some(first.clone())), "seal {number}");
    }
    // The same once more: its answer was lost.
    let again = store.seal("holder", HOUR, Some(first.clone())).await.unwrap();
    assert_eq!(again, Sealing::Yours(Some(first.clone())));
    assert_eq!(store.seals_after(0, 10).await.unwrap(), [first]);
}

async fn one_at_a_time_may_seal(ground: Ground) {
    let Ground { store, .. } = &ground;
    note(store, "ana").await;
    let seal = Seal::over(&key(), None, &store.audit_after(None, 10).await.unwrap());
    let won = race(20, |n| {
        let (store, seal) = (store.clone(), seal.clone());
        async move { store.seal(&n.to_string(), HOUR, seal).await.unwrap() }
    });
    let won: Vec<_> = won.await.into_iter().filter(|it| *it != Sealing::Held).collect();
    assert_eq!(won, [Sealing::Yours(seal.clone())]);
    assert_eq!(store.seal("another", HOUR, None).await.unwrap(), Sealing::Held);
    assert_eq!(store.seals_after(0, 10).await.unwrap(), seal.into_iter().collect::<Vec<_>>());
}

async fn the_right_to_seal_ends(ground: Ground) {
    let Ground { store, .. } = &ground;
    let short = Duration::from_millis(200);
    assert_eq!(store.seal("ana", HOUR, None).await.unwrap(), Sealing::Yours(None));
    assert_eq!(store.seal("bob", short, None).await.unwrap(), Sealing::Held);
    // Renewed for less.
    assert_eq!(store.seal("ana", short, None).await.unwrap(), Sealing::Yours(None));
    let is_bobs = async || store.seal("bob", HOUR, None).await.unwrap() == Sealing::Yours(None);
    eventually("the right is another's", is_bobs).await;
    assert_eq!(store.seal("ana", short, None).await.unwrap(), Sealing::Held);
}

async fn what_one_did_another_reads_and_seals(ground: Ground) {
    let other = ground.open().await.store;
    note(&ground.store, "ana").await;
    note(&other, "bob").await;
    for store in [&ground.store, &other] {
        assert_eq!(whose(&store.audit_entries(10).await.unwrap()), ["bob", "ana"]);
    }
    let seal = seal_new(&other, None).await;
    assert_eq!(ground.store.newest_seal().await.unwrap(), Some(seal));
    assert_eq!(ground.store.seal("another", HOUR, None).await.unwrap(), Sealing::Held);
}
