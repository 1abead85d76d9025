//! The keys of approval requests and suspensions, and the form in which scripts take and return them.

use std::borrow::Cow;

use jiff::Timestamp;
use redis::Pipeline;

use crate::approval::{
    ApprovalId, ApprovalOutcome, ApprovalRequest, ApprovalStatus, DecisionKind, Digest, timestamp,
};
use crate::backend::approvals::{nonce, stored_request, unreadable};
use crate::backend::milliseconds::milliseconds;
use crate::backend::{ApprovalRecord, Lookup};
use crate::task::TaskId;

pub(super) const PENDING: &str = "cs:pending:{cs}";
/// The channel that announces decisions.
pub(super) const DECIDED_CHANNEL: &str = "cs:decided";
/// The channel that announces new requests: `suspend.lua` and `request.lua` publish there.
pub(super) const NEW_REQUEST_CHANNEL: &str = "cs:asked";
pub(super) const OUTBOX: &str = "cs:outbox:{cs}";

/// The key of a task's suspension record.
pub(super) fn suspension_key(id: &TaskId) -> String {
    format!("cs:park:{{cs}}:{id}")
}

/// Adds the ten arguments that `suspend.lua` and `request.lua` read for a request.
pub(super) fn add_request(eval: &mut Pipeline, approval: &ApprovalRequest) {
    let flag = |flag: bool| if flag { "1" } else { "0" };
    let names: String = approval.approvers.iter().map(|name| format!("{name}\n")).collect();
    let approvers = if names.is_empty() { names } else { format!("\n{names}") };
    eval.arg(approval.id.as_str()).arg(approval.digest().as_str());
    eval.arg(serde_json::to_string(approval).unwrap_or_default());
    eval.arg(milliseconds(approval.expires_in)).arg(approval.quorum);
    eval.arg(approval.requester.as_deref().unwrap_or_default());
    eval.arg(flag(approval.self_approval)).arg(approvers).arg(flag(approval.editable));
    eval.arg(nonce());
}

/// Decodes outcomes, five texts each. Unreadable outcomes are skipped.
pub(super) fn read_outcomes(texts: &[String]) -> Vec<ApprovalOutcome> {
    let read = |texts: &[String]| {
        let [id, digest, state, at, document] = texts else { return None };
        let at = timestamp(at.parse().ok()?);
        Some(ApprovalOutcome {
            approval: ApprovalId::parse(id)?,
            digest: Digest::from(digest.clone()),
            status: status(state, at)?,
            at,
            decision: serde_json::from_str(document).ok(),
        })
    };
    texts.chunks(5).filter_map(read).collect()
}

/// Decodes a time in milliseconds; an unreadable one is the epoch.
pub(super) fn time(text: &str) -> Timestamp {
    timestamp(text.parse().unwrap_or(0))
}

fn status(state: &str, at: Timestamp) -> Option<ApprovalStatus> {
    match state {
        "open" => Some(ApprovalStatus::Open(at)),
        "expired" => Some(ApprovalStatus::Expired(at)),
        choice => DecisionKind::named(choice).map(ApprovalStatus::Decided),
    }
}

/// Decodes a row of `read.lua`: nine texts, or two for an unreadable record.
pub(super) fn read_request(row: &[Vec<u8>]) -> Lookup {
    let texts: Vec<_> = row.iter().map(|text| String::from_utf8_lossy(text)).collect();
    let [state, at, document, decision, votes, requested_at, read_at, warned, nonce] =
        texts.as_slice()
    else {
        return match texts.as_slice() {
            // The state is unknown, so the request is listed as open.
            [_, why, ..] => {
                Lookup::Unreadable(ApprovalStatus::Open(Timestamp::UNIX_EPOCH), unreadable(why))
            }
            _ => Lookup::Nothing,
        };
    };
    let at = time(at);
    let Some(status) = status(state, at) else { return Lookup::Nothing };
    // Replacement characters would change the digest.
    let read = match document {
        Cow::Borrowed(document) => stored_request(document),
        Cow::Owned(_) => Err(unreadable("it is not UTF-8")),
    };
    let request = match read {
        Ok(request) => request,
        Err(error) => return Lookup::Unreadable(status, error),
    };
    Lookup::Found(Box::new(ApprovalRecord {
        request,
        nonce: Some(nonce.clone().into_owned()).filter(|nonce| !nonce.is_empty()),
        status,
        requested_at: time(requested_at),
        at,
        read_at: time(read_at),
        decision: serde_json::from_str(decision).ok(),
        votes: votes.parse().unwrap_or(0),
        warned: warned.parse().ok(),
    }))
}
