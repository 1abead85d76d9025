//! The keys of streams, and the form of their entries. A stream is `cs:stream:{<id>}`; its ids are the
//! entries' numbers. For each stream there is a hash of heads, by which `stream.lua` recognizes entries
//! that were written before.

use redis::streams::{StreamId, StreamReadReply};
use redis::{FromRedisValue, Pipeline, Value};

use crate::backend::{EntryKind, StreamEntry};
use crate::error::{Error, Kind};
use crate::task::TaskId;

/// Entries per read: of all streams together, and limits for each. An entry may be large.
const READ_AT_ONCE: usize = 256;
const FEWEST_OF_EACH: usize = 4;
const MOST_OF_EACH: usize = 64;
pub(super) const BODY: &str = "body";
pub(super) const STEP: &str = "step ";
/// The head that holds the owner's digest.
pub(super) const OWNER: &str = "digest";
/// The newest entry format that this version reads.
const VERSION: u32 = 1;

/// Both keys share one hash tag, so that a cluster stores them on one node.
pub(super) fn key(id: &TaskId) -> String {
    format!("cs:stream:{{{id}}}")
}

pub(super) fn heads_key(id: &TaskId) -> String {
    format!("cs:stream:{{{id}}}:heads")
}

/// Returns the step of a scope.
pub(super) fn step_of(scope: &str) -> Option<&str> {
    scope.strip_prefix(STEP)
}

/// Reads the entries after those numbers. Blocks up to `block` milliseconds for new entries.
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

/// Decodes the reply of XREAD by key. A foreign entry is an error of its own stream only.
pub(super) fn parse(value: Value) -> Vec<(String, Result<Vec<StreamEntry>, Error>)> {
    let reply = Option::<StreamReadReply>::from_redis_value(value).ok().flatten();
    let streams = reply.into_iter().flat_map(|reply| reply.keys);
    streams.map(|stream| (stream.key, stream.ids.iter().map(entry).collect())).collect()
}

fn entry(stored: &StreamId) -> Result<StreamEntry, Error> {
    let fault = |cause: &str| unreadable(&format!("stream entry {}", stored.id), cause.to_owned());
    let number = stored.id.split('-').next().and_then(|number| number.parse().ok());
    let version: u32 = stored.get("v").ok_or_else(|| fault("not an entry of Countersign"))?;
    if version > VERSION {
        return Err(fault("written in a newer format: upgrade this client"));
    }
    let field = |name| stored.get::<String>(name).ok_or_else(|| fault("a field is missing"));
    let kind = EntryKind::named(&field("kind")?).ok_or_else(|| fault("unknown kind"))?;
    let value = serde_json::from_str(&field("json")?).map_err(|error| fault(&error.to_string()))?;
    Ok(StreamEntry {
        number: number.ok_or_else(|| fault("no number"))?,
        kind,
        step: step_of(&field("scope")?).map(str::to_owned),
        run: stored.get("run").unwrap_or(1),
        value,
    })
}

fn unreadable(what: &str, cause: String) -> Error {
    Kind::Codec { what: what.to_owned(), cause }.into()
}
