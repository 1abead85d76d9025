//! Every knob: its name, its environment variable, its default and what it does, in one table.
//!
//! A value is looked up in this order: the command line, the environment, `countersign.toml`, the
//! environment names that Celery and AMQP tools use, the default. A secret may be given by file:
//! `COUNTERSIGN_BROKER_URL_FILE` names a file that holds the URL.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Kind};

/// One line of the table of settings.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in `countersign.toml`; a dot separates table and key.
    pub name: &'static str,
    /// Its environment variable.
    pub env: &'static str,
    /// Environment variables of other tools that are read when nothing else says anything.
    pub fallback_env: &'static [&'static str],
    /// What holds when nobody says anything, as it would be written.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

const fn setting(
    name: &'static str,
    env: &'static str,
    fallback_env: &'static [&'static str],
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { name, env, fallback_env, default, help }
}

/// All settings there are.
pub const SETTINGS: &[Setting] = &[
    setting(
        "broker.url",
        "COUNTERSIGN_BROKER_URL",
        &["CELERY_BROKER_URL", "AMQP_URL"],
        "amqp://guest:guest@localhost:5672//",
        "RabbitMQ; several nodes are joined by `;`",
    ),
    setting(
        "broker.heartbeat",
        "COUNTERSIGN_BROKER_HEARTBEAT",
        &[],
        "10s",
        "a silent connection is given up after twice this",
    ),
    setting(
        "broker.consumer_timeout",
        "COUNTERSIGN_BROKER_CONSUMER_TIMEOUT",
        &[],
        "30m",
        "RabbitMQ's consumer_timeout: no task may run longer than this less two minutes",
    ),
    setting(
        "broker.publish_timeout",
        "COUNTERSIGN_BROKER_PUBLISH_TIMEOUT",
        &[],
        "30s",
        "how long an enqueue goes on trying",
    ),
    setting(
        "store.url",
        "COUNTERSIGN_STORE_URL",
        &["CELERY_RESULT_BACKEND", "REDIS_URL"],
        "redis://localhost:6379/0",
        "Redis; several hosts are joined by `;`",
    ),
    setting(
        "store.result_expires",
        "COUNTERSIGN_STORE_RESULT_EXPIRES",
        &[],
        "24h",
        "how long results are kept; 0s keeps them for ever",
    ),
    setting(
        "store.key_prefix",
        "COUNTERSIGN_STORE_KEY_PREFIX",
        &[],
        "",
        "Celery's global_keyprefix",
    ),
    setting(
        "store.command_timeout",
        "COUNTERSIGN_STORE_COMMAND_TIMEOUT",
        &[],
        "2s",
        "how long one Redis command may take",
    ),
    setting(
        "connect_timeout",
        "COUNTERSIGN_CONNECT_TIMEOUT",
        &[],
        "10s",
        "how long one attempt to connect may take",
    ),
    setting(
        "tls.ca_file",
        "COUNTERSIGN_TLS_CA_FILE",
        &[],
        "",
        "PEM file of a private certificate authority for amqps:// and rediss://",
    ),
    setting(
        "client.queue",
        "COUNTERSIGN_CLIENT_QUEUE",
        &[],
        "celery",
        "where tasks go that name no queue",
    ),
    setting(
        "limits.arguments",
        "COUNTERSIGN_LIMITS_ARGUMENTS",
        &[],
        "8MiB",
        "the largest body of a task message, after decompression",
    ),
    setting(
        "limits.result",
        "COUNTERSIGN_LIMITS_RESULT",
        &[],
        "8MiB",
        "the largest result; a larger one fails its task",
    ),
];

/// A URL whose password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// The URL with its password: for connecting, never for showing.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, one) in self.0.split(';').enumerate() {
            let separator = if n == 0 { "" } else { ";" };
            match one.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
                Some((scheme, Some((login, host)))) => {
                    let user = login.split(':').next().unwrap_or_default();
                    write!(f, "{separator}{scheme}://{user}:***@{host}")?;
                }
                _ => write!(f, "{separator}{one}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The settings of one process, all checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "SETTINGS says what each one does")]
pub struct Config {
    pub broker_url: SecretUrl,
    pub heartbeat: Duration,
    pub consumer_timeout: Duration,
    pub publish_timeout: Duration,
    pub store_url: SecretUrl,
    pub result_expires: Duration,
    pub key_prefix: String,
    pub command_timeout: Duration,
    pub connect_timeout: Duration,
    pub tls_ca_pem: Option<String>,
    pub queue: String,
    pub max_arguments: usize,
    pub max_result: usize,
}

impl Config {
    /// The defaults, with these two servers. Nothing is read from the environment.
    ///
    /// # Errors
    /// A configuration error when a URL is of no known kind.
    pub fn new(broker_url: &str, store_url: &str) -> Result<Self, Error> {
        let given = [("broker.url", broker_url), ("store.url", store_url)];
        let given = given.map(|(name, url)| (name, Given::new(url.to_owned(), "argument".into())));
        Self::check(given.into(), Vec::new())
    }

    /// The settings of this process: environment, `countersign.toml` in the working directory (or
    /// the file that `COUNTERSIGN_CONFIG` names), defaults.
    ///
    /// # Errors
    /// A configuration error that lists every fault, a line each.
    pub fn load() -> Result<Self, Error> {
        let mut faults = Vec::new();
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut given = match env("COUNTERSIGN_CONFIG") {
            Some(path) => read_file(Path::new(&path), true, &mut faults),
            None => read_file(Path::new("countersign.toml"), false, &mut faults),
        };
        for setting in SETTINGS {
            if let Some(value) = from_env(setting, &env, &mut faults) {
                given.insert(setting.name, value);
            } else if !given.contains_key(setting.name)
                && let Some((name, value)) =
                    setting.fallback_env.iter().find_map(|name| Some((name, env(name)?)))
            {
                given.insert(setting.name, Given::new(value, (*name).to_string()));
            }
        }
        Self::check(given, faults)
    }

    fn check(given: BTreeMap<&'static str, Given>, faults: Vec<String>) -> Result<Self, Error> {
        let mut read = Reader { given, faults };
        let config = Self {
            broker_url: read.url("broker.url", &["amqp", "amqps", "pyamqp"]),
            heartbeat: read.duration("broker.heartbeat"),
            consumer_timeout: read.duration("broker.consumer_timeout"),
            publish_timeout: read.duration("broker.publish_timeout"),
            store_url: read.url("store.url", &["redis", "rediss"]),
            result_expires: read.duration("store.result_expires"),
            key_prefix: read.text("store.key_prefix").0,
            command_timeout: read.duration("store.command_timeout"),
            connect_timeout: read.duration("connect_timeout"),
            tls_ca_pem: read.pem("tls.ca_file"),
            queue: read.text("client.queue").0,
            max_arguments: read.size("limits.arguments"),
            max_result: read.size("limits.result"),
        };
        if read.faults.is_empty() { Ok(config) } else { Err(Kind::Config(read.faults).into()) }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug)]
struct Given {
    value: String,
    origin: String,
}

impl Given {
    fn new(value: String, origin: String) -> Self {
        Self { value, origin }
    }
}

fn from_env(
    setting: &Setting,
    env: &impl Fn(&str) -> Option<String>,
    faults: &mut Vec<String>,
) -> Option<Given> {
    if let Some(value) = env(setting.env) {
        return Some(Given::new(value, setting.env.into()));
    }
    let name = format!("{}_FILE", setting.env);
    let path = env(&name)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(Given::new(text.trim().to_owned(), name)),
        Err(error) => {
            faults.push(format!("{name}: cannot read {path}: {error}"));
            None
        }
    }
}

fn read_file(
    path: &Path,
    required: bool,
    faults: &mut Vec<String>,
) -> BTreeMap<&'static str, Given> {
    let mut given = BTreeMap::new();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            if required || error.kind() != std::io::ErrorKind::NotFound {
                faults.push(format!("cannot read {}: {error}", path.display()));
            }
            return given;
        }
    };
    let document = match toml::de::DeTable::parse(&text) {
        Ok(document) => document,
        Err(error) => {
            let line = error.span().map_or(0, |span| line_of(&text, span.start));
            faults.push(format!("{}:{line}: {}", path.display(), error.message()));
            return given;
        }
    };
    let mut pending: Vec<_> = document
        .get_ref()
        .iter()
        .map(|(key, value)| (key.get_ref().to_string(), key, value))
        .collect();
    while let Some((name, key, value)) = pending.pop() {
        let origin = format!("{}:{}", path.display(), line_of(&text, key.span().start));
        if let toml::de::DeValue::Table(table) = value.get_ref() {
            let inner =
                table.iter().map(|(key, value)| (format!("{name}.{}", key.get_ref()), key, value));
            pending.extend(inner);
            continue;
        }
        let value = match value.get_ref() {
            toml::de::DeValue::String(text) => text.to_string(),
            toml::de::DeValue::Integer(number) => number.to_string(),
            other => {
                faults.push(format!("{origin}: {name} is {}, not a text", other.type_str()));
                continue;
            }
        };
        match SETTINGS.iter().find(|setting| setting.name == name) {
            Some(setting) => {
                given.insert(setting.name, Given::new(value, origin));
            }
            None => faults.push(format!("{origin}: no setting is called {name}{}", nearest(&name))),
        }
    }
    given
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

fn nearest(name: &str) -> String {
    SETTINGS
        .iter()
        .map(|setting| (strsim::jaro_winkler(setting.name, name), setting.name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, near)| format!("; did you mean {near}?"))
}

/// Reads values one by one and collects what is wrong with them.
struct Reader {
    given: BTreeMap<&'static str, Given>,
    faults: Vec<String>,
}

impl Reader {
    fn text(&mut self, name: &'static str) -> (String, String) {
        match self.given.remove(name) {
            Some(given) => (given.value, given.origin),
            None => {
                let default = SETTINGS.iter().find(|s| s.name == name).map_or("", |s| s.default);
                (default.to_owned(), "default".to_owned())
            }
        }
    }

    fn fault(&mut self, origin: &str, name: &str, why: impl fmt::Display) {
        self.faults.push(format!("{name} (from {origin}): {why}"));
    }

    fn url(&mut self, name: &'static str, schemes: &[&str]) -> SecretUrl {
        let (value, origin) = self.text(name);
        for one in value.split(';') {
            let scheme = one.trim().split_once("://").map_or("", |(scheme, _)| scheme);
            if !schemes.contains(&scheme) {
                let known = schemes.join(":// or ");
                self.fault(&origin, name, format!("a URL begins with {known}://"));
            }
        }
        SecretUrl(value)
    }

    fn duration(&mut self, name: &'static str) -> Duration {
        let (value, origin) = self.text(name);
        parse_duration(&value).unwrap_or_else(|| {
            self.fault(
                &origin,
                name,
                format!("{value:?} is no duration such as 500ms, 30s or 24h"),
            );
            Duration::ZERO
        })
    }

    fn size(&mut self, name: &'static str) -> usize {
        let (value, origin) = self.text(name);
        parse_size(&value).unwrap_or_else(|| {
            self.fault(&origin, name, format!("{value:?} is no size such as 512KiB or 8MiB"));
            0
        })
    }

    fn pem(&mut self, name: &'static str) -> Option<String> {
        let (value, origin) = self.text(name);
        if value.is_empty() {
            return None;
        }
        match std::fs::read_to_string(PathBuf::from(&value)) {
            Ok(pem) if pem.contains("BEGIN CERTIFICATE") => Some(pem),
            Ok(_) => {
                self.fault(&origin, name, format!("{value} holds no PEM certificate"));
                None
            }
            Err(error) => {
                self.fault(&origin, name, format!("cannot read {value}: {error}"));
                None
            }
        }
    }
}

/// Reads `500ms`, `30s`, `5m`, `24h`, or plain seconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let seconds = match text[digits..].trim() {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: usize = text[..digits].parse().ok()?;
    let unit: usize = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit).filter(|&size| size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let config = Config::new("amqp://localhost", "redis://localhost").unwrap();
        assert_eq!(config.max_result, 8 << 20);
        assert_eq!(config.consumer_timeout, Duration::from_secs(1800));
    }

    #[test]
    fn passwords_are_not_shown() {
        let url = SecretUrl("amqp://ana:s3cret@one/v;amqp://bob:p@ss@two".into());
        assert_eq!(format!("{url} {url:?}"), format!("{url} {url}"));
        assert_eq!(url.to_string(), "amqp://ana:***@one/v;amqp://bob:***@two");
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_place() {
        let file = std::env::temp_dir().join(format!("countersign-{}.toml", uuid::Uuid::new_v4()));
        let text =
            "[broker]\nheartbeet = \"5s\"\nconsumer_timeout = \"soon\"\n\n[limits]\nresult = 7.5\n";
        std::fs::write(&file, text).unwrap();
        let mut faults = Vec::new();
        let given = read_file(&file, true, &mut faults);
        let told = Config::check(given, faults).unwrap_err().to_string();
        std::fs::remove_file(&file).unwrap();
        assert!(
            told.contains(
                ":2: no setting is called broker.heartbeet; did you mean broker.heartbeat?"
            ),
            "{told}"
        );
        assert!(told.contains(":3): \"soon\" is no duration"), "{told}");
        assert!(told.contains(":6: limits.result is float"), "{told}");
    }
}
