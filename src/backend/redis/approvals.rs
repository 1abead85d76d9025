//! Approval requests and decisions. Requesters write `cs:ask:{cs}:<id>`, deciders write
//! `cs:dec:{cs}:<id>`. The index `cs:pending:{cs}` holds the open requests by deadline. The outbox
//! `cs:outbox:{cs}` holds resume messages that are not known to be sent.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline, Value};
use tokio::sync::broadcast;

use super::approval_records::{DECIDED_CHANNEL, OUTBOX, PENDING, add_request, read_request, time};
use super::audit::{NOTES, STREAM};
use super::reply::texts;
use super::script::Script;
use super::store::RedisStore;
use crate::approval::{
    ApprovalId, ApprovalRequest, DecideResult, Decision, DecisionKind, Digest, MAX_AUDIT_ENTRIES,
    MAX_REFUSED_ENTRIES,
};
use crate::backend::approvals::{DECISION_RETENTION, REQUEST_RETENTION, TIDY_LIMIT};
use crate::backend::milliseconds::milliseconds;
use crate::backend::{Approvals, Lookup, Resume};
use crate::error::Error;
use crate::keyed_notify::KeyedWatch;

impl Approvals for RedisStore {
    fn request_approval(&self, request: ApprovalRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let reply = self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                let key = format!("cs:ask:{{cs}}:{}", request.id);
                eval.cmd("EVALSHA")
                    .arg(connection.hash(Script::RequestApproval))
                    .arg(3)
                    .arg(key)
                    .arg(PENDING)
                    .arg(OUTBOX);
                add_request(&mut eval, &request);
                eval.arg(TIDY_LIMIT).arg(REQUEST_RETENTION.as_secs());
                eval
            });
            reply.await.map(drop)
        })
    }

    fn approvals(&self, ids: &[ApprovalId]) -> BoxFuture<'_, Result<Vec<Lookup>, Error>> {
        let ids = ids.to_vec();
        Box::pin(async move {
            let replies = self.read_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA").arg(connection.hash(Script::ReadRequests)).arg(0);
                for id in &ids {
                    eval.arg(id.as_str());
                }
                eval
            });
            let rows = replies.await?.pop().map(Vec::<Vec<Vec<u8>>>::from_redis_value);
            let rows = rows.and_then(Result::ok).unwrap_or_default();
            Ok(rows.iter().map(|row| read_request(row)).collect())
        })
    }

    fn pending_approvals(
        &self,
        from: usize,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ApprovalId, i64)>, Error>> {
        Box::pin(async move {
            let Some(last) = limit.checked_sub(1) else { return Ok(Vec::new()) };
            let replies = self.read_with_timeout(move |_| {
                let mut range = Pipeline::with_capacity(1);
                let last = from.saturating_add(last);
                range.cmd("ZRANGE").arg(PENDING).arg(from).arg(last).arg("WITHSCORES");
                range
            });
            // RESP3 returns pairs, RESP2 a flat list.
            let listed = replies.await?.pop().map(Vec::<(Vec<u8>, f64)>::from_redis_value);
            let listed = listed.and_then(Result::ok).unwrap_or_default().into_iter();
            #[expect(
                clippy::cast_possible_truncation,
                reason = "our scores are whole milliseconds"
            )]
            let read = |(id, at): (Vec<u8>, f64)| (ApprovalId::listed(&id), at as i64);
            Ok(listed.map(read).collect())
        })
    }

    fn decide(
        &self,
        decision: &Decision,
    ) -> BoxFuture<'_, Result<(DecideResult, Option<Resume>), Error>> {
        let decision = decision.clone();
        Box::pin(async move {
            let replies = self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA").arg(connection.hash(Script::Decide)).arg(3);
                eval.arg(decision_key(&decision.approval)).arg(OUTBOX).arg(STREAM);
                eval.arg(decision.approval.as_str()).arg(decision.id.as_str());
                eval.arg(decision.choice.as_str()).arg(decision.by.as_str());
                eval.arg(decision.digest.as_str()).arg(u8::from(decision.edited.is_some()));
                eval.arg(serde_json::to_string(&decision).unwrap_or_default()).arg(DECIDED_CHANNEL);
                eval.arg(MAX_AUDIT_ENTRIES).arg(DECISION_RETENTION.as_secs());
                eval.arg(decision.edited_digest.as_ref().map_or("", Digest::as_str));
                eval.arg(decision.nonce.as_deref().unwrap_or_default());
                eval.arg(u8::from(decision.in_quorum)).arg(MAX_REFUSED_ENTRIES);
                eval
            });
            let texts = texts(replies.await?, "decide.lua")?;
            let resume = texts.get(1).filter(|_| texts[0] == "applied");
            Ok((decide_result(&texts), resume.and_then(|entry| Resume::read(entry))))
        })
    }

    fn extend_approval(
        &self,
        id: &ApprovalId,
        by: &str,
        is_operator: bool,
        time: Duration,
    ) -> BoxFuture<'_, Result<DecideResult, Error>> {
        let (id, by) = (id.clone(), by.to_owned());
        Box::pin(async move {
            let replies = self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA")
                    .arg(connection.hash(Script::ExtendApproval))
                    .arg(2)
                    .arg(decision_key(&id))
                    .arg(STREAM);
                eval.arg(id.as_str()).arg(milliseconds(time)).arg(by).arg(MAX_AUDIT_ENTRIES);
                eval.arg(u8::from(is_operator))
                    .arg(DECISION_RETENTION.as_secs())
                    .arg(MAX_REFUSED_ENTRIES);
                eval
            });
            Ok(decide_result(&texts(replies.await?, "extend.lua")?))
        })
    }

    fn record_warning(&self, id: &ApprovalId, percent: u8) -> BoxFuture<'_, Result<bool, Error>> {
        let id = id.clone();
        Box::pin(async move {
            let replies = self.request_with_timeout(move |connection| {
                let mut eval = Pipeline::with_capacity(1);
                eval.cmd("EVALSHA")
                    .arg(connection.hash(Script::Warn))
                    .arg(2)
                    .arg(decision_key(&id))
                    .arg(NOTES);
                eval.arg(id.as_str())
                    .arg(percent)
                    .arg(MAX_AUDIT_ENTRIES)
                    .arg(DECISION_RETENTION.as_secs());
                eval
            });
            Ok(matches!(replies.await?.pop(), Some(Value::Int(1))))
        })
    }

    fn watch_decisions(&self, ids: Vec<ApprovalId>) -> KeyedWatch<ApprovalId> {
        self.notifications.decided.watch(ids)
    }

    fn new_requests(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        self.notifications.subscribe_requests()
    }
}

fn decision_key(id: &ApprovalId) -> String {
    format!("cs:dec:{{cs}}:{id}")
}

/// Decodes the reply of `decide.lua` and `extend.lua`.
fn decide_result(texts: &[String]) -> DecideResult {
    let text = |n: usize| texts.get(n).map(String::as_str).unwrap_or_default();
    let at = |n: usize| time(text(n));
    let count = |n: usize| text(n).parse().unwrap_or(0);
    match text(0) {
        "applied" => DecideResult::Applied,
        "counted" => DecideResult::Counted { votes: count(1), quorum: count(2) },
        "replayed" => DecideResult::Replayed,
        "decided" => DecideResult::AlreadyDecided {
            by: text(1).to_owned(),
            at: at(2),
            choice: DecisionKind::named(text(3)).unwrap_or(DecisionKind::Reject),
        },
        "expired" => DecideResult::Expired { at: at(1) },
        "digest" => DecideResult::DigestMismatch,
        "forbidden" => DecideResult::NotAllowed,
        "earlier" => DecideResult::Earlier { deadline: at(1) },
        "withdrawn" => DecideResult::Withdrawn,
        _ => DecideResult::Unknown,
    }
}
