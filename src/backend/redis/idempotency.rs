//! Idempotency keys: `cs:key:<key>` holds `unsent <id>` before the publish, `sent <id>` after it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline};

use super::script::Script;
use super::store::{RedisStore, whole_seconds};
use crate::backend::{IdempotencyEntry, IdempotencyKeys};
use crate::error::{Error, Kind};
use crate::task::TaskId;

impl IdempotencyKeys for RedisStore {
    fn claim_key(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<IdempotencyEntry, Error>> {
        let (key, id) = (key.to_owned(), id.clone());
        Box::pin(async move {
            let reply = self.run_on_key(Script::ClaimKey, key.clone(), id, keep).await?;
            let (sent, id) = match reply.split_once(' ') {
                Some(("sent", id)) => (true, id),
                Some(("unsent", id)) => (false, id),
                _ => {
                    let what = format!("idempotency key {key:?}");
                    let cause =
                        "its key in Redis has an unknown format; another program may have written it"
                            .into();
                    return Err(Kind::Codec { what, cause }.into());
                }
            };
            Ok(IdempotencyEntry { id: TaskId::from(id), sent })
        })
    }

    fn mark_key_sent(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let (key, id) = (key.to_owned(), id.clone());
        Box::pin(async move { self.run_on_key(Script::MarkSent, key, id, keep).await.map(drop) })
    }
}

impl RedisStore {
    async fn run_on_key(
        &self,
        script: Script,
        key: String,
        id: TaskId,
        keep: Duration,
    ) -> Result<String, Error> {
        let seconds = whole_seconds(keep).max(1);
        let replies = self.request_with_timeout(move |connection| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVALSHA").arg(connection.hash(script)).arg(1).arg(format!("cs:key:{key}"));
            eval.arg(id.as_str()).arg(seconds);
            eval
        });
        let reply = replies.await?.pop().map(String::from_redis_value);
        Ok(reply.and_then(Result::ok).unwrap_or_default())
    }
}
