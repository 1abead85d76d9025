//! Policies that decide approval requests automatically: `[[approvals.policy]]`, in order.

use std::collections::BTreeMap;

use serde_json::Number;

use super::settings::nearest;
use super::sources::{SourcedValue, Table};
use crate::approval::{AutoPolicy, MAX_REASON, PolicyAction, Risk, name_fault};

/// Their key in `countersign.toml`.
pub(super) const POLICIES: &str = "approvals.policy";
const KEYS: [&str; 10] = [
    "name",
    "task",
    "action",
    "requester",
    "max_risk",
    "min",
    "max",
    "in_quorum",
    "then",
    "reason",
];
const BOOLEANS: [(&str, bool); 2] = [("true", true), ("false", false)];
const RISKS: [(&str, Risk); 4] = [
    ("low", Risk::Low),
    ("medium", Risk::Medium),
    ("high", Risk::High),
    ("irreversible", Risk::Irreversible),
];
const ACTIONS: [(&str, PolicyAction); 3] = [
    ("approve", PolicyAction::Approve),
    ("reject", PolicyAction::Reject),
    ("ask", PolicyAction::Ask),
];

/// Reads all policies; adds their errors to `faults`.
pub(super) fn read(tables: &[Table], faults: &mut Vec<String>) -> Vec<AutoPolicy> {
    let policies: Vec<_> = tables.iter().map(|table| policy(table, faults)).collect();
    for (n, policy) in policies.iter().enumerate() {
        if policies[..n].iter().any(|other| other.name == policy.name) && !policy.name.is_empty() {
            let (place, name) = (&tables[n].origin, &policy.name);
            faults.push(format!("{place}: there is another {POLICIES} called {name:?}"));
        }
    }
    policies
}

fn policy(table: &Table, faults: &mut Vec<String>) -> AutoPolicy {
    let mut read = Fields { table, faults };
    let policy = AutoPolicy {
        name: read.text("name").unwrap_or_default(),
        task: read.text("task"),
        action: read.text("action"),
        requester: read.text("requester"),
        max_risk: read.one_of("max_risk", &RISKS),
        min: read.bounds("min."),
        max: read.bounds("max."),
        in_quorum: read.one_of("in_quorum", &BOOLEANS).unwrap_or(false),
        then: read.one_of("then", &ACTIONS).unwrap_or(PolicyAction::Ask),
        reason: read.text("reason").filter(|reason| !reason.trim().is_empty()),
    };
    read.refuse_unknown();
    read.check(&policy);
    policy
}

/// The keys of one table, and the errors found in it.
struct Fields<'t> {
    table: &'t Table,
    faults: &'t mut Vec<String>,
}

impl Fields<'_> {
    fn text(&self, key: &str) -> Option<String> {
        self.table.keys.get(key).map(|given| given.value.clone())
    }

    fn one_of<T: Copy>(&mut self, key: &str, known: &[(&str, T)]) -> Option<T> {
        let SourcedValue { value, origin } = self.table.keys.get(key)?;
        let found = known.iter().find(|(word, _)| word == value).map(|(_, one)| *one);
        if found.is_none() {
            let words = known.iter().map(|(word, _)| *word);
            let near = nearest(value, words.clone());
            let words = words.collect::<Vec<_>>().join(", ");
            self.faults.push(format!("{origin}: {key} is {value:?}: it is one of {words}{near}"));
        }
        found
    }

    /// Reads numbers by JSON pointer.
    fn bounds(&mut self, prefix: &str) -> BTreeMap<String, Number> {
        let mut bounds = BTreeMap::new();
        for (key, SourcedValue { value, origin }) in &self.table.keys {
            let Some(pointer) = key.strip_prefix(prefix) else { continue };
            if !pointer.starts_with('/') {
                self.faults.push(format!(
                    "{origin}: {pointer:?} is not a JSON pointer into the action's arguments, such as \
                     \"/cents\""
                ));
            }
            let is_whole = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
            // As a float, a whole number outside of 64 bits would lose its last digits.
            let fraction = || value.parse().ok().filter(|_| !is_whole).and_then(Number::from_f64);
            let unsigned = || value.parse::<u64>().ok().map(Number::from);
            let number = value.parse::<i64>().ok().map(Number::from);
            match number.or_else(unsigned).or_else(fraction) {
                Some(number) => drop(bounds.insert(pointer.to_owned(), number)),
                None => self.faults.push(format!("{origin}: {value:?} is not a number")),
            }
        }
        bounds
    }

    fn refuse_unknown(&mut self) {
        for (key, SourcedValue { origin, .. }) in &self.table.keys {
            let head = key.split('.').next().unwrap_or_default();
            let is_table = matches!(head, "min" | "max");
            let is_known = KEYS.contains(&head) && is_table == key.contains('.');
            if !is_known && is_table {
                let fault = format!("{origin}: {head} is a table, such as {{ \"/cents\" = 5000 }}");
                self.faults.push(fault);
            } else if !is_known {
                let near = nearest(key, KEYS);
                self.faults.push(format!("{origin}: no key of a policy is called {key}{near}"));
            }
        }
    }

    fn check(&mut self, policy: &AutoPolicy) {
        let name = self.table.keys.get("name");
        let place = name.map_or(&self.table.origin, |given| &given.origin).clone();
        let mut fault = |why: &str| self.faults.push(format!("{place}: {why}"));
        if name.is_none() {
            fault("a policy needs a name: it decides as policy:NAME");
        } else if let Some(why) = name_fault(&policy.name) {
            fault(&format!("a policy decides as policy:NAME, and this name is invalid: {why}"));
        }
        if !self.table.keys.contains_key("then") {
            fault("a policy needs `then`: approve, reject or ask");
        }
        if policy.then == PolicyAction::Reject && policy.reason.is_none() {
            fault("a policy that rejects needs a reason: the requester sees it");
        }
        if policy.reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON) {
            fault(&format!("the reason is over {MAX_REASON} bytes: no decision can carry it"));
        }
        if policy.then == PolicyAction::Approve && policy.task.is_none() && policy.action.is_none()
        {
            fault("a policy that approves needs a task or an action; \"*\" matches any");
        }
    }
}
