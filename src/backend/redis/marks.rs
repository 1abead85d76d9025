//! Small marks about tasks: who has taken an attempt, and which ones ran when a worker died.

use redis::{FromRedisValue, Pipeline, RedisError, Value};
use tokio::time::timeout;

use super::RedisStore;
use super::link::{Session, said};
use crate::backend::Crashes;
use crate::error::{Error, Kind};
use crate::protocol::TaskDigest;
use crate::task::TaskId;

/// Marks outlive every retry that anybody waits for.
const KEEP_SECONDS: u64 = 24 * 60 * 60;

/// Writes a digest where there is none, or another one. What an older worker wrote is shorter, and stays.
const TAKE: &str = "#!lua
local taken = redis.call('GET', KEYS[1])
if taken and (taken == ARGV[1] or #taken < #ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1";
/// A count that another worker has deleted, or that has expired, stays away.
const UNCOUNT: &str = "#!lua
for field, by in pairs({ runs = 1, alone = tonumber(ARGV[1]) }) do
  if by > 0 and tonumber(redis.call('HGET', KEYS[1], field) or '0') >= by then
    redis.call('HINCRBY', KEYS[1], field, -by)
  end
end
return 1";

impl RedisStore {
    /// Takes an attempt; false when somebody has taken it before.
    pub(super) async fn take_attempt(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        attempt: u32,
    ) -> Result<bool, Error> {
        let mut eval = Pipeline::with_capacity(1);
        let key = format!("cs:run:{id}:{attempt}");
        eval.cmd("EVAL").arg(TAKE).arg(1).arg(key).arg(digest.as_str()).arg(KEEP_SECONDS);
        Ok(matches!(self.ask(eval).await?.pop(), Some(Value::Int(1))))
    }

    pub(super) async fn count_run(&self, id: &TaskId, alone: bool) -> Result<(), Error> {
        let key = crash_key(id);
        let mut count = Pipeline::with_capacity(3);
        count.cmd("HINCRBY").arg(&key).arg("runs").arg(1);
        count.cmd("HINCRBY").arg(&key).arg("alone").arg(u32::from(alone));
        count.cmd("EXPIRE").arg(&key).arg(KEEP_SECONDS);
        self.ask(count).await.map(drop)
    }

    /// Takes back one of [`RedisStore::count_run`].
    pub(super) async fn uncount_run(&self, id: &TaskId, alone: bool) -> Result<(), Error> {
        let mut eval = Pipeline::with_capacity(1);
        eval.cmd("EVAL").arg(UNCOUNT).arg(1).arg(crash_key(id)).arg(u32::from(alone));
        self.ask(eval).await.map(drop)
    }

    pub(super) async fn crashes_of(&self, id: &TaskId) -> Result<Crashes, Error> {
        let mut get = Pipeline::with_capacity(1);
        get.cmd("HMGET").arg(crash_key(id)).arg("runs").arg("alone");
        let counts = self.ask(get).await?.pop().map(Vec::<Option<u32>>::from_redis_value);
        let counts = counts.and_then(Result::ok).unwrap_or_default();
        let count = |n: usize| counts.get(n).copied().flatten().unwrap_or(0);
        Ok(Crashes { runs: count(0), alone: count(1) })
    }

    pub(super) async fn forget_crashes(&self, id: &TaskId) -> Result<(), Error> {
        let mut delete = Pipeline::with_capacity(1);
        delete.cmd("DEL").arg(crash_key(id));
        self.ask(delete).await.map(drop)
    }

    /// Asks once, however long the wait for a connection. A server error is an error; asking again
    /// is the caller's choice.
    pub(super) async fn ask(&self, commands: Pipeline) -> Result<Vec<Value>, Error> {
        let session = self.link.session().await.ok_or(Kind::Closed)?;
        answered(&self.shown, session.send(&commands).await)
    }

    /// Asks once, within the store's patience, on its own runtime: the caller's may be another.
    pub(super) async fn ask_soon(
        &self,
        commands: impl FnOnce(&Session) -> Pipeline + Send + 'static,
    ) -> Result<Vec<Value>, Error> {
        let (link, patience) = (self.link.clone(), self.patience);
        let asking = async move {
            let session = link.session().await.ok_or(Kind::Closed)?;
            Ok::<_, Error>(session.send(&commands(&session)).await)
        };
        let asked = self.runtime.spawn(async move { timeout(patience, asking).await });
        let cause = format!("no answer within {} s", patience.as_secs_f64());
        match asked.await.map_err(|_| Kind::Closed)? {
            Ok(answers) => answered(&self.shown, answers?),
            Err(_) => Err(Kind::Connection { peer: peer(&self.shown), cause }.into()),
        }
    }
}

fn peer(shown: &str) -> String {
    format!("Redis at {shown}")
}

fn answered(shown: &str, answers: Result<Vec<Value>, RedisError>) -> Result<Vec<Value>, Error> {
    let failed = |cause: String| Error::new(Kind::Connection { peer: peer(shown), cause });
    let answers = answers.map_err(|error| failed(error.to_string()))?;
    match answers.iter().find_map(|answer| match answer {
        Value::ServerError(error) => Some(error),
        _ => None,
    }) {
        // The server is there, and somebody else has written to the key.
        Some(error) if error.code() == "WRONGTYPE" => {
            Err(Kind::Codec { what: "a record in Redis".into(), cause: said(error) }.into())
        }
        Some(error) => Err(failed(said(error))),
        None => Ok(answers),
    }
}

pub(super) fn crash_key(id: &TaskId) -> String {
    format!("cs:crash:{id}")
}
