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
}

impl Settings {
    pub(super) fn perform(self, format: Format) -> Result<ExitCode, Error> {
        match self {
            Self::Check => {
                let config = Config::load()?;
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
                format.print(&SETTINGS.iter().map(row).collect::<Vec<Value>>());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
