//! Questions and what was said to them, as they are stored: two rows under one id. What has expired
//! is as gone, whether or not it was forgotten yet.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::types::Type;
use rusqlite::{Row, params};
use serde::de::DeserializeOwned;

use super::bells::Ring;
use super::outbox;
use super::parks::{self, milliseconds};
use super::txn::{Done, Fault, Txn};
use crate::approval::{ApprovalId, Choice, Digest, Question, Ruling, Standing};
use crate::backend::Resume;
use crate::backend::approvals::{ASKED_KEPT, nonce};
use crate::lifecycle::park::Due;
use crate::lifecycle::vote::{self, Ballot, Decided, Terms};
use crate::task::TaskId;

const FIND: &str = "\
    SELECT q.digest AS digest, q.deadline AS deadline, q.quorum AS quorum, \
      q.requester AS requester, q.self_approval AS self_approval, q.approvers AS approvers, \
      q.editable AS editable, q.open AS open, q.task AS task, q.at AS asked_at, \
      q.document AS question, q.nonce AS nonce, \
      b.digest AS said_of, b.nonce AS said_to, b.votes AS votes, b.decision AS decision_id, b.choice AS choice, \
      b.by AS by, b.at AS decided_at, b.extended AS extended, b.warned AS warned, \
      b.document AS decision \
    FROM (SELECT ?1 AS id) AS k \
      LEFT JOIN questions AS q ON q.id = k.id AND (q.expires IS NULL OR q.expires > ?2) \
      LEFT JOIN ballots AS b ON b.id = k.id AND (b.expires IS NULL OR b.expires > ?2)";

/// What is known under one id.
#[derive(Debug, Default)]
pub(super) struct Case {
    /// Nothing, when nobody asks it.
    pub(super) asking: Option<Asking>,
    pub(super) said: Said,
}

/// A question as it was asked.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) terms: Terms,
    /// The question, as JSON.
    pub(super) document: String,
    pub(super) task: Option<String>,
}

/// What was said to a question.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) ballot: Ballot,
    /// The decision that counts, as JSON.
    pub(super) document: Option<String>,
    /// So much of its time, in percent, had passed when people were warned.
    pub(super) warned: Option<u8>,
}

impl Case {
    pub(super) fn standing(&self, now: i64) -> Option<Standing> {
        let asking = self.asking.as_ref()?;
        Some(vote::standing(&asking.terms, &self.said.ballot, now))
    }

    pub(super) fn is_open(&self, now: i64) -> bool {
        matches!(self.standing(now), Some(Standing::Open(_)))
    }

    /// What became of it, unless it is open or gone.
    fn ruling(&self, id: &ApprovalId, now: i64) -> Option<Ruling> {
        let standing = self.standing(now)?;
        let terms = &self.asking.as_ref()?.terms;
        if matches!(standing, Standing::Open(_)) {
            return None;
        }
        let is_decided = vote::decided(terms, &self.said.ballot).is_some();
        let document = self.said.document.as_deref().filter(|_| is_decided);
        Some(Ruling {
            approval: id.clone(),
            digest: terms.digest.clone(),
            standing,
            at: vote::since(terms, &self.said.ballot, now),
            decision: document.and_then(|json| serde_json::from_str(json).ok()),
        })
    }

    /// A task asks it. False: it stays as it is.
    pub(super) fn ask(
        &mut self,
        question: &Question,
        task: &TaskId,
        awaits: bool,
        now: i64,
    ) -> bool {
        if let Some(Asking { terms, .. }) = &self.asking
            && question.has_digest(&terms.digest)
            && vote::stays(terms, &self.said.ballot, &terms.digest, awaits, now)
        {
            return false;
        }
        self.asking = Some(Asking::new(question, Some(task), now));
        true
    }

    /// The asker takes it back. False: it is not open.
    pub(super) fn withdraw(&mut self, now: i64) -> bool {
        let is_open = self.is_open(now);
        if let Some(asking) = self.asking.as_mut().filter(|_| is_open) {
            asking.terms.withdrawn = true;
        }
        is_open
    }
}

impl Asking {
    pub(super) fn new(question: &Question, task: Option<&TaskId>, now: i64) -> Self {
        let time = i64::try_from(question.expires_in).unwrap_or(i64::MAX);
        let terms = Terms {
            digest: question.digest(),
            nonce: Some(nonce()),
            asked_at: now,
            deadline: now.saturating_add(time),
            quorum: question.quorum,
            requester: question.requester.clone(),
            self_approval: question.self_approval,
            approvers: question.approvers.clone(),
            editable: question.editable,
            withdrawn: false,
        };
        let document = serde_json::to_string(question).unwrap_or_default();
        Self { terms, document, task: task.map(TaskId::to_string) }
    }

    /// Stores it, among the open ones, and rings.
    pub(super) fn store(&self, txn: &mut Txn<'_>, id: &ApprovalId) -> Done<()> {
        let Terms { digest, nonce, asked_at, deadline, quorum, requester, .. } = &self.terms;
        let Terms { self_approval, approvers, editable, withdrawn, .. } = &self.terms;
        let approvers = serde_json::json!(approvers).to_string();
        let put = "INSERT OR REPLACE INTO questions (id, digest, deadline, quorum, requester, \
                   self_approval, approvers, editable, open, task, at, listed, document, nonce) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?3, ?12, ?13)";
        txn.execute(
            put,
            params![
                id.as_str(),
                digest.as_str(),
                deadline,
                quorum,
                requester,
                self_approval,
                approvers,
                editable,
                !withdrawn,
                self.task,
                asked_at,
                self.document,
                nonce
            ],
        )?;
        txn.ring(Ring::Asked(Some(id.clone())));
        Ok(())
    }
}

impl Said {
    /// Forgets what was said to another request under the same id. True: there was such a thing.
    pub(super) fn turn_to(&mut self, terms: &Terms) -> bool {
        if self.ballot.of(terms).is_some() {
            return false;
        }
        let was_there = self.ballot.digest.is_some();
        *self = Self { ballot: Ballot::empty(terms), ..Self::default() };
        was_there
    }

    /// Stores it, until then.
    pub(super) fn store(&self, txn: &Txn<'_>, id: &ApprovalId, expires: i64) -> Done<()> {
        let Ballot { digest, nonce, votes, decided, extended } = &self.ballot;
        let votes = serde_json::json!(votes).to_string();
        let decided = decided.as_ref();
        let put = "INSERT OR REPLACE INTO ballots (id, digest, votes, decision, choice, by, at, \
                   extended, warned, expires, document, nonce) \
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        txn.execute(
            put,
            params![
                id.as_str(),
                digest.as_ref().map(Digest::as_str),
                votes,
                decided.map(|it| it.decision.as_str()),
                decided.map(|it| it.choice.as_str()),
                decided.map(|it| it.by.as_str()),
                decided.map(|it| it.at),
                extended,
                self.warned,
                expires,
                self.document,
                nonce
            ],
        )?;
        Ok(())
    }
}

/// What was said to a request is about another one: it is forgotten.
pub(super) fn forget_said(txn: &Txn<'_>, id: &ApprovalId) -> Done<()> {
    txn.execute("DELETE FROM ballots WHERE id = ?", [id.as_str()])?;
    Ok(())
}

/// What is known under this id.
pub(super) fn find(txn: &Txn<'_>, id: &ApprovalId) -> Done<Case> {
    let read = |row: &Row<'_>| Ok(Case { asking: asking(row)?, said: said(row)? });
    Ok(txn.first(FIND, params![id.as_str(), txn.now], read)?.unwrap_or_default())
}

/// Whether a record, and not the database, is what cannot be read.
pub(super) fn is_malformed(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    matches!(
        error,
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..)
    )
}

fn asking(row: &Row<'_>) -> rusqlite::Result<Option<Asking>> {
    let Some(digest) = row.get::<_, Option<String>>("digest")? else { return Ok(None) };
    let terms = Terms {
        digest: digest.into(),
        nonce: row.get("nonce")?,
        asked_at: row.get("asked_at")?,
        deadline: row.get("deadline")?,
        quorum: row.get("quorum")?,
        requester: row.get("requester")?,
        self_approval: row.get("self_approval")?,
        approvers: json(row, "approvers")?,
        editable: row.get("editable")?,
        withdrawn: !row.get::<_, bool>("open")?,
    };
    let (document, task) = (row.get("question")?, row.get("task")?);
    Ok(Some(Asking { terms, document, task }))
}

fn said(row: &Row<'_>) -> rusqlite::Result<Said> {
    let Some(digest) = row.get::<_, Option<String>>("said_of")? else { return Ok(Said::default()) };
    let decided = match row.get::<_, Option<String>>("decision_id")? {
        Some(decision) => {
            // What a newer one has decided is no yes.
            let choice = Choice::named(&row.get::<_, String>("choice")?).unwrap_or(Choice::Reject);
            Some(Decided { decision, choice, by: row.get("by")?, at: row.get("decided_at")? })
        }
        None => None,
    };
    let (votes, extended) = (json(row, "votes")?, row.get("extended")?);
    let nonce = row.get("said_to")?;
    let ballot = Ballot { digest: Some(digest.into()), nonce, votes, decided, extended };
    Ok(Said { ballot, document: row.get("decision")?, warned: row.get("warned")? })
}

fn json<T: DeserializeOwned>(row: &Row<'_>, name: &str) -> rusqlite::Result<T> {
    let text: String = row.get(name)?;
    serde_json::from_str(&text).map_err(|error| {
        let column = row.as_ref().column_index(name).unwrap_or_default();
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}

/// The asker has taken it back: it leaves the list of the open ones.
pub(super) fn withdraw(txn: &Txn<'_>, id: &ApprovalId) -> Done<()> {
    txn.execute("UPDATE questions SET open = 0, listed = NULL WHERE id = ?", [id.as_str()])?;
    Ok(())
}

/// Its task has ended, or it is no task's and decided: it can be looked at for a while.
pub(super) fn retire(txn: &Txn<'_>, id: &ApprovalId, is_withdrawn: bool) -> Done<()> {
    let retire = "UPDATE questions SET open = open AND NOT ?2, listed = NULL, expires = ?3 \
                  WHERE id = ?1";
    let expires = txn.now + milliseconds(ASKED_KEPT);
    txn.execute(retire, params![id.as_str(), is_withdrawn, expires])?;
    Ok(())
}

/// It leaves the list of the open ones.
pub(super) fn strike(txn: &Txn<'_>, id: &ApprovalId) -> Done<()> {
    let strike = "UPDATE questions SET listed = NULL WHERE id = ? AND listed IS NOT NULL";
    txn.execute(strike, [id.as_str()])?;
    Ok(())
}

/// Those that are listed as open, by the deadlines that they were asked with.
pub(super) fn listed(txn: &Txn<'_>, from: usize, limit: usize) -> Done<Vec<(ApprovalId, i64)>> {
    let list = "SELECT id, listed FROM questions WHERE listed IS NOT NULL \
                ORDER BY listed, id LIMIT ? OFFSET ?";
    let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    // One that somebody else has written hides none of the others.
    let read = |row: &Row<'_>| {
        let id = row.get_ref(0)?.as_bytes_or_null().ok().flatten().unwrap_or_default();
        Ok((ApprovalId::listed(id), row.get(1).unwrap_or(0)))
    };
    txn.all(list, [number(limit), number(from)], read)
}

/// Checks up to `limit` requests that are listed by a deadline that has passed. A request that was extended
/// is listed by its new deadline; any other leaves the list. A task that waits for an expired request gets
/// an entry in the outbox, so that it is resumed.
pub(super) fn tidy(txn: &Txn<'_>, limit: u32) -> Done<Vec<Resume>> {
    let passed = "SELECT id FROM questions WHERE listed < ? ORDER BY listed, id LIMIT ?";
    let passed = txn.all(passed, params![txn.now, limit], |row| row.get::<_, String>(0))?;
    let mut resumes: Vec<Resume> = Vec::new();
    for id in passed.iter().filter_map(|id| ApprovalId::parse(id)) {
        let case = match find(txn, &id) {
            Err(Fault::Sql(error)) if is_malformed(&error) => {
                // It leaves the list of open ones, where it would hold up the others.
                strike(txn, &id)?;
                continue;
            }
            found => found?,
        };
        let standing = case.standing(txn.now);
        if let Some(Standing::Open(deadline)) = standing {
            let list = "UPDATE questions SET listed = ? WHERE id = ?";
            txn.execute(list, params![deadline, id.as_str()])?;
            continue;
        }
        let task = case.asking.and_then(|asking| asking.task).map(TaskId::from);
        let is_asked = match &task {
            Some(task) => parks::is_suspended(txn, task)?,
            None => false,
        };
        let Some(task) = task.filter(|_| is_asked) else {
            // No suspended task owns this request, so the end of a task does not remove it.
            retire(txn, &id, false)?;
            continue;
        };
        strike(txn, &id)?;
        if matches!(standing, Some(Standing::Expired(_)))
            && let Some((number, queue)) = parks::waiting(txn, &task, &id)?
            && let Some(resume) = outbox::leave(txn, &task, number, &queue, txn.now)?
            && !resumes.contains(&resume)
        {
            resumes.push(resume);
        }
    }
    Ok(resumes)
}

/// The questions that one transaction is about: each is read once.
#[derive(Debug, Default)]
pub(super) struct Book(HashMap<ApprovalId, Case>);

impl Book {
    pub(super) fn case(&mut self, txn: &Txn<'_>, id: &ApprovalId) -> Done<&mut Case> {
        Ok(match self.0.entry(id.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(find(txn, id)?),
        })
    }

    /// When the first of these is due, or the alarm.
    pub(super) fn due(
        &mut self,
        txn: &Txn<'_>,
        ids: &[ApprovalId],
        alarm: Option<i64>,
    ) -> Done<Due> {
        let mut standings = Vec::with_capacity(ids.len());
        for id in ids {
            standings.push(self.case(txn, id)?.standing(txn.now));
        }
        Ok(Due::of(standings, alarm, txn.now))
    }

    /// What became of these, as far as they are not open.
    pub(super) fn rulings(&mut self, txn: &Txn<'_>, ids: &[ApprovalId]) -> Done<Vec<Ruling>> {
        let mut rulings = Vec::new();
        for id in ids {
            rulings.extend(self.case(txn, id)?.ruling(id, txn.now));
        }
        Ok(rulings)
    }
}
