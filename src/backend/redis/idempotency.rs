//! Idempotency keys: `cs:key:<key>` holds `unsent <id>` before the publish, `sent <id>` after it.

use std::time::Duration;

use redis::{FromRedisValue, Pipeline};

use super::{RedisStore, whole_seconds};
use crate::backend::KeyedTask;
use crate::error::{Error, Kind};
use crate::task::TaskId;

const CLAIM: &str = include_str!("claim.lua");
const MARK: &str = include_str!("mark.lua");

impl RedisStore {
    pub(super) async fn claim(
        &self,
        key: String,
        id: TaskId,
        keep: Duration,
    ) -> Result<KeyedTask, Error> {
        let answer = self.run_on_key(CLAIM, key.clone(), id, keep).await?;
        let (sent, id) = match answer.split_once(' ') {
            Some(("sent", id)) => (true, id),
            Some(("unsent", id)) => (false, id),
            _ => {
                let what = format!("idempotency key {key:?}");
                let cause = "somebody else has written under its name in Redis".into();
                return Err(Kind::Codec { what, cause }.into());
            }
        };
        Ok(KeyedTask { id: TaskId::from(id), sent })
    }

    pub(super) async fn mark_key(
        &self,
        key: String,
        id: TaskId,
        keep: Duration,
    ) -> Result<(), Error> {
        self.run_on_key(MARK, key, id, keep).await.map(drop)
    }

    async fn run_on_key(
        &self,
        script: &'static str,
        key: String,
        id: TaskId,
        keep: Duration,
    ) -> Result<String, Error> {
        let seconds = whole_seconds(keep).max(1);
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(script)).arg(1).arg(format!("cs:key:{key}"));
            eval.arg(id.as_str()).arg(seconds);
            eval
        });
        let answer = answers.await?.pop().map(String::from_redis_value);
        Ok(answer.and_then(Result::ok).unwrap_or_default())
    }
}
