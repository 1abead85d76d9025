//! `countersign approvals audit`: shows the audit, and verifies its seals.

use std::fs;
use std::process::ExitCode;

use clap::Args;
use countersign::approval::{AuditEntry, Seal};
use countersign::cli::{exit, streams};
use countersign::client::Client;
use countersign::error::Error;
use countersign::unstable::decision_error;
use serde_json::{Value, json};

use crate::output::Format;

/// The maximum size of a seal file; exported seals are far shorter.
const MAX_SEAL: u64 = 4096;

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Show at most this many entries
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Find sealed entries that were altered, removed or reordered; exit code 1 if there are any
    #[arg(long)]
    verify: bool,
    /// A seal that was exported earlier: also find a truncation since then
    #[arg(long, value_name = "FILE", requires = "verify")]
    seal: Option<String>,
    /// Write the newest seal to a file. Store it where users with write access to Redis cannot write
    #[arg(long, value_name = "FILE", conflicts_with = "verify")]
    export_seal: Option<String>,
}

impl Audit {
    pub(crate) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        if let Some(path) = self.export_seal {
            return export(client, &path, format).await;
        }
        if self.verify {
            return verify(client, self.seal.as_deref(), format).await;
        }
        let entries = client.audit_entries(self.limit).await?;
        let records: Vec<_> = entries.into_iter().map(record).collect();
        let columns = ["at", "kind", "what", "by", "approval", "task", "edited_digest"];
        format.print_list(&columns, &records);
        streams::note_if_full(records.len(), self.limit);
        Ok(ExitCode::SUCCESS)
    }
}

fn record(AuditEntry { id, kind, at, fields }: AuditEntry) -> Value {
    let mut record = json!({ "entry": id, "at": at, "kind": kind.as_str() });
    for (name, value) in fields {
        // A worker may write a note whose fields claim to be a decision.
        if record[&name].is_null() {
            record[name] = value.into();
        }
    }
    record
}

async fn verify(client: &Client, path: Option<&str>, format: Format) -> Result<ExitCode, Error> {
    let exported = path.map(read).transpose()?;
    let verified = client.verify_audit(exported.as_ref()).await?;
    format.print(&json!({
        "unchanged": verified.faults.is_empty(),
        "sealed": verified.sealed,
        "unsealed": verified.unsealed,
        "seals": verified.seals,
        "faults": verified.faults,
    }));
    Ok(ExitCode::from(if verified.faults.is_empty() { 0 } else { exit::FAILURE }))
}

async fn export(client: &Client, path: &str, format: Format) -> Result<ExitCode, Error> {
    let Some(seal) = client.newest_seal().await? else {
        let fault = "there is no seal yet: countersign approvals serve seals the audit";
        return Err(decision_error(fault));
    };
    let record = json!(seal);
    fs::write(path, format!("{record}\n")).map_err(|error| unusable("write", path, &error))?;
    format.print(&record);
    Ok(ExitCode::SUCCESS)
}

fn read(path: &str) -> Result<Seal, Error> {
    let size = fs::metadata(path).map_err(|error| unusable("read", path, &error))?.len();
    if size > MAX_SEAL {
        return Err(unusable("read", path, &"it is not an exported seal"));
    }
    let text = fs::read_to_string(path).map_err(|error| unusable("read", path, &error))?;
    serde_json::from_str(&text).map_err(|error| unusable("read", path, &error))
}

fn unusable(what: &str, path: &str, why: &dyn std::fmt::Display) -> Error {
    decision_error(format!("cannot {what} the seal in {path}: {why}"))
}
