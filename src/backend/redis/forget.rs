//! Deletes everything that is stored of a task.
//!
//! The keys may be on several nodes of a cluster, so that one script cannot delete them. The result goes
//! last: until then the call may be repeated.

use std::time::Duration;

use redis::{FromRedisValue, Pipeline, Value};

use super::{RedisStore, journal, parks, stream};
use crate::backend::{Forget, Origin, Store};
use crate::error::Error;
use crate::protocol::{PARKED, State};
use crate::task::TaskId;

/// Attempts whose marks are deleted at once.
const ATTEMPTS: u64 = 100;
/// A new run of the task may have stored another state since it was read.
const DELETE_RESULT: &str = "#!lua
local stored = redis.call('GET', KEYS[1])
local status = stored and string.match(stored, '^{%s*\"status\"%s*:%s*\"([^\"\\\\]*)\"')
if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then
  return redis.call('DEL', KEYS[1])
end
return 0";

impl RedisStore {
    pub(super) async fn forget_task(&self, id: TaskId) -> Result<Forget, Error> {
        let state = self.read(&id).await?.map(|document| document.state);
        if let Some(state) = state.as_ref().filter(|state| !state.is_terminal()) {
            return Ok(Forget::Unfinished(Some(state.clone())));
        }
        if state.is_none() && self.may_run(&id).await? {
            return Ok(Forget::Unfinished(None));
        }
        if !self.forget_park(id.clone()).await? {
            return Ok(Forget::Unfinished(Some(State::named(PARKED))));
        }
        // A success without a waiter is kept by this process, until it is asked for.
        drop(self.watch(id.clone(), Origin::Own, Some(Duration::ZERO)));
        self.delete_left(&id).await?;
        let key = self.keys.of(&id);
        self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(DELETE_RESULT)).arg(1).arg(key);
            eval
        })
        .await?;
        Ok(Forget::Forgotten)
    }

    /// Of a task without a result: its runs have left something, and it is not known to have ended.
    async fn may_run(&self, id: &TaskId) -> Result<bool, Error> {
        let left = [journal::key(id), stream::heads_key(id), parks::key(id)];
        let answers = self.ask_soon(move |_| {
            let mut exist = Pipeline::with_capacity(left.len());
            for key in left {
                exist.cmd("EXISTS").arg(key);
            }
            exist
        });
        let counts = answers.await?.into_iter().map(u8::from_redis_value);
        let counts: Vec<_> = counts.map(Result::unwrap_or_default).collect();
        Ok(matches!(counts[..], [journal, stream, 0] if journal + stream > 0))
    }

    async fn delete_left(&self, id: &TaskId) -> Result<(), Error> {
        let left = [journal::key(id), stream::key(id), stream::heads_key(id)];
        let mut keys: Vec<_> = left.into_iter().chain([super::marks::crash_key(id)]).collect();
        for first in (1..).step_by(usize::try_from(ATTEMPTS).unwrap_or(1)) {
            keys.extend((first..first + ATTEMPTS).map(|n| format!("cs:run:{id}:{n}")));
            let chunk = std::mem::take(&mut keys);
            let answers = self.ask_soon(move |_| {
                let mut delete = Pipeline::with_capacity(chunk.len());
                for key in chunk {
                    delete.cmd("DEL").arg(key);
                }
                delete
            });
            // Attempts follow one another: the last one may not be beyond a gap.
            if answers.await?.last() != Some(&Value::Int(1)) {
                return Ok(());
            }
        }
        Ok(())
    }
}
