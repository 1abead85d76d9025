//! `countersign policies`: shows which rule of a settings file decides a request, and why.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use countersign::approval::{
    Action, ApprovalRequest, AutoPolicy, DecisionKind, PolicyAction, Risk, RuleCheck,
};
use countersign::cli::plain::plain;
use countersign::cli::{exit, streams};
use countersign::config::Config;
use countersign::error::Error;
use countersign::task::TaskId;
use serde_json::{Value, json};

use crate::output::Format;

const EXAMPLES: &str = "Examples:
  countersign policies test countersign.toml --task bank.pay --args '{\"cents\": 25000}'
  countersign policies test countersign.toml --task bank.pay --args '[25000, \"bob\"]' \\
      --parameters cents,to
  countersign policies test countersign.toml --task bank.pay --args '[]' --kwargs '{\"cents\": 25000}'";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Policies {
    /// Show which rule of a settings file decides a request, and why the others do not
    Test(Box<Test>),
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// The settings file with the rules
    file: String,
    /// The name of the requesting task
    #[arg(long)]
    task: String,
    /// The task's positional arguments as a JSON array; or, as any other JSON, the action's arguments
    #[arg(long, value_name = "JSON", value_parser = json_value)]
    args: Value,
    /// The task's keyword arguments as a JSON object
    #[arg(long, value_name = "JSON", value_parser = json_value)]
    kwargs: Option<Value>,
    /// The names of the task's parameters, in order; a worker reads them from the task's type
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    parameters: Vec<String>,
    /// The name of the action, if it is not the task itself
    #[arg(long, value_name = "NAME")]
    action: Option<String>,
    /// The requester
    #[arg(long, value_name = "NAME")]
    requester: Option<String>,
    /// The risk: low, medium, high or irreversible
    #[arg(long, default_value = "medium", value_parser = risk)]
    risk: Risk,
}

impl Policies {
    pub(crate) fn perform(self, format: Format) -> Result<ExitCode, Error> {
        let Self::Test(test) = self;
        let policies = Config::policies_in(&test.file)?;
        match test.request() {
            Ok(request) => {
                explain(&policies, &request, format);
                Ok(ExitCode::SUCCESS)
            }
            Err(fault) => {
                streams::note(format_args!("countersign: {fault}"));
                Ok(ExitCode::from(exit::USAGE))
            }
        }
    }
}

impl Test {
    /// Returns the request that a task makes with these arguments.
    fn request(self) -> Result<ApprovalRequest, &'static str> {
        let Self { task, args, kwargs, parameters, action, requester, risk, .. } = self;
        let args = match (args, kwargs) {
            (args, Some(kwargs)) if args.is_array() && kwargs.is_object() => {
                json!({ "args": args, "kwargs": kwargs })
            }
            (_, Some(_)) => {
                return Err("--kwargs must be a JSON object, and --args with it a JSON array");
            }
            (args, None) if args.is_array() && action.is_none() => {
                json!({ "args": args, "kwargs": {} })
            }
            (args, None) => args,
        };
        let name = action.unwrap_or_else(|| task.clone());
        Ok(ApprovalRequest {
            task: Some(TaskId::from("test")),
            task_name: Some(task),
            action: Action { name, version: 1, args },
            requester,
            risk,
            parameters,
            ..ApprovalRequest::new("test")
        })
    }
}

/// Prints every rule, and finally the decision.
fn explain(policies: &[AutoPolicy], request: &ApprovalRequest, format: Format) {
    let checks: Vec<_> = policies.iter().map(|policy| policy.check(request)).collect();
    let first = checks.iter().position(|check| check.matches);
    let mut records: Vec<_> =
        checks.iter().enumerate().map(|(n, check)| record(check, Some(n) == first)).collect();
    let decision = AutoPolicy::decide(policies, request);
    let (then, why) = match (&decision, first) {
        (Some(decision), _) => {
            let word = if decision.choice == DecisionKind::Approve { "approve" } else { "reject" };
            (word, format!("decided by {}", decision.by))
        }
        (None, Some(n)) => {
            ("ask", format!("rule {:?} leaves the decision to the approvers", policies[n].name))
        }
        (None, None) => ("ask", "no rule matches: the approvers decide".to_owned()),
    };
    records.push(json!({ "rule": "(result)", "then": then, "fires": true, "matches": true,
        "why": plain(&why) }));
    format.print_findings(&["rule", "then", "fires", "why"], &records);
}

fn record(check: &RuleCheck, fires: bool) -> Value {
    let why = match (check.matches, check.notes.is_empty()) {
        (true, true) => "all conditions match".to_owned(),
        _ => check.notes.join("; "),
    };
    let then = match check.then {
        PolicyAction::Approve => "approve",
        PolicyAction::Reject => "reject",
        PolicyAction::Ask => "ask",
        _ => "unknown",
    };
    json!({ "rule": check.name, "then": then, "fires": fires, "matches": check.matches, "why": why })
}

fn json_value(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn risk(text: &str) -> Result<Risk, String> {
    let known = "it is one of low, medium, high, irreversible";
    serde_json::from_value(json!(text)).map_err(|_| known.to_owned())
}
