//! The audit and its seals. Each kind of entry has its own table and limit: about the last
//! [`crate::approval::MAX_AUDIT_ENTRIES`] decisions and notes, and [`crate::approval::MAX_REFUSED_ENTRIES`] refused attempts.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rusqlite::{Row, params};

use super::fault::TxResult;
use super::store::EmbeddedStore;
use super::txn::Txn;
use crate::approval::{
    ApprovalId, AuditEntry, AuditKind, DecideResult, MAX_AUDIT_ENTRIES, MAX_REFUSED_ENTRIES,
    REFUSED_NAME, Seal, merged, timestamp,
};
use crate::backend::milliseconds::milliseconds;
use crate::backend::{Audit, AuditAction, Recorded, SealLease};
use crate::error::{Error, Kind};

/// The number of old entries that one new entry removes at most. Files of older versions may have more
/// than the limit.
const TRIMMED: u32 = 10;
const FOREIGN: &str = "unknown format; another program may have written to it";

impl Audit for EmbeddedStore {
    fn record_action(&self, action: AuditAction) -> BoxFuture<'_, Result<Recorded, Error>> {
        let proof = Recorded::new(action.id.clone());
        let written = self.db.write(move |txn| add_action(txn, &action, &[]));
        Box::pin(async move { written.await.map(|()| proof) })
    }

    fn audit_entries(&self, limit: usize) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>> {
        Box::pin(self.db.read(move |txn| {
            let mut all = Vec::new();
            for kind in [AuditKind::Decision, AuditKind::Note, AuditKind::Refused] {
                all.extend(entries(txn, kind, "ORDER BY seq DESC", 0, limit)?);
            }
            Ok(merged(all, limit))
        }))
    }

    fn audit_after(
        &self,
        id: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>> {
        let id = id.map(str::to_owned);
        Box::pin(self.db.read(move |txn| {
            let after = id.as_deref().map_or(Ok(0), number_of)?;
            entries(txn, AuditKind::Decision, "ORDER BY seq", after, limit)
        }))
    }

    fn seal(
        &self,
        holder: &str,
        lease: Duration,
        seal: Option<Seal>,
    ) -> BoxFuture<'_, Result<SealLease, Error>> {
        let holder = holder.to_owned();
        Box::pin(self.db.write(move |txn| add_seal(txn, &holder, lease, seal.as_ref())))
    }

    fn seals_after(&self, number: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Seal>, Error>> {
        let list = "SELECT number, upto, count, mac FROM seals WHERE number > ? \
                    ORDER BY number LIMIT ?";
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        Box::pin(self.db.read(move |txn| {
            let rows = txn.all(list, [number, whole(limit)], |row| Ok(read_seal(row)))?;
            Ok(rows.into_iter().collect::<Result<_, _>>()?)
        }))
    }

    fn newest_seal(&self) -> BoxFuture<'_, Result<Option<Seal>, Error>> {
        Box::pin(self.db.read(|txn| newest(txn)))
    }
}

/// Writes an entry for an action on a task.
pub(super) fn add_action(
    txn: &Txn<'_>,
    action: &AuditAction,
    more: &[(&str, &str)],
) -> TxResult<()> {
    let AuditAction { what, id, queue, by } = action;
    let fields = [("what", *what), ("task", id.as_str()), ("queue", queue), ("by", by)];
    add(txn, AuditKind::Note, &[&fields[..], more].concat())
}

/// Writes an entry for an attempt to decide or extend, if `result` refuses it.
pub(super) fn refuse(
    txn: &Txn<'_>,
    attempt: &str,
    approval: &ApprovalId,
    (task, by): (&str, &str),
    result: &DecideResult,
) -> TxResult<()> {
    let why = match result {
        DecideResult::Withdrawn => "withdrawn",
        DecideResult::AlreadyDecided { .. } => "decided",
        DecideResult::Expired { .. } => "expired",
        DecideResult::DigestMismatch => "digest",
        DecideResult::NotAllowed => "forbidden",
        DecideResult::Earlier { .. } => "earlier",
        DecideResult::Applied
        | DecideResult::Counted { .. }
        | DecideResult::Replayed
        | DecideResult::Unknown => {
            return Ok(());
        }
    };
    let clip = |text: &'_ str| text[..text.floor_char_boundary(REFUSED_NAME)].to_owned();
    let (task, by) = (clip(task), clip(by));
    let what = [("what", "refused"), ("attempt", attempt), ("approval", approval.as_str())];
    let how = [("task", &*task), ("by", &*by), ("why", why)];
    add(txn, AuditKind::Refused, &[what, how].concat())
}

/// Adds an entry, and removes the oldest of its kind beyond the limit. Times never decrease from one
/// entry to the next, even if the clock does.
pub(super) fn add(txn: &Txn<'_>, kind: AuditKind, fields: &[(&str, &str)]) -> TxResult<()> {
    let table = table(kind);
    let add = format!(
        "INSERT INTO {table} (at, fields) VALUES \
         (max(?, coalesce((SELECT at FROM {table} ORDER BY seq DESC LIMIT 1), 0)), ?)"
    );
    txn.execute(&add, params![txn.now, serde_json::json!(fields).to_string()])?;
    let limit = if kind == AuditKind::Refused { MAX_REFUSED_ENTRIES } else { MAX_AUDIT_ENTRIES };
    let trim = format!(
        "DELETE FROM {table} WHERE seq IN (SELECT seq FROM {table} \
         WHERE seq <= last_insert_rowid() - ? ORDER BY seq LIMIT {TRIMMED})"
    );
    txn.execute(&trim, [i64::try_from(limit).unwrap_or(i64::MAX)])?;
    Ok(())
}

/// Returns the table for entries of this kind.
const fn table(kind: AuditKind) -> &'static str {
    match kind {
        AuditKind::Decision => "audit",
        AuditKind::Note => "notes",
        AuditKind::Refused => "refusals",
    }
}

fn entries(
    txn: &Txn<'_>,
    kind: AuditKind,
    order: &str,
    after: i64,
    limit: usize,
) -> TxResult<Vec<AuditEntry>> {
    let list = format!("SELECT seq, at, fields FROM {} WHERE seq > ? {order} LIMIT ?", table(kind));
    let read = |row: &Row<'_>| {
        let seq: i64 = row.get(0)?;
        let milliseconds = row.get(1).unwrap_or(0);
        let fields = row.get::<_, String>(2).ok();
        let fields = fields.and_then(|fields| serde_json::from_str(&fields).ok());
        // A malformed entry must not hide the others. Its seal does not match any more.
        let fields = fields.unwrap_or_else(|| {
            vec![
                ("what".to_owned(), "unreadable".to_owned()),
                ("why".to_owned(), FOREIGN.to_owned()),
            ]
        });
        let id = format!("{milliseconds}-{seq}");
        Ok(AuditEntry { id, kind, at: timestamp(milliseconds), fields })
    };
    txn.all(&list, [after, whole(limit)], read)
}

/// Returns the row number in an entry's id. The id begins with the time, as Redis' ids do.
fn number_of(id: &str) -> Result<i64, Error> {
    let number = id.split_once('-').and_then(|(_, number)| number.parse().ok());
    number.ok_or_else(|| unreadable("the audit", &format!("`{id}` is not the id of an entry")))
}

/// Takes or renews the right to seal, and adds a seal to the chain if it is the next.
fn add_seal(
    txn: &Txn<'_>,
    holder: &str,
    lease: Duration,
    seal: Option<&Seal>,
) -> TxResult<SealLease> {
    let take = "INSERT INTO sealer (one, holder, until) VALUES (1, ?1, ?2) \
                ON CONFLICT (one) DO UPDATE SET holder = ?1, until = ?2 \
                WHERE holder = ?1 OR until <= ?3";
    let until = txn.now + milliseconds(lease);
    if txn.execute(take, params![holder, until, txn.now])? == 0 {
        return Ok(SealLease::HeldByAnother);
    }
    let last = newest(txn)?;
    let next = last.as_ref().map_or(0, |last| last.number) + 1;
    let Some(Seal { number, upto, count, mac }) = seal.filter(|seal| seal.number == next) else {
        return Ok(SealLease::Acquired(last));
    };
    let add = "INSERT INTO seals (number, upto, count, mac) VALUES (?, ?, ?, ?)";
    txn.execute(add, params![number.cast_signed(), upto, count.cast_signed(), mac])?;
    Ok(SealLease::Acquired(newest(txn)?))
}

fn newest(txn: &Txn<'_>) -> TxResult<Option<Seal>> {
    let newest = "SELECT number, upto, count, mac FROM seals ORDER BY number DESC LIMIT 1";
    Ok(txn.first(newest, [], |row| Ok(read_seal(row)))?.transpose()?)
}

fn read_seal(row: &Row<'_>) -> Result<Seal, Error> {
    let read = || -> rusqlite::Result<(i64, String, i64, String)> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    };
    let foreign = || unreadable("the seals", FOREIGN);
    let (number, upto, count, mac) = read().map_err(|_| foreign())?;
    let number = u64::try_from(number).map_err(|_| foreign())?;
    let count = u64::try_from(count).map_err(|_| foreign())?;
    Ok(Seal { number, upto, count, mac })
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unreadable(what: &str, cause: &str) -> Error {
    Kind::Codec { what: what.to_owned(), cause: cause.to_owned() }.into()
}
