//! Journals: `cs:journal:<id>`, a hash of entries by step name. A journal outlives its task.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline, Value};
use tokio::sync::oneshot;

use super::journal_writer::JournalCall;
use super::script::Script;
use super::store::RedisStore;
use super::stream_entries;
use crate::backend::run_owner::is_of;
use crate::backend::{Journals, RunOwner, TaskHistory};
use crate::error::{Error, Kind};
use crate::protocol::TaskDigest;
use crate::task::TaskId;

/// Retention of a task's data after its last write while the task has not ended, in addition to the
/// retention of results; and after its end when results are kept forever.
const WEEK_SECONDS: u64 = 7 * 24 * 60 * 60;
/// The shortest retention after the end: the result may not be stored yet.
const HOUR_SECONDS: u64 = 60 * 60;
/// The most fields and bytes of a history that is read on the store's own connection.
const SMALL_FIELDS: usize = 64;
const SMALL_BYTES: usize = 16 * 1024;
/// The field of a journal that holds the owner's digest. Step names that begin with a zero byte are
/// stored with another one in front.
const OWNER: &str = "\0digest";

impl Journals for RedisStore {
    fn task_history(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<TaskHistory, Error>> {
        let (id, digest) = (id.clone(), digest.cloned());
        Box::pin(async move {
            let replies = match self.read_small_history(&id).await {
                Some(replies) => replies,
                None => self.read_large_history(&id).await?,
            };
            decode_history(replies, digest.as_ref()).map_err(|cause| {
                let what = format!("the journal of task {id}");
                Kind::Codec { what, cause }.into()
            })
        })
    }

    fn record_step(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        step: &str,
        entry: Bytes,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Error>> {
        let escape = if step.starts_with('\0') { "\0" } else { "" };
        let arguments = vec![
            text(&format!("{escape}{step}")),
            entry,
            text(&self.running_retention().to_string()),
            text(OWNER),
            text(writer.digest.as_str()),
            text(if writer.is_fresh { "1" } else { "0" }),
        ];
        let key = key(id);
        Box::pin(async move {
            match self.call(Script::RecordStep, vec![key], arguments).await? {
                Value::BulkString(recorded) => Ok(Some(recorded.into())),
                _ => Ok(None),
            }
        })
    }

    /// Marks the journal and the stream; returns when both are marked.
    fn end_history(&self, id: &TaskId, digest: &TaskDigest) -> BoxFuture<'_, Result<(), Error>> {
        let (id, digest) = (id.clone(), digest.clone());
        Box::pin(async move {
            let seconds = match self.result_seconds {
                0 => WEEK_SECONDS,
                seconds => seconds.max(HOUR_SECONDS),
            };
            let [journal, stream] = history_keys(&id).map(|(keys, owner)| {
                let arguments = [&seconds.to_string(), owner, digest.as_str()].map(text);
                self.call(Script::ExpireHistory, keys, arguments.to_vec())
            });
            let (journal, stream) = tokio::join!(journal, stream);
            journal.and(stream).map(drop)
        })
    }
}

impl RedisStore {
    /// Reads a history on the store's own connection, in one pipeline with other requests: a task
    /// that resumes needs it at once. Returns `None` when it is large or could not be read.
    async fn read_small_history(&self, id: &TaskId) -> Option<Vec<Value>> {
        let (journal, heads) = (key(id), stream_entries::heads_key(id));
        let replies = self.request_with_timeout(move |connection| {
            let mut read = Pipeline::with_capacity(1);
            read.cmd("EVALSHA").arg(connection.hash(Script::ReadHistory)).arg(2);
            read.arg(journal).arg(heads);
            read.arg(SMALL_FIELDS).arg(SMALL_BYTES).arg(stream_entries::OWNER);
            read
        });
        match replies.await.ok()?.pop()? {
            Value::Array(parts) => Some(parts),
            _ => None,
        }
    }

    /// Reads a history of any size on a pooled connection, without a time limit.
    async fn read_large_history(&self, id: &TaskId) -> Result<Vec<Value>, Error> {
        let replies = self.pool.read_without_limit(|_| {
            let mut read = Pipeline::with_capacity(3);
            read.cmd("HGETALL").arg(key(id)).cmd("HKEYS").arg(stream_entries::heads_key(id));
            read.cmd("HGET").arg(stream_entries::heads_key(id)).arg(stream_entries::OWNER);
            read
        });
        replies.await
    }

    /// Extends the lifetime of the journal and the stream of a suspended task. Every wake message
    /// does so, and one arrives every hour. Returns at once; under load they may be skipped.
    pub(super) fn extend_history(&self, id: &TaskId) {
        for (keys, _) in history_keys(id) {
            let (reply, _) = oneshot::channel();
            let arguments = vec![text(&self.running_retention().to_string())];
            let _ = self.calls.try_send(JournalCall {
                script: Script::ExpireHistory,
                keys,
                arguments,
                reply,
            });
        }
    }

    pub(super) fn running_retention(&self) -> u64 {
        self.result_seconds.saturating_add(WEEK_SECONDS)
    }

    /// Queues a script and waits for its reply, without a time limit.
    pub(super) async fn call(
        &self,
        script: Script,
        keys: Vec<String>,
        arguments: Vec<Bytes>,
    ) -> Result<Value, Error> {
        let (reply, wait) = oneshot::channel();
        let call = JournalCall { script, keys, arguments, reply };
        self.calls.send(call).await.map_err(|_| Kind::Closed)?;
        wait.await.map_err(|_| Kind::Closed)?
    }
}

/// The keys of a journal and of a stream, each with the field of its last key that holds the owner.
fn history_keys(id: &TaskId) -> [(Vec<String>, &'static str); 2] {
    let stream = vec![stream_entries::key(id), stream_entries::heads_key(id)];
    [(vec![key(id)], OWNER), (stream, stream_entries::OWNER)]
}

pub(super) fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn key(id: &TaskId) -> String {
    format!("cs:journal:{id}")
}

fn decode_history(replies: Vec<Value>, digest: Option<&TaskDigest>) -> Result<TaskHistory, String> {
    let mut replies = replies.into_iter();
    let mut next = || replies.next().unwrap_or(Value::Nil);
    let mut steps =
        HashMap::<String, Vec<u8>>::from_redis_value(next()).map_err(|e| e.to_string())?;
    let heads = Vec::<String>::from_redis_value(next()).map_err(|e| e.to_string())?;
    let stream_owner = Option::<String>::from_redis_value(next()).map_err(|e| e.to_string())?;
    let mut streamed: HashSet<_> =
        heads.iter().filter_map(|head| stream_entries::step_of(head)).map(str::to_owned).collect();
    if !is_of(stream_owner.as_deref(), digest) {
        streamed.clear();
    }
    let owner = steps.remove(OWNER);
    if !is_of(owner.as_deref().and_then(|owner| str::from_utf8(owner).ok()), digest) {
        steps.clear();
    }
    let unescaped = |step: String| match step.strip_prefix('\0') {
        Some(rest) if rest.starts_with('\0') => rest.to_owned(),
        _ => step,
    };
    let steps = steps.into_iter().map(|(step, entry)| (unescaped(step), entry.into())).collect();
    Ok(TaskHistory { steps, streamed })
}
