//! Questions that a person decides, and what was decided. Pure: no I/O, no clock. Times are
//! milliseconds since the epoch by the store's clock.

mod audit;
mod decision;
mod digest;
mod policy;
mod schema;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::task::TaskId;

pub use audit::{AuditEntry, Seal, SealKey, Verified};
pub(crate) use audit::{KEPT, Verifier};
pub(crate) use decision::MAX_REASON;
pub use decision::{Decision, is_policy};
pub use digest::Digest;
pub use policy::{AutoPolicy, RuleCheck, Then};

/// In milliseconds: how long a question is open unless it is said otherwise.
const DAY: u64 = 24 * 60 * 60 * 1000;
/// A person's name is held under this.
const MAX_NAME: usize = 255;

/// Which question: `ap_` and a hash. A rerun of a task asks under the same id.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApprovalId(String);

impl ApprovalId {
    /// The `occurrence`th approval called `name` in a run of this task, from 0.
    #[must_use]
    pub fn of(task: &TaskId, name: &str, occurrence: u32) -> Self {
        let hash = digest::hash(&serde_json::json!([task.as_str(), name, occurrence]));
        Self(format!("ap_{}", &hash[..40]))
    }

    /// A fresh id, for a question that no task asks.
    #[must_use]
    pub fn random() -> Self {
        Self::of(&TaskId::random(), "", 0)
    }

    /// The id in this text, if it can be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("ap_")?;
        let is_hex = digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        is_hex.then(|| Self(text.to_owned()))
    }

    /// The id in an index, whatever is there: what can be none has no question.
    pub(crate) fn listed(text: &[u8]) -> Self {
        Self(String::from_utf8_lossy(text).into_owned())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is to be done, exactly: what is approved is what runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// For example `bank.pay`.
    pub name: String,
    /// Of the arguments' type.
    pub version: u32,
    /// The arguments.
    pub args: Value,
}

impl Action {
    /// The fingerprint that a decision carries.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self, &self.args)
    }

    /// The fingerprint of the same action with these arguments.
    #[must_use]
    pub fn digest_with(&self, args: &Value) -> Digest {
        Digest::of(self, args)
    }
}

/// How bad a wrong yes would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Risk {
    /// Little.
    Low,
    /// What holds unless the author says otherwise.
    #[default]
    Medium,
    /// Much.
    High,
    /// It cannot be undone. Its deadline never approves it.
    Irreversible,
}

/// What holds when the deadline passes with no decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is not approved: the handler is told that it has expired.
    #[default]
    Reject,
    /// It is approved, by nobody.
    Approve,
    /// The task fails.
    Fail,
}

/// What a person is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The version of this record's format.
    pub v: u32,
    /// Which question.
    pub id: ApprovalId,
    /// The task that asks; none for a question from outside.
    pub task: Option<TaskId>,
    /// The name of that task.
    #[serde(default)]
    pub task_name: Option<String>,
    /// What the handler calls it.
    pub name: String,
    /// One line.
    pub title: String,
    /// As much as it takes, in Markdown.
    pub summary: String,
    /// What is to be done.
    pub action: Action,
    /// An approver may change the action's arguments.
    pub editable: bool,
    /// The JSON Schema (draft 2020-12) that edited arguments must fit. It refers to nothing outside
    /// of it, and not to itself.
    pub schema: Option<Value>,
    /// What else happens once it is approved.
    pub effects: Vec<String>,
    /// How bad a wrong yes would be.
    pub risk: Risk,
    /// Who wants it; does not approve it unless `self_approval`.
    pub requester: Option<String>,
    /// The requester may approve it.
    pub self_approval: bool,
    /// Who may decide; anybody when it is empty.
    pub approvers: Vec<String>,
    /// So many people must approve it; one rejection is enough.
    pub quorum: u32,
    /// It can be decided for this long after it was asked first, in milliseconds.
    pub expires_in: u64,
    /// What holds after that.
    pub on_timeout: OnTimeout,
    /// The names of the task's parameters, when its action is the task itself with its arguments:
    /// policies find positional arguments by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<String>,
}

impl Question {
    /// The version of the format that is written here. The digest of a question of version 1 covers
    /// its action alone; since version 2 it covers how it is decided, too.
    pub const VERSION: u32 = 2;

    /// A question that no task waits for, open for a day, for anybody to decide.
    pub fn new(title: impl Into<String>) -> Self {
        let title = title.into();
        Self {
            v: Self::VERSION,
            id: ApprovalId::random(),
            task: None,
            task_name: None,
            name: String::new(),
            summary: String::new(),
            action: Action { name: title.clone(), version: 1, args: Value::Null },
            editable: false,
            schema: None,
            effects: Vec::new(),
            risk: Risk::default(),
            requester: None,
            self_approval: false,
            approvers: Vec::new(),
            quorum: 1,
            expires_in: DAY,
            on_timeout: OnTimeout::default(),
            parameters: Vec::new(),
            title,
        }
    }

    /// The fingerprint that a decision carries: of its action, of who may decide it, how many must,
    /// and what holds after the deadline. What is only shown (title, summary, effects) is not part of
    /// it, for a later run of the task may word it differently.
    #[must_use]
    pub fn digest(&self) -> Digest {
        if self.v < 2 { self.action.digest() } else { Digest::of_question(self) }
    }

    /// Whether a request with this digest is this one: also one that was made by the version before,
    /// whose digest covers the action alone.
    #[must_use]
    pub fn has_digest(&self, digest: &Digest) -> bool {
        self.digest() == *digest || self.action.digest() == *digest
    }

    /// The argument at this JSON pointer. Of a task's own arguments `/amount` and `/kwargs/amount`
    /// find the one of that name, also when it was passed by position.
    #[must_use]
    pub fn argument(&self, pointer: &str) -> Option<&Value> {
        let args = &self.action.args;
        let is_call = self.task_name.as_ref() == Some(&self.action.name)
            && args.as_object().is_some_and(|call| call.len() == 2)
            && args["args"].is_array()
            && args["kwargs"].is_object();
        let direct = args.pointer(pointer);
        if direct.is_some() || !is_call {
            return direct;
        }
        let rest = pointer.strip_prefix("/kwargs").unwrap_or(pointer).strip_prefix('/')?;
        let (name, below) = rest.split_once('/').unwrap_or((rest, ""));
        let name = name.replace("~1", "/").replace("~0", "~");
        let place = || self.parameters.iter().position(|parameter| *parameter == name);
        let value = args["kwargs"].get(&name).or_else(|| args["args"].get(place()?))?;
        if below.is_empty() { Some(value) } else { value.pointer(&format!("/{below}")) }
    }

    /// What is wrong with it, if anything is: a line for its author.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if self.title.trim().is_empty() {
            return Some("it asks nothing: give it a text by `ask`".into());
        }
        if self.risk == Risk::Irreversible && self.on_timeout == OnTimeout::Approve {
            return Some("what cannot be undone is not approved by a deadline".into());
        }
        if self.quorum == 0 {
            return Some("its quorum is 0: somebody must decide it".into());
        }
        if !self.approvers.is_empty() && (self.approvers.len() as u64) < u64::from(self.quorum) {
            let (approvers, quorum) = (self.approvers.len(), self.quorum);
            return Some(format!("{quorum} people must approve it, and only {approvers} may"));
        }
        let mut names = self.approvers.iter().chain(&self.requester);
        names.find_map(|name| name_fault(name)).or_else(|| schema::fault(self.schema.as_ref()?))
    }

    /// Where these arguments do not fit its schema, a text for each place; none when they do.
    #[must_use]
    pub fn misfits(&self, args: &Value) -> Vec<String> {
        self.schema.as_ref().map_or_else(Vec::new, |schema| schema::misfits(schema, args))
    }
}

/// Why this cannot be the name of a person, if it cannot.
#[must_use]
pub fn name_fault(name: &str) -> Option<String> {
    let shown: String = name.escape_debug().take(40).collect();
    if name.trim().is_empty() {
        Some("a person without a name".into())
    } else if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        Some(format!("{shown}: a name has at most {MAX_NAME} bytes and no control characters"))
    } else {
        None
    }
}

/// What a person says to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Yes.
    Approve,
    /// No.
    Reject,
    /// It is not asked any more.
    Withdraw,
}

impl Choice {
    /// The word for it in records and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Reject => "reject",
            Self::Withdraw => "withdraw",
        }
    }

    /// The choice with this word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        [Self::Approve, Self::Reject, Self::Withdraw].into_iter().find(|it| it.as_str() == word)
    }
}

/// What came of a decision. It is the truth: who is told [`Answer::Applied`] has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is decided so, by this decision.
    Applied,
    /// It counts, and more are needed.
    Counted {
        /// Who have approved so far.
        votes: u32,
        /// So many are needed.
        quorum: u32,
    },
    /// This very decision had been taken before.
    Replayed,
    /// Somebody was earlier.
    AlreadyDecided {
        /// Who.
        by: String,
        /// When, in milliseconds.
        at: i64,
        /// What.
        choice: Choice,
    },
    /// Its deadline has passed.
    Expired {
        /// When, in milliseconds.
        at: i64,
    },
    /// What is asked has changed since it was read.
    DigestMismatch,
    /// This person may not decide it, or give it more time.
    NotAllowed,
    /// It would have less time: a deadline is never brought forward.
    Earlier {
        /// Its deadline, in milliseconds.
        deadline: i64,
    },
    /// It is not asked any more.
    Withdrawn,
    /// There is no such question.
    Unknown,
}

impl Answer {
    /// The decision counts: now, or since it was sent the first time.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Applied | Self::Counted { .. } | Self::Replayed)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::Counted { votes, quorum } => write!(f, "counted: {votes} of {quorum}"),
            Self::Replayed => f.write_str("this decision had been taken before"),
            Self::AlreadyDecided { by, at, choice } => {
                let by: String = by.escape_debug().collect();
                write!(f, "already decided: {} by {by} at {}", choice.as_str(), date(*at))
            }
            Self::Expired { at } => write!(f, "its deadline passed at {}", date(*at)),
            Self::DigestMismatch => f.write_str("what is asked has changed: look at it again"),
            Self::NotAllowed => f.write_str("this person may not decide it"),
            Self::Earlier { deadline } => {
                write!(f, "its deadline is {}: it is never brought forward", date(*deadline))
            }
            Self::Withdrawn => f.write_str("it was withdrawn"),
            Self::Unknown => f.write_str("there is no such approval"),
        }
    }
}

/// A time of the store as people read it.
pub(crate) fn date(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds)
        .map_or_else(|_| milliseconds.to_string(), |time| time.to_string())
}

/// How a question stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can be decided until then, in milliseconds.
    Open(i64),
    /// It was decided so.
    Decided(Choice),
    /// Its deadline, then, has passed with no decision.
    Expired(i64),
}

impl Standing {
    /// The word for it in lists.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open(_) => "pending",
            Self::Decided(Choice::Approve) => "approved",
            Self::Decided(Choice::Reject) => "rejected",
            Self::Decided(Choice::Withdraw) => "withdrawn",
            Self::Expired(_) => "expired",
        }
    }
}

/// How a question that is no longer open came to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruling {
    /// Which question.
    pub approval: ApprovalId,
    /// The digest of the action that it is about.
    pub digest: Digest,
    /// How it stands: never open.
    pub standing: Standing,
    /// When, in milliseconds.
    pub at: i64,
    /// The decision that counts, unless the deadline passed or the asker withdrew it.
    pub decision: Option<Decision>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_question_has_the_same_id_and_another_one_another() {
        let task = TaskId::from("t");
        let id = ApprovalId::of(&task, "pay", 0);
        assert_eq!(id, ApprovalId::of(&task, "pay", 0));
        assert_ne!(id, ApprovalId::of(&task, "pay", 1));
        assert_ne!(id, ApprovalId::of(&TaskId::from("u"), "pay", 0));
        assert_eq!(ApprovalId::parse(id.as_str()), Some(id));
        for foreign in ["", "ap_", "ap_xyz", "ap_{cs}", "6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f"] {
            assert_eq!(ApprovalId::parse(foreign), None);
        }
    }

    #[test]
    fn a_digest_knows_no_order_of_keys_and_every_value() {
        let action = |args| Action { name: "pay".into(), version: 1, args };
        let digest = action(json!({"a": 1, "b": {"c": [1, 2], "d": null}})).digest();
        assert_eq!(digest, action(json!({"b": {"d": null, "c": [1, 2]}, "a": 1})).digest());
        assert_ne!(digest, action(json!({"a": 1, "b": {"c": [2, 1], "d": null}})).digest());
        let version = Action { version: 2, ..action(json!({})) };
        assert_ne!(version.digest(), action(json!({})).digest());
        let edited = action(json!({})).digest_with(&json!({"a": 1}));
        assert_eq!(edited, action(json!({"a": 1})).digest());
    }

    #[test]
    fn a_number_that_was_stored_has_the_digest_that_it_had() {
        // What serde_json reads off by one bit unless it is told to read exactly.
        for number in [0.907_303_832_202_868_9, 0.481_837_925_201_105_24, 0.432_952_849_813_225_57]
        {
            let action = Action { name: "pay".into(), version: 1, args: json!([number]) };
            let stored: Action = serde_json::from_str(&json!(action).to_string()).unwrap();
            assert_eq!(stored.digest(), action.digest(), "{number:e}");
        }
    }

    #[test]
    fn hostile_names_are_no_names() {
        assert_eq!(name_fault("ana"), None);
        for bad in ["", " ", "ana\nbob", "\u{1b}[2J", &"x".repeat(256)] {
            assert!(name_fault(bad).is_some(), "{bad:?}");
        }
    }
}
