//! Search for tasks. Failures are recorded in `cs:failed:<task id>`, and the sorted set `cs:failed`
//! lists the latest. Suspensions and ids are found by scanning the keys of the database.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use redis::{FromRedisValue, Pipeline};
use tokio::time::Instant;

use super::approval_records;
use super::store::RedisStore;
use crate::approval::ApprovalId;
use crate::backend::index::FAILED_LISTED;
use crate::backend::{FailedTask, SuspendedTask, TaskIndex};
use crate::clock;
use crate::error::{Error, Kind};
use crate::protocol::Message;
use crate::task::TaskId;

pub(super) const FAILED: &str = "cs:failed";
/// The longest time to scan the keys of a database.
const LONGEST_SCAN: Duration = Duration::from_secs(10);
/// The COUNT of one SCAN call.
const SCAN_STEP: usize = 1000;

type Fields = Vec<Option<String>>;

impl TaskIndex for RedisStore {
    fn record_failure(&self, failed: FailedTask) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let json = serde_json::to_string(&failed).unwrap_or_default();
            let seconds = self.result_seconds;
            self.request_with_timeout(move |_| {
                let mut note = Pipeline::with_capacity(4);
                note.cmd("SET").arg(failed_key(&failed.id)).arg(json);
                if seconds > 0 {
                    note.arg("EX").arg(seconds);
                }
                note.cmd("ZADD")
                    .arg(FAILED)
                    .arg(failed.at.as_millisecond())
                    .arg(failed.id.as_str());
                note.cmd("ZREMRANGEBYRANK").arg(FAILED).arg(0).arg(-i64::from(FAILED_LISTED) - 1);
                if seconds > 0 {
                    note.cmd("EXPIRE").arg(FAILED).arg(seconds);
                }
                note
            })
            .await
            .map(drop)
        })
    }

    fn failed_tasks(&self, limit: usize) -> BoxFuture<'_, Result<Vec<FailedTask>, Error>> {
        Box::pin(async move {
            let last = i64::try_from(limit).unwrap_or(i64::MAX) - 1;
            if last < 0 {
                return Ok(Vec::new());
            }
            let replies = self.read_with_timeout(move |_| {
                let mut latest = Pipeline::with_capacity(1);
                latest.cmd("ZREVRANGE").arg(FAILED).arg(0).arg(last);
                latest
            });
            let ids = replies.await?.pop().map(Vec::<Vec<u8>>::from_redis_value);
            let ids = ids.and_then(Result::ok).unwrap_or_default().into_iter();
            let ids = ids.filter_map(|id| String::from_utf8(id).ok()).map(TaskId::from);
            self.read_failed(ids.collect()).await
        })
    }

    fn failed_task(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<FailedTask>, Error>> {
        let ids = vec![id.clone()];
        Box::pin(async move { Ok(self.read_failed(ids).await?.pop()) })
    }

    fn suspended_tasks(&self, limit: usize) -> BoxFuture<'_, Result<Vec<SuspendedTask>, Error>> {
        Box::pin(async move {
            let start = approval_records::suspension_key(&TaskId::from(""));
            let mut found = Vec::new();
            let mut ids = self.rests("hash", &start, "", usize::MAX).await?;
            while !ids.is_empty() && found.len() < limit {
                let step = ids.drain(..ids.len().min(SCAN_STEP)).map(TaskId::from).collect();
                found.extend(self.read_suspended(step).await?);
            }
            found.truncate(limit);
            Ok(found)
        })
    }

    fn suspended_task(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<SuspendedTask>, Error>> {
        let ids = vec![id.clone()];
        Box::pin(async move { Ok(self.read_suspended(ids).await?.pop()) })
    }

    fn task_ids(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<TaskId>, Error>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let none = TaskId::from("");
            let mut found = BTreeSet::new();
            for (kind, start) in
                [("string", self.keys.of(&none)), ("hash", approval_records::suspension_key(&none))]
            {
                found.extend(self.rests(kind, &start, &prefix, limit).await?);
            }
            Ok(found.into_iter().take(limit).map(TaskId::from).collect())
        })
    }

    fn approval_ids(
        &self,
        prefix: &str,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let ids = self.rests("hash", "cs:ask:{cs}:", &prefix, limit).await?;
            Ok(ids.iter().filter_map(|id| ApprovalId::parse(id)).collect())
        })
    }
}

impl RedisStore {
    async fn read_failed(&self, ids: Vec<TaskId>) -> Result<Vec<FailedTask>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let replies = self.read_with_timeout(move |_| {
            let mut get = Pipeline::with_capacity(1);
            get.cmd("MGET").arg(ids.iter().map(failed_key).collect::<Vec<_>>());
            get
        });
        let texts = replies.await?.pop().map(Vec::<Option<Vec<u8>>>::from_redis_value);
        let texts = texts.and_then(Result::ok).unwrap_or_default().into_iter().flatten();
        Ok(texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect())
    }

    /// Passes the keys of this type that match a pattern to `take`, step by step, until it returns false. A key
    /// of another type was not written by Countersign, and stops no list.
    async fn scan<F: Future<Output = Result<bool, Error>>>(
        &self,
        kind: &'static str,
        pattern: String,
        mut take: impl FnMut(Vec<String>) -> F,
    ) -> Result<(), Error> {
        let until = Instant::now() + LONGEST_SCAN;
        let mut cursor = "0".to_owned();
        loop {
            let pattern = pattern.clone();
            let replies = self.read_with_timeout(move |_| {
                let mut scan = Pipeline::with_capacity(1);
                scan.cmd("SCAN").arg(&cursor).arg("MATCH").arg(&pattern);
                scan.arg("COUNT").arg(SCAN_STEP).arg("TYPE").arg(kind);
                scan
            });
            let found = replies.await?.pop().map(<(String, Vec<Vec<u8>>)>::from_redis_value);
            let Some(Ok((next, keys))) = found else { return Err(no_keys()) };
            let keys = keys.into_iter().filter_map(|key| String::from_utf8(key).ok());
            let keys: Vec<_> = keys.collect();
            if (!keys.is_empty() && !take(keys).await?) || next == "0" {
                return Ok(());
            }
            if Instant::now() > until {
                let what = "scanning the keys of Redis".to_owned();
                return Err(Kind::Timeout { what, after: LONGEST_SCAN }.into());
            }
            cursor = next;
        }
    }

    /// Returns what follows `start` in the keys that begin with it and with `prefix`.
    async fn rests(
        &self,
        kind: &'static str,
        start: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let mut found = BTreeSet::new();
        self.scan(kind, format!("{}{}*", literal(start), literal(prefix)), |keys| {
            let rests = keys.iter().filter_map(|key| key.strip_prefix(start));
            found.extend(rests.map(str::to_owned));
            std::future::ready(Ok(found.len() < limit))
        })
        .await?;
        Ok(found.into_iter().take(limit).collect())
    }

    async fn read_suspended(&self, ids: Vec<TaskId>) -> Result<Vec<SuspendedTask>, Error> {
        let keys: Vec<_> = ids.iter().map(approval_records::suspension_key).collect();
        let replies = self.read_with_timeout(move |_| {
            let mut read = Pipeline::with_capacity(keys.len());
            for key in &keys {
                read.cmd("HMGET").arg(key).arg("waits").arg("alarm").arg("queue").arg("holder");
                read.arg("until").arg("ended").arg("message");
            }
            read
        });
        let now = clock::now().as_millisecond();
        // A record of another type was not written by a worker.
        let records = replies.await?.into_iter().map(|it| Fields::from_redis_value(it).ok());
        Ok(ids.into_iter().zip(records).filter_map(|(id, it)| suspended(id, it?, now)).collect())
    }
}

/// Decodes a suspension record. Returns `None` unless the task waits for something and no run holds it.
fn suspended(id: TaskId, fields: Fields, now: i64) -> Option<SuspendedTask> {
    let mut fields = fields.into_iter().map(Option::unwrap_or_default);
    let mut text = || fields.next().unwrap_or_default();
    let (waits, alarm, queue, holder, until, ended) =
        (text(), text(), text(), text(), text(), text());
    let message = text();
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number > 0);
    let is_held = !holder.is_empty() && number(&until).is_some_and(|until| until > now);
    let approvals: Vec<_> = waits.split_whitespace().filter_map(ApprovalId::parse).collect();
    let wakes_at = number(&alarm).and_then(|at| Timestamp::from_millisecond(at).ok());
    if ended == "1" || is_held || (approvals.is_empty() && wakes_at.is_none()) {
        return None;
    }
    let name = Message::from_json(id.clone(), &message).ok();
    let name = name.and_then(|message| message.headers.get("task")?.as_str().map(str::to_owned));
    Some(SuspendedTask { id, name, queue, approvals, wakes_at })
}

pub(super) fn failed_key(id: &TaskId) -> String {
    format!("{FAILED}:{id}")
}

/// Escapes a text, so that the pattern matches only this text.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if "*?[]^-\\".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

fn no_keys() -> Error {
    let cause = "unexpected reply: not a list of keys".to_owned();
    Kind::Codec { what: "SCAN".to_owned(), cause }.into()
}
