//! Journals: `cs:journal:<id>`, a hash of entries by the names of steps. It outlives its task.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use redis::{FromRedisValue, Pipeline, Value};
use tokio::sync::oneshot;

use super::link::Backoff;
use super::scribe::{Call, Script};
use super::{RedisStore, stream};
use crate::backend::kept::is_of;
use crate::backend::{Kept, RunOwner};
use crate::error::{Error, Kind};
use crate::protocol::TaskDigest;
use crate::task::TaskId;

/// What a task leaves is kept this long after its last write while it has not ended, besides the
/// time for which results are kept; and this long after its end when those are kept for ever.
const WEEK_SECONDS: u64 = 7 * 24 * 60 * 60;
/// At least so long after its end: the result may not be stored yet.
const HOUR_SECONDS: u64 = 60 * 60;
/// The field of a journal that says whose it is. Names of steps that begin with a zero byte have
/// another one before them.
const OWNER: &str = "\0digest";

impl RedisStore {
    pub(super) async fn read_kept(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> Result<Kept, Error> {
        let mut read = Pipeline::with_capacity(3);
        read.cmd("HGETALL").arg(key(id)).cmd("HKEYS").arg(stream::heads_key(id));
        read.cmd("HGET").arg(stream::heads_key(id)).arg(stream::OWNER);
        kept(self.until_answered(&read).await?, digest).map_err(|cause| {
            let what = format!("the journal of task {id}");
            Kind::Codec { what, cause }.into()
        })
    }

    pub(super) async fn read_clock(&self) -> Result<i64, Error> {
        let mut time = Pipeline::with_capacity(1);
        time.cmd("TIME");
        let answer = self.until_answered(&time).await?.pop().unwrap_or(Value::Nil);
        let read = <(i64, i64)>::from_redis_value(answer).map_err(|error| {
            let what = "the answer of Redis to TIME".to_owned();
            Kind::Codec { what, cause: error.to_string() }
        });
        let (seconds, microseconds) = read?;
        Ok(seconds.saturating_mul(1000).saturating_add(microseconds / 1000))
    }

    /// Asks until there is an answer.
    async fn until_answered(&self, questions: &Pipeline) -> Result<Vec<Value>, Error> {
        let mut backoff = Backoff::default();
        loop {
            let session = self.link.session().await.ok_or(Kind::Closed)?;
            if let Ok(answers) = session.send(questions).await {
                return Ok(answers);
            }
            backoff.wait().await;
        }
    }

    pub(super) async fn record_step(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        step: &str,
        entry: Bytes,
    ) -> Result<Option<Bytes>, Error> {
        let escape = if step.starts_with('\0') { "\0" } else { "" };
        let arguments = vec![
            text(&format!("{escape}{step}")),
            entry,
            text(&self.kept_while_running().to_string()),
            text(OWNER),
            text(writer.digest.as_str()),
            text(if writer.is_fresh { "1" } else { "0" }),
        ];
        match self.call(Script::Record, vec![key(id)], arguments).await? {
            Value::BulkString(recorded) => Ok(Some(recorded.into())),
            _ => Ok(None),
        }
    }

    /// Marks the journal and the stream as those of a task that has ended, to be kept as long as
    /// its result. Returns when both are marked.
    pub(super) async fn keep_as_result(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
    ) -> Result<(), Error> {
        let seconds = match self.result_seconds {
            0 => WEEK_SECONDS,
            seconds => seconds.max(HOUR_SECONDS),
        };
        let [journal, stream] = kept_keys(id).map(|(keys, owner)| {
            let arguments = [&seconds.to_string(), owner, digest.as_str()].map(text);
            self.call(Script::Keep, keys, arguments.to_vec())
        });
        let (journal, stream) = tokio::join!(journal, stream);
        journal.and(stream).map(drop)
    }

    /// Extends the lifetime of the journal and the stream of a suspended task. Every wake message
    /// does so, and one arrives every hour. Returns at once; under load they may be skipped.
    pub(super) fn keep_while_parked(&self, id: &TaskId) {
        for (keys, _) in kept_keys(id) {
            let (answer, _) = oneshot::channel();
            let arguments = vec![text(&self.kept_while_running().to_string())];
            let _ = self.calls.try_send(Call { script: Script::Keep, keys, arguments, answer });
        }
    }

    pub(super) fn kept_while_running(&self) -> u64 {
        self.result_seconds.saturating_add(WEEK_SECONDS)
    }

    /// Has a script run, however long the server is away.
    pub(super) async fn call(
        &self,
        script: Script,
        keys: Vec<String>,
        arguments: Vec<Bytes>,
    ) -> Result<Value, Error> {
        let (answer, wait) = oneshot::channel();
        let call = Call { script, keys, arguments, answer };
        self.calls.send(call).await.map_err(|_| Kind::Closed)?;
        wait.await.map_err(|_| Kind::Closed)?
    }
}

/// The keys of a journal and of a stream, each with the field of its last key that names the owner.
fn kept_keys(id: &TaskId) -> [(Vec<String>, &'static str); 2] {
    let stream = vec![stream::key(id), stream::heads_key(id)];
    [(vec![key(id)], OWNER), (stream, stream::OWNER)]
}

pub(super) fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn key(id: &TaskId) -> String {
    format!("cs:journal:{id}")
}

fn kept(answers: Vec<Value>, digest: Option<&TaskDigest>) -> Result<Kept, String> {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil);
    let mut steps =
        HashMap::<String, Vec<u8>>::from_redis_value(next()).map_err(|e| e.to_string())?;
    let heads = Vec::<String>::from_redis_value(next()).map_err(|e| e.to_string())?;
    let stream_owner = Option::<String>::from_redis_value(next()).map_err(|e| e.to_string())?;
    let mut streamed: HashSet<_> =
        heads.iter().filter_map(|head| stream::step_of(head)).map(str::to_owned).collect();
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
    Ok(Kept { steps, streamed })
}
