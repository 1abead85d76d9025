//! Streams of tasks: `cs:stream:{<id>}`, whose ids are the entries' numbers, and beside each its
//! heads, by which `stream.lua` knows what was written before.

use bytes::Bytes;
use redis::streams::{StreamId, StreamReadReply};
use redis::{FromRedisValue, Pipeline, Value};

use super::journal::text;
use super::scribe::Script;
use super::{RedisStore, tail};
use crate::backend::{Line, RunOwner, Said, Scope, StreamEntry};
use crate::error::{Error, Kind};
use crate::task::TaskId;

/// About so many entries of a stream are kept: the last.
const KEPT: usize = 10_000;
/// Entries that are read at once, of all streams together and of each. An entry may be large.
const READ_AT_ONCE: usize = 256;
const FEWEST_OF_EACH: usize = 4;
const MOST_OF_EACH: usize = 64;
const BODY: &str = "body";
const STEP: &str = "step ";
/// The head that says whose stream it is.
pub(super) const OWNER: &str = "digest";
/// The newest form of entries that this version reads.
const VERSION: u32 = 1;

/// One tag for both keys, so that a cluster has them on one node.
pub(super) fn key(id: &TaskId) -> String {
    format!("cs:stream:{{{id}}}")
}

pub(super) fn heads_key(id: &TaskId) -> String {
    format!("cs:stream:{{{id}}}:heads")
}

/// The step whose scope this is.
pub(super) fn step_of(scope: &str) -> Option<&str> {
    scope.strip_prefix(STEP)
}

impl RedisStore {
    pub(super) async fn append_line(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        line: Line,
    ) -> Result<(), Error> {
        let (scope, execution) = match &line.scope {
            Scope::Body => (BODY.to_owned(), "-".to_owned()),
            Scope::Step { name, execution } => (format!("{STEP}{name}"), format!("{execution:x}")),
        };
        let arguments = vec![
            scope.into(),
            execution.into(),
            text(&line.number.to_string()),
            Bytes::from_static(line.said.as_str().as_bytes()),
            line.json,
            text(&KEPT.to_string()),
            text(&self.kept_while_running().to_string()),
            text(writer.digest.as_str()),
            text(if writer.is_fresh { "1" } else { "0" }),
        ];
        self.call(Script::Append, vec![key(id), heads_key(id)], arguments).await.map(drop)
    }

    pub(super) async fn read_entries(
        &self,
        id: TaskId,
        after: u64,
    ) -> Result<Vec<StreamEntry>, Error> {
        let keys = [(key(&id), after)];
        let answers = self.ask_soon(move |_| read(&keys, None)).await?;
        let mut streams = parse(answers.into_iter().next().unwrap_or(Value::Nil));
        streams.pop().map_or_else(|| Ok(Vec::new()), |(_, entries)| entries)
    }

    /// The number of the last entry; 0 when there is none.
    pub(super) async fn last_number(&self, id: TaskId) -> Result<u64, Error> {
        let answers = self.ask_soon(move |_| {
            let mut get = Pipeline::with_capacity(1);
            get.cmd("HGET").arg(heads_key(&id)).arg("last");
            get
        });
        let number = answers.await?.pop().map(Option::<u64>::from_redis_value);
        Ok(number.and_then(Result::ok).flatten().unwrap_or(0))
    }

    /// Waits until there are entries after that number.
    pub(super) async fn await_entries(
        &self,
        id: TaskId,
        after: u64,
    ) -> Result<Vec<StreamEntry>, Error> {
        let (answer, entries) = tokio::sync::oneshot::channel();
        let read = tail::Read { key: key(&id), after, answer };
        self.reads.send(read).map_err(|_| Kind::Closed)?;
        entries.await.map_err(|_| Kind::Closed)?
    }
}

/// Reads what comes after those numbers; waits that many milliseconds for anything to come.
pub(super) fn read(streams: &[(String, u64)], block: Option<u64>) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(1);
    let share = READ_AT_ONCE / streams.len().max(1);
    let count = share.clamp(FEWEST_OF_EACH, MOST_OF_EACH);
    let read = pipeline.cmd("XREAD").arg("COUNT").arg(count);
    if let Some(milliseconds) = block {
        read.arg("BLOCK").arg(milliseconds);
    }
    read.arg("STREAMS");
    for (key, _) in streams {
        read.arg(key);
    }
    for (_, after) in streams {
        read.arg(format!("{after}-{}", u64::MAX));
    }
    pipeline
}

/// What an XREAD has answered, by keys. What is not ours there is an error of its own stream.
pub(super) fn parse(answer: Value) -> Vec<(String, Result<Vec<StreamEntry>, Error>)> {
    let reply = Option::<StreamReadReply>::from_redis_value(answer).ok().flatten();
    let streams = reply.into_iter().flat_map(|reply| reply.keys);
    streams.map(|stream| (stream.key, stream.ids.iter().map(entry).collect())).collect()
}

fn entry(stored: &StreamId) -> Result<StreamEntry, Error> {
    let fault = |cause: &str| unreadable(&format!("stream entry {}", stored.id), cause.to_owned());
    let number = stored.id.split('-').next().and_then(|number| number.parse().ok());
    let version: u32 = stored.get("v").ok_or_else(|| fault("no entry of Countersign's"))?;
    if version > VERSION {
        return Err(fault("it is of a newer form: this client is older than the worker"));
    }
    let field = |name| stored.get::<String>(name).ok_or_else(|| fault("a field is missing"));
    let said = Said::named(&field("kind")?).ok_or_else(|| fault("of no known kind"))?;
    let value = serde_json::from_str(&field("json")?).map_err(|error| fault(&error.to_string()))?;
    Ok(StreamEntry {
        number: number.ok_or_else(|| fault("no number"))?,
        said,
        step: step_of(&field("scope")?).map(str::to_owned),
        run: stored.get("run").unwrap_or(1),
        value,
    })
}

fn unreadable(what: &str, cause: String) -> Error {
    Kind::Codec { what: what.to_owned(), cause }.into()
}
