//! Approval requests.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[cfg(not(feature = "schema"))]
use super::no_schema as schema;
#[cfg(feature = "schema")]
use super::schema;
use super::{Action, ApprovalId, Digest, Risk, milliseconds};
use crate::task::TaskId;

/// The default time in which a request can be decided.
const DAY: Duration = Duration::from_hours(24);
/// The maximum length of a person's name, in bytes.
const MAX_NAME: usize = 255;

/// The outcome when the deadline passes without a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnTimeout {
    /// The request is not approved: the handler gets the outcome "expired".
    #[default]
    Reject,
    /// The request is approved without an approver.
    Approve,
    /// The task fails.
    Fail,
}

/// A request for a person's approval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApprovalRequest {
    /// The version of this record's format.
    pub v: u32,
    /// The approval's id.
    pub id: ApprovalId,
    /// The task that makes the request; `None` for a request from outside a task.
    pub task: Option<TaskId>,
    /// The name of that task.
    #[serde(default)]
    pub task_name: Option<String>,
    /// The name that the handler gives the approval.
    pub name: String,
    /// One line of text.
    pub title: String,
    /// Markdown of any length.
    pub summary: String,
    /// The action to approve.
    pub action: Action,
    /// Whether an approver may change the action's arguments.
    pub editable: bool,
    /// The JSON Schema (draft 2020-12) that edited arguments must match. It must not reference other
    /// documents or, recursively, itself. Without the feature `schema`, a request that has one is refused.
    pub schema: Option<Value>,
    /// Other effects of the approval, for display.
    pub effects: Vec<String>,
    /// How much harm a wrong approval can do.
    pub risk: Risk,
    /// The requester; may not approve the request unless `self_approval` is set.
    pub requester: Option<String>,
    /// Whether the requester may approve the request.
    pub self_approval: bool,
    /// The approvers; empty means that everyone may decide.
    pub approvers: Vec<String>,
    /// The number of approvals needed; one rejection is enough to reject.
    pub quorum: u32,
    /// How long the request can be decided after it was first made, to the millisecond.
    #[serde(with = "milliseconds")]
    pub expires_in: Duration,
    /// The outcome after that time.
    pub on_timeout: OnTimeout,
    /// The names of the task's parameters, if the action is the task itself with its arguments: policies use
    /// them to find positional arguments by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<String>,
}

impl ApprovalRequest {
    /// The version of the format that is written. The digest of a version 1 request covers only its action;
    /// since version 2 it also covers the rules by which the request is decided.
    pub const VERSION: u32 = 2;

    /// Creates a request that no task waits for, open for a day, which everyone may decide.
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

    /// Returns the digest that a decision must carry. It covers the action, the approvers, the
    /// quorum, and the outcome after the deadline. Texts for display (title, summary, effects) are not
    /// covered, because a later run of the task may word them differently.
    #[must_use]
    pub fn digest(&self) -> Digest {
        if self.v < 2 { self.action.digest() } else { self.full_digest() }
    }

    /// Returns whether the digest belongs to this request. Also accepts the digest of format version 1, which
    /// covers only the action.
    #[must_use]
    pub fn has_digest(&self, digest: &Digest) -> bool {
        self.digest() == *digest || self.action.digest() == *digest
    }

    /// Returns the argument at this JSON pointer. In a task's own arguments `/amount` and `/kwargs/amount`
    /// find the argument of that name, also if it was passed by position.
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

    /// Returns the error in the request, as one line of text; `None` if it is valid.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        if self.title.trim().is_empty() {
            return Some("the request has no title: set `title`".into());
        }
        if self.risk == Risk::Irreversible && self.on_timeout == OnTimeout::Approve {
            return Some("an irreversible action cannot be approved by its deadline".into());
        }
        if self.quorum == 0 {
            return Some("the quorum is 0: it must be at least 1".into());
        }
        if !self.approvers.is_empty() && (self.approvers.len() as u64) < u64::from(self.quorum) {
            let (approvers, quorum) = (self.approvers.len(), self.quorum);
            return Some(format!(
                "the quorum is {quorum}, but only {approvers} approvers are listed"
            ));
        }
        let mut names = self.approvers.iter().chain(&self.requester);
        names.find_map(|name| name_fault(name)).or_else(|| schema::fault(self.schema.as_ref()?))
    }

    /// Returns one text for each place where these arguments violate the schema; empty if they match.
    #[must_use]
    pub fn schema_violations(&self, args: &Value) -> Vec<String> {
        self.schema.as_ref().map_or_else(Vec::new, |schema| schema::violations(schema, args))
    }

    /// Covers the action, who may decide about it, and the outcome when the deadline passes undecided.
    fn full_digest(&self) -> Digest {
        let ApprovalRequest { action, editable, schema, risk, requester, self_approval, .. } = self;
        let ApprovalRequest { approvers, quorum, on_timeout, .. } = self;
        let mut approvers: Vec<_> = approvers.iter().collect();
        approvers.sort();
        approvers.dedup();
        let digest = Digest::of(&json!({
            "v": 2,
            "action": { "name": action.name, "version": action.version, "args": action.args },
            "editable": editable,
            "schema": schema,
            "risk": risk,
            "requester": requester,
            "self_approval": self_approval,
            "approvers": approvers,
            "quorum": quorum,
            "on_timeout": on_timeout,
        }));
        Digest::from(format!("v2:{digest}"))
    }
}

/// Returns why this cannot be a person's name; `None` if it can.
#[must_use]
pub fn name_fault(name: &str) -> Option<String> {
    let shown: String = name.escape_debug().take(40).collect();
    if name.trim().is_empty() {
        Some("a name must not be empty".into())
    } else if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        Some(format!("{shown}: a name has at most {MAX_NAME} bytes and no control characters"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_invalid() {
        assert_eq!(name_fault("ana"), None);
        for bad in ["", " ", "ana\nbob", "\u{1b}[2J", &"x".repeat(256)] {
            assert!(name_fault(bad).is_some(), "{bad:?}");
        }
    }
}
