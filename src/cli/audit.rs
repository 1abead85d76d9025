//! `countersign approvals audit`: who did what, and whether that is as it was sealed.

use std::fs;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::exit;
use super::output::Format;
use crate::approval::{AuditEntry, Seal, date};
use crate::client::Client;
use crate::error::{Error, Kind};

/// An exported seal is far shorter.
const MAX_SEAL: u64 = 4096;

#[derive(Debug, Args)]
pub(super) struct Audit {
    /// At most so many entries
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Find sealed entries that were altered, removed or reordered; exit code 1 if there are any
    #[arg(long)]
    verify: bool,
    /// A seal that was exported earlier: find a tail that was cut since then, too
    #[arg(long, value_name = "FILE", requires = "verify")]
    seal: Option<String>,
    /// Write the newest seal to a file. Keep it where nobody who can write to Redis can write
    #[arg(long, value_name = "FILE", conflicts_with = "verify")]
    export_seal: Option<String>,
}

impl Audit {
    pub(super) async fn perform(self, client: &Client, format: Format) -> Result<ExitCode, Error> {
        if let Some(path) = self.export_seal {
            return export(client, &path, format).await;
        }
        if self.verify {
            return verify(client, self.seal.as_deref(), format).await;
        }
        let entries = client.audit_entries(self.limit).await?;
        let records: Vec<_> = entries.into_iter().map(record).collect();
        format.print_list(&["at", "what", "by", "approval", "task", "edited_digest"], &records);
        Ok(ExitCode::SUCCESS)
    }
}

fn record(AuditEntry { id, at, fields }: AuditEntry) -> Value {
    let mut record = json!({ "entry": id, "at": date(at) });
    for (name, value) in fields {
        record[name] = value.into();
    }
    record
}

async fn verify(client: &Client, path: Option<&str>, format: Format) -> Result<ExitCode, Error> {
    let exported = path.map(read).transpose()?;
    let verified = client.verify_audit(exported.as_ref()).await?;
    format.print(&[json!({
        "unchanged": verified.faults.is_empty(),
        "sealed": verified.sealed,
        "unsealed": verified.unsealed,
        "seals": verified.seals,
        "faults": verified.faults,
    })]);
    Ok(ExitCode::from(if verified.faults.is_empty() { 0 } else { exit::FAILURE }))
}

async fn export(client: &Client, path: &str, format: Format) -> Result<ExitCode, Error> {
    let Some(seal) = client.newest_seal().await? else {
        let told = "nothing is sealed yet: countersign approvals clerk seals the audit";
        return Err(Kind::Decision(told.to_owned()).into());
    };
    let record = json!(seal);
    fs::write(path, format!("{record}\n")).map_err(|error| unusable("write", path, &error))?;
    format.print(&[record]);
    Ok(ExitCode::SUCCESS)
}

fn read(path: &str) -> Result<Seal, Error> {
    let size = fs::metadata(path).map_err(|error| unusable("read", path, &error))?.len();
    if size > MAX_SEAL {
        return Err(unusable("read", path, &"it is no exported seal"));
    }
    let text = fs::read_to_string(path).map_err(|error| unusable("read", path, &error))?;
    serde_json::from_str(&text).map_err(|error| unusable("read", path, &error))
}

fn unusable(what: &str, path: &str, why: &dyn std::fmt::Display) -> Error {
    Kind::Decision(format!("cannot {what} the seal in {path}: {why}")).into()
}
