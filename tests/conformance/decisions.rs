//! Decisions: which one counts, and the result that the other deciders receive.

use std::sync::Arc;

use countersign::TaskId;
use countersign::approval::{
    ApprovalRequest, ApprovalStatus, DecideResult, Decision, DecisionKind, Digest,
};
use countersign::backend::{Capability, Store};
use serde_json::json;

use crate::approvals::{new_request, read, submit};
use crate::case::{Case, case};
use crate::fixture::{Fixture, race};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_decision_counts_with_its_audit_entry),
        case(one_of_many_deciders_wins_and_the_others_get_its_decision),
        case(deciders_of_two_processes_agree).needs(Capability::SeveralProcesses),
        case(the_same_decision_counts_once),
        case(a_decision_on_a_missing_request_is_unknown),
        case(a_decision_with_another_digest_is_refused),
        case(only_named_approvers_may_decide),
        case(the_requester_may_not_approve),
        case(only_editable_arguments_can_be_edited),
        case(a_quorum_counts_people),
        case(a_policy_counts_in_a_quorum_only_if_configured),
        case(one_rejection_is_enough),
        case(a_withdrawn_request_is_not_decided),
    ]
}

/// Returns a decision on the request in its present form.
pub(crate) fn decision(request: &ApprovalRequest, by: &str, choice: DecisionKind) -> Decision {
    Decision {
        id: TaskId::random().to_string(),
        approval: request.id.clone(),
        digest: request.digest(),
        nonce: None,
        by: by.into(),
        choice,
        reason: (choice == DecisionKind::Reject).then(|| "too much".into()),
        in_quorum: false,
        edited: None,
        edited_digest: None,
    }
}

pub(crate) fn approve(request: &ApprovalRequest, by: &str) -> Decision {
    decision(request, by, DecisionKind::Approve)
}

async fn decide(store: &Arc<dyn Store>, decision: &Decision) -> DecideResult {
    let (result, resume) = store.decide(decision).await.unwrap();
    assert_eq!(resume, None, "no task waits for it");
    result
}

async fn a_decision_counts_with_its_audit_entry(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    for choice in [DecisionKind::Approve, DecisionKind::Reject, DecisionKind::Withdraw] {
        let request = submit(store, new_request("Pay?")).await;
        let decision = Decision {
            reason: Some("grüße 日本\n\u{0}".into()),
            ..decision(&request, "an 'odd' name", choice)
        };
        let before = store.clock().await.unwrap();
        assert_eq!(decide(store, &decision).await, DecideResult::Applied);
        let after = store.clock().await.unwrap();
        let record = read(store, &request).await;
        assert_eq!(record.status, ApprovalStatus::Decided(choice));
        assert_eq!(record.decision.as_ref(), Some(&decision));
        assert!((before..=after).contains(&record.at.as_millisecond()));
        let fields = store.audit_entries(1).await.unwrap().remove(0).fields;
        let wanted = [
            ("what", choice.as_str()),
            ("approval", request.id.as_str()),
            ("by", "an 'odd' name"),
            ("digest", request.digest().as_str()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(wanted.iter().all(|field| fields.contains(field)), "{fields:?}");
    }
}

/// Fifty people decide concurrently; returns the one whose decision counted.
async fn race_for(stores: Vec<Arc<dyn Store>>, request: &ApprovalRequest) -> String {
    let results = race(50, |n| {
        let (store, request) = (stores[n % stores.len()].clone(), request.clone());
        async move {
            let choice = [DecisionKind::Approve, DecisionKind::Reject][n % 2];
            let decision = decision(&request, &format!("person {n}"), choice);
            (decide(&store, &decision).await, decision)
        }
    });
    let (won, lost): (Vec<_>, Vec<_>) =
        results.await.into_iter().partition(|(result, _)| *result == DecideResult::Applied);
    let [(_, winner)] = &won[..] else { panic!("{} decisions count", won.len()) };
    let record = read(&stores[0], request).await;
    assert_eq!(record.decision.as_ref(), Some(winner));
    let expected = DecideResult::AlreadyDecided {
        by: winner.by.clone(),
        at: record.at,
        choice: winner.choice,
    };
    assert!(lost.iter().all(|(result, _)| *result == expected), "{lost:?}");
    winner.by.clone()
}

async fn one_of_many_deciders_wins_and_the_others_get_its_decision(fixture: Fixture) {
    let request = submit(&fixture.store, new_request("Pay?")).await;
    race_for(vec![fixture.store.clone()], &request).await;
    assert_eq!(fixture.store.audit_after(None, 100).await.unwrap().len(), 1, "one decision counts");
    let entries = fixture.store.audit_entries(100).await.unwrap();
    assert_eq!(entries.len(), 50, "the other decisions are refused");
}

async fn deciders_of_two_processes_agree(fixture: Fixture) {
    let other = fixture.open().await.store;
    for _ in 0..5 {
        let request = submit(&fixture.store, new_request("Pay?")).await;
        race_for(vec![fixture.store.clone(), other.clone()], &request).await;
    }
}

async fn the_same_decision_counts_once(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(store, ApprovalRequest { quorum: 2, ..new_request("Pay?") }).await;
    let [first, second] = [approve(&request, "ana"), approve(&request, "bob")];
    assert_eq!(decide(store, &first).await, DecideResult::Counted { votes: 1, quorum: 2 });
    assert_eq!(decide(store, &first).await, DecideResult::Replayed);
    assert_eq!(decide(store, &second).await, DecideResult::Applied);
    for decision in [&first, &second, &first] {
        assert_eq!(decide(store, decision).await, DecideResult::Replayed);
    }
    assert_eq!(store.audit_entries(100).await.unwrap().len(), 2);
}

async fn a_decision_on_a_missing_request_is_unknown(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_eq!(decide(store, &approve(&new_request("Pay?"), "ana")).await, DecideResult::Unknown);
    assert_eq!(store.audit_entries(100).await.unwrap(), []);
}

async fn a_decision_with_another_digest_is_refused(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(store, new_request("Pay?")).await;
    for digest in [Digest::from("0".repeat(64)), Digest::from(String::new())] {
        let decision = Decision { digest, ..approve(&request, "ana") };
        assert_eq!(decide(store, &decision).await, DecideResult::DigestMismatch);
    }
    assert_eq!(decide(store, &approve(&request, "ana")).await, DecideResult::Applied);
    assert_eq!(store.audit_after(None, 100).await.unwrap().len(), 1);
}

async fn only_named_approvers_may_decide(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let approvers = vec!["ana".to_owned(), "bob the 2nd".to_owned()];
    for choice in [DecisionKind::Approve, DecisionKind::Reject, DecisionKind::Withdraw] {
        for (by, expected) in [
            ("eve", DecideResult::NotAllowed),
            ("an", DecideResult::NotAllowed),
            ("bob", DecideResult::NotAllowed),
            ("Ana", DecideResult::NotAllowed),
            ("", DecideResult::NotAllowed),
            ("ana", DecideResult::Applied),
            ("bob the 2nd", DecideResult::Applied),
        ] {
            let request = ApprovalRequest { approvers: approvers.clone(), ..new_request("Pay?") };
            let request = submit(store, request).await;
            let result = decide(store, &decision(&request, by, choice)).await;
            assert_eq!(result, expected, "{choice:?} by {by:?}");
        }
    }
}

async fn the_requester_may_not_approve(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let requester = Some("rita".to_owned());
    for (self_approval, named, choice, expected) in [
        (false, true, DecisionKind::Approve, DecideResult::NotAllowed),
        (false, true, DecisionKind::Reject, DecideResult::Applied),
        (false, true, DecisionKind::Withdraw, DecideResult::Applied),
        (true, true, DecisionKind::Approve, DecideResult::Applied),
        (true, false, DecisionKind::Approve, DecideResult::NotAllowed),
        // The requester may withdraw the request, even if others decide it.
        (false, false, DecisionKind::Withdraw, DecideResult::Applied),
        (false, false, DecisionKind::Reject, DecideResult::NotAllowed),
    ] {
        let approvers = if named { Vec::new() } else { vec!["ana".to_owned()] };
        let requester = requester.clone();
        let request =
            ApprovalRequest { requester, self_approval, approvers, ..new_request("Pay?") };
        let request = submit(store, request).await;
        let result = decide(store, &decision(&request, "rita", choice)).await;
        assert_eq!(result, expected, "{choice:?}, {self_approval}, {named}");
    }
}

async fn only_editable_arguments_can_be_edited(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let edited = Some(json!({"to": "another", "cents": [1, 2.5, null]}));
    for (editable, quorum, expected) in [
        (true, 1, DecideResult::Applied),
        (false, 1, DecideResult::NotAllowed),
        // With a quorum, everyone must approve the same arguments.
        (true, 2, DecideResult::NotAllowed),
    ] {
        let request =
            submit(store, ApprovalRequest { editable, quorum, ..new_request("Pay?") }).await;
        let decision = Decision { edited: edited.clone(), ..approve(&request, "ana") };
        assert_eq!(decide(store, &decision).await, expected, "{editable}, {quorum}");
        let found = read(store, &request).await.decision.and_then(|decision| decision.edited);
        assert_eq!(found, edited.clone().filter(|_| expected == DecideResult::Applied));
    }
}

async fn a_quorum_counts_people(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(store, ApprovalRequest { quorum: 3, ..new_request("Pay?") }).await;
    for (by, votes) in [("ana", 1), ("ana", 1), ("bob", 2), ("ana", 2)] {
        let result = decide(store, &approve(&request, by)).await;
        assert_eq!(result, DecideResult::Counted { votes, quorum: 3 }, "{by}");
        let record = read(store, &request).await;
        assert_eq!((record.votes, record.decision), (votes, None));
        assert!(matches!(record.status, ApprovalStatus::Open(_)));
    }
    let last = approve(&request, "eve");
    assert_eq!(decide(store, &last).await, DecideResult::Applied);
    let record = read(store, &request).await;
    assert_eq!((record.votes, record.decision), (3, Some(last)));
    let late = decide(store, &approve(&request, "dan")).await;
    assert!(matches!(&late, DecideResult::AlreadyDecided { by, .. } if by == "eve"), "{late:?}");
}

async fn a_policy_counts_in_a_quorum_only_if_configured(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(store, ApprovalRequest { quorum: 2, ..new_request("Pay?") }).await;
    let policy = |name: &str, in_quorum| Decision {
        in_quorum,
        ..approve(&request, &format!("policy:{name}"))
    };
    assert_eq!(decide(store, &policy("small", false)).await, DecideResult::NotAllowed);
    let counted = |votes| DecideResult::Counted { votes, quorum: 2 };
    assert_eq!(decide(store, &policy("small", true)).await, counted(1));
    assert_eq!(decide(store, &policy("renamed", true)).await, counted(1));
    assert_eq!(decide(store, &policy("small", true)).await, counted(1));
    assert_eq!(read(store, &request).await.votes, 1);
    assert_eq!(decide(store, &approve(&request, "ana")).await, DecideResult::Applied);
    // One rejection is enough, and one approval suffices for a quorum of one.
    for (quorum, choice) in [(2, DecisionKind::Reject), (1, DecisionKind::Approve)] {
        let request = submit(store, ApprovalRequest { quorum, ..new_request("Pay?") }).await;
        let result = decide(store, &decision(&request, "policy:small", choice)).await;
        assert_eq!(result, DecideResult::Applied, "{choice:?} of {quorum}");
    }
}

async fn one_rejection_is_enough(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(store, ApprovalRequest { quorum: 2, ..new_request("Pay?") }).await;
    decide(store, &approve(&request, "ana")).await;
    assert_eq!(
        decide(store, &decision(&request, "bob", DecisionKind::Reject)).await,
        DecideResult::Applied
    );
    let result = decide(store, &approve(&request, "eve")).await;
    let (by, choice) = ("bob".to_owned(), DecisionKind::Reject);
    let at = read(store, &request).await.at;
    assert_eq!(result, DecideResult::AlreadyDecided { by, at, choice });
}

async fn a_withdrawn_request_is_not_decided(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let request = submit(store, new_request("Pay?")).await;
    let withdrawal = decision(&request, "rita", DecisionKind::Withdraw);
    assert_eq!(decide(store, &withdrawal).await, DecideResult::Applied);
    assert_eq!(decide(store, &withdrawal).await, DecideResult::Replayed);
    for choice in [DecisionKind::Approve, DecisionKind::Reject, DecisionKind::Withdraw] {
        assert_eq!(
            decide(store, &decision(&request, "ana", choice)).await,
            DecideResult::Withdrawn
        );
    }
}
