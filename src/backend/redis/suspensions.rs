//! Suspended tasks in `cs:park:{cs}:<task id>`: one hash per task, which only scripts change.
//!
//! All keys of approvals share one constant hash tag, so that a script may use several of them on a
//! cluster, too. Workers write `cs:park` and `cs:ask`, deciders `cs:dec`.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline, Value};
use tracing::warn;

use super::approval_records::{OUTBOX, PENDING, add_request, read_outcomes, suspension_key};
use super::reply::texts;
use super::script::Script;
use super::store::RedisStore;
use crate::approval::ApprovalId;
use crate::backend::approvals::REQUEST_RETENTION;
use crate::backend::milliseconds::milliseconds;
use crate::backend::suspensions::{ENDED_RETENTION, joined};
use crate::backend::{
    ClaimResult, Recorded, StoreResult, SuspendRequest, SuspendResult, Suspensions,
};
use crate::error::{Error, Kind};
use crate::lifecycle::suspension::RECHECK;
use crate::protocol::{Document, Message, SuspendHeader, SuspendKind, TaskDigest};
use crate::task::TaskId;

/// The caller that requests the claim on a task.
struct Caller {
    holder: String,
    /// The task's digest, if it is known.
    digest: Option<TaskDigest>,
    lease: Duration,
}

impl Suspensions for RedisStore {
    fn claim_suspended(
        &self,
        id: &TaskId,
        header: SuspendHeader,
        digest: Option<&TaskDigest>,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<ClaimResult, Error>> {
        let caller = Caller { holder: holder.to_owned(), digest: digest.cloned(), lease };
        if header.kind == SuspendKind::Wake {
            self.extend_history(id);
        }
        let kind = match header.kind {
            SuspendKind::Original => "original",
            SuspendKind::Resume => "resume",
            SuspendKind::Wake => "wake",
        };
        Box::pin(self.claim_run(id.clone(), (kind, header.number, false), caller))
    }

    fn claim_first(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        starts_anew: bool,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<ClaimResult, Error>> {
        let caller = Caller { holder: holder.to_owned(), digest: Some(digest.clone()), lease };
        Box::pin(self.claim_run(id.clone(), ("begin", 0, starts_anew), caller))
    }

    fn suspend(&self, request: SuspendRequest) -> BoxFuture<'_, Result<SuspendResult, Error>> {
        Box::pin(async move {
            let id = request.id.clone();
            let replies = self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA").arg(connection.hash(Script::Suspend)).arg(3);
                eval.arg(suspension_key(&request.id)).arg(PENDING).arg(OUTBOX);
                eval.arg(request.number).arg(request.holder).arg(milliseconds(request.lease));
                eval.arg(request.message.to_json()).arg(request.queue).arg(request.id.as_str());
                eval.arg(joined(&request.abandoned)).arg(request.alarm.map_or(0, milliseconds));
                eval.arg(request.digest.as_str());
                for approval in &request.requests {
                    add_request(&mut eval, approval);
                    eval.arg(approval.action.digest().as_str());
                }
                eval
            });
            let texts = texts(replies.await?, "suspend.lua")?;
            Ok(match texts.first().map(String::as_str) {
                Some("waiting") => {
                    let due = texts.get(1).and_then(|due| due.parse().ok()).unwrap_or(u64::MAX);
                    SuspendResult::Waiting(Recorded::new(id), Duration::from_millis(due))
                }
                Some("ready") => SuspendResult::Ready(read_outcomes(&texts[1..])),
                _ => SuspendResult::Behind(Recorded::new(id)),
            })
        })
    }

    fn renew_claim(
        &self,
        id: &TaskId,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(self.set_lease(id.clone(), holder.to_owned(), Some(lease)))
    }

    fn release_claim(&self, id: &TaskId, holder: &str) -> BoxFuture<'_, Result<(), Error>> {
        let released = self.set_lease(id.clone(), holder.to_owned(), None);
        Box::pin(async move { released.await.map(drop) })
    }

    fn end_suspended(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>> {
        let (id, digest) = (id.clone(), digest.cloned());
        Box::pin(async move {
            let replies = self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA")
                    .arg(connection.hash(Script::EndSuspended))
                    .arg(2)
                    .arg(suspension_key(&id))
                    .arg(PENDING);
                end_arguments(&mut eval, digest.as_ref());
                eval
            });
            withdrawn(replies.await?, "end.lua")
        })
    }

    fn finish_suspended(
        &self,
        result: StoreResult,
        digest: &TaskDigest,
    ) -> BoxFuture<'_, Result<(Recorded, Vec<ApprovalId>), Error>> {
        let digest = digest.clone();
        Box::pin(async move {
            let id = result.document.id.clone();
            let reply = self.write_result(result, Some(digest)).await?;
            Ok((Recorded::new(id), withdrawn(vec![reply], "store_results.lua")?))
        })
    }
}

impl RedisStore {
    /// Claims a task by its suspend header, or before its first suspension.
    async fn claim_run(
        &self,
        id: TaskId,
        (kind, number, starts_anew): (&'static str, u64, bool),
        caller: Caller,
    ) -> Result<ClaimResult, Error> {
        let (key, result_key) = (suspension_key(&id), self.keys.of(&id));
        let replies = self.request_with_timeout(move |connection| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVALSHA").arg(connection.hash(Script::ClaimTask)).arg(4);
            eval.arg(key).arg(PENDING).arg(OUTBOX).arg(result_key);
            let Caller { holder, digest, lease } = caller;
            eval.arg(kind).arg(number).arg(holder).arg(milliseconds(lease)).arg(RECHECK);
            eval.arg(digest.as_ref().map_or("", TaskDigest::as_str)).arg(u8::from(starts_anew));
            eval
        });
        let (texts, result) = claim_reply(replies.await?)?;
        let number = texts.get(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        let message = || {
            let message = texts.get(2).filter(|json| !json.is_empty());
            message.and_then(|json| readable(id.clone(), json)).map(Box::new)
        };
        Ok(match texts.first().map(String::as_str) {
            Some("unclaimed") => ClaimResult::Unclaimed,
            Some("claimed") => {
                let message = message();
                let result = final_result(&id, result).map(Box::new);
                let outcomes = read_outcomes(texts.get(3..).unwrap_or_default());
                ClaimResult::Claimed { number, message, result, outcomes }
            }
            Some("postpone") => ClaimResult::Postpone(Duration::from_millis(number)),
            Some("lost") => ClaimResult::StateLost,
            Some("newer") => ClaimResult::Newer,
            Some("ended") => ClaimResult::Ended(Recorded::new(id)),
            Some("occupied") => ClaimResult::Occupied(message()),
            _ => ClaimResult::Over(Recorded::new(id)),
        })
    }

    /// Renews a claim; `None` releases it. Returns whether the caller still holds it.
    async fn set_lease(
        &self,
        id: TaskId,
        holder: String,
        lease: Option<Duration>,
    ) -> Result<bool, Error> {
        let replies = self.request_with_timeout(move |connection| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVALSHA")
                .arg(connection.hash(Script::Lease))
                .arg(1)
                .arg(suspension_key(&id))
                .arg(holder);
            eval.arg(lease.map_or(0, milliseconds));
            eval
        });
        Ok(matches!(replies.await?.pop(), Some(Value::Int(1))))
    }

    /// Deletes a suspension that has ended. Returns false when the task is suspended.
    pub(super) async fn forget_suspension(&self, id: TaskId) -> Result<bool, Error> {
        let replies = self.request_with_timeout(move |connection| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVALSHA")
                .arg(connection.hash(Script::ForgetSuspended))
                .arg(1)
                .arg(suspension_key(&id));
            eval.arg(TaskDigest::of_none().as_str());
            eval
        });
        Ok(matches!(replies.await?.pop(), Some(Value::Int(1))))
    }
}

/// Splits the reply of `claim_task.lua` into its texts and the stored result, which another program may have
/// written.
fn claim_reply(mut replies: Vec<Value>) -> Result<(Vec<String>, Vec<u8>), Error> {
    let unexpected = |cause: &str| {
        let what = "claim_task.lua".to_owned();
        Error::from(Kind::Codec { what, cause: format!("unexpected reply: {cause}") })
    };
    let parts = replies.pop().map(Vec::<Vec<u8>>::from_redis_value);
    let mut parts =
        parts.and_then(Result::ok).ok_or_else(|| unexpected("not a list of strings"))?;
    let result = if parts.len() > 3 { parts.remove(3) } else { Vec::new() };
    let texts = parts.into_iter().map(String::from_utf8).collect::<Result<_, _>>();
    Ok((texts.map_err(|_| unexpected("not UTF-8"))?, result))
}

/// Parses the stored result, and returns it if it is final. An unreadable one counts as absent.
fn final_result(id: &TaskId, json: Vec<u8>) -> Option<Document> {
    if json.is_empty() {
        return None;
    }
    let document = Document::parse(id.clone(), json.into()).inspect_err(
        |error| warn!(task.id = %id, cause = %error, "the stored result is unreadable"),
    );
    document.ok().filter(|document| document.state.is_terminal())
}

/// Decodes the reply of `end.lua`.
fn withdrawn(replies: Vec<Value>, script: &str) -> Result<Vec<ApprovalId>, Error> {
    Ok(texts(replies, script)?.iter().filter_map(|id| ApprovalId::parse(id)).collect())
}

/// Adds the arguments of `end.lua`.
fn end_arguments(eval: &mut Pipeline, digest: Option<&TaskDigest>) {
    eval.arg(ENDED_RETENTION.as_secs()).arg(REQUEST_RETENTION.as_secs());
    eval.arg(digest.map_or("", TaskDigest::as_str));
}

/// Parses the stored message. An unreadable one counts as absent: the wake message has a copy.
fn readable(id: TaskId, json: &str) -> Option<Message> {
    Message::from_json(id, json).inspect_err(|error| warn!(cause = %error, "cannot decode the message of a suspended task; its wake message continues it")).ok()
}
