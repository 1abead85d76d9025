//! Approval requests: created, listed, extended, warned of, and announced by notifications.

use std::sync::Arc;
use std::time::Duration;

use countersign::approval::{
    Action, ApprovalId, ApprovalRequest, ApprovalStatus, AuditEntry, DecideResult, Risk,
};
use countersign::backend::{ApprovalRecord, Capability, Lookup, Store};
use futures_util::FutureExt;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::time::timeout;

use crate::case::{Case, case};
use crate::decisions::{approve, decision};
use crate::fixture::{Fixture, HOUR, eventually, race};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_request_is_read_as_it_was_made),
        case(requests_are_returned_in_the_order_of_the_given_ids),
        case(a_request_of_a_newer_version_hides_no_other),
        case(a_request_of_the_previous_version_is_decided_by_its_own_digest),
        case(an_existing_request_is_not_changed),
        case(open_requests_are_listed_by_deadline),
        case(a_request_expires_at_its_deadline),
        case(a_request_can_be_extended),
        case(only_approvers_and_operators_can_extend),
        case(a_closed_request_cannot_be_extended),
        case(a_warning_is_recorded_once_per_threshold),
        case(one_of_many_processes_warns),
        case(a_new_request_is_announced),
        case(a_decision_is_announced),
        case(a_closed_store_takes_no_requests_and_decisions),
        case(another_process_decides_a_request).needs(Capability::SeveralProcesses),
        case(another_process_is_notified).needs(Capability::SeveralProcesses),
    ]
}

/// Returns a request that is not stored yet.
pub(crate) fn new_request(title: &str) -> ApprovalRequest {
    ApprovalRequest {
        action: Action { name: "bank.pay".into(), version: 1, args: json!({"to": title}) },
        expires_in: Duration::from_hours(1),
        ..ApprovalRequest::new(title)
    }
}

pub(crate) async fn submit(store: &Arc<dyn Store>, request: ApprovalRequest) -> ApprovalRequest {
    store.request_approval(request.clone()).await.unwrap();
    request
}

/// Reads the stored record of a request.
pub(crate) async fn read(store: &Arc<dyn Store>, request: &ApprovalRequest) -> ApprovalRecord {
    let mut found = store.approvals(std::slice::from_ref(&request.id)).await.unwrap();
    found.remove(0).readable().unwrap().expect("the request exists")
}

async fn deadline(store: &Arc<dyn Store>, request: &ApprovalRequest) -> Timestamp {
    match read(store, request).await.status {
        ApprovalStatus::Open(deadline) => deadline,
        other => panic!("{other:?}"),
    }
}

async fn a_request_is_read_as_it_was_made(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let whole = ApprovalRequest {
        task_name: Some("billing.refund".into()),
        name: "pay".into(),
        summary: "# Grüße\n日本 \u{0} {cs} 'x'".into(),
        editable: true,
        schema: Some(json!({"type": "object"})),
        effects: vec!["one".into(), "two".into()],
        risk: Risk::Irreversible,
        requester: Some("rita".into()),
        self_approval: true,
        approvers: vec!["ana".into(), "bob the 2nd".into()],
        quorum: 2,
        ..new_request("Pay?")
    };
    for request in [whole, ApprovalRequest::new("Bare?")] {
        let before = store.clock().await.unwrap();
        submit(store, request.clone()).await;
        let after = store.clock().await.unwrap();
        let record = read(store, &request).await;
        assert_eq!(record.request, request);
        assert!(
            (before..=after).contains(&record.requested_at.as_millisecond())
                && record.read_at >= record.requested_at
        );
        let deadline = record.requested_at + request.expires_in;
        assert_eq!((record.status, record.at), (ApprovalStatus::Open(deadline), deadline));
        assert_eq!((record.decision, record.votes, record.warned), (None, 0, None));
    }
}

async fn requests_are_returned_in_the_order_of_the_given_ids(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [a, b] = [submit(store, new_request("a")).await, submit(store, new_request("b")).await];
    let missing = ApprovalId::random();
    let ids = [b.id.clone(), missing, a.id.clone(), b.id.clone()];
    let found = store.approvals(&ids).await.unwrap();
    let title = |found: Lookup| found.readable().unwrap().map(|record| record.request.title);
    let titles: Vec<_> = found.into_iter().map(title).collect();
    assert_eq!(titles, [Some("b"), None, Some("a"), Some("b")].map(|it| it.map(str::to_owned)));
    assert!(store.approvals(&[]).await.unwrap().is_empty());
}

async fn a_request_of_a_newer_version_hides_no_other(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let newer =
        submit(store, ApprovalRequest { v: ApprovalRequest::VERSION + 1, ..new_request("newer") })
            .await;
    let ours = submit(store, new_request("ours")).await;
    let [first, second] = &store.approvals(&[newer.id, ours.id]).await.unwrap()[..] else {
        panic!("a request is hidden")
    };
    assert!(matches!(first, Lookup::Unreadable(ApprovalStatus::Open(_), _)), "{first:?}");
    assert!(
        matches!(second, Lookup::Found(record) if record.request.title == "ours"),
        "{second:?}"
    );
    assert_eq!(store.pending_approvals(0, 10).await.unwrap().len(), 2);
}

async fn a_request_of_the_previous_version_is_decided_by_its_own_digest(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let old = submit(store, ApprovalRequest { v: 1, ..new_request("old") }).await;
    let record = read(store, &old).await;
    assert_eq!(record.request.digest(), old.action.digest());
    let (result, _) = store.decide(&record.approve("ana")).await.unwrap();
    assert_eq!(result, DecideResult::Applied);
    // In the current version, the digest of the action alone is not enough.
    let new = submit(store, new_request("new")).await;
    let of_action = ApprovalRequest { v: 1, ..new.clone() };
    assert_eq!(
        store.decide(&approve(&of_action, "ana")).await.unwrap().0,
        DecideResult::DigestMismatch
    );
    assert_eq!(store.decide(&approve(&new, "ana")).await.unwrap().0, DecideResult::Applied);
}

async fn an_existing_request_is_not_changed(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let first = submit(store, new_request("first")).await;
    let record = read(store, &first).await;
    submit(store, ApprovalRequest { id: first.id.clone(), ..new_request("second") }).await;
    let again = read(store, &first).await;
    assert_eq!(ApprovalRecord { read_at: record.read_at, ..again }, record);
    store.decide(&approve(&first, "ana")).await.unwrap();
    submit(store, first.clone()).await;
    assert!(matches!(read(store, &first).await.status, ApprovalStatus::Decided(_)));
}

async fn open_requests_are_listed_by_deadline(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_eq!(store.pending_approvals(0, 10).await.unwrap(), []);
    let mut wanted = Vec::new();
    for hours in [5, 2, 9, 1, 7] {
        let expires_in = Duration::from_hours(hours);
        let request = submit(store, ApprovalRequest { expires_in, ..new_request("Pay?") }).await;
        let deadline = deadline(store, &request).await;
        wanted.push((request.id, deadline.as_millisecond()));
    }
    wanted.sort_by_key(|(_, deadline)| *deadline);
    assert_eq!(store.pending_approvals(0, 10).await.unwrap(), wanted);
    assert_eq!(store.pending_approvals(0, 2).await.unwrap(), wanted[..2]);
    assert_eq!(store.pending_approvals(2, 2).await.unwrap(), wanted[2..4]);
    assert_eq!(store.pending_approvals(4, 10).await.unwrap(), wanted[4..]);
    assert_eq!(store.pending_approvals(5, 10).await.unwrap(), []);
    assert_eq!(store.pending_approvals(0, 0).await.unwrap(), []);
    // It is listed with its original deadline.
    let last = &wanted[4];
    assert_eq!(
        store.extend_approval(&last.0, "ana", false, 24 * HOUR).await.unwrap(),
        DecideResult::Applied
    );
    assert!(store.pending_approvals(0, 10).await.unwrap().contains(last));
}

async fn expired(store: &Arc<dyn Store>) -> ApprovalRequest {
    let request = submit(
        store,
        ApprovalRequest { expires_in: Duration::from_millis(1), ..new_request("Now?") },
    )
    .await;
    let is_expired =
        async || matches!(read(store, &request).await.status, ApprovalStatus::Expired(_));
    eventually("the request has expired", is_expired).await;
    request
}

async fn a_request_expires_at_its_deadline(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = expired(store).await;
    let record = read(store, &request).await;
    let deadline = record.requested_at + Duration::from_millis(1);
    assert_eq!((record.status, record.at), (ApprovalStatus::Expired(deadline), deadline));
    assert!(record.read_at > deadline);
    let (result, resume) = store.decide(&approve(&request, "ana")).await.unwrap();
    assert_eq!((result, resume), (DecideResult::Expired { at: deadline }, None));
}

async fn a_request_can_be_extended(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(store, new_request("Pay?")).await;
    let before = store.clock().await.unwrap();
    let extended = store.extend_approval(&request.id, "ana", false, 2 * HOUR).await.unwrap();
    let after = store.clock().await.unwrap();
    assert_eq!(extended, DecideResult::Applied);
    let later = deadline(store, &request).await;
    assert!((before..=after).contains(&(later - 2 * HOUR).as_millisecond()), "counted from now");
    let earlier = store.extend_approval(&request.id, "ana", false, HOUR).await.unwrap();
    assert_eq!(earlier, DecideResult::Earlier { deadline: later });
    assert_eq!(deadline(store, &request).await, later);
    let fields = store.audit_after(None, 1).await.unwrap().remove(0).fields;
    for (name, value) in [("what", "extend"), ("approval", request.id.as_str()), ("by", "ana")] {
        assert!(fields.contains(&(name.to_owned(), value.to_owned())), "{fields:?}");
    }
}

/// With `on_timeout = approve`, anyone who may move the deadline could bring about an approval.
async fn only_approvers_and_operators_can_extend(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let named = vec!["ana".to_owned(), "bob the 2nd".to_owned()];
    for (approvers, by, is_operator, expected) in [
        (&named, "ana", false, DecideResult::Applied),
        (&named, "bob the 2nd", false, DecideResult::Applied),
        (&named, "bob", false, DecideResult::NotAllowed),
        (&named, "", false, DecideResult::NotAllowed),
        (&named, "rita", false, DecideResult::NotAllowed),
        (&named, "eve", true, DecideResult::Applied),
        (&vec![], "eve", false, DecideResult::Applied),
        (&vec![], "rita", false, DecideResult::NotAllowed),
    ] {
        let (approvers, requester) = (approvers.clone(), Some("rita".to_owned()));
        let request =
            submit(store, ApprovalRequest { approvers, requester, ..new_request("Pay?") }).await;
        let before = deadline(store, &request).await;
        let result = store.extend_approval(&request.id, by, is_operator, 24 * HOUR).await.unwrap();
        assert_eq!(result, expected, "{by}, {is_operator}");
        assert_eq!(deadline(store, &request).await > before, expected == DecideResult::Applied);
    }
    let extended = |entry: &AuditEntry| entry.fields.contains(&("what".into(), "extend".into()));
    let entries = store.audit_entries(100).await.unwrap();
    assert_eq!(entries.iter().filter(|entry| extended(entry)).count(), 4);
}

async fn a_closed_request_cannot_be_extended(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let extend = async |request: &ApprovalRequest| {
        store.extend_approval(&request.id, "ana", false, HOUR).await.unwrap()
    };
    assert_eq!(extend(&new_request("Missing?")).await, DecideResult::Unknown);
    assert!(matches!(extend(&expired(store).await).await, DecideResult::Expired { .. }));
    let decided = submit(store, new_request("Pay?")).await;
    store.decide(&approve(&decided, "bob")).await.unwrap();
    let result = extend(&decided).await;
    assert!(
        matches!(&result, DecideResult::AlreadyDecided { by, .. } if by == "bob"),
        "{result:?}"
    );
    let withdrawn = submit(store, new_request("Pay?")).await;
    store
        .decide(&decision(&withdrawn, "bob", countersign::approval::DecisionKind::Withdraw))
        .await
        .unwrap();
    assert_eq!(extend(&withdrawn).await, DecideResult::Withdrawn);
}

async fn a_warning_is_recorded_once_per_threshold(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(
        store,
        ApprovalRequest { expires_in: Duration::from_secs(30), ..new_request("Pay?") },
    )
    .await;
    let warn = async |percent| store.record_warning(&request.id, percent).await.unwrap();
    assert!(!warn(50).await, "the threshold has not passed");
    assert_eq!(read(store, &request).await.warned, None);
    eventually("the threshold has passed", async || warn(1).await).await;
    assert!(!warn(1).await, "a second warning for one threshold");
    assert!(!warn(90).await, "the threshold has not passed");
    assert_eq!(read(store, &request).await.warned, Some(1));
    let fields = store.audit_entries(1).await.unwrap().remove(0).fields;
    for (name, value) in [("what", "warn"), ("approval", request.id.as_str()), ("percent", "1")] {
        assert!(fields.contains(&(name.to_owned(), value.to_owned())), "{fields:?}");
    }
    eventually("the next threshold has passed", async || warn(2).await).await;
    store.decide(&approve(&request, "ana")).await.unwrap();
    assert!(!warn(3).await, "the request is decided");
    assert!(!store.record_warning(&ApprovalId::random(), 1).await.unwrap());
}

async fn one_of_many_processes_warns(fixture: Fixture) {
    let request = submit(
        &fixture.store,
        ApprovalRequest { expires_in: Duration::from_secs(20), ..new_request("Pay?") },
    )
    .await;
    let warned = async || {
        let warned = race(20, |_| {
            let (store, id) = (fixture.store.clone(), request.id.clone());
            async move { store.record_warning(&id, 1).await.unwrap() }
        });
        let count = warned.await.into_iter().filter(|is_warned| *is_warned).count();
        assert!(count <= 1, "{count} warn");
        count == 1
    };
    eventually("the threshold has passed", warned).await;
    assert!(!warned().await);
}

type Notifications = broadcast::Receiver<Option<ApprovalId>>;

/// Repeats `act` until its notification is received. `None` announces that notifications were missed;
/// the request has to be announced once by its own id.
async fn wait_for_notification(
    notifications: &mut Notifications,
    act: impl AsyncFn() -> ApprovalId,
) {
    use broadcast::error::RecvError;
    loop {
        let wanted = act().await;
        let hear = async {
            loop {
                match notifications.recv().await {
                    Ok(Some(id)) if id == wanted => return,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => panic!("the subscription has ended"),
                }
            }
        };
        if timeout(Duration::from_secs(1), hear).await.is_ok() {
            return;
        }
    }
}

async fn submit_any(store: &Arc<dyn Store>) -> ApprovalId {
    submit(store, new_request("Pay?")).await.id
}

/// Decides requests until a watch of one completes while a watch of another does not: each watch may complete
/// without a decision when notifications were missed.
async fn assert_decision_announced(watching: &Arc<dyn Store>, deciding: &Arc<dyn Store>) {
    let is_notified = async || {
        let one = submit(deciding, new_request("Pay?")).await;
        let other = submit(deciding, new_request("Pay?")).await;
        let mut decided = watching.watch_decisions(vec![one.id.clone()]);
        let mut undecided = watching.watch_decisions(vec![other.id]);
        deciding.decide(&approve(&one, "ana")).await.unwrap();
        timeout(Duration::from_secs(1), decided.changed()).await.is_ok()
            && undecided.changed().now_or_never().is_none()
    };
    eventually("only the watch of the decided request completes", is_notified).await;
}

async fn a_new_request_is_announced(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let mut listeners = [store.new_requests(), store.new_requests()];
    for notifications in &mut listeners {
        wait_for_notification(notifications, async || submit_any(store).await).await;
    }
}

async fn a_decision_is_announced(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_decision_announced(store, store).await;
}

async fn a_closed_store_takes_no_requests_and_decisions(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(store, new_request("Pay?")).await;
    store.close().await;
    assert!(store.request_approval(request.clone()).await.is_err());
    assert!(store.approvals(std::slice::from_ref(&request.id)).await.is_err());
    assert!(store.decide(&approve(&request, "ana")).await.is_err());
    assert!(store.pending_approvals(0, 1).await.is_err());
    assert!(store.overdue_resumes().await.is_err());
}

async fn another_process_decides_a_request(fixture: Fixture) {
    let other = fixture.open().await.store;
    let request = submit(&fixture.store, new_request("Pay?")).await;
    let theirs = read(&other, &request).await;
    assert_eq!(theirs.request, request);
    assert_eq!(
        other.pending_approvals(0, 10).await.unwrap(),
        fixture.store.pending_approvals(0, 10).await.unwrap()
    );
    let decision = theirs.approve("ana");
    assert_eq!(other.decide(&decision).await.unwrap().0, DecideResult::Applied);
    assert_eq!(read(&fixture.store, &request).await.decision, Some(decision.clone()));
    assert_eq!(fixture.store.decide(&decision).await.unwrap().0, DecideResult::Replayed);
}

async fn another_process_is_notified(fixture: Fixture) {
    let other = fixture.open().await.store;
    wait_for_notification(&mut other.new_requests(), async || submit_any(&fixture.store).await)
        .await;
    assert_decision_announced(&other, &fixture.store).await;
}
