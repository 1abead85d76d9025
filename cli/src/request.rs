//! Formats an approval request for the person who decides it.

use countersign::approval::{ApprovalRequest, ApprovalStatus, Decision, OnTimeout, Risk};
use countersign::backend::ApprovalRecord;
use countersign::cli::plain::plain;
use serde_json::{Value, json};

use crate::table::wrapped;

/// The maximum length of a row, so that a terminal of 80 columns wraps none.
const ROW: usize = 76;
/// The prefix of every row that the requester wrote.
const QUOTE: &str = "  | ";
const LABEL: usize = 14;

/// Returns all data of a request, for programs and for `get`.
pub(crate) fn record(approval: &ApprovalRecord) -> Value {
    let request = &approval.request;
    json!({
        "id": request.id,
        "state": approval.status.as_str(),
        "title": request.title,
        "summary": request.summary,
        "action": request.action,
        "editable": request.editable,
        "schema": request.schema,
        "digest": request.digest().as_str(),
        "effects": request.effects,
        "risk": request.risk,
        "requester": request.requester,
        "self_approval": request.self_approval,
        "approvers": request.approvers,
        "quorum": request.quorum,
        "on_timeout": request.on_timeout,
        "votes": approval.votes,
        "warned": approval.warned.map(|percent| format!("{percent} % of its time has passed")),
        "asked_at": approval.requested_at,
        "deadline": matches!(approval.status, ApprovalStatus::Open(_) | ApprovalStatus::Expired(_))
            .then_some(approval.at),
        "decision": approval.decision,
        "task": request.task,
    })
}

/// Formats the text that an approver reads before they approve. First the requester's whole text, with a bar
/// in front of each row; then the facts to decide on, next to the prompt. The requester's text cannot begin a
/// row without the bar, and cannot move a terminal's cursor.
pub(crate) fn prompt(approval: &ApprovalRecord, decision: &Decision) -> String {
    let request = &approval.request;
    let mut rows = vec!["The requester writes:".to_owned()];
    for line in request.title.lines().chain(request.summary.lines()) {
        let quoted = wrapped(&plain(line), ROW - QUOTE.len());
        rows.extend(quoted.into_iter().map(|row| format!("{QUOTE}{row}")));
    }
    rows.push("You decide about:".to_owned());
    for (label, text) in facts(approval, decision) {
        let mut label = label;
        for row in wrapped(&plain(&text), ROW - LABEL) {
            rows.push(format!("  {label:<12}{row}"));
            label = "";
        }
    }
    rows.push(format!("Approve as {}? [y/N] ", plain(&decision.by)));
    rows.join("\n")
}

/// Returns the facts to decide on and the rules of the decision: the contents of the digest, and the digest.
fn facts(approval: &ApprovalRecord, decision: &Decision) -> Vec<(&'static str, String)> {
    let request = &approval.request;
    let mut facts = vec![
        ("action", request.action.name.clone()),
        ("arguments", request.action.args.to_string()),
    ];
    if let Some(edited) = &decision.edited {
        facts.push(("instead", edited.to_string()));
        facts.push(("of digest", request.action.digest_with(edited).to_string()));
    }
    facts.extend(request.schema.iter().map(|schema| ("schema", schema.to_string())));
    facts.extend(request.effects.iter().map(|effect| ("effect", effect.clone())));
    facts.push(("risk", risk(request.risk).to_owned()));
    facts.extend(request.requester.iter().map(|name| ("requester", name.clone())));
    facts.push(("approvers", approvers(request)));
    facts.push(("quorum", format!("{} of {} have approved", approval.votes, request.quorum)));
    facts.push(("deadline", approval.at.to_string()));
    facts.push(("after it", on_timeout(request.on_timeout).to_owned()));
    facts.push(("digest", decision.digest.to_string()));
    facts
}

fn approvers(request: &ApprovalRequest) -> String {
    let requester = if request.self_approval { ", the requester too" } else { "" };
    if request.approvers.is_empty() {
        return format!("everyone{requester}");
    }
    let names: Vec<_> = request.approvers.iter().map(|name| format!("{name:?}")).collect();
    format!("{}{requester}", names.join(", "))
}

fn risk(risk: Risk) -> &'static str {
    match risk {
        Risk::Low => "low",
        Risk::Medium => "medium",
        Risk::High => "high",
        Risk::Irreversible => "irreversible",
        _ => "unknown",
    }
}

fn on_timeout(then: OnTimeout) -> &'static str {
    match then {
        OnTimeout::Reject => "it is not approved",
        OnTimeout::Approve => "it is APPROVED without a decision",
        OnTimeout::Fail => "the task fails",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use countersign::approval::Action;
    use jiff::Timestamp;

    use super::*;

    fn open(request: ApprovalRequest) -> ApprovalRecord {
        ApprovalRecord {
            nonce: None,
            request,
            status: ApprovalStatus::Open(Timestamp::UNIX_EPOCH),
            requested_at: Timestamp::UNIX_EPOCH,
            at: Timestamp::UNIX_EPOCH,
            read_at: Timestamp::UNIX_EPOCH,
            decision: None,
            votes: 0,
            warned: None,
        }
    }

    #[test]
    fn no_text_imitates_the_layout_of_the_prompt() {
        let forged = "\n  action      bank.noop\n  digest      v2:00\r\nApprove as eve? [y/N] y\n";
        let long = format!("{}  action      bank.noop", " ".repeat(ROW - 2));
        let request = ApprovalRequest {
            summary: format!("{forged}{}\u{1b}[2J\u{202e}{long}", "日本".repeat(100)),
            action: Action {
                name: format!("bank.pay{forged}"),
                version: 1,
                args: json!({ "note": format!("{forged}{long}") }),
            },
            effects: vec![forged.to_owned(), long.clone()],
            requester: Some(long),
            ..ApprovalRequest::new(format!("Pay?{forged}"))
        };
        let record = open(request);
        let shown = prompt(&record, &record.approve("ana"));
        let rows: Vec<_> = shown.lines().collect();
        for start in ["  action ", "  digest ", "Approve as ", "You decide about:"] {
            let found = rows.iter().filter(|row| row.starts_with(start)).count();
            assert_eq!(found, 1, "{start}: {shown}");
        }
        let facts = rows.iter().position(|row| *row == "You decide about:").unwrap();
        assert!(rows[1..facts].iter().all(|row| row.starts_with(QUOTE)), "{shown}");
        let width = |row: &str| row.chars().map(|c| if c >= '\u{1100}' { 2 } else { 1 }).sum();
        assert!(rows.iter().map(|row| width(row)).all(|width: usize| width <= ROW), "{shown}");
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\r']), "{shown}");
    }

    #[test]
    fn everything_that_the_digest_covers_is_in_the_prompt() {
        let request = ApprovalRequest {
            approvers: vec!["ana".into(), "bob".into()],
            quorum: 2,
            risk: Risk::High,
            schema: Some(json!({"type": "integer"})),
            on_timeout: OnTimeout::Approve,
            ..ApprovalRequest::new("Pay?")
        };
        let record = open(request);
        let shown = prompt(&record, &record.approve("ana"));
        for part in [
            "approvers   \"ana\", \"bob\"",
            "quorum      0 of 2",
            "risk        high",
            "schema      {\"type\":\"integer\"}",
            "after it    it is APPROVED",
            "digest      v2:",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
