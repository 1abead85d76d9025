//! The part of the store that remembers parked tasks, questions and decisions.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::sync::broadcast;

use super::{Recorded, sealed};
use crate::approval::{Answer, ApprovalId, Decision, Question, Ruling, Standing};
use crate::error::{Error, Kind};
use crate::lifecycle::park;
use crate::protocol::{Message, TaskDigest, Ticket};
use crate::task::TaskId;

/// How long the note of a task's end is kept.
pub(in crate::backend) const ENDED_KEPT: Duration =
    Duration::from_millis(park::ENDED_KEPT.unsigned_abs());
/// Questions of an ended task can be looked at for a week.
pub(in crate::backend) const ASKED_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A decision outlives the runs of its task.
pub(in crate::backend) const DECISION_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Whoever publishes a resume message himself has done it by then.
pub(in crate::backend) const OVERDUE: Duration = Duration::from_secs(1);
/// The number of overdue requests of services that are checked whenever a new request is made.
pub(in crate::backend) const TIDIED: u32 = 32;
/// Entries of the outbox, and overdue requests, that one sweep takes.
pub(in crate::backend) const SWEPT: u32 = 500;

/// What is to be done with a message of a task that may have been parked.
#[derive(Debug)]
pub enum Taken {
    /// Run it: it was never parked.
    Unclaimed,
    /// Run it under this number.
    Claimed {
        /// The claim's.
        number: u64,
        /// The task as it was parked, where the store has it.
        message: Option<Box<Message>>,
        /// What became of the questions that it asked.
        rulings: Vec<Ruling>,
    },
    /// Another message carries the task on, or it has ended.
    Over(Recorded),
    /// Look at it again after this long.
    Postpone(Duration),
    /// The park is not there any more: the task has failed, or has ended long ago. See
    /// [`crate::lifecycle::park::is_lost`].
    StateLost,
    /// A newer Countersign has parked it.
    Newer,
    /// Its suspension has ended. The result says whether this is a copy that comes late, or the same
    /// message sent anew; the proof is for one that stores no result.
    Ended(Recorded),
    /// Another task is suspended under its id: that one, where the store has it.
    Occupied(Option<Box<Message>>),
}

/// A run that is to be parked, or whose next attempt is on its way: then it asks nothing.
#[derive(Clone, Debug)]
pub struct Parking {
    /// The task.
    pub id: TaskId,
    /// The park's number.
    pub number: u64,
    /// The task's digest.
    pub digest: TaskDigest,
    /// Who runs it now.
    pub holder: String,
    /// How long a claim holds.
    pub lease: Duration,
    /// The task as it is to be resumed.
    pub message: Message,
    /// The queue whose workers resume it.
    pub queue: String,
    /// Everything that it waits for.
    pub questions: Vec<Question>,
    /// It sleeps, and is to be resumed after this long.
    pub alarm: Option<Duration>,
    /// What it has asked and wants to know no more.
    pub abandoned: Vec<ApprovalId>,
}

/// What came of parking.
#[derive(Debug)]
pub enum Parked {
    /// It waits, and the next deadline is so far ahead.
    Waiting(Recorded, Duration),
    /// These are decided: it runs on, and holds the claim.
    Ready(Vec<Ruling>),
    /// Another message carries the task on.
    Behind(Recorded),
}

/// A decision that a task waits for: its workers are to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The task.
    pub task: TaskId,
    /// The park that it is to be resumed from.
    pub number: u64,
    /// The queue whose workers resume it.
    pub queue: String,
    pub(in crate::backend) entry: String,
}

impl Resume {
    /// What an entry of the outbox says: task, number and queue, as JSON texts.
    pub(in crate::backend) fn read(entry: &str) -> Option<Self> {
        let (task, number, queue): (TaskId, String, String) = serde_json::from_str(entry).ok()?;
        let number = number.parse().ok()?;
        Some(Self { task, number, queue, entry: entry.to_owned() })
    }
}

/// A question as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// What is asked.
    pub question: Question,
    /// Which request it is: one that is made anew under the same id has another nonce. A request that
    /// version 0.1 made has none.
    pub nonce: Option<String>,
    /// How it stands.
    pub standing: Standing,
    /// When it was asked, in milliseconds.
    pub asked_at: i64,
    /// When it was decided; while it is open, or has expired, its deadline. In milliseconds.
    pub at: i64,
    /// When it was read, in milliseconds by the store's clock.
    pub read_at: i64,
    /// The decision that counts.
    pub decision: Option<Decision>,
    /// Who have approved so far.
    pub votes: u32,
    /// So much of its time, in percent, had passed when people were warned of its deadline.
    pub warned: Option<u8>,
}

/// What is under an approval's id.
#[derive(Debug)]
pub enum Found {
    /// Nobody asks it, or has asked it lately.
    Nothing,
    /// A question.
    Asked(Box<Asked>),
    /// A question that stands so, and that this version cannot read.
    Unreadable(Standing, Error),
}

impl Found {
    /// The question; `None` when nobody asks it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn readable(self) -> Result<Option<Asked>, Error> {
        match self {
            Self::Nothing => Ok(None),
            Self::Asked(asked) => Ok(Some(*asked)),
            Self::Unreadable(_, error) => Err(error),
        }
    }
}

/// Remembers parked tasks and decisions. A part of [`super::Store`], and sealed like it.
///
/// Every call gives up with a connection error when the store does not answer within three command
/// timeouts; whether it has happened is not known then. All may be repeated.
pub trait Approvals: sealed::Sealed {
    /// Says what is to be done with a message; see [`crate::lifecycle::park::take`]. `digest` is its
    /// task's, if it carries the task.
    fn take_parked(
        &self,
        id: &TaskId,
        ticket: Ticket,
        digest: Option<&TaskDigest>,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Taken, Error>>;

    /// Claims a task that was never parked, for a run that is about to send its first wake message;
    /// see [`crate::lifecycle::park::begin`].
    fn begin_park(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        starts_anew: bool,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Taken, Error>>;

    /// Parks a run, and shows its questions to deciders, in one step.
    fn park(&self, parking: Parking) -> BoxFuture<'_, Result<Parked, Error>>;

    /// Holds a claim for another `lease`. False: it is somebody else's by now.
    fn renew_claim(
        &self,
        id: &TaskId,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<bool, Error>>;

    /// Gives a claim back, so that nobody waits for its lease to end.
    fn release_claim(&self, id: &TaskId, holder: &str) -> BoxFuture<'_, Result<(), Error>>;

    /// Notes that a task that was parked has ended, and withdraws what it still asks; returns that.
    /// Nothing changes when another task with its id is suspended by now.
    fn end_parked(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>>;

    /// Asks a question that no task waits for. One that is asked already stays as it is.
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<(), Error>>;

    /// These questions, each as it was found.
    fn asked(&self, ids: &[ApprovalId]) -> BoxFuture<'_, Result<Vec<Found>, Error>>;

    /// The open questions, and some that were decided or have just expired, the nearest deadline first. One
    /// that was given more time is listed by its first deadline until that has passed. Passes over the first `from`, and gives at most `limit`.
    fn pending(
        &self,
        from: usize,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ApprovalId, i64)>, Error>>;

    /// Takes a decision, with its audit entry and its entry in the outbox, in one step; see
    /// [`crate::lifecycle::vote::decide`]. Who is told that it is applied sends what comes with it.
    fn decide(&self, decision: &Decision)
    -> BoxFuture<'_, Result<(Answer, Option<Resume>), Error>>;

    /// Gives a request this long from now, with its audit entry, in one step; see
    /// [`crate::lifecycle::vote::extend`].
    fn extend(
        &self,
        id: &ApprovalId,
        by: &str,
        is_operator: bool,
        time: Duration,
    ) -> BoxFuture<'_, Result<Answer, Error>>;

    /// Notes, with its audit entry, that people are warned of a question's deadline after so much of
    /// its time, in percent. False: somebody has warned them, it is too early, or it is not open.
    fn warn(&self, id: &ApprovalId, percent: u8) -> BoxFuture<'_, Result<bool, Error>>;

    /// A resume message is confirmed: its entry leaves the outbox.
    fn resume_sent(&self, resume: &Resume) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns the resume messages that the caller is to send: entries of the outbox that are older than a
    /// second, and new ones for the tasks whose requests are overdue by the store's clock. Other callers do
    /// not get them for a while. Requests that are over leave the list of open ones.
    fn overdue_resumes(&self) -> BoxFuture<'_, Result<Vec<Resume>, Error>>;

    /// Rings whenever something is decided: with its id, or with `None` when rings may have been
    /// missed. Whoever hears it reads the record.
    fn decisions(&self) -> broadcast::Receiver<Option<ApprovalId>>;

    /// Rings likewise whenever something is asked.
    fn questions(&self) -> broadcast::Receiver<Option<ApprovalId>>;
}

/// What no other request has.
pub(in crate::backend) fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// What of a question's format is read before the rest.
#[derive(Deserialize)]
struct Format {
    v: u32,
}

/// Reads a question as it is stored.
///
/// # Errors
/// A newer Countersign has written it, or somebody else.
pub(in crate::backend) fn stored_question(json: &str) -> Result<Question, Error> {
    if let Ok(Format { v }) = serde_json::from_str(json)
        && v > Question::VERSION
    {
        let cause = format!("it was asked by a newer Countersign (format {v}): upgrade this one");
        return Err(unreadable(&cause));
    }
    serde_json::from_str(json).map_err(|error| unreadable(&error.to_string()))
}

/// What is stored under an approval's id is no approval.
pub(in crate::backend) fn unreadable(cause: &str) -> Error {
    Kind::Codec { what: "an approval".into(), cause: cause.into() }.into()
}
