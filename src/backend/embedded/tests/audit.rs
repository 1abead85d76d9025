//! Audit entries of actions, and their seals.

use std::time::Duration;

use tokio::time::advance;

use super::*;
use crate::approval::{
    AuditEntry, AuditKind, Decision, DecisionKind, MAX_AUDIT_ENTRIES, Seal, SealKey, Verified,
    Verifier,
};
use crate::backend::{Approvals, Audit, AuditAction, SealLease};

fn key() -> SealKey {
    SealKey::new(&[7; 32]).unwrap()
}

fn action(what: &'static str) -> AuditAction {
    AuditAction { what, id: TaskId::from("t"), queue: "q".into(), by: "ana@host".into() }
}

fn fields(entry: &AuditEntry) -> Vec<(&str, &str)> {
    entry.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// Makes a request, and lets ana decide it.
async fn decide(store: &EmbeddedStore) {
    let request = ApprovalRequest::new("Pay?");
    store.request_approval(request.clone()).await.unwrap();
    store.decide(&Decision::on(&request, "ana", DecisionKind::Approve)).await.unwrap();
}

async fn verify(store: &EmbeddedStore, exported: Option<&Seal>) -> Verified {
    let key = key();
    let mut verifier =
        Verifier::new(&key, store.seals_after(0, 100).await.unwrap(), MAX_AUDIT_ENTRIES);
    let entries = store.audit_after(None, 100).await.unwrap();
    entries.iter().for_each(|entry| verifier.read(entry));
    verifier.finish(exported)
}

/// Seals new entries, as `who`.
async fn seal_new(store: &EmbeddedStore, who: &str) -> Option<Seal> {
    let SealLease::Acquired(last) = store.seal(who, HOUR, None).await.unwrap() else { return None };
    let upto = last.as_ref().map(|seal| seal.upto.as_str());
    let entries = store.audit_after(upto, 100).await.unwrap();
    let next = Seal::over(&key(), last.as_ref(), &entries);
    assert_eq!(
        store.seal(who, HOUR, next.clone()).await.unwrap(),
        SealLease::Acquired(next.clone())
    );
    next
}

#[tokio::test(start_paused = true)]
async fn each_entry_names_the_person_the_action_and_the_task() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let first = request_of(&id, "first", 1, 2);
    store.suspend(suspend_request(&id, 1, vec![first.clone()])).await.unwrap();
    let decisions = [
        ("ana", DecisionKind::Approve),
        ("rita", DecisionKind::Approve),
        ("bob", DecisionKind::Reject),
    ]
    .map(|(by, choice)| Decision::on(&first, by, choice));
    for decision in &decisions {
        store.decide(decision).await.unwrap();
        // A repeated decision or vote is not audited.
        store.decide(decision).await.unwrap();
        store.decide(&Decision { id: "again".into(), ..decision.clone() }).await.unwrap();
    }
    let _ = store.record_action(action("purge")).await.unwrap();
    let outside =
        ApprovalRequest { expires_in: Duration::from_millis(10), ..ApprovalRequest::new("Now?") };
    store.request_approval(outside.clone()).await.unwrap();
    let until = store.clock().await.unwrap() + 60_000;
    store.extend_approval(&outside.id, "eve", false, Duration::from_secs(60)).await.unwrap();
    advance(Duration::from_secs(50)).await;
    assert!(store.record_warning(&outside.id, 50).await.unwrap());

    let all = store.audit_entries(10).await.unwrap();
    let of = |kind| all.iter().rev().filter(move |it| it.kind == kind).map(fields);
    let (approval, digest, until) = (first.id.as_str(), first.digest(), until.to_string());
    let [ana, _, bob] = decisions.map(|decision| serde_json::to_string(&decision).unwrap());
    let decided = |what, by, decision| {
        let whose = [("what", what), ("approval", approval), ("task", "t"), ("by", by)];
        [whose.as_slice(), &[("digest", digest.as_str()), ("decision", decision)]].concat()
    };
    let outside = [("approval", outside.id.as_str()), ("task", "")];
    let of_outside = |what, more: [(_, _); 2]| [&[("what", what)], &outside[..], &more].concat();
    assert_eq!(
        of(AuditKind::Decision).collect::<Vec<_>>(),
        [
            decided("approve", "ana", &ana),
            decided("reject", "bob", &bob),
            of_outside("extend", [("by", "eve"), ("until", &until)]),
        ]
    );
    assert_eq!(
        of(AuditKind::Note).collect::<Vec<_>>(),
        [
            vec![("what", "purge"), ("task", "t"), ("queue", "q"), ("by", "ana@host")],
            [of_outside("warn", [("by", "clerk"), ("percent", "50")]), vec![("deadline", &until)]]
                .concat(),
        ]
    );
    // The requester may not approve, and bob's second rejection comes after his first.
    let refused = |attempt, by, why| {
        let what = [("what", "refused"), ("attempt", attempt), ("approval", approval)];
        [&what[..], &[("task", "t"), ("by", by), ("why", why)]].concat()
    };
    let rita = || refused("approve", "rita", "forbidden");
    assert_eq!(
        of(AuditKind::Refused).collect::<Vec<_>>(),
        [rita(), rita(), rita(), refused("reject", "bob", "decided")]
    );
    assert_eq!(store.audit_entries(2).await.unwrap(), all[..2]);
    let decisions = store.audit_after(None, 10).await.unwrap();
    assert_eq!(decisions.len(), 3);
    let after = store.audit_after(Some(&decisions[0].id), 2).await.unwrap();
    assert_eq!(after, decisions[1..3]);
    assert_eq!(after[0].at.as_millisecond().to_string(), after[0].id.split_once('-').unwrap().0);
    assert!(store.audit_after(Some("x"), 2).await.unwrap_err().is_refusal());
}

#[tokio::test(start_paused = true)]
async fn one_process_seals_at_a_time_and_the_chain_only_grows() {
    let store = in_memory();
    assert_eq!(store.newest_seal().await.unwrap(), None);
    assert_eq!(seal_new(&store, "a").await, None, "there is nothing to seal");
    decide(&store).await;
    let first = seal_new(&store, "a").await.unwrap();
    assert_eq!((first.number, first.count), (1, 1));
    assert_eq!(store.seal("b", HOUR, None).await.unwrap(), SealLease::HeldByAnother);
    advance(HOUR - Duration::from_millis(1)).await;
    assert_eq!(store.seal("b", HOUR, None).await.unwrap(), SealLease::HeldByAnother);
    advance(Duration::from_millis(1)).await;
    decide(&store).await;
    let second = seal_new(&store, "b").await.unwrap();
    assert_eq!(store.seal("a", HOUR, None).await.unwrap(), SealLease::HeldByAnother);
    // A seal that does not follow the newest is rejected, and the caller gets the newest.
    for wrong in [first.clone(), Seal { number: 4, ..second.clone() }] {
        let lease = store.seal("b", HOUR, Some(wrong)).await.unwrap();
        assert_eq!(lease, SealLease::Acquired(Some(second.clone())));
    }
    assert_eq!(store.newest_seal().await.unwrap(), Some(second.clone()));
    assert_eq!(store.seals_after(0, 10).await.unwrap(), [first.clone(), second.clone()]);
    assert_eq!(store.seals_after(0, 1).await.unwrap(), [first]);
    assert_eq!(store.seals_after(1, 10).await.unwrap(), [second]);
}

#[tokio::test(start_paused = true)]
async fn changes_in_the_database_are_detected() {
    for statement in [
        "UPDATE audit SET fields = replace(fields, 'ana', 'bob') WHERE seq = 2",
        "UPDATE audit SET at = at + 1 WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM seals WHERE number = 2",
        "UPDATE seals SET count = 3 WHERE number = 2",
    ] {
        let store = in_memory();
        let mut seal = None;
        for _ in 0..3 {
            decide(&store).await;
            // A note is neither sealed nor counted.
            let _ = store.record_action(action("purge")).await.unwrap();
            seal = seal_new(&store, "a").await;
        }
        let verified = verify(&store, seal.as_ref()).await;
        assert_eq!((verified.sealed, verified.unsealed, verified.seals), (3, 0, 3));
        assert_eq!(verified.faults, [""; 0]);
        store.db.write(move |txn| txn.execute(statement, [])).await.unwrap();
        assert_ne!(verify(&store, seal.as_ref()).await.faults, [""; 0], "{statement}");
    }
    let store = in_memory();
    for _ in 0..2 {
        decide(&store).await;
    }
    let statement = "UPDATE audit SET fields = 'x' WHERE seq = 1";
    store.db.write(move |txn| txn.execute(statement, [])).await.unwrap();
    let entries = store.audit_after(None, 2).await.unwrap();
    assert_eq!(entries[0].fields[0].1, "unreadable");
    assert_eq!(entries[1].fields[0].1, "approve", "it hides none of the others");
}

/// Two processes, of which one has a clock that is an hour behind.
#[tokio::test(start_paused = true)]
async fn a_later_entry_has_a_later_id_after_a_clock_change() {
    let store = in_memory();
    decide(&store).await;
    store.db.write(|txn| txn.execute("UPDATE audit SET at = at + 3600000", [])).await.unwrap();
    decide(&store).await;
    let seals = [seal_new(&store, "a").await.unwrap()];
    let entries = store.audit_entries(2).await.unwrap();
    assert_eq!(entries[0].at, entries[1].at);
    assert_eq!(seals[0].upto, entries[0].id);
    assert_eq!(verify(&store, None).await.faults, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn edited_arguments_are_noted_with_their_digest() {
    let (store, id) = (in_memory(), TaskId::from("t"));
    let first = request_of(&id, "first", 1, 1);
    store.suspend(suspend_request(&id, 1, vec![first.clone()])).await.unwrap();
    let edited = Some(serde_json::json!({"to": "x"}));
    let edited_digest = Some(request_of(&id, "second", 1, 1).digest());
    let decision =
        Decision { edited, edited_digest, ..Decision::on(&first, "ana", DecisionKind::Approve) };
    store.decide(&decision).await.unwrap();
    let entry = store.audit_entries(1).await.unwrap().remove(0);
    let digest = request_of(&id, "second", 1, 1).digest();
    assert_eq!(fields(&entry).last(), Some(&("edited_digest", digest.as_str())));
}
