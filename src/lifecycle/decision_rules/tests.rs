use proptest::prelude::*;

use super::*;

fn digest(text: &str) -> Digest {
    Digest::from(text.to_owned())
}

fn terms() -> RequestTerms {
    RequestTerms {
        digest: digest("d"),
        nonce: None,
        requested_at: 0,
        deadline: 100,
        quorum: 1,
        requester: Some("rita".into()),
        self_approval: false,
        approvers: Vec::new(),
        editable: true,
        withdrawn: false,
    }
}

fn vote<'a>(by: &'a str, choice: DecisionKind, digest: &'a Digest) -> Vote<'a> {
    Vote { decision: by, choice, by, digest, nonce: None, in_quorum: false, edited: false }
}

/// An operator or approver extends the deadline.
fn extend(
    terms: Option<&RequestTerms>,
    record: &mut DecisionRecord,
    until: i64,
    now: i64,
) -> DecideResult {
    super::extend(terms, record, Extension { by: "ana", is_operator: false, until }, now)
}

#[test]
fn approvers_and_operators_extend_and_never_shorten_a_deadline() {
    let named = RequestTerms { approvers: vec!["ana".into(), "rita".into()], ..terms() };
    let anybody = terms();
    let selfish = RequestTerms { self_approval: true, ..terms() };
    let earlier = DecideResult::Earlier { deadline: timestamp(100) };
    for (terms, by, is_operator, until, expected) in [
        (&named, "ana", false, 300, DecideResult::Applied),
        (&named, "eve", false, 300, DecideResult::NotAllowed),
        (&named, "eve", true, 300, DecideResult::Applied),
        (&named, "rita", false, 300, DecideResult::NotAllowed),
        (&named, "rita", true, 300, DecideResult::Applied),
        (&anybody, "eve", false, 300, DecideResult::Applied),
        (&anybody, "rita", false, 300, DecideResult::NotAllowed),
        (&selfish, "rita", false, 300, DecideResult::Applied),
        (&named, "ana", false, 100, DecideResult::Applied),
        (&named, "ana", false, 99, earlier.clone()),
        (&named, "eve", true, 50, earlier),
        (&named, "eve", false, 50, DecideResult::NotAllowed),
    ] {
        let (mut record, extension) =
            (DecisionRecord::default(), Extension { by, is_operator, until });
        let result = super::extend(Some(terms), &mut record, extension, 50);
        assert_eq!(result, expected, "{by}, {is_operator}, {until}");
        let deadline = if expected == DecideResult::Applied { until } else { 100 };
        assert_eq!(status(terms, &record, 50), ApprovalStatus::Open(timestamp(deadline)));
    }
}

#[test]
fn the_first_decision_wins_and_later_ones_get_the_winner() {
    let (terms, digest_seen, mut record) = (terms(), digest("d"), DecisionRecord::default());
    let ana = vote("ana", DecisionKind::Approve, &digest_seen);
    assert_eq!(decide(Some(&terms), &mut record, &ana, 5), DecideResult::Applied);
    let bob = vote("bob", DecisionKind::Reject, &digest_seen);
    let result = DecideResult::AlreadyDecided {
        by: "ana".into(),
        at: timestamp(5),
        choice: DecisionKind::Approve,
    };
    assert_eq!(decide(Some(&terms), &mut record, &bob, 6), result);
    assert_eq!(decide(Some(&terms), &mut record, &ana, 500), DecideResult::Replayed);
    assert_eq!(status(&terms, &record, 500), ApprovalStatus::Decided(DecisionKind::Approve));
}

#[test]
fn decisions_and_extensions_after_the_deadline_are_refused() {
    let (terms, digest_seen, mut record) = (terms(), digest("d"), DecisionRecord::default());
    let late = vote("ana", DecisionKind::Approve, &digest_seen);
    assert_eq!(
        decide(Some(&terms), &mut record, &late, 101),
        DecideResult::Expired { at: timestamp(100) }
    );
    assert_eq!(
        extend(Some(&terms), &mut record, 300, 101),
        DecideResult::Expired { at: timestamp(100) }
    );
    assert_eq!(extend(Some(&terms), &mut record, 300, 100), DecideResult::Applied);
    assert_eq!(decide(Some(&terms), &mut record, &late, 300), DecideResult::Applied);
}

#[test]
fn an_extension_counts_only_for_the_request_that_was_open() {
    let (terms, mut record) = (terms(), DecisionRecord::default());
    assert_eq!(extend(Some(&terms), &mut record, 300, 100), DecideResult::Applied);
    assert_eq!(status(&terms, &record, 301), ApprovalStatus::Expired(timestamp(300)));
    let changed_later = RequestTerms { requested_at: 400, deadline: 500, ..terms };
    assert_eq!(status(&changed_later, &record, 400), ApprovalStatus::Open(timestamp(500)));
}

#[test]
fn a_quorum_counts_people_and_one_rejection_is_enough() {
    let (digest_seen, mut record) = (digest("d"), DecisionRecord::default());
    let terms = RequestTerms { quorum: 3, ..terms() };
    let counted = |votes| DecideResult::Counted { votes, quorum: 3 };
    let ana = vote("ana", DecisionKind::Approve, &digest_seen);
    assert_eq!(decide(Some(&terms), &mut record, &ana, 1), counted(1));
    let again = Vote { decision: "other", ..ana.clone() };
    assert_eq!(decide(Some(&terms), &mut record, &again, 1), counted(1));
    assert_eq!(
        decide(Some(&terms), &mut record, &vote("bob", DecisionKind::Approve, &digest_seen), 1),
        counted(2)
    );
    let mut rejected = record.clone();
    let no = vote("ana", DecisionKind::Reject, &digest_seen);
    assert_eq!(
        decide(Some(&terms), &mut rejected, &Vote { decision: "no", ..no }, 1),
        DecideResult::Applied
    );
    assert_eq!(
        decide(Some(&terms), &mut record, &vote("eve", DecisionKind::Approve, &digest_seen), 1),
        DecideResult::Applied
    );
}

#[test]
fn requesters_do_not_approve_and_unnamed_people_do_not_decide() {
    let (digest_seen, own) = (digest("d"), terms());
    let rita = vote("rita", DecisionKind::Approve, &digest_seen);
    assert_eq!(
        decide(Some(&own), &mut DecisionRecord::default(), &rita, 1),
        DecideResult::NotAllowed
    );
    let allowed = RequestTerms { self_approval: true, ..own.clone() };
    assert_eq!(
        decide(Some(&allowed), &mut DecisionRecord::default(), &rita, 1),
        DecideResult::Applied
    );
    let named = RequestTerms { approvers: vec!["ana".into()], ..own.clone() };
    for choice in [DecisionKind::Approve, DecisionKind::Reject, DecisionKind::Withdraw] {
        let eve = vote("eve", choice, &digest_seen);
        assert_eq!(
            decide(Some(&named), &mut DecisionRecord::default(), &eve, 1),
            DecideResult::NotAllowed
        );
    }
    let back = vote("rita", DecisionKind::Withdraw, &digest_seen);
    let mut record = DecisionRecord::default();
    assert_eq!(decide(Some(&named), &mut record, &back, 1), DecideResult::Applied);
    assert_eq!(
        decide(Some(&named), &mut record, &vote("ana", DecisionKind::Approve, &digest_seen), 1),
        DecideResult::Withdrawn
    );
}

#[test]
fn a_changed_request_needs_a_new_decision() {
    let (terms, digest_seen, mut record) = (terms(), digest("d"), DecisionRecord::default());
    let ana = vote("ana", DecisionKind::Approve, &digest_seen);
    assert_eq!(decide(Some(&terms), &mut record, &ana, 1), DecideResult::Applied);
    let changed = RequestTerms { digest: digest("e"), ..terms };
    assert_eq!(status(&changed, &record, 1), ApprovalStatus::Open(timestamp(100)));
    let bob = vote("bob", DecisionKind::Approve, &digest_seen);
    assert_eq!(decide(Some(&changed), &mut record, &bob, 1), DecideResult::DigestMismatch);
}

#[test]
fn a_status_dates_from_the_decision_or_the_deadline() {
    let (terms, digest_seen, mut record) = (terms(), digest("d"), DecisionRecord::default());
    assert_eq!(status_since(&terms, &record, 7), 100);
    assert_eq!(status_since(&terms, &record, 700), 100);
    assert_eq!(extend(Some(&terms), &mut record, 300, 7), DecideResult::Applied);
    assert_eq!(status_since(&terms, &record, 7), 300);
    let withdrawn = RequestTerms { withdrawn: true, ..terms.clone() };
    assert_eq!(status_since(&withdrawn, &record, 7), 7);
    let ana = vote("ana", DecisionKind::Approve, &digest_seen);
    assert_eq!(decide(Some(&terms), &mut record, &ana, 200), DecideResult::Applied);
    assert_eq!(status_since(&terms, &record, 700), 200);
    let changed = RequestTerms { digest: digest("e"), ..terms };
    assert_eq!((status_since(&changed, &record, 700), decided(&changed, &record)), (100, None));
}

#[test]
fn a_repeated_request_is_unchanged_while_its_task_waits() {
    let (terms, digest_seen, record) = (terms(), digest("d"), DecisionRecord::default());
    let of = |choice| {
        let mut record = DecisionRecord::default();
        assert_eq!(
            decide(Some(&terms), &mut record, &vote("ana", choice, &digest_seen), 1),
            DecideResult::Applied
        );
        record
    };
    for choice in [DecisionKind::Approve, DecisionKind::Reject, DecisionKind::Withdraw] {
        assert!(is_unchanged(&terms, &of(choice), &digest_seen, true, 900), "{choice:?}");
        assert!(!is_unchanged(&terms, &of(choice), &digest_seen, false, 5), "the run has ended");
        assert!(!is_unchanged(&terms, &of(choice), &digest("e"), true, 1), "a different digest");
    }
    let withdrawn = RequestTerms { withdrawn: true, ..terms.clone() };
    for awaits in [false, true] {
        assert_eq!(is_unchanged(&terms, &record, &digest_seen, awaits, 100), awaits);
        assert!(!is_unchanged(&withdrawn, &record, &digest_seen, awaits, 1));
        assert_eq!(
            is_unchanged(&terms, &record, &digest_seen, awaits, 101),
            awaits,
            "it has expired"
        );
    }
}

#[test]
fn votes_and_extensions_of_one_request_do_not_count_for_another() {
    let (digest_seen, mut record) = (digest("d"), DecisionRecord::default());
    let first = RequestTerms { nonce: Some("first".into()), quorum: 2, ..terms() };
    let second = RequestTerms { nonce: Some("second".into()), ..first.clone() };
    let ana = Vote { nonce: Some("first"), ..vote("ana", DecisionKind::Approve, &digest_seen) };
    let counted = DecideResult::Counted { votes: 1, quorum: 2 };
    assert_eq!(decide(Some(&first), &mut record, &ana, 1), counted);
    assert_eq!(extend(Some(&first), &mut record, 900, 1), DecideResult::Applied);
    assert_eq!(status(&first, &record, 500), ApprovalStatus::Open(timestamp(900)));
    assert_eq!(status(&second, &record, 500), ApprovalStatus::Expired(timestamp(100)));
    assert_eq!(decide(Some(&second), &mut record.clone(), &ana, 1), DecideResult::DigestMismatch);
    // The vote does not name its request.
    let late = Vote { nonce: None, ..ana };
    assert_eq!(decide(Some(&second), &mut record, &late, 1), counted, "the first vote");
    let bob = Vote { nonce: Some("second"), ..vote("bob", DecisionKind::Approve, &digest_seen) };
    assert_eq!(decide(Some(&second), &mut record, &bob, 2), DecideResult::Applied);
    assert_eq!(decided(&first, &record), None);
}

#[test]
fn records_of_version_0_1_count_for_older_requests() {
    let digest_seen = digest("d");
    let mut voted = DecisionRecord::default();
    let two = RequestTerms { quorum: 2, ..terms() };
    let ana = vote("ana", DecisionKind::Approve, &digest_seen);
    assert_eq!(
        decide(Some(&two), &mut voted, &ana, 50),
        DecideResult::Counted { votes: 1, quorum: 2 }
    );
    assert!(voted.of(&two).is_some(), "a request without a nonce");
    let new = |requested_at| RequestTerms {
        nonce: Some("new".into()),
        requested_at,
        deadline: 100,
        ..two.clone()
    };
    assert!(voted.of(&new(10)).is_none(), "the time of the vote is unknown");
    let mut decided = voted;
    assert_eq!(
        decide(Some(&two), &mut decided, &vote("bob", DecisionKind::Approve, &digest_seen), 60),
        DecideResult::Applied
    );
    assert!(decided.of(&new(60)).is_some());
    assert!(decided.of(&new(61)).is_none(), "decided before it was requested");
    let of_new = DecisionRecord { nonce: Some("new".into()), ..decided };
    assert!(of_new.of(&two).is_none());
}

proptest! {
    /// In any sequence of decisions, exactly one returns `Applied`, and its content stays unchanged.
    #[test]
    fn at_most_one_decision_is_applied(
        quorum in 1_u32..4,
        votes in prop::collection::vec((0_u8..4, 0_u8..3, 0_u8..2, 0_i64..150), 1..40),
    ) {
        let terms = RequestTerms { quorum, ..terms() };
        let mut record = DecisionRecord::default();
        let mut winner = None;
        for (n, (who, choice, digest_seen, now)) in votes.into_iter().enumerate() {
            let by = ["ana", "bob", "eve", "rita"][usize::from(who)];
            let choice = [DecisionKind::Approve, DecisionKind::Reject, DecisionKind::Withdraw][usize::from(choice)];
            let digest_seen = digest(["d", "e"][usize::from(digest_seen)]);
            let id = n.to_string();
            let vote = Vote { decision: &id, ..vote(by, choice, &digest_seen) };
            let expected = decide(Some(&terms), &mut record, &vote, now);
            if expected == DecideResult::Applied {
                prop_assert!(winner.is_none() && now <= terms.deadline && digest_seen == terms.digest);
                winner = Some((by, choice));
            }
            if let Some((by, choice)) = winner {
                let decided = record.decided.as_ref().map(|it| (it.by.as_str(), it.choice));
                prop_assert_eq!(decided, Some((by, choice)));
            }
        }
    }
}
