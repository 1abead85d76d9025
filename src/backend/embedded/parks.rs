//! Parked tasks, by the rules of `lifecycle/park.rs`: a record is read, changed by them, and
//! written back.

use std::time::Duration;

use rusqlite::params;
use tracing::warn;

use super::questions::Book;
use super::txn::{Done, Txn};
use super::{outbox, questions};
use crate::approval::ApprovalId;
use crate::backend::approvals::ENDED_KEPT;
use crate::backend::{Parked, Parking, Recorded, Taken};
use crate::lifecycle::park::{self, Claim, Due, Park, Take};
use crate::protocol::{Message, TaskDigest, Ticket};
use crate::task::TaskId;

/// The version of these records.
const FORMAT: i64 = 1;

/// A record, but for the message.
#[derive(Debug)]
struct Row {
    v: i64,
    park: Park,
    asked: Vec<ApprovalId>,
    alarm: Option<i64>,
    queue: String,
}

/// Who wants to run a task.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish<'w> {
    /// Whoever has this message of it; with its digest, if it carries the task.
    Message(Ticket, Option<&'w TaskDigest>),
    /// A run of it that is about to park for the first time; whether it starts anew.
    FirstPark(&'w TaskDigest, bool),
}

/// Says what is to be done with a message of a task that may have been parked, or with a run that
/// is about to park for the first time.
pub(super) fn take(
    txn: &Txn<'_>,
    id: &TaskId,
    wish: Wish<'_>,
    holder: &str,
    lease: Duration,
) -> Done<Taken> {
    let found = find(txn, id)?;
    if found.as_ref().is_some_and(|row| row.v != FORMAT) {
        return Ok(Taken::Newer);
    }
    let mut book = Book::default();
    let due = match &found {
        Some(row) => book.due(txn, &row.park.waits, row.alarm)?,
        None => Due::Now,
    };
    let mut record = found.as_ref().map(|row| row.park.clone());
    let (now, lease) = (txn.now, milliseconds(lease));
    let take = match wish {
        Wish::Message(ticket, digest) => {
            park::take(&mut record, ticket, digest, due, holder, now, lease)
        }
        Wish::FirstPark(digest, starts_anew) => {
            park::begin(&mut record, digest, starts_anew, holder, now, lease)
        }
    };
    match (&found, &record) {
        (Some(row), Some(park)) if row.park != *park && !row.park.ended => {
            // What an older park waited for is no matter any more.
            let alarm = row.alarm.filter(|_| row.park.number == park.number);
            update(txn, id, park, alarm)?;
        }
        (Some(Row { park: before, .. }), Some(park)) if before == park => {}
        // A record that has ended changes only by being replaced.
        (_, Some(park)) => {
            let (park, asked, queue) = (park.clone(), Vec::new(), String::new());
            let row = Row { v: FORMAT, park, asked, alarm: None, queue };
            insert(txn, id, &row, None)?;
        }
        _ => {}
    }
    Ok(match take {
        Take::Unclaimed => Taken::Unclaimed,
        Take::Claimed(number) => {
            let asked = found.map_or_else(Vec::new, |row| row.asked);
            let rulings = book.rulings(txn, &asked)?;
            for ruling in &rulings {
                questions::strike(txn, &ruling.approval)?;
            }
            Taken::Claimed { number, message: message(txn, id)?.map(Box::new), rulings }
        }
        Take::Ack => Taken::Over(Recorded::new(id.clone())),
        Take::Postpone(pause) => {
            Taken::Postpone(Duration::from_millis(pause.max(0).unsigned_abs()))
        }
        Take::StateLost => Taken::StateLost,
        Take::Ended => Taken::Ended(Recorded::new(id.clone())),
        Take::Occupied => Taken::Occupied(message(txn, id)?.map(Box::new)),
    })
}

/// Parks a run, and shows its questions to deciders.
pub(super) fn park(txn: &mut Txn<'_>, parking: &Parking) -> Done<Parked> {
    let (id, number, now) = (&parking.id, parking.number, txn.now);
    let behind = || Ok(Parked::Behind(Recorded::new(id.clone())));
    let found = find(txn, id)?;
    if found.as_ref().is_some_and(|row| row.v != FORMAT) {
        // Whoever is newer has sent messages of his own.
        return behind();
    }
    let (mut record, mut asked) = match found {
        Some(row) => (Some(row.park), row.asked),
        None => (None, Vec::new()),
    };
    // Nothing is written before it is known that this run is not behind.
    let mut book = Book::default();
    let (mut anew, mut withdrawn) = (Vec::new(), Vec::new());
    for question in &parking.questions {
        let awaits = asked.contains(&question.id);
        if book.case(txn, &question.id)?.ask(question, id, awaits, now) {
            anew.push(&question.id);
        }
        if !awaits {
            asked.push(question.id.clone());
        }
    }
    for question in &parking.abandoned {
        if book.case(txn, question)?.withdraw(now) {
            withdrawn.push(question);
        }
    }
    let alarm = parking.alarm.map(|sleep| now + milliseconds(sleep));
    let waits: Vec<_> = parking.questions.iter().map(|question| question.id.clone()).collect();
    let due = book.due(txn, &waits, alarm)?;
    let (holder, lease) = (&parking.holder, milliseconds(parking.lease));
    let next = Park::waiting(number, parking.digest.clone(), waits.clone());
    let parked = park::park(&mut record, next, due, holder, now, lease);
    let Some(park) = record.filter(|_| parked != park::Parked::Behind) else { return behind() };

    for question in anew {
        if let Some(asking) = &book.case(txn, question)?.asking {
            asking.store(txn, question)?;
        }
    }
    for question in withdrawn {
        questions::withdraw(txn, question)?;
    }
    let row = Row { v: FORMAT, park, asked, alarm, queue: parking.queue.clone() };
    insert(txn, id, &row, Some(&parking.message))?;
    if parked == park::Parked::Ready {
        // Nobody else will send a resume message: if this run dies, a sweeper does.
        outbox::leave(txn, id, number, &row.queue, now + lease)?;
        return Ok(Parked::Ready(book.rulings(txn, &waits)?));
    }
    let left = match due {
        Due::Now => 0,
        Due::In(left) => left.unsigned_abs(),
    };
    Ok(Parked::Waiting(Recorded::new(id.clone()), Duration::from_millis(left)))
}

/// Holds a claim for another `lease`. False: it is somebody else's by now.
pub(super) fn renew(txn: &Txn<'_>, id: &TaskId, holder: &str, lease: Duration) -> Done<bool> {
    let Some(row) = find(txn, id)? else { return Ok(false) };
    let mut record = Some(row.park);
    let is_held = park::renew(&mut record, holder, txn.now, milliseconds(lease));
    if let Some(park) = record.filter(|_| is_held) {
        update(txn, id, &park, row.alarm)?;
    }
    Ok(is_held)
}

/// Gives a claim back, if it is the holder's.
pub(super) fn release(txn: &Txn<'_>, id: &TaskId, holder: &str) -> Done<()> {
    let Some(row) = find(txn, id)? else { return Ok(()) };
    let mut record = Some(row.park.clone());
    park::release(&mut record, holder);
    match record {
        Some(park) if park != row.park => update(txn, id, &park, row.alarm),
        _ => Ok(()),
    }
}

/// Notes that a task that was parked has ended, and withdraws what it still asks; returns that. Nothing
/// changes when another task with its id is suspended by now.
pub(super) fn end(
    txn: &Txn<'_>,
    id: &TaskId,
    digest: Option<&TaskDigest>,
) -> Done<Vec<ApprovalId>> {
    let Some(row) = find(txn, id)? else { return Ok(Vec::new()) };
    let mut record = Some(row.park);
    if !park::end(&mut record, digest) {
        return Ok(Vec::new());
    }
    let mut withdrawn = Vec::new();
    for question in row.asked {
        let is_open = questions::find(txn, &question)?.is_open(txn.now);
        questions::retire(txn, &question, is_open)?;
        withdrawn.extend(Some(question).filter(|_| is_open));
    }
    if let Some(park) = record {
        update(txn, id, &park, row.alarm)?;
    }
    let note = "UPDATE parks SET asked = '', message = NULL, expires = ? WHERE task = ?";
    txn.execute(note, params![txn.now + milliseconds(ENDED_KEPT), id.as_str()])?;
    Ok(withdrawn)
}

/// The task is to run as if it had never been parked. A record of a task that is suspended stays:
/// another message may have its id.
pub(super) fn delete_ended(txn: &Txn<'_>, task: &TaskId) -> Done<()> {
    txn.execute("DELETE FROM parks WHERE task = ? AND ended", [task.as_str()])?;
    Ok(())
}

/// Forgets a suspension that has ended. False: the task is suspended.
pub(super) fn forget(txn: &Txn<'_>, task: &TaskId) -> Done<bool> {
    let mut record = find(txn, task)?.map(|row| row.park);
    let is_ended = park::forget(&mut record);
    if let Some(Park { digest, .. }) = record.filter(|_| is_ended) {
        let note = "UPDATE parks SET digest = ? WHERE task = ?";
        let digest = digest.as_ref().map(TaskDigest::as_str);
        txn.execute(note, params![digest, task.as_str()])?;
    }
    Ok(is_ended)
}

/// Whether there is a record of the task.
pub(super) fn is_known(txn: &Txn<'_>, task: &TaskId) -> Done<bool> {
    Ok(find(txn, task)?.is_some())
}

/// Whether the task may still ask after its requests.
pub(super) fn is_suspended(txn: &Txn<'_>, task: &TaskId) -> Done<bool> {
    Ok(find(txn, task)?.is_some_and(|row| !row.park.ended))
}

/// The number and the queue of a task's park, if it waits for this question.
pub(super) fn waiting(
    txn: &Txn<'_>,
    task: &TaskId,
    question: &ApprovalId,
) -> Done<Option<(u64, String)>> {
    let found = find(txn, task)?;
    let waiting = found.filter(|row| !row.park.ended && row.park.waits.contains(question));
    Ok(waiting.map(|row| (row.park.number, row.queue)))
}

fn find(txn: &Txn<'_>, id: &TaskId) -> Done<Option<Row>> {
    let find = "SELECT v, number, waits, asked, holder, until, ended, alarm, queue, digest FROM parks \
                WHERE task = ? AND (expires IS NULL OR expires > ?)";
    txn.first(find, params![id.as_str(), txn.now], |row| {
        let holder: Option<String> = row.get(4)?;
        let until: Option<i64> = row.get(5)?;
        let park = Park {
            number: row.get::<_, i64>(1)?.unsigned_abs(),
            digest: row.get::<_, Option<String>>(9)?.map(TaskDigest::from),
            waits: ids(&row.get::<_, String>(2)?),
            claim: holder.map(|holder| Claim { holder, until: until.unwrap_or(0) }),
            ended: row.get(6)?,
        };
        let asked = ids(&row.get::<_, String>(3)?);
        Ok(Row { v: row.get(0)?, park, asked, alarm: row.get(7)?, queue: row.get(8)? })
    })
}

/// Writes a whole record, whatever was there.
fn insert(txn: &Txn<'_>, id: &TaskId, row: &Row, message: Option<&Message>) -> Done<()> {
    let Row { v, park, asked, alarm, queue } = row;
    let Park { number, digest, waits, claim, ended } = park;
    let put = "INSERT OR REPLACE INTO parks (task, v, number, waits, asked, holder, until, ended, \
               alarm, queue, message, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    txn.execute(
        put,
        params![
            id.as_str(),
            v,
            number.cast_signed(),
            joined(waits),
            joined(asked),
            claim.as_ref().map(|claim| claim.holder.as_str()),
            claim.as_ref().map(|claim| claim.until),
            ended,
            alarm,
            queue,
            message.map(Message::to_json),
            digest.as_ref().map(TaskDigest::as_str)
        ],
    )?;
    Ok(())
}

/// Writes back what a rule has changed of a record that is the same task's.
fn update(txn: &Txn<'_>, id: &TaskId, park: &Park, alarm: Option<i64>) -> Done<()> {
    let Park { number, digest: _, waits, claim, ended } = park;
    let update = "UPDATE parks SET number = ?2, waits = ?3, holder = ?4, until = ?5, ended = ?6, \
                  alarm = ?7 WHERE task = ?1";
    txn.execute(
        update,
        params![
            id.as_str(),
            number.cast_signed(),
            joined(waits),
            claim.as_ref().map(|claim| claim.holder.as_str()),
            claim.as_ref().map(|claim| claim.until),
            ended,
            alarm
        ],
    )?;
    Ok(())
}

/// The task as it was parked. One that cannot be read is as none: its wake has it, too.
fn message(txn: &Txn<'_>, id: &TaskId) -> Done<Option<Message>> {
    let find = "SELECT message FROM parks WHERE task = ?";
    let json = txn.first(find, [id.as_str()], |row| row.get::<_, Option<String>>(0))?.flatten();
    let readable = |json: String| {
        let read = Message::from_json(id.clone(), &json);
        read.inspect_err(|error| warn!("{error}; it is left to its wake")).ok()
    };
    Ok(json.and_then(readable))
}

fn ids(text: &str) -> Vec<ApprovalId> {
    text.split(' ').filter_map(ApprovalId::parse).collect()
}

fn joined(ids: &[ApprovalId]) -> String {
    ids.iter().map(ApprovalId::as_str).collect::<Vec<_>>().join(" ")
}

/// At least one, and few enough to be added to a time.
pub(super) fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).clamp(1, 1 << 52)
}
