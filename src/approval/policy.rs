//! Rules by which questions are decided without a person. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Number, Value};

use super::{Choice, Decision, Question, Risk};

/// A rule: what it matches, and what is said to that. Everything that is given must match. The
/// first of several rules that matches counts.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoPolicy {
    /// It decides as `policy:NAME`.
    pub name: String,
    /// The name of the task that asks; `*` stands for any text. A question from outside has none.
    pub task: Option<String>,
    /// The name of the action; `*` stands for any text.
    pub action: Option<String>,
    /// Who wants it; `*` stands for any text. A question without a requester has none.
    pub requester: Option<String>,
    /// The risk is this at most. A rule that approves matches nothing irreversible unless this
    /// says so.
    pub max_risk: Option<Risk>,
    /// By JSON pointer into the action's arguments: a number that is there, and not below.
    pub min: BTreeMap<String, Number>,
    /// By JSON pointer into the action's arguments: a number that is there, and not above.
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

impl AutoPolicy {
    /// The decision that the first of these rules that matches makes, if one does.
    #[must_use]
    pub fn decide(policies: &[Self], question: &Question) -> Option<Decision> {
        policies.iter().find(|policy| policy.matches(question))?.decision(question)
    }

    /// Whether everything that is given matches.
    #[must_use]
    pub fn matches(&self, question: &Question) -> bool {
        let fits = |pattern: &Option<String>, text: Option<&str>| {
            pattern.as_ref().is_none_or(|it| text.is_some_and(|text| is_like(it, text)))
        };
        let bound = |bounds: &BTreeMap<String, Number>, beyond: Ordering| {
            bounds.iter().all(|(pointer, bound)| {
                let value = question.action.args.pointer(pointer).and_then(Value::as_number);
                let order = value.and_then(|value| compare(value, bound));
                order.is_some_and(|order| order != beyond)
            })
        };
        fits(&self.task, question.task_name.as_deref())
            && fits(&self.action, Some(&question.action.name))
            && fits(&self.requester, question.requester.as_deref())
            && question.risk <= self.risk()
            && bound(&self.min, Ordering::Less)
            && bound(&self.max, Ordering::Greater)
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

/// Whole numbers exactly, others as near as they are.
fn compare(a: &Number, b: &Number) -> Option<Ordering> {
    let whole = |it: &Number| it.as_i64().map(i128::from).or(it.as_u64().map(i128::from));
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::approval::Action;

    fn payment(cents: impl Into<Value>) -> Question {
        let cents = cents.into();
        Question {
            task_name: Some("billing.refund".into()),
            action: Action { name: "bank.pay".into(), version: 1, args: json!({"cents": cents}) },
            requester: Some("rita".into()),
            ..Question::new("Pay?")
        }
    }

    fn policy(then: Then) -> AutoPolicy {
        AutoPolicy {
            name: "small".into(),
            task: None,
            action: None,
            requester: None,
            max_risk: None,
            min: BTreeMap::new(),
            max: BTreeMap::new(),
            in_quorum: false,
            then,
            reason: None,
        }
    }

    #[test]
    fn a_star_is_any_text() {
        for (pattern, text, fits) in [
            ("bank.pay", "bank.pay", true),
            ("bank.pay", "bank.payout", false),
            ("bank.*", "bank.", true),
            ("bank.*", "abank.pay", false),
            ("*.pay", "bank.pay", true),
            ("*.pay", "bank.payee", false),
            ("b*k*y", "bank.pay", true),
            ("b*k*k", "bank", false),
            ("a*a", "a", false),
            ("**", "", true),
            ("", "", true),
            ("", "a", false),
            ("ä*ö", "äüö", true),
        ] {
            assert_eq!(is_like(pattern, text), fits, "{pattern} and {text}");
        }
    }

    #[test]
    fn everything_that_is_given_must_match() {
        let all = AutoPolicy {
            task: Some("billing.*".into()),
            action: Some("bank.pay".into()),
            requester: Some("r*".into()),
            max_risk: Some(Risk::Medium),
            max: [("/cents".to_owned(), 5000.into())].into(),
            min: [("/cents".to_owned(), 1.into())].into(),
            ..policy(Then::Approve)
        };
        assert!(all.matches(&payment(json!(5000))));
        assert!(all.matches(&payment(json!(4999.5))));
        for cents in [json!(5001), json!(0), json!("5"), json!(null), json!(5000.01)] {
            assert!(!all.matches(&payment(cents.clone())), "{cents}");
        }
        let fitting = payment(json!(1));
        assert!(!all.matches(&Question { task_name: None, ..fitting.clone() }));
        assert!(!all.matches(&Question { requester: None, ..fitting.clone() }));
        assert!(!all.matches(&Question { risk: Risk::High, ..fitting.clone() }));
        let huge = AutoPolicy {
            max: [("/cents".to_owned(), 9_007_199_254_740_992_u64.into())].into(),
            ..policy(Then::Approve)
        };
        assert!(!huge.matches(&payment(json!(9_007_199_254_740_993_u64))), "as whole numbers");
    }

    #[test]
    fn nothing_irreversible_is_approved_unless_it_is_said() {
        let question = Question { risk: Risk::Irreversible, ..payment(json!(1)) };
        assert!(!policy(Then::Approve).matches(&question));
        assert!(policy(Then::Reject).matches(&question));
        assert!(policy(Then::Ask).matches(&question));
        let said = AutoPolicy { max_risk: Some(Risk::Irreversible), ..policy(Then::Approve) };
        assert!(said.matches(&question));
    }

    #[test]
    fn the_first_that_matches_counts_and_says_the_same_every_time() {
        let other = AutoPolicy { action: Some("other".into()), ..policy(Then::Reject) };
        let asks = AutoPolicy { requester: Some("bob".into()), ..policy(Then::Ask) };
        let policies = [other, asks, policy(Then::Approve)];
        let decided = AutoPolicy::decide(&policies, &payment(json!(1))).unwrap();
        assert_eq!((decided.by.as_str(), decided.choice), ("policy:small", Choice::Approve));
        assert_eq!(AutoPolicy::decide(&policies, &payment(json!(1))).unwrap().id, decided.id);
        let bobs = Question { requester: Some("bob".into()), ..payment(json!(1)) };
        assert_eq!(AutoPolicy::decide(&policies, &bobs), None);
        assert_eq!(AutoPolicy::decide(&[], &bobs), None);
    }
}
