use proptest::prelude::*;

use super::*;

const LEASE: i64 = 30;

fn ticket(kind: TicketKind, number: u64) -> Ticket {
    Ticket { kind, number }
}

fn waiting(number: u64) -> Option<Park> {
    let waits = vec![ApprovalId::random()];
    Some(Park { number, digest: None, waits, claim: None, ended: false })
}

fn digest(name: &str) -> TaskDigest {
    TaskDigest::from(name.to_owned())
}

/// By a message whose digest is not known, as all were in the version before.
fn take(
    record: &mut Option<Park>,
    ticket: Ticket,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> Take {
    super::take(record, ticket, None, due, holder, now, lease)
}

fn begin(record: &mut Option<Park>, holder: &str, now: i64, lease: i64) -> Take {
    super::begin(record, &digest("one"), false, holder, now, lease)
}

fn park(
    record: &mut Option<Park>,
    number: u64,
    waits: Vec<ApprovalId>,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> Parked {
    let next = Park { number, digest: None, waits, claim: None, ended: false };
    super::park(record, next, due, holder, now, lease)
}

/// A task with this digest is suspended.
fn suspended(number: u64, name: &str) -> Option<Park> {
    Some(Park { digest: Some(digest(name)), ..waiting(number).unwrap() })
}

const ORIGINAL: Ticket = Ticket { kind: TicketKind::Original, number: 0 };

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
            let ticket = ticket(kind, number);
            super::take(&mut record, ticket, Some(&one), Due::Now, "a", 0, LEASE)
        };
        for number in [1, 2, 3] {
            assert_eq!(by(TicketKind::Wake, number), Take::Ack);
            assert_eq!(by(TicketKind::Original, number), Take::Ack);
        }
        let first = if is_ended { Take::Unclaimed } else { Take::Occupied };
        assert_eq!(by(TicketKind::Original, 0), first);
        let next = Park::waiting(9, digest("one"), Vec::new());
        assert_eq!(super::park(&mut record, next, Due::Now, "a", 0, LEASE), Parked::Behind);
        assert!(!end(&mut record, Some(&digest("one"))));
        assert_eq!(record, before);
    }
}

#[test]
fn a_new_task_replaces_a_record_that_has_ended() {
    for (name, starts_anew) in [("two", false), ("two", true), ("one", true)] {
        let mut record = suspended(4, "one");
        let new = digest(name);
        let begun = super::begin(&mut record, &new, starts_anew, "a", 0, LEASE);
        assert_eq!(begun, if name == "one" { Take::Ack } else { Take::Occupied });
        end(&mut record, None);
        let begun = super::begin(&mut record, &new, starts_anew, "a", 0, LEASE);
        assert_eq!(begun, Take::Claimed(5));
        // Its message comes again, after its worker has died.
        let again = super::take(&mut record, ORIGINAL, Some(&new), Due::Now, "b", LEASE, LEASE);
        assert_eq!(again, Take::Claimed(0));
        let wake = ticket(TicketKind::Wake, 4);
        let late = super::take(&mut record, wake, Some(&digest("x")), Due::Now, "c", 0, LEASE);
        assert_eq!(late, Take::Ack);
        // So is a late one of the same arguments, once the new task is suspended.
        let next = Park::waiting(6, new.clone(), Vec::new());
        assert_eq!(super::park(&mut record, next, Due::In(9), "b", LEASE, LEASE), Parked::Waiting);
        let wake = ticket(TicketKind::Wake, 5);
        let late = super::take(&mut record, wake, Some(&new), Due::Now, "c", LEASE, LEASE);
        assert_eq!(late, Take::Ack);
    }
    let mut record = suspended(4, "one");
    end(&mut record, None);
    let copy = super::begin(&mut record, &digest("one"), false, "a", 0, LEASE);
    assert_eq!(copy, Take::Ack, "a copy that stores no result");
}

#[test]
fn the_first_message_of_an_ended_task_is_told_so() {
    let mut record = suspended(2, "one");
    end(&mut record, None);
    let one = digest("one");
    let first = super::take(&mut record, ORIGINAL, Some(&one), Due::Now, "a", 0, LEASE);
    assert_eq!(first, Take::Ended);
    assert_eq!(take(&mut record, ORIGINAL, Due::Now, "a", 0, LEASE), Take::Ack);
}

#[test]
fn a_record_of_an_older_version_belongs_to_every_message() {
    let mut record = waiting(2);
    let wake = ticket(TicketKind::Wake, 2);
    let taken = super::take(&mut record, wake, Some(&digest("one")), Due::Now, "a", 0, LEASE);
    assert_eq!(taken, Take::Claimed(2));
    end(&mut record, Some(&digest("two")));
    let begun = super::begin(&mut record, &digest("two"), true, "b", 0, LEASE);
    assert_eq!(begun, Take::Ack);
}

#[test]
fn a_suspended_task_is_not_forgotten_and_late_messages_of_one_that_is_are_acked() {
    let mut record = suspended(3, "one");
    assert!(!forget(&mut record) && forget(&mut None));
    end(&mut record, None);
    assert!(forget(&mut record));
    let one = digest("one");
    for number in [1, 3, 4] {
        let wake = ticket(TicketKind::Wake, number);
        let late = super::take(&mut record, wake, Some(&one), Due::Now, "a", 0, LEASE);
        assert_eq!(late, Take::Ack);
    }
    // The same message, sent anew.
    let again = super::take(&mut record, ORIGINAL, Some(&one), Due::Now, "a", 0, LEASE);
    assert_eq!(again, Take::Unclaimed);
    let begun = super::begin(&mut record, &one, false, "a", 0, LEASE);
    assert_eq!(begun, Take::Claimed(4));
}

#[test]
fn a_message_behind_is_acked_and_an_equal_one_is_claimed_once() {
    let mut record = waiting(2);
    let old = ticket(TicketKind::Wake, 1);
    assert_eq!(take(&mut record, old, Due::Now, "a", 0, LEASE), Take::Ack);
    let resume = ticket(TicketKind::Resume, 2);
    assert_eq!(take(&mut record, resume, Due::Now, "a", 0, LEASE), Take::Claimed(2));
    assert_eq!(take(&mut record, resume, Due::Now, "b", 10, LEASE), Take::Postpone(20));
    let wake = ticket(TicketKind::Wake, 2);
    assert_eq!(take(&mut record, wake, Due::Now, "b", 30, LEASE), Take::Claimed(2));
    assert!(!renew(&mut record, "a", 31, LEASE) && renew(&mut record, "b", 31, LEASE));
}

#[test]
fn a_forged_resume_changes_nothing() {
    let mut record = waiting(1);
    let before = record.clone();
    for number in [0, 1, 2, 1 << 40] {
        let forged = ticket(TicketKind::Resume, number);
        assert_eq!(take(&mut record, forged, Due::In(50), "a", 0, LEASE), Take::Ack);
    }
    assert_eq!(record, before);
    assert_eq!(take(&mut None, ticket(TicketKind::Resume, 1), Due::Now, "a", 0, LEASE), Take::Ack);
}

#[test]
fn a_number_that_nobody_has_reached_is_forged() {
    let mut record = waiting(1);
    let before = record.clone();
    for kind in [TicketKind::Original, TicketKind::Resume, TicketKind::Wake] {
        let forged = ticket(kind, (1 << 53) - 1);
        assert_eq!(take(&mut record, forged, Due::Now, "a", 0, LEASE), Take::Ack);
    }
    assert_eq!(record, before);
}

#[test]
fn a_lost_record_ends_the_task_by_its_wake() {
    let wake = ticket(TicketKind::Wake, 1);
    assert_eq!(take(&mut None, wake, Due::Now, "a", 0, LEASE), Take::StateLost);
}

#[test]
fn a_wake_that_is_older_than_the_note_of_the_end_says_nothing_of_the_task() {
    assert!(is_lost(None, 0), "of version 0.1");
    assert!(is_lost(Some(1000), 1000 + LOST_WITHIN - 1));
    assert!(!is_lost(Some(1000), 1000 + LOST_WITHIN));
    assert!(is_lost(Some(1000), 0), "the clock was set back");
    const { assert!(LOST_WITHIN > RECHECK && ENDED_KEPT > LOST_WITHIN) };
}

#[test]
fn a_wake_that_is_early_comes_again() {
    let wake = ticket(TicketKind::Wake, 1);
    let early = take(&mut waiting(1), wake, Due::In(7), "a", 0, LEASE);
    assert_eq!(early, Take::Postpone(7));
    let long = take(&mut waiting(1), wake, Due::In(i64::MAX), "a", 0, LEASE);
    assert_eq!(long, Take::Postpone(RECHECK));
}

#[test]
fn what_is_ahead_of_its_record_is_adopted_when_nobody_runs() {
    let wake = ticket(TicketKind::Wake, 3);
    let mut record = waiting(1);
    assert_eq!(take(&mut record, wake, Due::In(9), "a", 0, LEASE), Take::Claimed(3));
    assert_eq!(
        take(&mut record, ticket(TicketKind::Wake, 4), Due::Now, "b", 0, LEASE),
        Take::Postpone(30)
    );
}

#[test]
fn a_decision_that_is_there_already_is_claimed_by_the_park() {
    let mut record = None;
    let waits = vec![ApprovalId::random()];
    assert_eq!(park(&mut record, 1, waits.clone(), Due::Now, "a", 0, LEASE), Parked::Ready);
    assert_eq!(park(&mut record, 1, waits.clone(), Due::Now, "b", 1, LEASE), Parked::Behind);
    assert_eq!(park(&mut record, 2, waits.clone(), Due::In(5), "a", 1, LEASE), Parked::Waiting);
    assert_eq!(park(&mut record, 2, waits.clone(), Due::In(5), "b", 1, LEASE), Parked::Waiting);
    assert_eq!(park(&mut record, 1, waits, Due::Now, "a", 1, LEASE), Parked::Behind);
}

#[test]
fn what_comes_first_is_due_first_and_what_is_gone_at_once() {
    let open = |deadline| Some(Standing::Open(deadline));
    assert_eq!(Due::of([open(50), open(30)], None, 20), Due::In(11));
    assert_eq!(Due::of([open(50), open(30)], Some(25), 20), Due::In(6));
    assert_eq!(Due::of([], Some(25), 25), Due::In(1), "not before it has passed");
    assert_eq!(Due::of([], Some(25), 26), Due::Now);
    assert_eq!(Due::of([], None, 0), Due::Now);
    assert_eq!(Due::of([open(50), None], Some(90), 20), Due::Now);
    assert_eq!(Due::of([open(50), Some(Standing::Expired(19))], None, 20), Due::Now);
    assert_eq!(Due::of([open(i64::MAX)], None, -1), Due::In(i64::MAX));
}

#[test]
fn after_the_end_every_message_is_acked() {
    let mut record = waiting(2);
    end(&mut record, None);
    for kind in [TicketKind::Original, TicketKind::Resume, TicketKind::Wake] {
        for number in [0, 2, 3] {
            assert_eq!(take(&mut record, ticket(kind, number), Due::Now, "a", 0, LEASE), Take::Ack);
        }
    }
    assert_eq!(park(&mut record, 9, Vec::new(), Due::Now, "a", 0, LEASE), Parked::Behind);
}

#[test]
fn a_wake_that_comes_before_the_first_park_waits_for_who_is_about_to() {
    let wake = ticket(TicketKind::Wake, 1);
    let mut record = None;
    assert_eq!(begin(&mut record, "a", 0, LEASE), Take::Claimed(0));
    assert_eq!(begin(&mut record, "a", 1, LEASE), Take::Claimed(0), "asked again");
    assert_eq!(take(&mut record, wake, Due::Now, "b", 2, LEASE), Take::Postpone(29));
    assert_eq!(begin(&mut record, "b", 2, LEASE), Take::Postpone(29), "another copy of it");
    let waits = vec![ApprovalId::random()];
    let mut parked = record.clone();
    assert_eq!(park(&mut parked, 1, waits, Due::In(5), "a", 3, LEASE), Parked::Waiting);
    assert_eq!(begin(&mut parked, "b", 3, LEASE), Take::Ack);
    // Who was about to has died: whoever comes first goes on.
    let mut by_wake = record.clone();
    assert_eq!(take(&mut by_wake, wake, Due::Now, "b", 40, LEASE), Take::Claimed(1));
    let original = ticket(TicketKind::Original, 0);
    assert_eq!(take(&mut by_wake, original, Due::Now, "c", 41, LEASE), Take::Ack);
    assert_eq!(take(&mut record, original, Due::Now, "c", 40, LEASE), Take::Claimed(0));
    assert_eq!(take(&mut record, wake, Due::Now, "b", 41, LEASE), Take::Postpone(29));
}

proptest! {
    /// Whatever comes in whatever order: one runner at a time, numbers go back only when a new task
    /// replaces one that has ended, and a task that is suspended is replaced by no other.
    #[test]
    fn nobody_runs_beside_a_live_lease(
        ops in prop::collection::vec(
            (0_u8..7, 0_u64..4, 0_u8..3, 0_u8..3, any::<bool>(), 0_i64..20),
            0..200,
        ),
    ) {
        let mut record: Option<Park> = None;
        let mut now = 0;
        for (op, number, who, task, flag, passed) in ops {
            now += passed;
            let holder = ["a", "b", "c"][usize::from(who)];
            let named = [None, Some(digest("one")), Some(digest("two"))][usize::from(task)].clone();
            let due = if flag { Due::Now } else { Due::In(5) };
            let other = record.as_ref().and_then(|park| park.is_held_by_another(holder, now));
            let before = record.clone();
            let runs = match op {
                0..=2 => {
                    let kind = [TicketKind::Original, TicketKind::Resume, TicketKind::Wake][usize::from(op)];
                    let named = named.as_ref().filter(|_| kind != TicketKind::Resume);
                    let taken = super::take(&mut record, ticket(kind, number), named, due, holder, now, LEASE);
                    matches!(taken, Take::Claimed(_))
                }
                3 => {
                    let next = Park { digest: named, ..waiting(number).unwrap() };
                    super::park(&mut record, next, due, holder, now, LEASE) == Parked::Ready
                }
                4 => renew(&mut record, holder, now, LEASE),
                5 => {
                    end(&mut record, named.as_ref());
                    false
                }
                _ => {
                    let named = named.unwrap_or(digest("one"));
                    let begun = super::begin(&mut record, &named, flag, holder, now, LEASE);
                    matches!(begun, Take::Claimed(_))
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
