//! Workers that are there: `cs:worker:<key>` until it expires, and the set `cs:workers` of all keys.

use std::time::Duration;

use redis::{FromRedisValue, Pipeline, Value};

use super::{RedisStore, whole_seconds};
use crate::backend::presence::SEEN_QUEUE_KEPT;
use crate::backend::{Presence, StoreServer};
use crate::clock;
use crate::error::Error;

const ALL: &str = "cs:workers";
/// Names of queues by when a worker last consumed them, in Unix seconds.
const QUEUES: &str = "cs:queues";

impl RedisStore {
    pub(super) async fn keep_present(
        &self,
        presence: Presence,
        keep: Duration,
    ) -> Result<(), Error> {
        let json = serde_json::to_string(&presence).unwrap_or_default();
        let seconds = whole_seconds(keep).max(1);
        self.ask_soon(move |_| {
            let mut set = Pipeline::with_capacity(4);
            set.cmd("SET").arg(key(&presence.key())).arg(json).arg("EX").arg(seconds);
            set.cmd("SADD").arg(ALL).arg(presence.key());
            let now = presence.at.as_second();
            if !presence.queues.is_empty() {
                set.cmd("ZADD").arg(QUEUES);
                for queue in &presence.queues {
                    set.arg(now).arg(queue);
                }
            }
            let old = now.saturating_sub_unsigned(SEEN_QUEUE_KEPT.as_secs());
            set.cmd("ZREMRANGEBYSCORE").arg(QUEUES).arg("-inf").arg(old);
            set
        })
        .await
        .map(drop)
    }

    pub(super) async fn read_seen_queues(&self) -> Result<Vec<String>, Error> {
        let asked = self.ask_soon(|_| {
            let mut members = Pipeline::with_capacity(1);
            members.cmd("ZRANGE").arg(QUEUES).arg(0).arg(-1);
            members
        });
        let names = asked.await?.pop().map(Vec::<Vec<u8>>::from_redis_value);
        let names = names.and_then(Result::ok).unwrap_or_default();
        Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
    }

    pub(super) async fn forget_present(&self, presence: Presence) -> Result<(), Error> {
        self.forget(vec![presence.key()]).await
    }

    /// Those that are not overdue; the others are forgotten.
    pub(super) async fn all_present(&self) -> Result<Vec<Presence>, Error> {
        let asked = self.ask_soon(|_| {
            let mut members = Pipeline::with_capacity(1);
            members.cmd("SMEMBERS").arg(ALL);
            members
        });
        let members = asked.await?.pop().map(Vec::<Vec<u8>>::from_redis_value);
        let members = members.and_then(Result::ok).unwrap_or_default();
        // One that is no text was not written by a worker.
        let members = members.into_iter().filter_map(|member| String::from_utf8(member).ok());
        let members: Vec<_> = members.collect();
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<_> = members.iter().map(|member| key(member)).collect();
        let asked = self.ask_soon(move |_| {
            let mut get = Pipeline::with_capacity(1);
            get.cmd("MGET").arg(keys);
            get
        });
        let texts = asked.await?.pop().map(Vec::<Option<Vec<u8>>>::from_redis_value);
        let texts = texts.and_then(Result::ok).unwrap_or_default();
        let (mut present, mut overdue) = (Vec::new(), Vec::new());
        for (member, text) in members.into_iter().zip(texts) {
            match text.and_then(|text| serde_json::from_slice(&text).ok()) {
                Some(presence) => present.push(presence),
                None => overdue.push(member),
            }
        }
        self.forget(overdue).await?;
        present.sort_by_key(Presence::key);
        Ok(present)
    }

    async fn forget(&self, members: Vec<String>) -> Result<(), Error> {
        if members.is_empty() {
            return Ok(());
        }
        self.ask_soon(move |_| {
            let mut forget = Pipeline::with_capacity(2);
            forget.cmd("DEL").arg(members.iter().map(|member| key(member)).collect::<Vec<_>>());
            forget.cmd("SREM").arg(ALL).arg(members);
            forget
        })
        .await
        .map(drop)
    }

    /// What INFO and TIME say. A server that forbids them says nothing.
    pub(super) async fn ask_server(&self) -> Result<StoreServer, Error> {
        let before = clock::now();
        let asked = self.ask_soon(|_| {
            let mut ask = Pipeline::with_capacity(3);
            ask.cmd("TIME").cmd("INFO").arg("server").cmd("INFO").arg("memory");
            ask
        });
        let mut answers = asked.await?.into_iter();
        let half = before.duration_since(clock::now()).as_millis().abs() / 2;
        let middle = i128::from(before.as_millisecond()) + half;
        let theirs = answers.next().map_or(middle, |time| milliseconds(time).unwrap_or(middle));
        let info: String = answers.filter_map(|text| String::from_redis_value(text).ok()).collect();
        let field = |name| info.lines().find_map(|line| line.strip_prefix(name));
        Ok(StoreServer {
            version: field("redis_version:").unwrap_or_default().to_owned(),
            eviction: field("maxmemory_policy:").unwrap_or_default().to_owned(),
            clock_ahead: i64::try_from(theirs - middle).unwrap_or(i64::MAX),
        })
    }
}

fn milliseconds(time: Value) -> Option<i128> {
    let parts = Vec::<String>::from_redis_value(time).ok()?;
    let number = |n: usize| parts.get(n)?.parse::<i128>().ok();
    Some(number(0)? * 1000 + number(1)? / 1000)
}

fn key(member: &str) -> String {
    format!("cs:worker:{member}")
}
