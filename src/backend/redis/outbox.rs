//! The outbox: resume messages that are not known to be sent, in the sorted set `cs:outbox:{cs}`.

use futures_util::future::BoxFuture;
use redis::Pipeline;

use super::approval_records::{OUTBOX, PENDING};
use super::reply::texts;
use super::script::Script;
use super::store::RedisStore;
use crate::backend::approvals::REQUEST_RETENTION;
use crate::backend::milliseconds::milliseconds;
use crate::backend::outbox::{OVERDUE, SWEEP_LIMIT};
use crate::backend::{Outbox, Resume};
use crate::error::Error;

impl Outbox for RedisStore {
    fn resume_sent(&self, resume: &Resume) -> BoxFuture<'_, Result<(), Error>> {
        let entry = resume.entry.clone();
        Box::pin(async move {
            let cleared = self.request_with_timeout(move |_| {
                let mut remove = Pipeline::with_capacity(1);
                remove.cmd("ZREM").arg(OUTBOX).arg(entry);
                remove
            });
            cleared.await.map(drop)
        })
    }

    fn overdue_resumes(&self) -> BoxFuture<'_, Result<Vec<Resume>, Error>> {
        Box::pin(async move {
            let replies = self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA")
                    .arg(connection.hash(Script::Sweep))
                    .arg(2)
                    .arg(OUTBOX)
                    .arg(PENDING);
                eval.arg(milliseconds(OVERDUE)).arg(SWEEP_LIMIT).arg(REQUEST_RETENTION.as_secs());
                eval
            });
            let entries = texts(replies.await?, "sweep.lua")?;
            Ok(entries.iter().filter_map(|entry| Resume::read(entry)).collect())
        })
    }
}
