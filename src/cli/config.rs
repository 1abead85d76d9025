//! `countersign config`: the settings, and where each comes from.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::output::Format;
use crate::config::{Config, SETTINGS};
use crate::error::Error;

#[derive(Debug, Subcommand)]
pub(super) enum Settings {
    /// Check the settings of this environment; every fault is told at once
    Check,
    /// List every setting: its name, its environment variable, its default, what it does
    List,
    /// Show the value of every setting, and who gave it: command line, environment, file, default
    Show,
}

impl Settings {
    pub(super) fn perform(
        self,
        flags: &[(&'static str, String)],
        format: Format,
    ) -> Result<ExitCode, Error> {
        match self {
            Self::Check => {
                let config = Config::load_with(flags)?;
                let (broker, store) = (config.broker_url.to_string(), config.store_url.to_string());
                format.print(&[json!({ "broker": broker, "store": store, "valid": true })]);
            }
            Self::List => {
                let row = |setting: &crate::config::Setting| {
                    json!({
                        "name": setting.name,
                        "environment": setting.env,
                        "default": setting.default,
                        "help": setting.help,
                    })
                };
                let names = ["name", "environment", "default", "help"];
                format.print_list(&names, &SETTINGS.iter().map(row).collect::<Vec<Value>>());
            }
            Self::Show => {
                let origins = Config::origins(flags)
                    .into_iter()
                    .map(|it| json!({ "name": it.name, "value": it.value, "origin": it.origin }));
                format.print_list(&["name", "value", "origin"], &origins.collect::<Vec<_>>());
                Config::load_with(flags)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
