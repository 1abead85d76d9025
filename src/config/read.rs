//! Parses values from texts.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::SecretUrl;
use super::settings::named;
use super::sources::{SourcedValue, Sources};
use crate::address;
use crate::address::redis::Endpoint;
use crate::address::sqlite::{self, is_database};
use crate::approval::SealKey;
use crate::protocol::EnvelopeForm;

/// The origin of one URL setting when the other one names a database, which is broker and store.
const THE_OTHER: &str = "the other URL setting";

/// Reads values one by one and collects their errors.
pub(super) struct Reader {
    pub(super) sources: Sources,
}

impl Reader {
    /// Returns a setting's value and its origin.
    pub(super) fn text(&mut self, name: &'static str) -> (String, String) {
        match self.sources.settings.remove(name) {
            Some(given) => (given.value, given.origin),
            None => (named(name).map_or("", |it| it.default).to_owned(), "default".to_owned()),
        }
    }

    /// Reads a text that may be absent.
    pub(super) fn optional(&mut self, name: &'static str) -> Option<String> {
        Some(self.text(name).0).filter(|text| !text.is_empty())
    }

    /// Reads texts joined by commas.
    pub(super) fn list(&mut self, name: &'static str) -> Vec<String> {
        let text = self.text(name).0;
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(str::to_owned).collect()
    }

    fn fault(&mut self, origin: &str, name: &str, why: impl fmt::Display) {
        self.sources.faults.push(format!("{name} (from {origin}): {why}"));
    }

    /// A database is broker and store at once: copies its URL to the other setting. Adds a fault if the
    /// other setting names another server.
    pub(super) fn share_database(&mut self) {
        let [broker, store] = ["broker.url", "store.url"].map(|name| self.configured(name));
        let is_database = |url: &Option<String>| url.as_ref().is_some_and(|url| is_database(url));
        if !is_database(&broker) && !is_database(&store) {
            return;
        }
        match (broker, store) {
            (Some(broker), Some(store)) if broker != store => {
                self.sources.faults.push(format!(
                    "broker.url is {}, and store.url is {}: a database is broker and store, so \
                     set both to the same URL, or set only one",
                    SecretUrl(broker),
                    SecretUrl(store)
                ));
            }
            (Some(url), _) | (None, Some(url)) => {
                for name in ["broker.url", "store.url"] {
                    if self.configured(name).is_none() {
                        self.sources.settings.insert(name, SourcedValue::new(&url, THE_OTHER));
                    }
                }
            }
            (None, None) => {}
        }
    }

    /// The value of a setting, without values that come from another tool's variable and name no
    /// database.
    fn configured(&self, name: &'static str) -> Option<String> {
        let given = self.sources.settings.get(name)?;
        let is_ours = named(name).is_none_or(|it| !it.fallback_env.contains(&&*given.origin));
        (is_ours || is_database(&given.value)).then(|| given.value.clone())
    }

    /// Reads a list of server URLs, or the URL of a database.
    pub(super) fn url(
        &mut self,
        name: &'static str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> SecretUrl {
        let (value, origin) = self.text(name);
        if is_database(&value) {
            if let Err(why) = sqlite::parse(&value)
                && origin != THE_OTHER
            {
                self.fault(&origin, name, why);
            }
            return SecretUrl(value);
        }
        for (n, one) in address::each(&value).into_iter().enumerate() {
            if let Err(why) = check(one) {
                self.fault(&origin, name, format!("URL no. {}: {why}", n + 1));
            }
        }
        SecretUrl(value)
    }

    pub(super) fn duration(&mut self, name: &'static str) -> Duration {
        let (value, origin) = self.text(name);
        self.parsed_duration(name, &value, &origin)
    }

    fn parsed_duration(&mut self, name: &'static str, value: &str, origin: &str) -> Duration {
        parse_duration(value).unwrap_or_else(|| {
            let why = format!("{value:?} is not a duration such as 500ms, 30s or 24h");
            self.fault(origin, name, why);
            Duration::ZERO
        })
    }

    pub(super) fn optional_duration(&mut self, name: &'static str) -> Option<Duration> {
        // `text` removes the value: a second call would return the default.
        let (value, origin) = self.text(name);
        if value.is_empty() { None } else { Some(self.parsed_duration(name, &value, &origin)) }
    }

    pub(super) fn size(&mut self, name: &'static str) -> usize {
        let (value, origin) = self.text(name);
        parse_size(&value).unwrap_or_else(|| {
            self.fault(&origin, name, format!("{value:?} is not a size such as 512KiB or 8MiB"));
            0
        })
    }

    /// Reads a whole number from 1 on.
    pub(super) fn count(&mut self, name: &'static str) -> u16 {
        let (value, origin) = self.text(name);
        self.parsed_count(name, &value, &origin).unwrap_or(1)
    }

    pub(super) fn envelope(&mut self, name: &'static str) -> EnvelopeForm {
        let (value, origin) = self.text(name);
        match value.trim() {
            "lean" => EnvelopeForm::Lean,
            "celery" => EnvelopeForm::Celery,
            _ => {
                self.fault(&origin, name, format!("{value:?} is neither lean nor celery"));
                EnvelopeForm::default()
            }
        }
    }

    /// Reads a whole number from 0 on.
    pub(super) fn number(&mut self, name: &'static str) -> u16 {
        let (value, origin) = self.text(name);
        value.trim().parse().unwrap_or_else(|_| {
            self.fault(&origin, name, format!("{value:?} is not a whole number from 0 to 65535"));
            0
        })
    }

    /// Reads a whole number from 1 on, or none.
    pub(super) fn optional_count(&mut self, name: &'static str) -> Option<u16> {
        let (value, origin) = self.text(name);
        if value.is_empty() { None } else { self.parsed_count(name, &value, &origin) }
    }

    fn parsed_count(&mut self, name: &'static str, value: &str, origin: &str) -> Option<u16> {
        let number = value.trim().parse().ok().filter(|number| *number > 0);
        if number.is_none() {
            self.fault(origin, name, format!("{value:?} is not a whole number from 1 to 65535"));
        }
        number
    }

    pub(super) fn seal_key(&mut self, name: &'static str) -> Option<SealKey> {
        let (path, origin) = self.text(name);
        if path.is_empty() {
            return None;
        }
        if let Some(why) = readable_by_others(&path) {
            self.fault(&origin, name, why);
            return None;
        }
        let key = match std::fs::read(&path) {
            Ok(bytes) => SealKey::new(bytes.trim_ascii()).ok_or_else(|| {
                format!(
                    "{path} has fewer than {} bytes: openssl rand -hex 32 writes a key",
                    SealKey::MIN
                )
            }),
            Err(error) => Err(format!("cannot read {path}: {error}")),
        };
        key.map_err(|why| self.fault(&origin, name, why)).ok()
    }

    pub(super) fn pem(&mut self, name: &'static str) -> Option<String> {
        let (value, origin) = self.text(name);
        if value.is_empty() {
            return None;
        }
        match std::fs::read_to_string(PathBuf::from(&value)) {
            Ok(pem) if pem.contains("BEGIN CERTIFICATE") => Some(pem),
            Ok(_) => {
                self.fault(&origin, name, format!("{value} does not contain a PEM certificate"));
                None
            }
            Err(error) => {
                self.fault(&origin, name, format!("cannot read {value}: {error}"));
                None
            }
        }
    }
}

/// Returns why a secret's file is refused, if it is. As in OpenSSH, a file of this user that others can
/// read is refused. A file of another user, such as a mounted secret, is that user's responsibility.
#[cfg(unix)]
fn readable_by_others(path: &str) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let (file, process) = (std::fs::metadata(path).ok()?, std::fs::metadata("/proc/self").ok()?);
    let mode = file.mode() & 0o777;
    (file.uid() == process.uid() && mode & 0o077 != 0).then(|| {
        format!(
            "{path} can be read by other users (mode {mode:04o}), and anyone with the key can forge \
             seals: chmod 600 {path}"
        )
    })
}

#[cfg(not(unix))]
fn readable_by_others(_: &str) -> Option<String> {
    None
}

/// Parses `500ms`, `30s`, `5m`, `24h`, or plain seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
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

/// Checks the URL of a broker.
pub(super) fn check_broker(url: &str) -> Result<(), String> {
    address::amqp::parse(url).map(drop)
}

/// Checks the URL of a store, and that the files it names can be read.
pub(super) fn check_store(url: &str) -> Result<(), String> {
    match address::redis::parse(url)?.endpoint {
        Endpoint::Tls { tls, .. } => tls.certificates().map(drop),
        Endpoint::Tcp { .. } | Endpoint::Unix(_) => Ok(()),
    }
}
