//! The seals on the audit, in the stream `cs:seal:{cs}`, which deciders write. Who seals holds the
//! lease `cs:sealer:{cs}`; the key is nowhere here.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline};

use super::RedisStore;
use super::audit::STREAM;
use super::parks::{milliseconds, texts};
use crate::approval::{AuditEntry, KEPT, Seal};
use crate::backend::{Audit, Sealing};
use crate::error::{Error, Kind};

const SEALS: &str = "cs:seal:{cs}";
const SEALER: &str = "cs:sealer:{cs}";
const FOREIGN: &str = "somebody else has written to it";
const SEAL: &str = include_str!("seal.lua");

/// Entries of a stream: their ids, and their fields in pairs.
type Entries = Vec<(String, Vec<String>)>;
/// The same as it is stored: fields that are no UTF-8 hide none of the others.
type Stored = Vec<(String, Vec<Vec<u8>>)>;

impl Audit for RedisStore {
    fn audit_entries(&self, limit: usize) -> BoxFuture<'_, Result<Vec<AuditEntry>, Error>> {
        Box::pin(async move {
            let entries = self.stream(STREAM, "XREVRANGE", ["+".into(), "-".into()], limit).await?;
            Ok(entries.into_iter().map(audit_entry).collect())
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
            Ok(entries.into_iter().map(audit_entry).collect())
        })
    }

    fn seal(
        &self,
        holder: &str,
        lease: Duration,
        seal: Option<Seal>,
    ) -> BoxFuture<'_, Result<Sealing, Error>> {
        let holder = holder.to_owned();
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(SEAL)).arg(2).arg(SEALS).arg(SEALER);
            eval.arg(holder).arg(milliseconds(lease)).arg(KEPT);
            if let Some(Seal { number, upto, count, mac }) = seal {
                eval.arg(number).arg(upto).arg(count).arg(mac);
            }
            eval
        });
        Box::pin(async move {
            match texts(answers.await?, "seal.lua")?.as_slice() {
                [_, number, ..] if number == "0" => Ok(Sealing::Yours(None)),
                [_, number, upto, count, mac] => match read_seal(number, upto, count, mac) {
                    Some(seal) => Ok(Sealing::Yours(Some(seal))),
                    None => Err(unreadable(SEALS, FOREIGN)),
                },
                _ => Ok(Sealing::Held),
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
        let answers = self.ask_soon(move |_| {
            let mut range = Pipeline::with_capacity(1);
            range.cmd(command).arg(key).arg(from).arg(to).arg("COUNT").arg(limit);
            range
        });
        let entries = answers.await?.pop().map(<Stored as FromRedisValue>::from_redis_value);
        let entries = entries.and_then(Result::ok);
        let entries = entries.ok_or_else(|| unreadable(key, "it is no stream of texts"))?;
        let text = |field: &Vec<u8>| String::from_utf8_lossy(field).into_owned();
        Ok(entries.into_iter().map(|(id, it)| (id, it.iter().map(text).collect())).collect())
    }
}

fn audit_entry((id, fields): (String, Vec<String>)) -> AuditEntry {
    let at = id.split('-').next().and_then(|at| at.parse().ok()).unwrap_or(0);
    let (pairs, _) = fields.as_chunks::<2>();
    let fields = pairs.iter().map(|[name, value]| (name.clone(), value.clone())).collect();
    AuditEntry { id, at, fields }
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
