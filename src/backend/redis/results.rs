//! Results of tasks. `result_writer` writes them, `subscription` waits for them.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline, Value};
use tokio::sync::{mpsc, oneshot};

use super::audit::{self, NOTES};
use super::result_writer::ResultJob;
use super::script::Script;
use super::store::RedisStore;
use super::subscription::Watch;
use super::{approval_records, index};
use crate::approval::MAX_AUDIT_ENTRIES;
use crate::backend::{AuditAction, Forget, Origin, Recorded, Results, StoreResult};
use crate::error::{Error, Kind};
use crate::protocol::{Document, SUSPENDED, State, TaskDigest};
use crate::task::TaskId;

/// The most attempts whose claims one call of `reopen` deletes.
const ATTEMPTS: u64 = 1000;

impl Results for RedisStore {
    fn store_result(&self, result: StoreResult) -> BoxFuture<'_, Result<Recorded, Error>> {
        Box::pin(async move {
            let id = result.document.id.clone();
            self.write_result(result, None).await?;
            Ok(Recorded::new(id))
        })
    }

    fn ignore_result(&self, id: &TaskId) -> Recorded {
        Recorded::new(id.clone())
    }

    fn read_result(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<Document>, Error>> {
        let id = id.clone();
        Box::pin(async move {
            let key = self.keys.of(&id);
            let replies = self.read_with_timeout(move |_| {
                let mut get = Pipeline::with_capacity(1);
                get.cmd("MGET").arg(&[&key]);
                get
            });
            // MGET returns nil for a key of another type, which another program has written.
            let texts = Vec::<Option<Vec<u8>>>::from_redis_value(
                replies.await?.pop().unwrap_or(Value::Nil),
            );
            let text = texts.ok().and_then(|mut texts| texts.pop().flatten());
            let document = text.map(|text| Document::parse(id.clone(), Bytes::from(text)));
            document.transpose().map_err(|cause| {
                let what = format!("the result of task {id}");
                Kind::Codec { what, cause: cause.to_string() }.into()
            })
        })
    }

    fn watch_result(
        &self,
        id: TaskId,
        origin: Origin,
        timeout: Option<Duration>,
    ) -> oneshot::Receiver<Result<Box<Document>, Error>> {
        let (reply, wait) = oneshot::channel();
        let watch = Watch { id, origin, timeout, reply };
        if let Err(mpsc::error::SendError(watch)) = self.watches.send(watch) {
            let _ = watch.reply.send(Err(Kind::Closed.into()));
        }
        wait
    }

    fn reopen(
        &self,
        action: AuditAction,
        attempts: u64,
    ) -> BoxFuture<'_, Result<Option<State>, Error>> {
        Box::pin(async move {
            let (key, id) = (self.keys.of(&action.id), action.id.clone());
            let supersedes = action.what == AuditAction::SUPERSEDE;
            let replies = self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA").arg(connection.hash(Script::Reopen)).arg(2).arg(key).arg(NOTES);
                eval.arg(MAX_AUDIT_ENTRIES).arg(&audit::fields(&action));
                eval
            });
            let status = replies.await?.pop().map(String::from_redis_value);
            let status = status.and_then(Result::ok).filter(|status| !status.is_empty());
            let status = status.map(|status| State::named(&status));
            let is_final = match status {
                Some(State::Success) => true,
                Some(State::Revoked) => !supersedes,
                _ => false,
            };
            if !is_final {
                self.delete_attempts(id, attempts).await?;
            }
            Ok(status)
        })
    }

    /// Deletes the result last: until then the call can be repeated.
    fn forget(&self, id: &TaskId) -> BoxFuture<'_, Result<Forget, Error>> {
        let id = id.clone();
        Box::pin(async move {
            let state = self.read_result(&id).await?.map(|document| document.state);
            if let Some(state) = state.as_ref().filter(|state| !state.is_terminal()) {
                return Ok(Forget::Unfinished(Some(state.clone())));
            }
            if state.is_none() && self.may_run(&id).await? {
                return Ok(Forget::Unfinished(None));
            }
            if !self.forget_suspension(id.clone()).await? {
                return Ok(Forget::Unfinished(Some(State::named(SUSPENDED))));
            }
            // This process keeps a success without a waiter in memory; taking it drops it.
            drop(self.watch_result(id.clone(), Origin::Own, Some(Duration::ZERO)));
            self.delete_left(&id).await?;
            let (key, name) = (self.keys.of(&id), id.to_string());
            self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(2);
                eval.cmd("ZREM").arg(index::FAILED).arg(name);
                eval.cmd("EVALSHA").arg(connection.hash(Script::DeleteResult)).arg(1).arg(key);
                eval
            })
            .await?;
            Ok(Forget::Forgotten)
        })
    }

    fn reply_channel(&self) -> &str {
        &self.reply_channel
    }
}

impl RedisStore {
    /// Stores a result, and with a digest also the end of the task's suspension. Returns the script's reply.
    pub(super) async fn write_result(
        &self,
        result: StoreResult,
        ended: Option<TaskDigest>,
    ) -> Result<Value, Error> {
        let (stored, wait) = oneshot::channel();
        let job = ResultJob { result, ended, stored: Some(stored) };
        self.jobs.send(job).await.map_err(|_| Kind::Closed)?;
        wait.await.map_err(|_| Kind::Closed)?
    }

    /// Deletes the claims of earlier attempts, because they would block the requeued message. The
    /// record of a suspended task stays: another message may have its id.
    async fn delete_attempts(&self, id: TaskId, attempts: u64) -> Result<(), Error> {
        let runs = (1..=attempts.clamp(1, ATTEMPTS)).map(|n| format!("cs:run:{id}:{n}"));
        let (runs, suspension) = (runs.collect::<Vec<_>>(), approval_records::suspension_key(&id));
        self.request_with_timeout(move |connection| {
            let mut delete = Pipeline::with_capacity(runs.len() + 1);
            for key in runs {
                delete.cmd("DEL").arg(key);
            }
            delete.cmd("EVALSHA").arg(connection.hash(Script::DeleteEnded)).arg(1).arg(suspension);
            delete
        })
        .await
        .map(drop)
    }
}
