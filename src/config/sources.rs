//! Where values come from: the command line, the environment, `countersign.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::settings::{SETTINGS, Setting, named, nearest};

const CONFIG: &str = "COUNTERSIGN_CONFIG";
/// Stands among the flags for the path of the settings file, which is no setting itself.
pub(crate) const CONFIG_FLAG: &str = "config";
const DEFAULT_FILE: &str = "countersign.toml";
const QUEUES: &str = "queues.";

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) value: String,
    pub(super) origin: String,
}

impl Given {
    pub(super) fn new(value: impl Into<String>, origin: impl Into<String>) -> Self {
        Self { value: value.into(), origin: origin.into() }
    }
}

/// Every value that anybody gave, unchecked, and what was wrong on the way.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) settings: BTreeMap<&'static str, Given>,
    /// What `[queues.NAME]` says, by queue and key.
    pub(super) queues: BTreeMap<String, BTreeMap<String, Given>>,
    pub(super) faults: Vec<String>,
}

impl Sources {
    /// What the command line, the environment and the settings file of this process say. `flags`
    /// are names of settings and their values.
    pub(super) fn of_process(flags: &[(&'static str, String)]) -> Self {
        // A name or a value that is no text is no setting of ours.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(_, value)| !value.is_empty());
        Self::gather(flags, &variables.collect())
    }

    pub(super) fn gather(flags: &[(&'static str, String)], env: &BTreeMap<String, String>) -> Self {
        let mut sources = Self::default();
        let flag = flags.iter().find(|(name, _)| *name == CONFIG_FLAG).map(|(_, path)| path);
        match flag.or(env.get(CONFIG)) {
            Some(path) => sources.read_file(Path::new(path), true),
            None => sources.read_file(Path::new(DEFAULT_FILE), false),
        }
        sources.refuse_unknown(env);
        for setting in SETTINGS {
            sources.read_env(setting, env);
        }
        for (name, value) in flags {
            if *name == CONFIG_FLAG {
                continue;
            }
            sources.settings.insert(name, Given::new(value, "the command line"));
        }
        sources
    }

    /// A misspelt variable would silently leave its setting as it was.
    fn refuse_unknown(&mut self, env: &BTreeMap<String, String>) {
        let known: Vec<_> = SETTINGS.iter().map(|setting| setting.env).chain([CONFIG]).collect();
        for name in env.keys().filter(|name| name.starts_with("COUNTERSIGN_")) {
            let plain = name.strip_suffix("_FILE").unwrap_or(name);
            let is_known = known.contains(&plain) || known.contains(&name.as_str());
            if !is_known && !is_another_tools(name) {
                let near = nearest(name, known.iter().copied());
                self.faults.push(format!("{name}: no setting has this environment variable{near}"));
            }
        }
    }

    fn read_env(&mut self, setting: &'static Setting, env: &BTreeMap<String, String>) {
        let by_file = format!("{}_FILE", setting.env);
        if let Some(value) = env.get(setting.env) {
            self.settings.insert(setting.name, Given::new(value, setting.env));
        } else if let Some(path) = env.get(&by_file) {
            match std::fs::read_to_string(path) {
                Ok(text) => {
                    drop(self.settings.insert(setting.name, Given::new(text.trim(), by_file)))
                }
                Err(error) => self.faults.push(format!("{by_file}: cannot read {path}: {error}")),
            }
        } else if !self.settings.contains_key(setting.name)
            && let Some((name, value)) =
                setting.fallback_env.iter().find_map(|name| Some((*name, env.get(*name)?)))
        {
            self.settings.insert(setting.name, Given::new(value, name));
        }
    }

    pub(super) fn read_file(&mut self, path: &Path, required: bool) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                if required || error.kind() != std::io::ErrorKind::NotFound {
                    self.faults.push(format!("cannot read {}: {error}", path.display()));
                }
                return;
            }
        };
        let file = File { path: path.to_owned(), text: &text };
        let (document, errors) = toml::de::DeTable::parse_recoverable(&text);
        for error in errors {
            let line = error.span().map_or(0, |span| file.line(span.start));
            self.faults.push(format!("{}:{line}: {}", path.display(), error.message()));
        }
        let mut pending: Vec<_> = document
            .get_ref()
            .iter()
            .map(|(key, value)| (key.get_ref().to_string(), key.span().start, value))
            .collect();
        while let Some((name, offset, value)) = pending.pop() {
            match value.get_ref() {
                DeValue::Table(table) => pending.extend(table.iter().map(|(key, value)| {
                    (format!("{name}.{}", key.get_ref()), key.span().start, value)
                })),
                value => match text_of(value) {
                    Some(value) => self.take(&name, Given::new(value, file.place(offset))),
                    None => self.faults.push(format!(
                        "{}: {name} is {}, not a text",
                        file.place(offset),
                        value.type_str()
                    )),
                },
            }
        }
    }

    /// A value of the file.
    fn take(&mut self, name: &str, given: Given) {
        let queue = name.strip_prefix(QUEUES).and_then(|rest| rest.rsplit_once('.'));
        if let Some((queue, key)) = queue {
            let queue = self.queues.entry(queue.to_owned()).or_default();
            queue.insert(key.to_owned(), given);
        } else if let Some(setting) = named(name) {
            self.settings.insert(setting.name, given);
        } else {
            let near = nearest(name, SETTINGS.iter().map(|setting| setting.name));
            self.faults.push(format!("{}: no setting is called {name}{near}", given.origin));
        }
    }
}

/// Our tests' and our compose file's own, and what Kubernetes gives every pod beside a service whose
/// name begins with `countersign-`.
fn is_another_tools(name: &str) -> bool {
    let of_kubernetes = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"];
    name.starts_with("COUNTERSIGN_TEST_")
        || name == "COUNTERSIGN_SECRETS"
        || name.ends_with("_PORT")
        || of_kubernetes.iter().any(|part| name.contains(part))
}

/// A scalar as it would be written in the environment; a list of texts is joined by commas.
fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Array(items) => {
            let texts: Option<Vec<_>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            Some(texts?.join(","))
        }
        _ => None,
    }
}

struct File<'t> {
    path: PathBuf,
    text: &'t str,
}

impl File<'_> {
    fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
    }

    fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.path.display(), self.line(offset))
    }
}
