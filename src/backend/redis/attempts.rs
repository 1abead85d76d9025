//! Small records about tasks: claimed attempts, and tasks that were running when a worker died.

use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline, Value};

use super::script::Script;
use super::store::RedisStore;
use crate::backend::{Attempts, Crashes};
use crate::error::Error;
use crate::protocol::TaskDigest;
use crate::task::TaskId;

/// Claims outlive every retry.
const KEEP_SECONDS: u64 = 24 * 60 * 60;

impl Attempts for RedisStore {
    fn claim_attempt(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        attempt: u32,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let (key, digest) = (format!("cs:run:{id}:{attempt}"), digest.clone());
        Box::pin(async move {
            let replies = self.request(|connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA").arg(connection.hash(Script::ClaimAttempt)).arg(1).arg(key);
                eval.arg(digest.as_str()).arg(KEEP_SECONDS);
                eval
            });
            Ok(matches!(replies.await?.pop(), Some(Value::Int(1))))
        })
    }

    fn record_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>> {
        let key = crash_key(id);
        Box::pin(async move {
            let mut count = Pipeline::with_capacity(3);
            count.cmd("HINCRBY").arg(&key).arg("runs").arg(1);
            count.cmd("HINCRBY").arg(&key).arg("alone").arg(u32::from(alone));
            count.cmd("EXPIRE").arg(&key).arg(KEEP_SECONDS);
            self.request(|_| count).await.map(drop)
        })
    }

    fn crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<Crashes, Error>> {
        let key = crash_key(id);
        Box::pin(async move {
            let mut get = Pipeline::with_capacity(1);
            get.cmd("HMGET").arg(key).arg("runs").arg("alone");
            let replies = self.request(|_| get).await?.pop();
            let counts = replies.map(Vec::<Option<u32>>::from_redis_value);
            let counts = counts.and_then(Result::ok).unwrap_or_default();
            let count = |n: usize| counts.get(n).copied().flatten().unwrap_or(0);
            Ok(Crashes { runs: count(0), alone: count(1) })
        })
    }

    fn forget_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>> {
        let key = crash_key(id);
        Box::pin(async move {
            let forgotten = self.request(|connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA").arg(connection.hash(Script::ForgetRun)).arg(1).arg(key);
                eval.arg(u32::from(alone));
                eval
            });
            forgotten.await.map(drop)
        })
    }

    fn clear_crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<(), Error>> {
        let key = crash_key(id);
        Box::pin(async move {
            let mut delete = Pipeline::with_capacity(1);
            delete.cmd("DEL").arg(key);
            self.request(|_| delete).await.map(drop)
        })
    }
}

pub(super) fn crash_key(id: &TaskId) -> String {
    format!("cs:crash:{id}")
}
