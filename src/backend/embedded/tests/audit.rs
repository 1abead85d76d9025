//! What is noted of what people did, and the seals on it.

use tokio::time::advance;

use super::*;
use crate::approval::{AuditEntry, Choice, Decision, KEPT, Seal, SealKey, Verified, Verifier};
use crate::backend::{Approvals, Audit, Deed, Sealing, Store};

fn key() -> SealKey {
    SealKey::new(&[7; 32]).unwrap()
}

fn deed(what: &'static str) -> Deed {
    Deed { what, id: TaskId::from("t"), queue: "q".into(), by: "ana@host".into() }
}

fn fields(entry: &AuditEntry) -> Vec<(&str, &str)> {
    entry.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

async fn verify(store: &EmbeddedStore, exported: Option<&Seal>) -> Verified {
    let key = key();
    let mut verifier = Verifier::new(&key, store.seals_after(0, 100).await.unwrap(), KEPT);
    let entries = store.audit_after(None, 100).await.unwrap();
    entries.iter().for_each(|entry| verifier.read(entry));
    verifier.finish(exported)
}

/// Seals what is new, as `who`.
async fn seal_new(store: &EmbeddedStore, who: &str) -> Option<Seal> {
    let Sealing::Yours(last) = store.seal(who, HOUR, None).await.unwrap() else { return None };
    let upto = last.as_ref().map(|seal| seal.upto.as_str());
    let entries = store.audit_after(upto, 100).await.unwrap();
    let next = Seal::over(&key(), last.as_ref(), &entries);
    assert_eq!(store.seal(who, HOUR, next.clone()).await.unwrap(), Sealing::Yours(next.clone()));
    next
}

#[tokio::test(start_paused = true)]
async fn each_entry_says_who_did_what_to_which_task() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let first = question(&id, "first", 1, 2);
    store.park(parking(&id, 1, vec![first.clone()])).await.unwrap();
    let decisions = [("ana", Choice::Approve), ("rita", Choice::Approve), ("bob", Choice::Reject)]
        .map(|(by, choice)| Decision::on(&first, by, choice));
    for decision in &decisions {
        store.decide(decision).await.unwrap();
        // Sent again, or said again by who has said it: that is not noted.
        store.decide(decision).await.unwrap();
        store.decide(&Decision { id: "again".into(), ..decision.clone() }).await.unwrap();
    }
    let _ = store.audit(deed("purge")).await.unwrap();
    let outside = Question { expires_in: 10, ..Question::new("Now?") };
    store.ask(outside.clone()).await.unwrap();
    let until = store.clock().await.unwrap() + 60_000;
    store.extend(&outside.id, "eve", false, Duration::from_secs(60)).await.unwrap();
    advance(Duration::from_secs(50)).await;
    assert!(store.warn(&outside.id, 50).await.unwrap());

    let entries = store.audit_after(None, 10).await.unwrap();
    let (approval, digest, until) = (first.id.as_str(), first.digest(), until.to_string());
    let [ana, _, bob] = decisions.map(|decision| serde_json::to_string(&decision).unwrap());
    let decided = |what, by, decision| {
        let whose = [("what", what), ("approval", approval), ("task", "t"), ("by", by)];
        [whose.as_slice(), &[("digest", digest.as_str()), ("decision", decision)]].concat()
    };
    let outside = [("approval", outside.id.as_str()), ("task", "")];
    let of_outside = |what, more: [(_, _); 2]| [&[("what", what)], &outside[..], &more].concat();
    assert_eq!(
        entries.iter().map(|entry| fields(entry)).collect::<Vec<_>>(),
        [
            decided("approve", "ana", &ana),
            // Who asks may not approve: that is not noted.
            decided("reject", "bob", &bob),
            vec![("what", "purge"), ("task", "t"), ("queue", "q"), ("by", "ana@host")],
            of_outside("extend", [("by", "eve"), ("until", &until)]),
            [of_outside("warn", [("by", "clerk"), ("percent", "50")]), vec![("deadline", &until)]]
                .concat(),
        ]
    );
    let newest = store.audit_entries(2).await.unwrap();
    assert_eq!(newest.iter().collect::<Vec<_>>(), entries.iter().rev().take(2).collect::<Vec<_>>());
    let after = store.audit_after(Some(&entries[1].id), 2).await.unwrap();
    assert_eq!(after, entries[2..4]);
    assert_eq!(after[0].at.to_string(), after[0].id.split_once('-').unwrap().0);
    assert!(store.audit_after(Some("x"), 2).await.unwrap_err().is_refusal());
}

#[tokio::test(start_paused = true)]
async fn one_at_a_time_seals_and_the_chain_only_grows() {
    let store = in_memory();
    assert_eq!(store.newest_seal().await.unwrap(), None);
    assert_eq!(seal_new(&store, "a").await, None, "there is nothing to seal");
    let _ = store.audit(deed("purge")).await.unwrap();
    let first = seal_new(&store, "a").await.unwrap();
    assert_eq!((first.number, first.count), (1, 1));
    assert_eq!(store.seal("b", HOUR, None).await.unwrap(), Sealing::Held);
    advance(HOUR - Duration::from_millis(1)).await;
    assert_eq!(store.seal("b", HOUR, None).await.unwrap(), Sealing::Held);
    advance(Duration::from_millis(1)).await;
    let _ = store.audit(deed("replay")).await.unwrap();
    let second = seal_new(&store, "b").await.unwrap();
    assert_eq!(store.seal("a", HOUR, None).await.unwrap(), Sealing::Held);
    // A seal that does not follow is not taken: the one who brings it is told which is the newest.
    for wrong in [first.clone(), Seal { number: 4, ..second.clone() }] {
        let answer = store.seal("b", HOUR, Some(wrong)).await.unwrap();
        assert_eq!(answer, Sealing::Yours(Some(second.clone())));
    }
    assert_eq!(store.newest_seal().await.unwrap(), Some(second.clone()));
    assert_eq!(store.seals_after(0, 10).await.unwrap(), [first.clone(), second.clone()]);
    assert_eq!(store.seals_after(0, 1).await.unwrap(), [first]);
    assert_eq!(store.seals_after(1, 10).await.unwrap(), [second]);
}

#[tokio::test(start_paused = true)]
async fn what_is_changed_in_the_database_is_seen() {
    for tampering in [
        "UPDATE audit SET fields = replace(fields, 'ana', 'bob') WHERE seq = 2",
        "UPDATE audit SET at = at + 1 WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM seals WHERE number = 2",
        "UPDATE seals SET count = 3 WHERE number = 2",
    ] {
        let store = in_memory();
        let mut seal = None;
        for what in ["purge", "replay", "purge"] {
            let _ = store.audit(deed(what)).await.unwrap();
            seal = seal_new(&store, "a").await;
        }
        let verified = verify(&store, seal.as_ref()).await;
        assert_eq!((verified.sealed, verified.seals), (3, 3));
        assert_eq!(verified.faults, [""; 0]);
        store.db.write(move |txn| txn.execute(tampering, [])).await.unwrap();
        assert_ne!(verify(&store, seal.as_ref()).await.faults, [""; 0], "{tampering}");
    }
    let store = in_memory();
    for what in ["purge", "replay"] {
        let _ = store.audit(deed(what)).await.unwrap();
    }
    let spoil = "UPDATE audit SET fields = 'x' WHERE seq = 1";
    store.db.write(move |txn| txn.execute(spoil, [])).await.unwrap();
    let entries = store.audit_after(None, 2).await.unwrap();
    assert_eq!(entries[0].fields[0].1, "unreadable");
    assert_eq!(entries[1].fields[0].1, "replay", "it hides none of the others");
}

/// Two processes, of which one has the machine's clock of an hour ago.
#[tokio::test(start_paused = true)]
async fn a_later_entry_has_a_later_id_whatever_the_clock_says() {
    let store = in_memory();
    let _ = store.audit(deed("purge")).await.unwrap();
    store.db.write(|txn| txn.execute("UPDATE audit SET at = at + 3600000", [])).await.unwrap();
    let _ = store.audit(deed("replay")).await.unwrap();
    let seals = [seal_new(&store, "a").await.unwrap()];
    let entries = store.audit_entries(2).await.unwrap();
    assert_eq!(entries[0].at, entries[1].at);
    assert_eq!(seals[0].upto, entries[0].id);
    assert_eq!(verify(&store, None).await.faults, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn edited_arguments_are_noted_with_their_digest() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let first = question(&id, "first", 1, 1);
    store.park(parking(&id, 1, vec![first.clone()])).await.unwrap();
    let edited = Some(serde_json::json!({"to": "x"}));
    let edited_digest = Some(question(&id, "second", 1, 1).digest());
    let decision =
        Decision { edited, edited_digest, ..Decision::on(&first, "ana", Choice::Approve) };
    store.decide(&decision).await.unwrap();
    let entry = store.audit_entries(1).await.unwrap().remove(0);
    let digest = question(&id, "second", 1, 1).digest();
    assert_eq!(fields(&entry).last(), Some(&("edited_digest", digest.as_str())));
}
