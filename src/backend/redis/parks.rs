//! Parked tasks, in `cs:park:{cs}:<task id>`: one hash a task, which only scripts change.
//!
//! All keys of approvals carry one constant hash tag, so that a script may use several of them on
//! a cluster too. Workers write `cs:park` and `cs:ask`, deciders `cs:dec`.

use std::time::Duration;

use redis::{FromRedisValue, Pipeline, Value};
use tracing::warn;

use super::RedisStore;
use super::approvals::{OUTBOX, PENDING, read_rulings};
use crate::approval::{ApprovalId, Question};
use crate::backend::approvals::{ASKED_KEPT, ENDED_KEPT, nonce};
use crate::backend::{Parked, Parking, Recorded, Taken};
use crate::error::{Error, Kind};
use crate::lifecycle::park::RECHECK;
use crate::protocol::{Message, TaskDigest, Ticket, TicketKind};
use crate::task::TaskId;

const TAKE: &str = concat!("#!lua\n", include_str!("standing.lua"), include_str!("take.lua"));
const PARK: &str = concat!("#!lua\n", include_str!("standing.lua"), include_str!("park.lua"));
const END: &str = concat!("#!lua\n", include_str!("standing.lua"), include_str!("end.lua"));
const LEASE: &str = include_str!("lease.lua");
const FORGET: &str = include_str!("forget.lua");

/// Who asks for the right to run a task.
pub(super) struct Caller {
    pub(super) holder: String,
    /// The task's, if it is known.
    pub(super) digest: Option<TaskDigest>,
    pub(super) lease: Duration,
}

impl RedisStore {
    pub(super) async fn take_ticket(
        &self,
        id: TaskId,
        ticket: Ticket,
        caller: Caller,
    ) -> Result<Taken, Error> {
        if ticket.kind == TicketKind::Wake {
            self.keep_while_parked(&id);
        }
        let kind = match ticket.kind {
            TicketKind::Original => "original",
            TicketKind::Resume => "resume",
            TicketKind::Wake => "wake",
        };
        self.take_run(id, (kind, ticket.number, false), caller).await
    }

    /// By a ticket, or in order to park for the first time.
    pub(super) async fn take_run(
        &self,
        id: TaskId,
        (kind, number, starts_anew): (&'static str, u64, bool),
        caller: Caller,
    ) -> Result<Taken, Error> {
        let key = key(&id);
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(TAKE)).arg(2).arg(key).arg(PENDING);
            let Caller { holder, digest, lease } = caller;
            eval.arg(kind).arg(number).arg(holder).arg(milliseconds(lease)).arg(RECHECK);
            eval.arg(digest.as_ref().map_or("", TaskDigest::as_str)).arg(u8::from(starts_anew));
            eval
        });
        let texts = texts(answers.await?, "take.lua")?;
        let number = texts.get(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        let message = || {
            let message = texts.get(2).filter(|json| !json.is_empty());
            message.and_then(|json| readable(id.clone(), json)).map(Box::new)
        };
        Ok(match texts.first().map(String::as_str) {
            Some("unclaimed") => Taken::Unclaimed,
            Some("claimed") => {
                let message = message();
                let rulings = read_rulings(texts.get(3..).unwrap_or_default());
                Taken::Claimed { number, message, rulings }
            }
            Some("postpone") => Taken::Postpone(Duration::from_millis(number)),
            Some("lost") => Taken::StateLost,
            Some("newer") => Taken::Newer,
            Some("ended") => Taken::Ended(Recorded::new(id)),
            Some("occupied") => Taken::Occupied(message()),
            _ => Taken::Over(Recorded::new(id)),
        })
    }

    pub(super) async fn park_run(&self, parking: Parking) -> Result<Parked, Error> {
        let id = parking.id.clone();
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(PARK)).arg(3);
            eval.arg(key(&parking.id)).arg(PENDING).arg(OUTBOX);
            eval.arg(parking.number).arg(parking.holder).arg(milliseconds(parking.lease));
            eval.arg(parking.message.to_json()).arg(parking.queue).arg(parking.id.as_str());
            eval.arg(joined(&parking.abandoned)).arg(parking.alarm.map_or(0, milliseconds));
            eval.arg(parking.digest.as_str());
            for question in &parking.questions {
                add_question(&mut eval, question);
                eval.arg(question.action.digest().as_str());
            }
            eval
        });
        let texts = texts(answers.await?, "park.lua")?;
        Ok(match texts.first().map(String::as_str) {
            Some("waiting") => {
                let due = texts.get(1).and_then(|due| due.parse().ok()).unwrap_or(u64::MAX);
                Parked::Waiting(Recorded::new(id), Duration::from_millis(due))
            }
            Some("ready") => Parked::Ready(read_rulings(&texts[1..])),
            _ => Parked::Behind(Recorded::new(id)),
        })
    }

    /// Renews a claim; `None` gives it back. Says whether it is still the holder's.
    pub(super) async fn lease(
        &self,
        id: TaskId,
        holder: String,
        lease: Option<Duration>,
    ) -> Result<bool, Error> {
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(LEASE)).arg(1).arg(key(&id)).arg(holder);
            eval.arg(lease.map_or(0, milliseconds));
            eval
        });
        Ok(matches!(answers.await?.pop(), Some(Value::Int(1))))
    }

    pub(super) async fn end_park(
        &self,
        id: TaskId,
        digest: Option<TaskDigest>,
    ) -> Result<Vec<ApprovalId>, Error> {
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(END)).arg(2).arg(key(&id)).arg(PENDING);
            eval.arg(ENDED_KEPT.as_secs()).arg(ASKED_KEPT.as_secs());
            eval.arg(digest.as_ref().map_or("", TaskDigest::as_str));
            eval
        });
        let withdrawn = texts(answers.await?, "end.lua")?;
        Ok(withdrawn.iter().filter_map(|id| ApprovalId::parse(id)).collect())
    }

    /// Forgets a suspension that has ended. False: the task is suspended.
    pub(super) async fn forget_park(&self, id: TaskId) -> Result<bool, Error> {
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(FORGET)).arg(1).arg(key(&id));
            eval.arg(TaskDigest::of_none().as_str());
            eval
        });
        Ok(matches!(answers.await?.pop(), Some(Value::Int(1))))
    }
}

/// The task as it was parked. One that cannot be read is as none: its wake has it, too.
fn readable(id: TaskId, json: &str) -> Option<Message> {
    Message::from_json(id, json).inspect_err(|error| warn!("{error}; it is left to its wake")).ok()
}

/// Ten arguments of `park.lua`.
pub(super) fn add_question(eval: &mut Pipeline, question: &Question) {
    let flag = |flag: bool| if flag { "1" } else { "0" };
    let names: String = question.approvers.iter().map(|name| format!("{name}\n")).collect();
    let approvers = if names.is_empty() { names } else { format!("\n{names}") };
    eval.arg(question.id.as_str()).arg(question.digest().as_str());
    eval.arg(serde_json::to_string(question).unwrap_or_default());
    eval.arg(question.expires_in).arg(question.quorum);
    eval.arg(question.requester.as_deref().unwrap_or_default());
    eval.arg(flag(question.self_approval)).arg(approvers).arg(flag(question.editable));
    eval.arg(nonce());
}

fn joined(ids: &[ApprovalId]) -> String {
    ids.iter().map(ApprovalId::as_str).collect::<Vec<_>>().join(" ")
}

pub(super) fn key(id: &TaskId) -> String {
    format!("cs:park:{{cs}}:{id}")
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 52)
}

/// The last answer as a list of texts.
pub(super) fn texts(mut answers: Vec<Value>, what: &str) -> Result<Vec<String>, Error> {
    let list = answers.pop().map(Vec::<String>::from_redis_value);
    list.and_then(Result::ok).ok_or_else(|| {
        let cause = "the store's answer is no list of texts".to_owned();
        Kind::Codec { what: what.to_owned(), cause }.into()
    })
}
