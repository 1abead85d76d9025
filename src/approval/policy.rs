//! Rules by which questions are decided without a person. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Number, Value};

use super::{Choice, Decision, Question, Risk};

/// Below this, every whole number is a double of its own: 2^53.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A rule: what it matches, and what is said to that. Everything that is given must match. The
/// first of several rules that matches counts; where none does, a person decides.
///
/// A value that a rule looks at and the question lacks, or that is no number where one is bounded,
/// matches a rule that asks or rejects, and never one that approves: a guard in front of an approval
/// cannot be passed by leaving something out.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoPolicy {
    /// It decides as `policy:NAME`.
    pub name: String,
    /// The name of the task that asks; `*` stands for any text. A question from outside has none.
    pub task: Option<String>,
    /// The name of the action; `*` stands for any text.
    pub action: Option<String>,
    /// The requester; `*` stands for any text. A request without a requester matches rules that ask or
    /// reject.
    pub requester: Option<String>,
    /// The risk is this at most. A rule that approves matches nothing irreversible unless this
    /// says so.
    pub max_risk: Option<Risk>,
    /// By JSON pointer into the action's arguments, or into those of the task by their names,
    /// however they were passed: a number that is not below.
    pub min: BTreeMap<String, Number>,
    /// By JSON pointer likewise: a number that is not above. A rule that approves, and has no `min`
    /// for it, approves nothing below 0.
    pub max: BTreeMap<String, Number>,
    /// Its approval counts as one of those that a quorum needs. All policies together have one vote.
    pub in_quorum: bool,
    /// What is said.
    pub then: Then,
    /// Why. A rejection has one.
    pub reason: Option<String>,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Yes.
    Approve,
    /// No.
    Reject,
    /// A person decides.
    Ask,
}

/// How a rule looks at a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCheck {
    /// The rule's name.
    pub name: String,
    /// What it says when it matches.
    pub then: Then,
    /// It matches: the first rule that does counts.
    pub matches: bool,
    /// Why: what does not match, or could not be read and so matches; empty when all is as given.
    pub notes: Vec<String>,
}

/// How one condition of a rule compares with a question.
enum Condition {
    Holds,
    Fails(String),
    /// The question has no such value, or one that cannot be compared.
    Unreadable(String),
}

impl AutoPolicy {
    /// The decision that the first of these rules that matches makes, if one does. Without one, a
    /// person decides.
    #[must_use]
    pub fn decide(policies: &[Self], question: &Question) -> Option<Decision> {
        policies.iter().find(|policy| policy.matches(question))?.decision(question)
    }

    /// Whether this rule applies to the question: see [`AutoPolicy::check`].
    #[must_use]
    pub fn matches(&self, question: &Question) -> bool {
        self.check(question).matches
    }

    /// Compares every condition with the question. All must hold. A value that is missing or cannot be
    /// compared, such as a text where a number is bounded, matches a rule that asks or rejects, and
    /// never one that approves.
    #[must_use]
    pub fn check(&self, question: &Question) -> RuleCheck {
        let mut notes = Vec::new();
        let mut matches = true;
        for condition in self.conditions(question) {
            match condition {
                Condition::Holds => {}
                Condition::Fails(why) => {
                    matches = false;
                    notes.push(why);
                }
                Condition::Unreadable(why) if self.then == Then::Approve => {
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

    fn conditions(&self, question: &Question) -> Vec<Condition> {
        let Question { task, task_name, requester, action, risk, .. } = question;
        let mut conditions = vec![
            // A question from outside has no task, and so none of this name.
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
            self.then == Then::Approve && !self.min.contains_key(pointer.as_str())
        };
        let implied = self.max.keys().filter(implied).map(|pointer| (pointer, &zero));
        let least = self.min.iter().chain(implied).map(|bound| (bound, Ordering::Less, "under"));
        let most = self.max.iter().map(|bound| (bound, Ordering::Greater, "over"));
        conditions.extend(least.chain(most).map(|((pointer, bound), beyond, word)| {
            let Some(value) = question.argument(pointer) else {
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
        let unsaid = if self.then == Then::Approve { Risk::High } else { Risk::Irreversible };
        self.max_risk.unwrap_or(unsaid)
    }

    /// The same from every process that has the rule, so that it counts once.
    fn decision(&self, question: &Question) -> Option<Decision> {
        let choice = match self.then {
            Then::Approve => Choice::Approve,
            Then::Reject => Choice::Reject,
            Then::Ask => return None,
        };
        let by = format!("policy:{}", self.name);
        let decision = Decision::on(question, &by, choice);
        Some(Decision {
            id: format!("{by}:{}", decision.digest),
            reason: self.reason.clone(),
            in_quorum: self.in_quorum,
            ..decision
        })
    }
}

/// Compares a text of the question with a pattern. `is_expected`: a question that lacks it hides it.
fn like(what: &str, pattern: Option<&str>, text: Option<&str>, is_expected: bool) -> Condition {
    match (pattern, text) {
        (None, _) => Condition::Holds,
        (Some(pattern), Some(text)) if is_like(pattern, text) => Condition::Holds,
        (Some(pattern), Some(text)) => {
            Condition::Fails(format!("the {what} is {text:?}, not like {pattern:?}"))
        }
        (Some(_), None) if is_expected => Condition::Unreadable(format!("it names no {what}")),
        (Some(_), None) => Condition::Fails(format!("it has no {what}")),
    }
}

/// A value in one short line.
fn shown(value: &Value) -> String {
    let mut text: String = value.to_string().chars().take(60).collect();
    if value.is_number() {
        text.push_str(", too large to be exact");
    } else {
        text.push_str(", no number");
    }
    text
}

/// Whole numbers exactly, also with a fraction. `None`: a value that was rounded when it was read.
fn compare(value: &Number, bound: &Number) -> Option<Ordering> {
    let whole = |it: &Number| it.as_i64().map(i128::from).or(it.as_u64().map(i128::from));
    match (whole(value), whole(bound)) {
        (Some(value), Some(bound)) => Some(value.cmp(&bound)),
        (Some(value), None) => against(value, bound.as_f64()?),
        (None, Some(bound)) => Some(against(bound, exact(value)?)?.reverse()),
        (None, None) => exact(value)?.partial_cmp(&bound.as_f64()?),
    }
}

/// A number with a fraction or exponent, unless it is so large that digits may have been lost.
fn exact(value: &Number) -> Option<f64> {
    value.as_f64().filter(|value| value.abs() < EXACT)
}

/// Compares a whole number with a fraction, exactly.
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
