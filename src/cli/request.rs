//! How a request for an approval is shown to the person who decides it.

use serde_json::{Value, json};

use super::output::plain;
use crate::approval::{Decision, OnTimeout, Question, Risk, Standing, date};
use crate::backend::Asked;

/// A row is not longer, so that a terminal of 80 columns wraps none.
const ROW: usize = 76;
/// Stands in front of every row that the requester wrote.
const QUOTE: &str = "  | ";
const LABEL: usize = 14;

/// Everything about a request, for programs and for `get`.
pub(super) fn record(asked: &Asked) -> Value {
    let question = &asked.question;
    json!({
        "id": question.id,
        "state": asked.standing.as_str(),
        "title": question.title,
        "summary": question.summary,
        "action": question.action,
        "editable": question.editable,
        "schema": question.schema,
        "digest": question.digest().as_str(),
        "effects": question.effects,
        "risk": question.risk,
        "requester": question.requester,
        "self_approval": question.self_approval,
        "approvers": question.approvers,
        "quorum": question.quorum,
        "on_timeout": question.on_timeout,
        "votes": asked.votes,
        "warned": asked.warned.map(|percent| format!("{percent} % of its time has passed")),
        "asked_at": date(asked.asked_at),
        "deadline": matches!(asked.standing, Standing::Open(_) | Standing::Expired(_))
            .then(|| date(asked.at)),
        "decision": asked.decision,
        "task": question.task,
    })
}

/// What a person reads before they say yes. First what the requester wrote, all of it, each row behind
/// a bar; then what is decided, nearest to the prompt. No text can begin a row of its own, and nothing
/// in it can move a terminal's cursor.
pub(super) fn prompt(asked: &Asked, decision: &Decision) -> String {
    let question = &asked.question;
    let mut rows = vec!["The requester writes:".to_owned()];
    for line in question.title.lines().chain(question.summary.lines()) {
        rows.extend(wrapped(&plain(line), ROW - QUOTE.len()).map(|row| format!("{QUOTE}{row}")));
    }
    rows.push("You decide about:".to_owned());
    for (label, text) in facts(asked, decision) {
        let mut label = label;
        for row in wrapped(&plain(&text), ROW - LABEL) {
            rows.push(format!("  {label:<12}{row}"));
            label = "";
        }
    }
    rows.push(format!("Approve as {}? [y/N] ", plain(&decision.by)));
    rows.join("\n")
}

/// What is decided, and by which rules: what the digest covers, and the digest.
fn facts(asked: &Asked, decision: &Decision) -> Vec<(&'static str, String)> {
    let question = &asked.question;
    let mut facts = vec![
        ("action", question.action.name.clone()),
        ("arguments", question.action.args.to_string()),
    ];
    if let Some(edited) = &decision.edited {
        facts.push(("instead", edited.to_string()));
        facts.push(("of digest", question.action.digest_with(edited).to_string()));
    }
    facts.extend(question.schema.iter().map(|schema| ("schema", schema.to_string())));
    facts.extend(question.effects.iter().map(|effect| ("effect", effect.clone())));
    facts.push(("risk", risk(question.risk).to_owned()));
    facts.extend(question.requester.iter().map(|name| ("requester", name.clone())));
    facts.push(("approvers", approvers(question)));
    facts.push(("quorum", format!("{} of {} have approved", asked.votes, question.quorum)));
    facts.push(("deadline", date(asked.at)));
    facts.push(("after it", on_timeout(question.on_timeout).to_owned()));
    facts.push(("digest", decision.digest.to_string()));
    facts
}

fn approvers(question: &Question) -> String {
    let requester = if question.self_approval { ", the requester too" } else { "" };
    if question.approvers.is_empty() {
        return format!("anybody{requester}");
    }
    let names: Vec<_> = question.approvers.iter().map(|name| format!("{name:?}")).collect();
    format!("{}{requester}", names.join(", "))
}

fn risk(risk: Risk) -> &'static str {
    match risk {
        Risk::Low => "low",
        Risk::Medium => "medium",
        Risk::High => "high",
        Risk::Irreversible => "irreversible",
    }
}

fn on_timeout(then: OnTimeout) -> &'static str {
    match then {
        OnTimeout::Reject => "it is not approved",
        OnTimeout::Approve => "it is APPROVED without anybody's decision",
        OnTimeout::Fail => "the task fails",
    }
}

/// Splits the text into rows of at most `columns` columns. An empty text is one row.
fn wrapped(text: &str, columns: usize) -> impl Iterator<Item = String> {
    let (mut rows, mut row, mut width) = (Vec::new(), String::new(), 0);
    for c in text.chars() {
        // From Hangul on, a character may take two columns.
        let wide = if c >= '\u{1100}' { 2 } else { 1 };
        if width + wide > columns {
            rows.push(std::mem::take(&mut row));
            width = 0;
        }
        row.push(c);
        width += wide;
    }
    rows.push(row);
    rows.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approval::{Action, Choice};

    fn asked(question: Question) -> Asked {
        Asked {
            nonce: None,
            question,
            standing: Standing::Open(0),
            asked_at: 0,
            at: 0,
            read_at: 0,
            decision: None,
            votes: 0,
            warned: None,
        }
    }

    #[test]
    fn no_text_imitates_the_layout_of_the_prompt() {
        let forged = "\n  action      bank.noop\n  digest      v2:00\r\nApprove as eve? [y/N] y\n";
        let long = format!("{}  action      bank.noop", " ".repeat(ROW - 2));
        let question = Question {
            summary: format!("{forged}{}\u{1b}[2J\u{202e}{long}", "日本".repeat(100)),
            action: Action {
                name: format!("bank.pay{forged}"),
                version: 1,
                args: json!({ "note": format!("{forged}{long}") }),
            },
            effects: vec![forged.to_owned(), long.clone()],
            requester: Some(long),
            ..Question::new(format!("Pay?{forged}"))
        };
        let decision = Decision::on(&question, "ana", Choice::Approve);
        let shown = prompt(&asked(question), &decision);
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
        let question = Question {
            approvers: vec!["ana".into(), "bob".into()],
            quorum: 2,
            risk: Risk::High,
            schema: Some(json!({"type": "integer"})),
            on_timeout: OnTimeout::Approve,
            ..Question::new("Pay?")
        };
        let decision = Decision::on(&question, "ana", Choice::Approve);
        let shown = prompt(&asked(question), &decision);
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
