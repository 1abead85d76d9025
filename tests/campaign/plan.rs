//! The settings that a campaign reads from its environment.

use std::env;
use std::time::Duration;

const SEED: &str = "COUNTERSIGN_TEST_SEED";
const SECONDS: &str = "COUNTERSIGN_CAMPAIGN_SECONDS";
const DEFAULT_SECONDS: u64 = 180;

/// The seed of the faults and of the load, and their duration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
}

impl Plan {
    /// Reads the environment, and prints the variables that repeat the run. The seed is random unless set.
    pub(crate) fn from_environment() -> Self {
        let seed = number(SEED).unwrap_or_else(rand::random::<u64>);
        let duration = Duration::from_secs(number(SECONDS).unwrap_or(DEFAULT_SECONDS));
        let plan = Self { seed, duration };
        eprintln!("{}", plan.variables());
        plan
    }

    /// Formats the environment variables of this plan.
    pub(crate) fn variables(self) -> String {
        format!("{SEED}={} {SECONDS}={}", self.seed, self.duration.as_secs())
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap())
}
