//! What people did to tasks, in the stream `cs:audit:{cs}`: it keeps about the last 100,000.

use redis::{FromRedisValue, Pipeline};

use super::{RedisStore, parks};
use crate::approval::KEPT;
use crate::backend::{Deed, Recorded};
use crate::error::Error;
use crate::protocol::State;
use crate::task::TaskId;

pub(super) const STREAM: &str = "cs:audit:{cs}";
const REOPEN: &str = include_str!("reopen.lua");
/// A park record is deleted if its task has ended.
const DELETE_ENDED: &str = "#!lua
if redis.call('HGET', KEYS[1], 'ended') == '1' then
  return redis.call('DEL', KEYS[1])
end
return 0";
/// Attempts whose marks are forgotten at once.
const ATTEMPTS: u64 = 1000;

impl RedisStore {
    pub(super) async fn note(&self, deed: Deed) -> Result<Recorded, Error> {
        let proof = Recorded::new(deed.id.clone());
        self.ask_soon(move |_| {
            let mut add = Pipeline::with_capacity(1);
            add.cmd("XADD").arg(STREAM).arg("MAXLEN").arg("~").arg(KEPT).arg("*");
            add.arg(&fields(&deed));
            add
        })
        .await?;
        Ok(proof)
    }

    pub(super) async fn take_back_failure(
        &self,
        deed: Deed,
        attempts: u64,
    ) -> Result<Option<State>, Error> {
        let (key, id) = (self.keys.of(&deed.id), deed.id.clone());
        let supersedes = deed.what == Deed::SUPERSEDE;
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(REOPEN)).arg(2).arg(key).arg(STREAM);
            eval.arg(KEPT).arg(&fields(&deed));
            eval
        });
        let status = answers.await?.pop().map(String::from_redis_value);
        let status = status.and_then(Result::ok).filter(|status| !status.is_empty());
        let status = status.map(|status| State::named(&status));
        let stays = match status {
            Some(State::Success) => true,
            Some(State::Revoked) => !supersedes,
            _ => false,
        };
        if !stays {
            self.forget_runs(id, attempts).await?;
        }
        Ok(status)
    }

    /// Attempts that were taken before would be refused to the message that is sent again. A record of a
    /// task that is suspended stays: another message may have its id.
    async fn forget_runs(&self, id: TaskId, attempts: u64) -> Result<(), Error> {
        let runs = (1..=attempts.clamp(1, ATTEMPTS)).map(|n| format!("cs:run:{id}:{n}"));
        let (runs, park) = (runs.collect::<Vec<_>>(), parks::key(&id));
        self.ask_soon(move |session| {
            let mut delete = Pipeline::with_capacity(runs.len() + 1);
            for key in runs {
                delete.cmd("DEL").arg(key);
            }
            delete.cmd("EVAL").arg(session.script(DELETE_ENDED)).arg(1).arg(park);
            delete
        })
        .await
        .map(drop)
    }
}

fn fields(deed: &Deed) -> [(&'static str, &str); 4] {
    let Deed { what, id, queue, by } = deed;
    [("what", what), ("task", id.as_str()), ("queue", queue), ("by", by)]
}
