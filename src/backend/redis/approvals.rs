//! Questions and decisions: `cs:ask:{cs}:<id>` is written by those who ask, `cs:dec:{cs}:<id>` by
//! those who decide. The index `cs:pending:{cs}` has the open ones by deadline, the outbox
//! `cs:outbox:{cs}` the resume messages that nobody is known to have sent.

use std::borrow::Cow;
use std::time::Duration;

use redis::{FromRedisValue, Pipeline, Value};

use super::RedisStore;
use super::audit::STREAM;
use super::parks::{self, milliseconds, texts};
use crate::approval::{
    Answer, ApprovalId, Choice, Decision, Digest, KEPT, Question, Ruling, Standing,
};
use crate::backend::approvals::{
    ASKED_KEPT, DECISION_KEPT, OVERDUE, SWEPT, TIDIED, stored_question, unreadable,
};
use crate::backend::{Asked, Found, Resume};
use crate::error::Error;

pub(super) const PENDING: &str = "cs:pending:{cs}";
/// Where it rings when something is decided.
pub(super) const BELL: &str = "cs:decided";
/// And where when something is asked: `park.lua` and `ask.lua` ring there.
pub(super) const ASKED: &str = "cs:asked";
pub(super) const OUTBOX: &str = "cs:outbox:{cs}";
const DECIDE: &str = concat!("#!lua\n", include_str!("standing.lua"), include_str!("decide.lua"));
const EXTEND: &str = concat!("#!lua\n", include_str!("standing.lua"), include_str!("extend.lua"));
const READ: &str = concat!("#!lua\n", include_str!("standing.lua"), include_str!("read.lua"));
const ASK: &str = concat!(
    "#!lua\n",
    include_str!("standing.lua"),
    include_str!("tidy.lua"),
    include_str!("ask.lua")
);
const WARN: &str = concat!("#!lua\n", include_str!("standing.lua"), include_str!("warn.lua"));
const SWEEP: &str = concat!(
    "#!lua\n",
    include_str!("standing.lua"),
    include_str!("tidy.lua"),
    include_str!("sweep.lua")
);

impl RedisStore {
    pub(super) async fn ask_outside(&self, question: Question) -> Result<(), Error> {
        let asked = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            let key = format!("cs:ask:{{cs}}:{}", question.id);
            eval.cmd("EVAL").arg(session.script(ASK)).arg(3).arg(key).arg(PENDING).arg(OUTBOX);
            parks::add_question(&mut eval, &question);
            eval.arg(TIDIED).arg(ASKED_KEPT.as_secs());
            eval
        });
        asked.await.map(drop)
    }

    pub(super) async fn read_asked(&self, ids: Vec<ApprovalId>) -> Result<Vec<Found>, Error> {
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(READ)).arg(0);
            for id in ids {
                eval.arg(id.as_str());
            }
            eval
        });
        let rows = answers.await?.pop().map(Vec::<Vec<Vec<u8>>>::from_redis_value);
        let rows = rows.and_then(Result::ok).unwrap_or_default();
        Ok(rows.iter().map(|row| read_question(row)).collect())
    }

    pub(super) async fn read_pending(
        &self,
        from: usize,
        limit: usize,
    ) -> Result<Vec<(ApprovalId, i64)>, Error> {
        let Some(last) = limit.checked_sub(1) else { return Ok(Vec::new()) };
        let answers = self.ask_soon(move |_| {
            let mut range = Pipeline::with_capacity(1);
            let last = from.saturating_add(last);
            range.cmd("ZRANGE").arg(PENDING).arg(from).arg(last).arg("WITHSCORES");
            range
        });
        // Pairs in RESP3, and one text after another in RESP2.
        let listed = answers.await?.pop().map(Vec::<(Vec<u8>, f64)>::from_redis_value);
        let listed = listed.and_then(Result::ok).unwrap_or_default().into_iter();
        #[expect(clippy::cast_possible_truncation, reason = "our scores are whole milliseconds")]
        let read = |(id, at): (Vec<u8>, f64)| (ApprovalId::listed(&id), at as i64);
        Ok(listed.map(read).collect())
    }

    pub(super) async fn take_decision(
        &self,
        decision: Decision,
    ) -> Result<(Answer, Option<Resume>), Error> {
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(DECIDE)).arg(3);
            eval.arg(decision_key(&decision.approval)).arg(OUTBOX).arg(STREAM);
            eval.arg(decision.approval.as_str()).arg(decision.id.as_str());
            eval.arg(decision.choice.as_str()).arg(decision.by.as_str());
            eval.arg(decision.digest.as_str()).arg(u8::from(decision.edited.is_some()));
            eval.arg(serde_json::to_string(&decision).unwrap_or_default()).arg(BELL);
            eval.arg(KEPT).arg(DECISION_KEPT.as_secs());
            eval.arg(decision.edited_digest.as_ref().map_or("", Digest::as_str));
            eval.arg(decision.nonce.as_deref().unwrap_or_default());
            eval.arg(u8::from(decision.in_quorum));
            eval
        });
        let texts = texts(answers.await?, "decide.lua")?;
        let resume = texts.get(1).filter(|_| texts[0] == "applied");
        Ok((answer(&texts), resume.and_then(|entry| Resume::read(entry))))
    }

    pub(super) async fn extend_question(
        &self,
        id: ApprovalId,
        by: String,
        is_operator: bool,
        time: Duration,
    ) -> Result<Answer, Error> {
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(EXTEND)).arg(2).arg(decision_key(&id)).arg(STREAM);
            eval.arg(id.as_str()).arg(milliseconds(time)).arg(by).arg(KEPT);
            eval.arg(u8::from(is_operator)).arg(DECISION_KEPT.as_secs());
            eval
        });
        Ok(answer(&texts(answers.await?, "extend.lua")?))
    }

    pub(super) async fn clear_resume(&self, entry: String) -> Result<(), Error> {
        let cleared = self.ask_soon(move |_| {
            let mut remove = Pipeline::with_capacity(1);
            remove.cmd("ZREM").arg(OUTBOX).arg(entry);
            remove
        });
        cleared.await.map(drop)
    }

    pub(super) async fn sweep_outbox(&self) -> Result<Vec<Resume>, Error> {
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(SWEEP)).arg(2).arg(OUTBOX).arg(PENDING);
            eval.arg(milliseconds(OVERDUE)).arg(SWEPT).arg(ASKED_KEPT.as_secs());
            eval
        });
        let entries = texts(answers.await?, "sweep.lua")?;
        Ok(entries.iter().filter_map(|entry| Resume::read(entry)).collect())
    }

    pub(super) async fn note_warning(&self, id: ApprovalId, percent: u8) -> Result<bool, Error> {
        let answers = self.ask_soon(move |session| {
            let mut eval = Pipeline::with_capacity(1);
            eval.cmd("EVAL").arg(session.script(WARN)).arg(2).arg(decision_key(&id)).arg(STREAM);
            eval.arg(id.as_str()).arg(percent).arg(KEPT).arg(DECISION_KEPT.as_secs());
            eval
        });
        Ok(matches!(answers.await?.pop(), Some(Value::Int(1))))
    }
}

fn decision_key(id: &ApprovalId) -> String {
    format!("cs:dec:{{cs}}:{id}")
}

/// What `decide.lua` and `extend.lua` answer.
fn answer(texts: &[String]) -> Answer {
    let text = |n: usize| texts.get(n).map(String::as_str).unwrap_or_default();
    let at = |n: usize| text(n).parse().unwrap_or(0);
    let count = |n: usize| text(n).parse().unwrap_or(0);
    match text(0) {
        "applied" => Answer::Applied,
        "counted" => Answer::Counted { votes: count(1), quorum: count(2) },
        "replayed" => Answer::Replayed,
        "decided" => Answer::AlreadyDecided {
            by: text(1).to_owned(),
            at: at(2),
            choice: Choice::named(text(3)).unwrap_or(Choice::Reject),
        },
        "expired" => Answer::Expired { at: at(1) },
        "digest" => Answer::DigestMismatch,
        "forbidden" => Answer::NotAllowed,
        "earlier" => Answer::Earlier { deadline: at(1) },
        "withdrawn" => Answer::Withdrawn,
        _ => Answer::Unknown,
    }
}

/// Five texts for each ruling. One that cannot be read counts for nothing.
pub(super) fn read_rulings(texts: &[String]) -> Vec<Ruling> {
    let read = |texts: &[String]| {
        let [id, digest, state, at, document] = texts else { return None };
        let at = at.parse().ok()?;
        Some(Ruling {
            approval: ApprovalId::parse(id)?,
            digest: Digest::from(digest.clone()),
            standing: standing(state, at)?,
            at,
            decision: serde_json::from_str(document).ok(),
        })
    };
    texts.chunks(5).filter_map(read).collect()
}

fn standing(state: &str, at: i64) -> Option<Standing> {
    match state {
        "open" => Some(Standing::Open(at)),
        "expired" => Some(Standing::Expired(at)),
        choice => Choice::named(choice).map(Standing::Decided),
    }
}

/// Nine texts of `read.lua`, or two of a record that cannot be read.
fn read_question(row: &[Vec<u8>]) -> Found {
    let texts: Vec<_> = row.iter().map(|text| String::from_utf8_lossy(text)).collect();
    let [state, at, document, decision, votes, asked_at, read_at, warned, nonce] = texts.as_slice()
    else {
        return match texts.as_slice() {
            // Its state is unknown, so it is shown among the open requests.
            [_, why, ..] => Found::Unreadable(Standing::Open(0), unreadable(why)),
            _ => Found::Nothing,
        };
    };
    let at = at.parse().unwrap_or(0);
    let Some(standing) = standing(state, at) else { return Found::Nothing };
    // One that was read with other characters would have another digest.
    let read = match document {
        Cow::Borrowed(document) => stored_question(document),
        Cow::Owned(_) => Err(unreadable("it is not UTF-8")),
    };
    let question = match read {
        Ok(question) => question,
        Err(error) => return Found::Unreadable(standing, error),
    };
    Found::Asked(Box::new(Asked {
        question,
        nonce: Some(nonce.clone().into_owned()).filter(|nonce| !nonce.is_empty()),
        standing,
        asked_at: asked_at.parse().unwrap_or(0),
        at,
        read_at: read_at.parse().unwrap_or(0),
        decision: serde_json::from_str(decision).ok(),
        votes: votes.parse().unwrap_or(0),
        warned: warned.parse().ok(),
    }))
}
