//! Rules that decide approval requests without a person. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Number, Value};

use super::{ApprovalRequest, Decision, DecisionKind, Risk};

/// 2^53: every whole number below it has an exact double.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A rule: its conditions and its action. All given conditions must match. The first rule that matches
/// decides; if none does, a person decides.
///
/// If the request lacks a value that a condition needs, or has a value other than a number where a bound is
/// given, then rules that ask or reject match, and rules that approve do not: leaving a value out cannot
/// bypass a guard placed in front of an approval.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoPolicy {
    /// The name of the rule; it decides as `policy:NAME`.
    pub name: String,
    /// The name of the requesting task; `*` matches any text. A request from outside a task has none.
    pub task: Option<String>,
    /// The name of the action; `*` matches any text.
    pub action: Option<String>,
    /// The requester; `*` matches any text. A request without a requester matches rules that ask or reject.
    pub requester: Option<String>,
    /// The highest risk that matches. A rule that approves matches no irreversible action unless this is set
    /// to `irreversible`.
    pub max_risk: Option<Risk>,
    /// Lower bounds, inclusive, by JSON pointer into the action's arguments, or into the task's arguments by
    /// their names, whether they were passed by position or by keyword.
    pub min: BTreeMap<String, Number>,
    /// Upper bounds, inclusive, by the same JSON pointers. A rule that approves and has no `min` for the same
    /// pointer approves no value below 0.
    pub max: BTreeMap<String, Number>,
    /// Whether its approval counts towards a quorum. All policies together have one vote.
    pub in_quorum: bool,
    /// The action of the rule when it matches.
    pub then: PolicyAction,
    /// The reason. Required for a rejection.
    pub reason: Option<String>,
}

/// The action of a rule on a request that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyAction {
    /// Approves the request.
    Approve,
    /// Rejects the request.
    Reject,
    /// Leaves the decision to a person.
    Ask,
}

/// How a rule compares with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCheck {
    /// The rule's name.
    pub name: String,
    /// The action of the rule if it matches.
    pub then: PolicyAction,
    /// Whether all conditions match. The first rule that matches decides.
    pub matches: bool,
    /// Reasons: each condition that does not match, and each value that could not be compared and therefore
    /// counts as a match. Empty if all conditions match plainly.
    pub notes: Vec<String>,
}

/// How one condition of a rule compares with a request.
enum Condition {
    Holds,
    Fails(String),
    /// The request lacks the value, or has one that cannot be compared.
    Unreadable(String),
}

impl AutoPolicy {
    /// Returns the decision of the first rule that matches; `None` if no rule matches or that rule leaves the
    /// decision to a person.
    #[must_use]
    pub fn decide(policies: &[Self], request: &ApprovalRequest) -> Option<Decision> {
        policies.iter().find(|policy| policy.matches(request))?.decision(request)
    }

    /// Returns whether the rule applies to the request: see [`AutoPolicy::check`].
    #[must_use]
    pub fn matches(&self, request: &ApprovalRequest) -> bool {
        self.check(request).matches
    }

    /// Compares every condition with the request. All must match. A missing value, or one that cannot be
    /// compared (a text where a number is bounded), counts as a match for rules that ask or reject, and never
    /// for rules that approve.
    #[must_use]
    pub fn check(&self, request: &ApprovalRequest) -> RuleCheck {
        let mut notes = Vec::new();
        let mut matches = true;
        for condition in self.conditions(request) {
            match condition {
                Condition::Holds => {}
                Condition::Fails(why) => {
                    matches = false;
                    notes.push(why);
                }
                Condition::Unreadable(why) if self.then == PolicyAction::Approve => {
                    matches = false;
                    notes.push(format!("{why}: a rule that approves does not match"));
                }
                Condition::Unreadable(why) => {
                    notes.push(format!("{why}: a rule that asks or rejects matches"));
                }
            }
        }
        RuleCheck { name: self.name.clone(), then: self.then, matches, notes }
    }

    fn conditions(&self, request: &ApprovalRequest) -> Vec<Condition> {
        let ApprovalRequest { task, task_name, requester, action, risk, .. } = request;
        let mut conditions = vec![
            // A request from outside a task has no task name.
            like("task", self.task.as_deref(), task_name.as_deref(), task.is_some()),
            like("action", self.action.as_deref(), Some(&action.name), true),
            like("requester", self.requester.as_deref(), requester.as_deref(), true),
        ];
        let most = self.risk();
        if *risk > most {
            conditions.push(Condition::Fails(format!("the risk is {risk:?}, over {most:?}")));
        }
        let zero = Number::from(0);
        let implied = |pointer: &&String| {
            self.then == PolicyAction::Approve && !self.min.contains_key(pointer.as_str())
        };
        let implied = self.max.keys().filter(implied).map(|pointer| (pointer, &zero));
        let least = self.min.iter().chain(implied).map(|bound| (bound, Ordering::Less, "under"));
        let most = self.max.iter().map(|bound| (bound, Ordering::Greater, "over"));
        conditions.extend(least.chain(most).map(|((pointer, bound), beyond, word)| {
            let Some(value) = request.argument(pointer) else {
                return Condition::Unreadable(format!("there is no {pointer}"));
            };
            match value.as_number().and_then(|number| compare(number, bound)) {
                None => Condition::Unreadable(format!("{pointer} is {}", shown(value))),
                Some(order) if order == beyond => {
                    Condition::Fails(format!("{pointer} is {value}, {word} {bound}"))
                }
                Some(_) => Condition::Holds,
            }
        }));
        conditions
    }

    fn risk(&self) -> Risk {
        let default_limit =
            if self.then == PolicyAction::Approve { Risk::High } else { Risk::Irreversible };
        self.max_risk.unwrap_or(default_limit)
    }

    /// Every process with the same rule makes the identical decision, so that it counts once.
    fn decision(&self, request: &ApprovalRequest) -> Option<Decision> {
        let choice = match self.then {
            PolicyAction::Approve => DecisionKind::Approve,
            PolicyAction::Reject => DecisionKind::Reject,
            PolicyAction::Ask => return None,
        };
        let by = format!("policy:{}", self.name);
        let decision = Decision::on(request, &by, choice);
        Some(Decision {
            id: format!("{by}:{}", decision.digest),
            reason: self.reason.clone(),
            in_quorum: self.in_quorum,
            ..decision
        })
    }
}

/// Compares a text with a pattern. `is_expected`: a missing text counts as unreadable.
fn like(what: &str, pattern: Option<&str>, text: Option<&str>, is_expected: bool) -> Condition {
    match (pattern, text) {
        (None, _) => Condition::Holds,
        (Some(pattern), Some(text)) if is_like(pattern, text) => Condition::Holds,
        (Some(pattern), Some(text)) => {
            Condition::Fails(format!("the {what} is {text:?}, not like {pattern:?}"))
        }
        (Some(_), None) if is_expected => {
            Condition::Unreadable(format!("the request names no {what}"))
        }
        (Some(_), None) => Condition::Fails(format!("the request has no {what}")),
    }
}

/// Formats a value on one short line.
fn shown(value: &Value) -> String {
    let mut text: String = value.to_string().chars().take(60).collect();
    if value.is_number() {
        text.push_str(", too large to be exact");
    } else {
        text.push_str(", not a number");
    }
    text
}

/// Compares whole numbers exactly, also with fractions. `None` if the value was rounded when it was parsed.
fn compare(value: &Number, bound: &Number) -> Option<Ordering> {
    let whole = |it: &Number| it.as_i64().map(i128::from).or(it.as_u64().map(i128::from));
    match (whole(value), whole(bound)) {
        (Some(value), Some(bound)) => Some(value.cmp(&bound)),
        (Some(value), None) => against(value, bound.as_f64()?),
        (None, Some(bound)) => Some(against(bound, exact(value)?)?.reverse()),
        (None, None) => exact(value)?.partial_cmp(&bound.as_f64()?),
    }
}

/// Returns a number with a fraction or exponent, unless it is so large that digits may have been lost.
fn exact(value: &Number) -> Option<f64> {
    value.as_f64().filter(|value| value.abs() < EXACT)
}

/// Compares a whole number exactly with a fraction.
fn against(whole: i128, fraction: f64) -> Option<Ordering> {
    #[expect(clippy::cast_possible_truncation, reason = "saturates, which keeps the order")]
    let floor = fraction.floor() as i128;
    let is_whole = fraction.fract() == 0.0;
    (!fraction.is_nan()).then(|| match whole.cmp(&floor) {
        Ordering::Equal if !is_whole => Ordering::Less,
        order => order,
    })
}

fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts: Vec<&str> = pattern.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    let Some((first, middle)) = parts.split_first() else { return text == last };
    let found = middle.iter().try_fold(text.strip_prefix(first), |rest, part| {
        let rest = rest?;
        Some(rest.find(part).map(|at| &rest[at + part.len()..]))
    });
    found.flatten().is_some_and(|rest| rest.ends_with(last))
}

#[cfg(test)]
mod tests;
