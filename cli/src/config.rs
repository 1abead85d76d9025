//! `countersign config`: shows and checks the settings and their sources.

use std::process::ExitCode;

use clap::Subcommand;
use countersign::config::{Config, SETTINGS};
use countersign::error::Error;
use serde_json::{Value, json};

use crate::dev;
use crate::output::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum Settings {
    /// Check the settings of this environment; reports all errors at once
    Check,
    /// List every setting: its name, its environment variable, its default, its description
    List,
    /// Show the value and source of every setting: command line, environment, file or default
    Show,
}

impl Settings {
    pub(crate) fn perform(
        self,
        flags: &[(&'static str, String)],
        format: Format,
    ) -> Result<ExitCode, Error> {
        match self {
            Self::Check => {
                let config = Config::load_or(flags, dev::default_database)?;
                let (broker, store) = (config.broker_url.to_string(), config.store_url.to_string());
                format.print(&json!({ "broker": broker, "store": store, "valid": true }));
            }
            Self::List => {
                let row = |setting: &countersign::config::Setting| {
                    json!({
                        "name": setting.name,
                        "environment": setting.env,
                        "default": setting.default,
                        "help": setting.help,
                    })
                };
                let names = ["name", "environment", "default", "help"];
                format.print_findings(&names, &SETTINGS.iter().map(row).collect::<Vec<Value>>());
            }
            Self::Show => {
                let origins = Config::origins(flags, dev::default_database)
                    .into_iter()
                    .map(|it| json!({ "name": it.name, "value": it.value, "origin": it.origin }));
                format.print_findings(&["name", "value", "origin"], &origins.collect::<Vec<_>>());
                Config::load_or(flags, dev::default_database)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
