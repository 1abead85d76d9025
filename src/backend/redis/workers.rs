//! Live workers: `cs:worker:<key>` until it expires, and the set `cs:workers` of all keys.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline};

use super::store::{RedisStore, whole_seconds};
use crate::backend::workers::SEEN_QUEUE_RETENTION;
use crate::backend::{WorkerInfo, Workers};
use crate::clock;
use crate::error::Error;

const ALL: &str = "cs:workers";
/// Queue names by the time when a worker last consumed them, in Unix seconds.
const QUEUES: &str = "cs:queues";

impl Workers for RedisStore {
    fn register_worker(
        &self,
        worker: WorkerInfo,
        keep: Duration,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let json = serde_json::to_string(&worker).unwrap_or_default();
        let seconds = whole_seconds(keep).max(1);
        let registered = self.request_with_timeout(move |_| {
            let mut set = Pipeline::with_capacity(4);
            set.cmd("SET").arg(key(&worker.key())).arg(json).arg("EX").arg(seconds);
            set.cmd("SADD").arg(ALL).arg(worker.key());
            let now = worker.at.as_second();
            if !worker.queues.is_empty() {
                set.cmd("ZADD").arg(QUEUES);
                for queue in &worker.queues {
                    set.arg(now).arg(queue);
                }
            }
            let old = now.saturating_sub_unsigned(SEEN_QUEUE_RETENTION.as_secs());
            set.cmd("ZREMRANGEBYSCORE").arg(QUEUES).arg("-inf").arg(old);
            set
        });
        Box::pin(async move { registered.await.map(drop) })
    }

    fn unregister_worker(&self, worker: WorkerInfo) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.delete_workers(vec![worker.key()]))
    }

    /// Removes expired workers from the set.
    fn list_workers(&self) -> BoxFuture<'_, Result<Vec<WorkerInfo>, Error>> {
        Box::pin(async move {
            let replies = self.request_with_timeout(|_| {
                let mut members = Pipeline::with_capacity(1);
                members.cmd("SMEMBERS").arg(ALL);
                members
            });
            let members = replies.await?.pop().map(Vec::<Vec<u8>>::from_redis_value);
            let members = members.and_then(Result::ok).unwrap_or_default();
            // A member that is not UTF-8 was not written by a worker.
            let members = members.into_iter().filter_map(|member| String::from_utf8(member).ok());
            let members: Vec<_> = members.collect();
            if members.is_empty() {
                return Ok(Vec::new());
            }
            let keys: Vec<_> = members.iter().map(|member| key(member)).collect();
            let replies = self.request_with_timeout(move |_| {
                let mut get = Pipeline::with_capacity(1);
                get.cmd("MGET").arg(keys);
                get
            });
            let texts = replies.await?.pop().map(Vec::<Option<Vec<u8>>>::from_redis_value);
            let texts = texts.and_then(Result::ok).unwrap_or_default();
            let (mut present, mut overdue) = (Vec::new(), Vec::new());
            for (member, text) in members.into_iter().zip(texts) {
                match text.and_then(|text| serde_json::from_slice(&text).ok()) {
                    Some(worker) => present.push(worker),
                    None => overdue.push(member),
                }
            }
            self.delete_workers(overdue).await?;
            present.sort_by_key(WorkerInfo::key);
            Ok(present)
        })
    }

    fn seen_queues(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(async move {
            let replies = self.request_with_timeout(|_| {
                let mut members = Pipeline::with_capacity(1);
                members.cmd("ZRANGE").arg(QUEUES).arg(0).arg(-1);
                members
            });
            let names = replies.await?.pop().map(Vec::<Vec<u8>>::from_redis_value);
            let names = names.and_then(Result::ok).unwrap_or_default();
            Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
        })
    }

    fn remember_queue(&self, queue: &str) {
        let (handle, closing, queue) =
            (self.handle.clone(), self.closing.clone(), queue.to_owned());
        let adding = async move {
            let connection = match handle.is_live() {
                true => handle.connection().await,
                false => closing.run_until_cancelled(handle.connection()).await.flatten(),
            };
            let Some(connection) = connection else { return };
            let mut add = Pipeline::with_capacity(1);
            add.cmd("ZADD").arg(QUEUES).arg(clock::now().as_second()).arg(queue);
            // A failure is harmless: the queue is added again the next day.
            let _ = connection.send(&add).await;
        };
        self.tasks.spawn_on(adding, &self.runtime);
    }
}

impl RedisStore {
    async fn delete_workers(&self, members: Vec<String>) -> Result<(), Error> {
        if members.is_empty() {
            return Ok(());
        }
        self.request_with_timeout(move |_| {
            let mut forget = Pipeline::with_capacity(2);
            forget.cmd("DEL").arg(members.iter().map(|member| key(member)).collect::<Vec<_>>());
            forget.cmd("SREM").arg(ALL).arg(members);
            forget
        })
        .await
        .map(drop)
    }
}

fn key(member: &str) -> String {
    format!("cs:worker:{member}")
}
