//! Streams of running tasks. `stream.lua` writes each entry once.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline, Value};
use tokio::sync::oneshot;

use super::journal::text;
use super::script::Script;
use super::store::RedisStore;
use super::stream_entries::{BODY, STEP, heads_key, key, parse, read};
use super::stream_reader::StreamRead;
use crate::backend::{RunOwner, Scope, StreamAppend, StreamEntry, Streams};
use crate::error::{Error, Kind};
use crate::task::TaskId;

/// The approximate number of entries to keep of a stream; the oldest are trimmed.
const MAX_ENTRIES: usize = 10_000;

impl Streams for RedisStore {
    fn append_entry(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        entry: StreamAppend,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let (scope, execution) = match &entry.scope {
            Scope::Body => (BODY.to_owned(), "-".to_owned()),
            Scope::Step { name, execution } => (format!("{STEP}{name}"), format!("{execution:x}")),
        };
        let arguments = vec![
            scope.into(),
            execution.into(),
            text(&entry.number.to_string()),
            Bytes::from_static(entry.kind.as_str().as_bytes()),
            entry.json,
            text(&MAX_ENTRIES.to_string()),
            text(&self.running_retention().to_string()),
            text(writer.digest.as_str()),
            text(if writer.is_fresh { "1" } else { "0" }),
        ];
        let keys = vec![key(id), heads_key(id)];
        Box::pin(async move { self.call(Script::AppendEntry, keys, arguments).await.map(drop) })
    }

    fn read_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>> {
        let keys = [(key(id), after)];
        Box::pin(async move {
            let replies = self.read_with_timeout(move |_| read(&keys, None)).await?;
            let mut streams = parse(replies.into_iter().next().unwrap_or(Value::Nil));
            streams.pop().map_or_else(|| Ok(Vec::new()), |(_, entries)| entries)
        })
    }

    fn next_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>> {
        let key = key(id);
        Box::pin(async move {
            let (reply, entries) = oneshot::channel();
            self.reads.send(StreamRead { key, after, reply }).map_err(|_| Kind::Closed)?;
            entries.await.map_err(|_| Kind::Closed)?
        })
    }

    fn last_entry(&self, id: &TaskId) -> BoxFuture<'_, Result<u64, Error>> {
        let key = heads_key(id);
        Box::pin(async move {
            let replies = self.request_with_timeout(move |_| {
                let mut get = Pipeline::with_capacity(1);
                get.cmd("HGET").arg(key).arg("last");
                get
            });
            let number = replies.await?.pop().map(Option::<u64>::from_redis_value);
            Ok(number.and_then(Result::ok).flatten().unwrap_or(0))
        })
    }
}
