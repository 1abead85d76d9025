//! The audit log. Each kind of entry has its own stream and limit: `cs:audit:{cs}` holds decisions,
//! `cs:refused:{cs}` refused attempts; only deciders write these. `cs:notes:{cs}` holds all other
//! entries; workers write it, too.
//!
//! The seals on decisions are in the stream `cs:seal:{cs}`, which deciders write. The sealing process
//! holds the lease `cs:sealer:{cs}`. Redis never stores the sealing key.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use redis::{FromRedisValue, Pipeline};

use super::reply::texts;
use super::script::Script;
use super::store::RedisStore;
use crate::approval::{AuditEntry, AuditKind, MAX_AUDIT_ENTRIES, Seal, merged, timestamp};
use crate::backend::milliseconds::milliseconds;
use crate::backend::{Audit, AuditAction, Recorded, SealLease};
use crate::error::{Error, Kind};

pub(super) const STREAM: &str = "cs:audit:{cs}";
pub(super) const NOTES: &str = "cs:notes:{cs}";
/// The streams and the kind of their entries. `refuse.lua` names the last one.
const STREAMS: [(&str, AuditKind); 3] = [
    (STREAM, AuditKind::Decision),
    (NOTES, AuditKind::Note),
    ("cs:refused:{cs}", AuditKind::Refused),
];
const SEALS: &str = "cs:seal:{cs}";
const SEALER: &str = "cs:sealer:{cs}";
const FOREIGN: &str = "unknown format; another program may have written to it";

/// Entries of a stream: ids, and fields in pairs.
type Entries = Vec<(String, Vec<String>)>;
/// Entries as stored: a field that is not UTF-8 does not hide the other fields.
type Stored = Vec<(String, Vec<Vec<u8>>)>;

impl Audit for RedisStore {
    fn record_action(&self, action: AuditAction) -> BoxFuture<'_, Result<Recorded, Error>> {
        Box::pin(async move {
            let proof = Recorded::new(action.id.clone());
            self.request_with_timeout(move |_| {
                let mut add = Pipeline::with_capacity(1);
                add.cmd("XADD").arg(NOTES).arg("MAXLEN").arg("~").arg(MAX_AUDIT_ENTRIES).arg("*");
                add.arg(&fields(&action));
                add
            })
            .await?;
            Ok(proof)
        })
    }

    fn audit_entries(&self, limit: usize) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>> {
        Box::pin(async move {
            let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
            let read = STREAMS.map(|(key, kind)| async move {
                let read = self.stream(key, "XREVRANGE", ["+".into(), "-".into()], limit).await;
                (kind, read)
            });
            for (kind, read) in join_all(read).await {
                match read {
                    Ok(read) => entries.extend(read.into_iter().map(|it| audit_entry(kind, it))),
                    // Workers may write the notes, and a user may lack the permission to read them:
                    // decisions are returned anyway.
                    Err(error) if kind != AuditKind::Decision => unreadable.push((kind, error)),
                    Err(error) => return Err(error),
                }
            }
            let mut entries = merged(entries, limit.saturating_sub(unreadable.len()));
            for (kind, error) in unreadable {
                let at = entries.first().map_or(Timestamp::UNIX_EPOCH, |newest| newest.at);
                let fields = [("what", "unreadable".to_owned()), ("why", error.to_string())];
                let fields = fields.map(|(name, value)| (name.to_owned(), value)).into();
                entries.insert(0, AuditEntry { id: String::new(), kind, at, fields });
            }
            Ok(entries)
        })
    }

    fn audit_after(
        &self,
        id: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>> {
        let from = id.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        Box::pin(async move {
            let entries = self.stream(STREAM, "XRANGE", [from, "+".into()], limit).await?;
            Ok(entries.into_iter().map(|it| audit_entry(AuditKind::Decision, it)).collect())
        })
    }

    fn seal(
        &self,
        holder: &str,
        lease: Duration,
        seal: Option<Seal>,
    ) -> BoxFuture<'_, Result<SealLease, Error>> {
        let holder = holder.to_owned();
        let replies = self.request_with_timeout(move |connection| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVALSHA").arg(connection.hash(Script::Seal)).arg(2).arg(SEALS).arg(SEALER);
            eval.arg(holder).arg(milliseconds(lease)).arg(MAX_AUDIT_ENTRIES);
            if let Some(Seal { number, upto, count, mac }) = seal {
                eval.arg(number).arg(upto).arg(count).arg(mac);
            }
            eval
        });
        Box::pin(async move {
            match texts(replies.await?, "seal.lua")?.as_slice() {
                [_, number, ..] if number == "0" => Ok(SealLease::Acquired(None)),
                [_, number, upto, count, mac] => match read_seal(number, upto, count, mac) {
                    Some(seal) => Ok(SealLease::Acquired(Some(seal))),
                    None => Err(unreadable(SEALS, FOREIGN)),
                },
                _ => Ok(SealLease::HeldByAnother),
            }
        })
    }

    fn seals_after(&self, number: u64, limit: usize) -> BoxFuture<'_, Result<Vec<Seal>, Error>> {
        let from = format!("{}-0", number.saturating_add(1));
        Box::pin(async move {
            let entries = self.stream(SEALS, "XRANGE", [from, "+".into()], limit).await?;
            entries.iter().map(stored_seal).collect()
        })
    }

    fn newest_seal(&self) -> BoxFuture<'_, Result<Option<Seal>, Error>> {
        Box::pin(async move {
            let entries = self.stream(SEALS, "XREVRANGE", ["+".into(), "-".into()], 1).await?;
            entries.iter().map(stored_seal).next().transpose()
        })
    }
}

impl RedisStore {
    async fn stream(
        &self,
        key: &'static str,
        command: &'static str,
        [from, to]: [String; 2],
        limit: usize,
    ) -> Result<Entries, Error> {
        let replies = self.read_with_timeout(move |_| {
            let mut range = Pipeline::with_capacity(1);
            range.cmd(command).arg(key).arg(&from).arg(&to).arg("COUNT").arg(limit);
            range
        });
        let entries = replies.await?.pop().map(<Stored as FromRedisValue>::from_redis_value);
        let entries = entries.and_then(Result::ok);
        let entries =
            entries.ok_or_else(|| unreadable(key, "unexpected reply: not a stream of strings"))?;
        let text = |field: &Vec<u8>| String::from_utf8_lossy(field).into_owned();
        Ok(entries.into_iter().map(|(id, it)| (id, it.iter().map(text).collect())).collect())
    }
}

fn audit_entry(kind: AuditKind, (id, fields): (String, Vec<String>)) -> AuditEntry {
    let at = id.split('-').next().and_then(|at| at.parse().ok()).unwrap_or(0);
    let at = timestamp(at);
    let (pairs, _) = fields.as_chunks::<2>();
    let fields = pairs.iter().map(|[name, value]| (name.clone(), value.clone())).collect();
    AuditEntry { id, kind, at, fields }
}

fn stored_seal((id, fields): &(String, Vec<String>)) -> Result<Seal, Error> {
    let number = id.split('-').next().unwrap_or_default();
    let seal = match fields.as_slice() {
        [_, upto, _, count, _, mac] => read_seal(number, upto, count, mac),
        _ => None,
    };
    seal.ok_or_else(|| unreadable(SEALS, FOREIGN))
}

fn read_seal(number: &str, upto: &str, count: &str, mac: &str) -> Option<Seal> {
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    Some(Seal { number, upto: upto.to_owned(), count, mac: mac.to_owned() })
}

fn unreadable(key: &str, why: &str) -> Error {
    Kind::Codec { what: key.to_owned(), cause: why.to_owned() }.into()
}

pub(super) fn fields(action: &AuditAction) -> [(&'static str, &str); 4] {
    let AuditAction { what, id, queue, by } = action;
    [("what", what), ("task", id.as_str()), ("queue", queue), ("by", by)]
}
