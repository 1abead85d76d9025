//! The audit entries and their seals.

use std::sync::Arc;
use std::time::Duration;

use countersign::TaskId;
use countersign::approval::{
    ApprovalRequest, ApprovalStatus, AuditEntry, AuditKind, DecideResult, Decision, DecisionKind,
    Digest, Seal, SealKey,
};
use countersign::backend::{AuditAction, Capability, SealLease, Store};

use crate::approvals::{new_request, read, submit};
use crate::case::{Case, case};
use crate::decisions::{approve, decision};
use crate::fixture::{Fixture, HOUR, eventually, race, text};

/// More notes than the store keeps, from this number of concurrent tasks.
const FLOOD: usize = 1000;
/// The limits of the kinds that are not sealed, and by how much a stream may exceed its limit for a while:
/// Redis removes a hundred entries at a time.
const NOTES_KEPT: usize = 100_000;
const REFUSED_KEPT: usize = 10_000;
const SLACK: usize = 200;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(entries_are_listed_newest_first),
        case(entries_after_one_are_read_oldest_first),
        case(concurrent_entries_are_all_stored),
        case(an_audited_action_is_the_proof_for_its_task),
        case(notes_evict_no_decision),
        case(a_refused_attempt_is_listed_and_evicts_no_decision),
        case(every_way_to_be_refused_is_audited_with_its_reason),
        case(seals_form_a_chain),
        case(a_seal_that_does_not_follow_is_not_added),
        case(one_process_at_a_time_may_seal),
        case(the_lease_to_seal_expires),
        case(another_process_reads_and_seals_the_entries).needs(Capability::SeveralProcesses),
    ]
}

fn action(id: &TaskId, by: &str) -> AuditAction {
    AuditAction { what: "purge", id: id.clone(), queue: "q.dead".into(), by: by.into() }
}

async fn note(store: &Arc<dyn Store>, by: &str) {
    let _ = store.record_action(action(&TaskId::from("*"), by)).await.unwrap();
}

/// Decides a new request as this approver.
async fn decide(store: &Arc<dyn Store>, by: &str) {
    let request = submit(store, new_request("Pay?")).await;
    assert_eq!(store.decide(&approve(&request, by)).await.unwrap().0, DecideResult::Applied);
}

fn field<'e>(entry: &'e AuditEntry, name: &str) -> &'e str {
    let field = entry.fields.iter().find(|(field, _)| field == name);
    &field.unwrap_or_else(|| panic!("{name} is missing: {entry:?}")).1
}

fn by(entry: &AuditEntry) -> &str {
    field(entry, "by")
}

fn whose(entries: &[AuditEntry]) -> Vec<&str> {
    entries.iter().map(by).collect()
}

fn key() -> SealKey {
    SealKey::new(&[7; 32]).unwrap()
}

async fn entries_are_listed_newest_first(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_eq!(store.audit_entries(10).await.unwrap(), []);
    let before = store.clock().await.unwrap();
    let id = TaskId::from("an 'odd' {id}\n日本");
    let _ = store.record_action(action(&id, "ana")).await.unwrap();
    note(store, "bob").await;
    note(store, "eve").await;
    let after = store.clock().await.unwrap();
    let entries = store.audit_entries(10).await.unwrap();
    assert_eq!(whose(&entries), ["eve", "bob", "ana"]);
    assert!(entries.iter().all(|entry| entry.kind == AuditKind::Note));
    assert_eq!(whose(&store.audit_entries(2).await.unwrap()), ["eve", "bob"]);
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let wanted = [
        text("what", "purge"),
        text("task", id.as_str()),
        text("queue", "q.dead"),
        text("by", "ana"),
    ];
    assert_eq!(entries[2].fields, wanted);
    assert!(
        entries.iter().all(|entry| (before..=after).contains(&entry.at.as_millisecond())),
        "{entries:?}"
    );
}

async fn entries_after_one_are_read_oldest_first(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_eq!(store.audit_after(None, 10).await.unwrap(), []);
    for person in ["ana", "bob", "eve", "rita"] {
        decide(store, person).await;
        note(store, "a worker").await;
    }
    let all = store.audit_after(None, 10).await.unwrap();
    assert_eq!(whose(&all), ["ana", "bob", "eve", "rita"]);
    assert_eq!(store.audit_after(None, 2).await.unwrap(), all[..2]);
    assert_eq!(store.audit_after(Some(&all[0].id), 2).await.unwrap(), all[1..3]);
    assert_eq!(store.audit_after(Some(&all[3].id), 10).await.unwrap(), []);
    decide(store, "late").await;
    let new = store.audit_after(Some(&all[3].id), 10).await.unwrap();
    assert_eq!(whose(&new), ["late"]);
}

async fn concurrent_entries_are_all_stored(fixture: Fixture) {
    race(50, |n| {
        let store = fixture.store.clone();
        async move { decide(&store, &n.to_string()).await }
    })
    .await;
    let entries = fixture.store.audit_after(None, 100).await.unwrap();
    let mut people: Vec<usize> = entries.iter().map(|entry| by(entry).parse().unwrap()).collect();
    people.sort_unstable();
    assert_eq!(people, (0..50).collect::<Vec<_>>());
    let mut backwards = fixture.store.audit_entries(100).await.unwrap();
    backwards.reverse();
    assert_eq!(backwards, entries);
    assert!(entries.is_sorted_by_key(|entry| entry.at));
}

async fn an_audited_action_is_the_proof_for_its_task(fixture: Fixture) {
    let sent = fixture.send("dead").await;
    let mut deliveries = fixture.consume(1);
    let delivery = deliveries.next().await.unwrap();
    let _ =
        delivery.ack(fixture.store.record_action(action(&sent.id, "ana")).await.unwrap()).unwrap();
    fixture.send("next").await;
    assert_eq!(text(&deliveries.next().await.unwrap()), "next");
}

/// Makes a decision by ana, and seals it.
async fn sealed_decision(store: &Arc<dyn Store>) -> (ApprovalRequest, Seal) {
    let request = submit(store, ApprovalRequest { editable: true, ..new_request("Pay?") }).await;
    assert_eq!(store.decide(&approve(&request, "ana")).await.unwrap().0, DecideResult::Applied);
    let seal = seal_new(store, None).await;
    (request, seal)
}

/// Asserts that the decisions are exactly the sealed ones.
async fn assert_unchanged(store: &Arc<dyn Store>, seal: &Seal) {
    let decisions = store.audit_after(None, 100).await.unwrap();
    assert_eq!(whose(&decisions), ["ana"]);
    assert_eq!(Seal::over(&key(), None, &decisions).as_ref(), Some(seal));
}

/// Asserts that about `kept` entries of this kind are left, and of the others those by these people.
async fn assert_kept(store: &Arc<dyn Store>, kind: AuditKind, kept: usize, others: &[&str]) {
    let entries = store.audit_entries(kept * 2).await.unwrap();
    let (flood, left): (Vec<_>, Vec<_>) = entries.into_iter().partition(|it| it.kind == kind);
    assert!((kept..=kept + SLACK).contains(&flood.len()), "{} are left", flood.len());
    let mut left = whose(&left);
    left.sort_unstable();
    assert_eq!(left, others);
}

/// Returns the newest refused attempt. Entries of other kinds may have the same millisecond.
async fn refused(store: &Arc<dyn Store>) -> AuditEntry {
    let entries = store.audit_entries(100).await.unwrap();
    let mut refused = entries.into_iter().filter(|it| it.kind == AuditKind::Refused);
    refused.next().expect("a refused attempt")
}

/// Workers may append notes.
async fn notes_evict_no_decision(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let (_, seal) = sealed_decision(store).await;
    race(FLOOD, |_| {
        let store = store.clone();
        async move {
            for _ in 0..=NOTES_KEPT / FLOOD {
                note(&store, "a worker").await;
            }
        }
    })
    .await;
    assert_unchanged(store, &seal).await;
    assert_kept(store, AuditKind::Note, NOTES_KEPT, &["ana"]).await;
}

/// An approver with a long name is refused again and again.
async fn a_refused_attempt_is_listed_and_evicts_no_decision(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let (request, seal) = sealed_decision(store).await;
    note(store, "a worker").await;
    let long = "ä".repeat(100_000);
    let late = approve(&request, &long);
    let decided = |result: &DecideResult| matches!(result, DecideResult::AlreadyDecided { .. });
    assert!(decided(&store.decide(&late).await.unwrap().0));
    let newest = refused(store).await;
    let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let wanted = [
        text("what", "refused"),
        text("attempt", "approve"),
        text("approval", request.id.as_str()),
        text("task", ""),
        text("by", &long[..256]),
        text("why", "decided"),
    ];
    assert_eq!(newest.fields, wanted);
    race(FLOOD, |n| {
        let (store, request) = (store.clone(), request.clone());
        async move {
            for _ in 0..=REFUSED_KEPT / FLOOD {
                let result = store.decide(&approve(&request, &n.to_string())).await.unwrap().0;
                assert!(decided(&result), "{result:?}");
            }
        }
    })
    .await;
    assert_unchanged(store, &seal).await;
    assert_kept(store, AuditKind::Refused, REFUSED_KEPT, &["a worker", "ana"]).await;
}

async fn every_way_to_be_refused_is_audited_with_its_reason(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let (decided, seal) = sealed_decision(store).await;
    let short = ApprovalRequest { expires_in: Duration::from_millis(1), ..new_request("Now?") };
    let expired = submit(store, short).await;
    let is_expired =
        async || matches!(read(store, &expired).await.status, ApprovalStatus::Expired(_));
    eventually("the request has expired", is_expired).await;
    let named = ApprovalRequest { approvers: vec!["ana".into()], ..new_request("Named?") };
    let named = submit(store, named).await;
    let stale = Decision { digest: Digest::from("0".repeat(64)), ..approve(&named, "ana") };
    for (decision, why) in [
        (approve(&decided, "bob"), "decided"),
        (decision(&expired, "bob", DecisionKind::Reject), "expired"),
        (approve(&named, "bob"), "forbidden"),
        (decision(&named, "bob", DecisionKind::Withdraw), "forbidden"),
        (stale, "digest"),
    ] {
        let (result, _) = store.decide(&decision).await.unwrap();
        let noted = refused(store).await;
        assert_eq!(field(&noted, "why"), why, "{result:?}");
        let wanted = [decision.choice.as_str(), decision.approval.as_str(), &*decision.by];
        assert_eq!(["attempt", "approval", "by"].map(|name| field(&noted, name)), wanted);
    }
    for (request, by, why) in [
        (&decided, "bob", "decided"),
        (&expired, "bob", "expired"),
        (&named, "bob", "forbidden"),
        (&named, "ana", "earlier"),
    ] {
        store.extend_approval(&request.id, by, false, Duration::from_secs(1)).await.unwrap();
        let noted = refused(store).await;
        let found = ["attempt", "approval", "by", "why"].map(|name| field(&noted, name));
        assert_eq!(found, ["extend", request.id.as_str(), by, why]);
    }
    let count = store.audit_entries(100).await.unwrap().len();
    // The decision that counted, sent again; and a decision on an unknown request.
    let counts = read(store, &decided).await.decision.unwrap();
    assert_eq!(store.decide(&counts).await.unwrap().0, DecideResult::Replayed);
    let unknown = new_request("Missing?");
    assert_eq!(store.decide(&approve(&unknown, "ana")).await.unwrap().0, DecideResult::Unknown);
    assert_eq!(
        store.extend_approval(&unknown.id, "ana", false, HOUR).await.unwrap(),
        DecideResult::Unknown
    );
    assert_eq!(store.audit_entries(100).await.unwrap().len(), count);
    assert_unchanged(store, &seal).await;
    let withdrawn = submit(store, new_request("Withdrawn?")).await;
    store.decide(&decision(&withdrawn, "ana", DecisionKind::Withdraw)).await.unwrap();
    assert_eq!(store.decide(&approve(&withdrawn, "bob")).await.unwrap().0, DecideResult::Withdrawn);
    assert_eq!(field(&refused(store).await, "why"), "withdrawn");
}

/// Seals the new entries as the holder of the seal lease.
async fn seal_new(store: &Arc<dyn Store>, last: Option<&Seal>) -> Seal {
    let upto = last.map(|seal| seal.upto.as_str());
    let entries = store.audit_after(upto, 100).await.unwrap();
    let seal = Seal::over(&key(), last, &entries).unwrap();
    let sealed = store.seal("holder", HOUR, Some(seal.clone())).await.unwrap();
    assert_eq!(sealed, SealLease::Acquired(Some(seal.clone())));
    seal
}

async fn seals_form_a_chain(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_eq!(store.newest_seal().await.unwrap(), None);
    assert_eq!(store.seals_after(0, 10).await.unwrap(), []);
    assert_eq!(store.seal("holder", HOUR, None).await.unwrap(), SealLease::Acquired(None));
    let mut seals: Vec<Seal> = Vec::new();
    for people in [vec!["ana"], vec!["bob", "eve"], vec!["rita"]] {
        for person in people {
            decide(store, person).await;
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

async fn a_seal_that_does_not_follow_is_not_added(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    decide(store, "ana").await;
    let first = seal_new(store, None).await;
    let forged = |number| Seal { number, mac: "f".repeat(64), ..first.clone() };
    for number in [0, 1, 3, 1 << 40] {
        let sealed = store.seal("holder", HOUR, Some(forged(number))).await.unwrap();
        assert_eq!(sealed, SealLease::Acquired(Some(first.clone())), "seal {number}");
    }
    // Sent again, as after a lost response.
    let again = store.seal("holder", HOUR, Some(first.clone())).await.unwrap();
    assert_eq!(again, SealLease::Acquired(Some(first.clone())));
    assert_eq!(store.seals_after(0, 10).await.unwrap(), [first]);
}

async fn one_process_at_a_time_may_seal(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    decide(store, "ana").await;
    let seal = Seal::over(&key(), None, &store.audit_after(None, 10).await.unwrap());
    let won = race(20, |n| {
        let (store, seal) = (store.clone(), seal.clone());
        async move { store.seal(&n.to_string(), HOUR, seal).await.unwrap() }
    });
    let won: Vec<_> = won.await.into_iter().filter(|it| *it != SealLease::HeldByAnother).collect();
    assert_eq!(won, [SealLease::Acquired(seal.clone())]);
    assert_eq!(store.seal("another", HOUR, None).await.unwrap(), SealLease::HeldByAnother);
    assert_eq!(store.seals_after(0, 10).await.unwrap(), seal.into_iter().collect::<Vec<_>>());
}

async fn the_lease_to_seal_expires(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let short = Duration::from_millis(200);
    assert_eq!(store.seal("ana", HOUR, None).await.unwrap(), SealLease::Acquired(None));
    assert_eq!(store.seal("bob", short, None).await.unwrap(), SealLease::HeldByAnother);
    // Renewed with a shorter lease.
    assert_eq!(store.seal("ana", short, None).await.unwrap(), SealLease::Acquired(None));
    let bob_has_lease =
        async || store.seal("bob", HOUR, None).await.unwrap() == SealLease::Acquired(None);
    eventually("another process has the lease", bob_has_lease).await;
    assert_eq!(store.seal("ana", short, None).await.unwrap(), SealLease::HeldByAnother);
}

async fn another_process_reads_and_seals_the_entries(fixture: Fixture) {
    let other = fixture.open().await.store;
    decide(&fixture.store, "ana").await;
    decide(&other, "bob").await;
    for store in [&fixture.store, &other] {
        assert_eq!(whose(&store.audit_entries(10).await.unwrap()), ["bob", "ana"]);
    }
    let seal = seal_new(&other, None).await;
    assert_eq!(fixture.store.newest_seal().await.unwrap(), Some(seal));
    assert_eq!(fixture.store.seal("another", HOUR, None).await.unwrap(), SealLease::HeldByAnother);
}
