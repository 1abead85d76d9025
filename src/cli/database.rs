//! `countersign db`: the file of the embedded backend is copied, checked and rewritten.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::output::Format;
use crate::config::Config;
use crate::error::{Error, Kind};

#[derive(Debug, Subcommand)]
pub(super) enum Database {
    /// Copy the database to a new file, while workers use it. Copying the file itself is not safe:
    /// the newest tasks and results may be in the file `-wal` beside it
    Backup {
        /// The new file; it must not exist
        file: PathBuf,
    },
    /// Check that the database is undamaged and that its tables agree; exit code 1 if not
    Check,
    /// Rewrite the database without its unused pages, so that it shrinks by itself from then on.
    /// Workers cannot write during that time, and retry
    Compact,
}

impl Database {
    #[cfg(feature = "embedded")]
    pub(super) fn perform(self, config: &Config, format: Format) -> Result<ExitCode, Error> {
        use serde_json::json;

        use super::exit;
        use crate::backend::database;

        let path = file_of(config)?;
        match self {
            Self::Backup { file } => {
                let bytes = database::back_up(&path, &file)?;
                format.print(&[json!({ "database": path, "backup": file, "bytes": bytes })]);
                Ok(ExitCode::SUCCESS)
            }
            Self::Check => {
                let checked = database::check(&path)?;
                let is_sound = checked.iter().all(|it| it.faults.is_empty());
                let records: Vec<_> = checked
                    .into_iter()
                    .map(|it| json!({ "ok": it.faults.is_empty(), "what": it.what, "faults": it.faults }))
                    .collect();
                format.print_list(&["ok", "what", "faults"], &records);
                Ok(ExitCode::from(if is_sound { 0 } else { exit::FAILURE }))
            }
            Self::Compact => {
                let (before, after) = database::compact(&path)?;
                format.print(&[json!({ "database": path, "bytes": after, "before": before })]);
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    #[cfg(not(feature = "embedded"))]
    pub(super) fn perform(self, _: &Config, _: Format) -> Result<ExitCode, Error> {
        let fault = "this build has no database: build countersign with feature `embedded`";
        Err(Kind::Config(vec![fault.into()]).into())
    }
}

#[cfg(feature = "embedded")]
fn file_of(config: &Config) -> Result<PathBuf, Error> {
    let fault = if config.is_embedded() {
        match crate::backend::database::file_of(config.broker_url.reveal()) {
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
    Err(Kind::Config(vec![fault]).into())
}
