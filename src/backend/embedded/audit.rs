//! What people did, and the seals on it. About the last [`crate::approval::KEPT`] entries are kept.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rusqlite::{Row, params};

use super::parks::milliseconds;
use super::store::EmbeddedStore;
use super::txn::{Done, Txn};
use crate::approval::{AuditEntry, Seal};
use crate::backend::{Audit, Deed, Sealing};
use crate::error::{Error, Kind};

const FOREIGN: &str = "somebody else has written to it";

impl Audit for EmbeddedStore {
    fn audit_entries(&self, limit: usize) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>> {
        let list = "SELECT seq, at, fields FROM audit WHERE seq > ? ORDER BY seq DESC LIMIT ?";
        Box::pin(self.db.read(move |txn| entries(txn, list, 0, limit)))
    }

    fn audit_after(
        &self,
        id: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>> {
        let id = id.map(str::to_owned);
        let list = "SELECT seq, at, fields FROM audit WHERE seq > ? ORDER BY seq LIMIT ?";
        Box::pin(self.db.read(move |txn| {
            let after = id.as_deref().map_or(Ok(0), number_of)?;
            entries(txn, list, after, limit)
        }))
    }

    fn seal(
        &self,
        holder: &str,
        lease: Duration,
        seal: Option<Seal>,
    ) -> BoxFuture<'_, Result<Sealing, Error>> {
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

/// Notes what somebody did to a task.
pub(super) fn note(txn: &Txn<'_>, deed: &Deed, more: &[(&str, &str)]) -> Done<()> {
    let Deed { what, id, queue, by } = deed;
    let fields = [("what", *what), ("task", id.as_str()), ("queue", queue), ("by", by)];
    add(txn, &[&fields[..], more].concat())
}

/// Adds an entry. Later ones have later times, or the same, whatever a clock says.
pub(super) fn add(txn: &Txn<'_>, fields: &[(&str, &str)]) -> Done<()> {
    let add = "INSERT INTO audit (at, fields) VALUES \
               (max(?, coalesce((SELECT at FROM audit ORDER BY seq DESC LIMIT 1), 0)), ?)";
    txn.execute(add, params![txn.now, serde_json::json!(fields).to_string()])?;
    Ok(())
}

fn entries(txn: &Txn<'_>, list: &str, after: i64, limit: usize) -> Done<Vec<AuditEntry>> {
    let read = |row: &Row<'_>| {
        let seq: i64 = row.get(0)?;
        let at = row.get(1).unwrap_or(0);
        let fields = row.get::<_, String>(2).ok();
        let fields = fields.and_then(|fields| serde_json::from_str(&fields).ok());
        // It hides none of the others, and is not as it was sealed.
        let fields = fields.unwrap_or_else(|| {
            vec![
                ("what".to_owned(), "unreadable".to_owned()),
                ("why".to_owned(), FOREIGN.to_owned()),
            ]
        });
        Ok(AuditEntry { id: format!("{at}-{seq}"), at, fields })
    };
    txn.all(list, [after, whole(limit)], read)
}

/// The place of an entry. Its id begins with the time, as Redis' ids do.
fn number_of(id: &str) -> Result<i64, Error> {
    let number = id.split_once('-').and_then(|(_, number)| number.parse().ok());
    number.ok_or_else(|| unreadable("the audit", &format!("`{id}` is no entry of it")))
}

/// Takes or renews the right to seal, and adds a seal to the chain if it is the next.
fn add_seal(txn: &Txn<'_>, holder: &str, lease: Duration, seal: Option<&Seal>) -> Done<Sealing> {
    let take = "INSERT INTO sealer (one, holder, until) VALUES (1, ?1, ?2) \
                ON CONFLICT (one) DO UPDATE SET holder = ?1, until = ?2 \
                WHERE holder = ?1 OR until <= ?3";
    let until = txn.now + milliseconds(lease);
    if txn.execute(take, params![holder, until, txn.now])? == 0 {
        return Ok(Sealing::Held);
    }
    let last = newest(txn)?;
    let next = last.as_ref().map_or(0, |last| last.number) + 1;
    let Some(Seal { number, upto, count, mac }) = seal.filter(|seal| seal.number == next) else {
        return Ok(Sealing::Yours(last));
    };
    let add = "INSERT INTO seals (number, upto, count, mac) VALUES (?, ?, ?, ?)";
    txn.execute(add, params![number.cast_signed(), upto, count.cast_signed(), mac])?;
    Ok(Sealing::Yours(newest(txn)?))
}

fn newest(txn: &Txn<'_>) -> Done<Option<Seal>> {
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
