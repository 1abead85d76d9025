use proptest::prelude::*;

use super::*;
use crate::approval::timestamp;

const LEASE: i64 = 30;

fn header(kind: SuspendKind, number: u64) -> SuspendHeader {
    SuspendHeader { kind, number }
}

fn waiting(number: u64) -> Option<Suspension> {
    let waits = vec![ApprovalId::random()];
    Some(Suspension { number, digest: None, waits, claim: None, ended: false })
}

fn digest(name: &str) -> TaskDigest {
    TaskDigest::from(name.to_owned())
}

/// Claims by a message whose digest is not known, as in the previous version.
fn claim_at(
    record: &mut Option<Suspension>,
    header: SuspendHeader,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> ClaimOutcome {
    super::claim(record, header, None, due, holder, now, lease)
}

fn begin(record: &mut Option<Suspension>, holder: &str, now: i64, lease: i64) -> ClaimOutcome {
    super::begin(record, &digest("one"), false, holder, now, lease)
}

fn suspend_at(
    record: &mut Option<Suspension>,
    number: u64,
    waits: Vec<ApprovalId>,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> SuspendOutcome {
    let next = Suspension { number, digest: None, waits, claim: None, ended: false };
    super::suspend(record, next, due, holder, now, lease)
}

/// Creates the record of a suspended task with this digest.
fn suspended(number: u64, name: &str) -> Option<Suspension> {
    Some(Suspension { digest: Some(digest(name)), ..waiting(number).unwrap() })
}

const ORIGINAL: SuspendHeader = SuspendHeader { kind: SuspendKind::Original, number: 0 };

#[test]
fn messages_of_another_task_change_nothing() {
    for is_ended in [false, true] {
        let mut record = suspended(2, "two");
        if is_ended {
            assert!(end(&mut record, Some(&digest("two"))));
        }
        let before = record.clone();
        let one = digest("one");
        let mut by = |kind, number| {
            let header = header(kind, number);
            super::claim(&mut record, header, Some(&one), Due::Now, "a", 0, LEASE)
        };
        for number in [1, 2, 3] {
            assert_eq!(by(SuspendKind::Wake, number), ClaimOutcome::Ack);
            assert_eq!(by(SuspendKind::Original, number), ClaimOutcome::Ack);
        }
        let first = if is_ended { ClaimOutcome::Unclaimed } else { ClaimOutcome::Occupied };
        assert_eq!(by(SuspendKind::Original, 0), first);
        let next = Suspension::waiting(9, digest("one"), Vec::new());
        assert_eq!(
            super::suspend(&mut record, next, Due::Now, "a", 0, LEASE),
            SuspendOutcome::Behind
        );
        assert!(!end(&mut record, Some(&digest("one"))));
        assert_eq!(record, before);
    }
}

#[test]
fn a_new_task_replaces_an_ended_record() {
    for (name, starts_anew) in [("two", false), ("two", true), ("one", true)] {
        let mut record = suspended(4, "one");
        let new = digest(name);
        let outcome = super::begin(&mut record, &new, starts_anew, "a", 0, LEASE);
        assert_eq!(outcome, if name == "one" { ClaimOutcome::Ack } else { ClaimOutcome::Occupied });
        end(&mut record, None);
        let outcome = super::begin(&mut record, &new, starts_anew, "a", 0, LEASE);
        assert_eq!(outcome, ClaimOutcome::Claimed(5));
        // Its message is redelivered after its worker has died.
        let again = super::claim(&mut record, ORIGINAL, Some(&new), Due::Now, "b", LEASE, LEASE);
        assert_eq!(again, ClaimOutcome::Claimed(0));
        let wake = header(SuspendKind::Wake, 4);
        let late = super::claim(&mut record, wake, Some(&digest("x")), Due::Now, "c", 0, LEASE);
        assert_eq!(late, ClaimOutcome::Ack);
        // So is a late one with the same arguments, once the new task is suspended.
        let next = Suspension::waiting(6, new.clone(), Vec::new());
        assert_eq!(
            super::suspend(&mut record, next, Due::In(9), "b", LEASE, LEASE),
            SuspendOutcome::Waiting
        );
        let wake = header(SuspendKind::Wake, 5);
        let late = super::claim(&mut record, wake, Some(&new), Due::Now, "c", LEASE, LEASE);
        assert_eq!(late, ClaimOutcome::Ack);
    }
    let mut record = suspended(4, "one");
    end(&mut record, None);
    let copy = super::begin(&mut record, &digest("one"), false, "a", 0, LEASE);
    assert_eq!(copy, ClaimOutcome::Ack, "a copy that stores no result");
}

#[test]
fn the_first_message_of_an_ended_task_gets_ended() {
    let mut record = suspended(2, "one");
    end(&mut record, None);
    let one = digest("one");
    let first = super::claim(&mut record, ORIGINAL, Some(&one), Due::Now, "a", 0, LEASE);
    assert_eq!(first, ClaimOutcome::Ended);
    assert_eq!(claim_at(&mut record, ORIGINAL, Due::Now, "a", 0, LEASE), ClaimOutcome::Ack);
}

#[test]
fn a_record_without_digest_matches_every_message() {
    let mut record = waiting(2);
    let wake = header(SuspendKind::Wake, 2);
    let outcome = super::claim(&mut record, wake, Some(&digest("one")), Due::Now, "a", 0, LEASE);
    assert_eq!(outcome, ClaimOutcome::Claimed(2));
    end(&mut record, Some(&digest("two")));
    let outcome = super::begin(&mut record, &digest("two"), true, "b", 0, LEASE);
    assert_eq!(outcome, ClaimOutcome::Ack);
}

#[test]
fn a_suspended_task_is_not_forgotten_and_late_messages_of_a_forgotten_one_are_acked() {
    let mut record = suspended(3, "one");
    assert!(!forget(&mut record) && forget(&mut None));
    end(&mut record, None);
    assert!(forget(&mut record));
    let one = digest("one");
    for number in [1, 3, 4] {
        let wake = header(SuspendKind::Wake, number);
        let late = super::claim(&mut record, wake, Some(&one), Due::Now, "a", 0, LEASE);
        assert_eq!(late, ClaimOutcome::Ack);
    }
    // The same message, sent anew.
    let again = super::claim(&mut record, ORIGINAL, Some(&one), Due::Now, "a", 0, LEASE);
    assert_eq!(again, ClaimOutcome::Unclaimed);
    let outcome = super::begin(&mut record, &one, false, "a", 0, LEASE);
    assert_eq!(outcome, ClaimOutcome::Claimed(4));
}

#[test]
fn a_message_behind_is_acked_and_an_equal_one_is_claimed_once() {
    let mut record = waiting(2);
    let old = header(SuspendKind::Wake, 1);
    assert_eq!(claim_at(&mut record, old, Due::Now, "a", 0, LEASE), ClaimOutcome::Ack);
    let resume = header(SuspendKind::Resume, 2);
    assert_eq!(claim_at(&mut record, resume, Due::Now, "a", 0, LEASE), ClaimOutcome::Claimed(2));
    assert_eq!(claim_at(&mut record, resume, Due::Now, "b", 10, LEASE), ClaimOutcome::Postpone(20));
    let wake = header(SuspendKind::Wake, 2);
    assert_eq!(claim_at(&mut record, wake, Due::Now, "b", 30, LEASE), ClaimOutcome::Claimed(2));
    assert!(!renew(&mut record, "a", 31, LEASE) && renew(&mut record, "b", 31, LEASE));
}

#[test]
fn a_forged_resume_changes_nothing() {
    let mut record = waiting(1);
    let before = record.clone();
    for number in [0, 1, 2, 1 << 40] {
        let forged = header(SuspendKind::Resume, number);
        assert_eq!(claim_at(&mut record, forged, Due::In(50), "a", 0, LEASE), ClaimOutcome::Ack);
    }
    assert_eq!(record, before);
    assert_eq!(
        claim_at(&mut None, header(SuspendKind::Resume, 1), Due::Now, "a", 0, LEASE),
        ClaimOutcome::Ack
    );
}

#[test]
fn a_number_far_ahead_is_forged() {
    let mut record = waiting(1);
    let before = record.clone();
    for kind in [SuspendKind::Original, SuspendKind::Resume, SuspendKind::Wake] {
        let forged = header(kind, (1 << 53) - 1);
        assert_eq!(claim_at(&mut record, forged, Due::Now, "a", 0, LEASE), ClaimOutcome::Ack);
    }
    assert_eq!(record, before);
}

#[test]
fn a_lost_record_ends_the_task_by_its_wake() {
    let wake = header(SuspendKind::Wake, 1);
    assert_eq!(claim_at(&mut None, wake, Due::Now, "a", 0, LEASE), ClaimOutcome::StateLost);
}

#[test]
fn a_wake_message_older_than_the_end_record_does_not_report_a_loss() {
    assert!(is_lost(None, 0), "of version 0.1");
    assert!(is_lost(Some(1000), 1000 + LOST_WITHIN - 1));
    assert!(!is_lost(Some(1000), 1000 + LOST_WITHIN));
    assert!(is_lost(Some(1000), 0), "the clock was set back");
    const { assert!(LOST_WITHIN > RECHECK && ENDED_RETENTION > LOST_WITHIN) };
}

#[test]
fn an_early_wake_message_is_postponed() {
    let wake = header(SuspendKind::Wake, 1);
    let early = claim_at(&mut waiting(1), wake, Due::In(7), "a", 0, LEASE);
    assert_eq!(early, ClaimOutcome::Postpone(7));
    let long = claim_at(&mut waiting(1), wake, Due::In(i64::MAX), "a", 0, LEASE);
    assert_eq!(long, ClaimOutcome::Postpone(RECHECK));
}

#[test]
fn a_wake_message_ahead_of_its_record_is_claimed_when_no_lease_is_held() {
    let wake = header(SuspendKind::Wake, 3);
    let mut record = waiting(1);
    assert_eq!(claim_at(&mut record, wake, Due::In(9), "a", 0, LEASE), ClaimOutcome::Claimed(3));
    assert_eq!(
        claim_at(&mut record, header(SuspendKind::Wake, 4), Due::Now, "b", 0, LEASE),
        ClaimOutcome::Postpone(30)
    );
}

#[test]
fn suspending_with_an_existing_decision_claims_the_task() {
    let mut record = None;
    let waits = vec![ApprovalId::random()];
    assert_eq!(
        suspend_at(&mut record, 1, waits.clone(), Due::Now, "a", 0, LEASE),
        SuspendOutcome::Ready
    );
    assert_eq!(
        suspend_at(&mut record, 1, waits.clone(), Due::Now, "b", 1, LEASE),
        SuspendOutcome::Behind
    );
    assert_eq!(
        suspend_at(&mut record, 2, waits.clone(), Due::In(5), "a", 1, LEASE),
        SuspendOutcome::Waiting
    );
    assert_eq!(
        suspend_at(&mut record, 2, waits.clone(), Due::In(5), "b", 1, LEASE),
        SuspendOutcome::Waiting
    );
    assert_eq!(suspend_at(&mut record, 1, waits, Due::Now, "a", 1, LEASE), SuspendOutcome::Behind);
}

#[test]
fn the_nearest_deadline_is_due_first_and_a_missing_request_at_once() {
    let open = |deadline| Some(ApprovalStatus::Open(timestamp(deadline)));
    assert_eq!(Due::of([open(50), open(30)], None, 20), Due::In(11));
    assert_eq!(Due::of([open(50), open(30)], Some(25), 20), Due::In(6));
    assert_eq!(Due::of([], Some(25), 25), Due::In(1), "not before it has passed");
    assert_eq!(Due::of([], Some(25), 26), Due::Now);
    assert_eq!(Due::of([], None, 0), Due::Now);
    assert_eq!(Due::of([open(50), None], Some(90), 20), Due::Now);
    assert_eq!(
        Due::of([open(50), Some(ApprovalStatus::Expired(timestamp(19)))], None, 20),
        Due::Now
    );
    assert_eq!(Due::of([], Some(i64::MAX), -1), Due::In(i64::MAX));
}

#[test]
fn after_the_end_every_message_is_acked() {
    let mut record = waiting(2);
    end(&mut record, None);
    for kind in [SuspendKind::Original, SuspendKind::Resume, SuspendKind::Wake] {
        for number in [0, 2, 3] {
            assert_eq!(
                claim_at(&mut record, header(kind, number), Due::Now, "a", 0, LEASE),
                ClaimOutcome::Ack
            );
        }
    }
    assert_eq!(
        suspend_at(&mut record, 9, Vec::new(), Due::Now, "a", 0, LEASE),
        SuspendOutcome::Behind
    );
}

#[test]
fn a_wake_message_before_the_first_suspension_waits_for_the_holder() {
    let wake = header(SuspendKind::Wake, 1);
    let mut record = None;
    assert_eq!(begin(&mut record, "a", 0, LEASE), ClaimOutcome::Claimed(0));
    assert_eq!(
        begin(&mut record, "a", 1, LEASE),
        ClaimOutcome::Claimed(0),
        "the same holder again"
    );
    assert_eq!(claim_at(&mut record, wake, Due::Now, "b", 2, LEASE), ClaimOutcome::Postpone(29));
    assert_eq!(begin(&mut record, "b", 2, LEASE), ClaimOutcome::Postpone(29), "another copy of it");
    let waits = vec![ApprovalId::random()];
    let mut suspended_record = record.clone();
    assert_eq!(
        suspend_at(&mut suspended_record, 1, waits, Due::In(5), "a", 3, LEASE),
        SuspendOutcome::Waiting
    );
    assert_eq!(begin(&mut suspended_record, "b", 3, LEASE), ClaimOutcome::Ack);
    // The run that was about to continue has died: the first message continues.
    let mut by_wake = record.clone();
    assert_eq!(claim_at(&mut by_wake, wake, Due::Now, "b", 40, LEASE), ClaimOutcome::Claimed(1));
    let original = header(SuspendKind::Original, 0);
    assert_eq!(claim_at(&mut by_wake, original, Due::Now, "c", 41, LEASE), ClaimOutcome::Ack);
    assert_eq!(claim_at(&mut record, original, Due::Now, "c", 40, LEASE), ClaimOutcome::Claimed(0));
    assert_eq!(claim_at(&mut record, wake, Due::Now, "b", 41, LEASE), ClaimOutcome::Postpone(29));
}

proptest! {
    /// For any messages in any order: one runner at a time, numbers decrease only when a new task replaces
    /// one that has ended, and no other task replaces a suspended one.
    #[test]
    fn a_live_lease_excludes_every_other_holder(
        ops in prop::collection::vec(
            (0_u8..7, 0_u64..4, 0_u8..3, 0_u8..3, any::<bool>(), 0_i64..20),
            0..200,
        ),
    ) {
        let mut record: Option<Suspension> = None;
        let mut now = 0;
        for (op, number, who, task, flag, passed) in ops {
            now += passed;
            let holder = ["a", "b", "c"][usize::from(who)];
            let named = [None, Some(digest("one")), Some(digest("two"))][usize::from(task)].clone();
            let due = if flag { Due::Now } else { Due::In(5) };
            let other = record.as_ref().and_then(|suspension| suspension.is_held_by_another(holder, now));
            let before = record.clone();
            let runs = match op {
                0..=2 => {
                    let kind = [SuspendKind::Original, SuspendKind::Resume, SuspendKind::Wake][usize::from(op)];
                    let named = named.as_ref().filter(|_| kind != SuspendKind::Resume);
                    let outcome = super::claim(&mut record, header(kind, number), named, due, holder, now, LEASE);
                    matches!(outcome, ClaimOutcome::Claimed(_))
                }
                3 => {
                    let next = Suspension { digest: named, ..waiting(number).unwrap() };
                    super::suspend(&mut record, next, due, holder, now, LEASE) == SuspendOutcome::Ready
                }
                4 => renew(&mut record, holder, now, LEASE),
                5 => {
                    end(&mut record, named.as_ref());
                    false
                }
                _ => {
                    let named = named.unwrap_or(digest("one"));
                    let outcome = super::begin(&mut record, &named, flag, holder, now, LEASE);
                    matches!(outcome, ClaimOutcome::Claimed(_))
                }
            };
            prop_assert!(!(runs && other.is_some()));
            if other.is_some() && op != 5 {
                prop_assert_eq!(&record, &before);
            }
            if let Some(before) = before {
                let after = record.as_ref().unwrap();
                let is_same = after.digest == before.digest;
                prop_assert!(after.number >= before.number || (before.ended && op == 6));
                prop_assert!(is_same || before.ended || before.digest.is_none() || op == 3);
            }
        }
    }
}
