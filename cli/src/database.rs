//! `countersign db`: copies, checks and compacts the file of the embedded backend.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use countersign::backend::database;
use countersign::cli::exit;
use countersign::config::Config;
use countersign::error::Error;
use countersign::unstable::config_error;
use serde_json::json;

use crate::output::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum Database {
    /// Copy the database to a new file while workers use it. Copying the file itself is not safe: the newest
    /// tasks and results may be in the `-wal` file next to it
    Backup {
        /// The new file; it must not exist
        file: PathBuf,
    },
    /// Check that the database is not corrupt and that its tables are consistent; exit code 1 if not
    Check,
    /// Rewrite the database without its unused pages; afterwards it shrinks automatically. Workers cannot
    /// write during that time, and retry
    Compact,
}

impl Database {
    pub(crate) fn perform(self, config: &Config, format: Format) -> Result<ExitCode, Error> {
        let path = file_of(config)?;
        match self {
            Self::Backup { file } => {
                let bytes = database::back_up(&path, &file)?;
                format.print(&json!({ "database": path, "backup": file, "bytes": bytes }));
                Ok(ExitCode::SUCCESS)
            }
            Self::Check => {
                let checked = database::check(&path)?;
                let is_sound = checked.iter().all(|it| it.faults.is_empty());
                let records: Vec<_> = checked
                    .into_iter()
                    .map(|it| json!({ "ok": it.faults.is_empty(), "what": it.what, "faults": it.faults }))
                    .collect();
                format.print_findings(&["ok", "what", "faults"], &records);
                Ok(ExitCode::from(if is_sound { 0 } else { exit::FAILURE }))
            }
            Self::Compact => {
                let (before, after) = database::compact(&path)?;
                format.print(&json!({ "database": path, "bytes": after, "before": before }));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn file_of(config: &Config) -> Result<PathBuf, Error> {
    let fault = if config.is_embedded() {
        match database::file_of(config.broker_url.reveal()) {
            Some(path) => return Ok(path),
            None => "a database in memory is gone with its process: there is no file".to_owned(),
        }
    } else {
        format!(
            "broker.url is {}: `db` is for the embedded backend (--broker sqlite:FILE); RabbitMQ and \
             Redis have backups of their own",
            config.broker_url
        )
    };
    Err(config_error(fault))
}
