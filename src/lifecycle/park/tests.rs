use proptest::prelude::*;

use super::*;

const LEASE: i64 = 30;

fn ticket(kind: TicketKind, number: u64) -> Ticket {
    Ticket { kind, number }
}

fn waiting(number: u64) -> Option<Park> {
    let waits = vec![ApprovalId::random()];
    Some(Park { number, waits, claim: None, ended: false })
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
    end(&mut record);
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
    /// Whatever comes in whatever order: one runner at a time, and numbers never go back.
    #[test]
    fn nobody_runs_beside_a_live_lease(ops in prop::collection::vec((0_u8..6, 0_u64..4, 0_u8..3, any::<bool>(), 0_i64..20), 0..200)) {
        let mut record: Option<Park> = None;
        let (mut now, mut highest) = (0, 0);
        for (op, number, who, due, passed) in ops {
            now += passed;
            let holder = ["a", "b", "c"][usize::from(who)];
            let due = if due { Due::Now } else { Due::In(5) };
            let other = record.as_ref().and_then(|park| park.is_held_by_another(holder, now));
            let before = record.clone();
            let runs = match op {
                0..=2 => {
                    let kind = [TicketKind::Original, TicketKind::Resume, TicketKind::Wake][usize::from(op)];
                    matches!(take(&mut record, ticket(kind, number), due, holder, now, LEASE), Take::Claimed(_))
                }
                3 => park(&mut record, number, vec![ApprovalId::random()], due, holder, now, LEASE) == Parked::Ready,
                4 => renew(&mut record, holder, now, LEASE),
                _ => matches!(begin(&mut record, holder, now, LEASE), Take::Claimed(_)),
            };
            prop_assert!(!(runs && other.is_some()));
            if other.is_some() {
                prop_assert_eq!(&record, &before);
            }
            let number = record.as_ref().map_or(0, |park| park.number);
            prop_assert!(number >= highest);
            highest = number;
        }
    }
}
