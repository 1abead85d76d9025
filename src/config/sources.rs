//! Sources of values: the command line, the environment, `countersign.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::policies::POLICIES;
use super::settings::{SETTINGS, Setting, named, nearest};

const CONFIG: &str = "COUNTERSIGN_CONFIG";
/// The flag for the path of the settings file, which is not a setting itself.
pub const CONFIG_FLAG: &str = "config";
const DEFAULT_FILE: &str = "countersign.toml";
const QUEUES: &str = "queues.";

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct SourcedValue {
    pub(super) value: String,
    pub(super) origin: String,
}

impl SourcedValue {
    pub(super) fn new(value: impl Into<String>, origin: impl Into<String>) -> Self {
        Self { value: value.into(), origin: origin.into() }
    }
}

/// One of several tables with the same name.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) origin: String,
    /// A key of a nested table is written after the table's name and a dot.
    pub(super) keys: BTreeMap<String, SourcedValue>,
}

/// All given values, unchecked, and the errors found while reading them.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) settings: BTreeMap<&'static str, SourcedValue>,
    /// The keys of `[queues.NAME]`, by queue and key.
    pub(super) queues: BTreeMap<String, BTreeMap<String, SourcedValue>>,
    /// The tables of `[[approvals.policy]]`, in order.
    pub(super) policies: Vec<Table>,
    pub(super) faults: Vec<String>,
}

impl Sources {
    /// Reads the command line, the environment and the settings file of this process. `flags` are names
    /// of settings and their values.
    pub(super) fn of_process(flags: &[(&'static str, String)]) -> Self {
        // A name or a value that is not UTF-8 is not one of our settings.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(_, value)| !value.is_empty());
        Self::collect(flags, &variables.collect())
    }

    pub(super) fn collect(
        flags: &[(&'static str, String)],
        env: &BTreeMap<String, String>,
    ) -> Self {
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
            sources.settings.insert(name, SourcedValue::new(value, "the command line"));
        }
        sources
    }

    /// Refuses unknown variables: a misspelt one would silently leave its setting unchanged.
    fn refuse_unknown(&mut self, env: &BTreeMap<String, String>) {
        let known: Vec<_> = SETTINGS.iter().map(|setting| setting.env).chain([CONFIG]).collect();
        for name in env.keys().filter(|name| name.starts_with("COUNTERSIGN_")) {
            let plain = name.strip_suffix("_FILE").unwrap_or(name);
            let is_known = known.contains(&plain) || known.contains(&name.as_str());
            if !is_known && !is_of_another_tool(name) {
                let near = nearest(name, known.iter().copied());
                self.faults.push(format!("{name}: no setting has this environment variable{near}"));
            }
        }
    }

    fn read_env(&mut self, setting: &'static Setting, env: &BTreeMap<String, String>) {
        let by_file = format!("{}_FILE", setting.env);
        if let Some(value) = env.get(setting.env) {
            self.settings.insert(setting.name, SourcedValue::new(value, setting.env));
        } else if let Some(path) = env.get(&by_file) {
            match std::fs::read_to_string(path) {
                Ok(text) => drop(
                    self.settings.insert(setting.name, SourcedValue::new(text.trim(), by_file)),
                ),
                Err(error) => self.faults.push(format!("{by_file}: cannot read {path}: {error}")),
            }
        } else if !self.settings.contains_key(setting.name)
            && let Some((name, value)) =
                setting.fallback_env.iter().find_map(|name| Some((*name, env.get(*name)?)))
        {
            self.settings.insert(setting.name, SourcedValue::new(value, name));
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
        let (document, errors) = DeTable::parse_recoverable(&text);
        for error in errors {
            let line = error.span().map_or(0, |span| file.line(span.start));
            self.faults.push(format!("{}:{line}: {}", path.display(), error.message()));
        }
        for (name, offset, value) in leaves(document.get_ref()) {
            let place = file.place(offset);
            match (value, text_of(value)) {
                (DeValue::Array(tables), _) if name == POLICIES => {
                    tables.iter().for_each(|table| self.add_policy(&file, table));
                }
                (_, Some(text)) => self.set(&name, SourcedValue::new(text, place)),
                (_, None) if named(&name).is_none() => self.refuse(&name, &place),
                (other, None) => {
                    self.faults
                        .push(format!("{place}: {name} is {}, not a text", other.type_str()));
                }
            }
        }
    }

    /// Reads one table of `[[approvals.policy]]`.
    fn add_policy(&mut self, file: &File<'_>, table: &Spanned<DeValue<'_>>) {
        let mut policy = Table { origin: file.place(table.span().start), keys: BTreeMap::new() };
        for (name, offset, value) in table.get_ref().as_table().map_or_else(Vec::new, leaves) {
            let place = file.place(offset);
            let float = value.as_float().map(ToString::to_string);
            let number = float.or_else(|| value.as_bool().map(|truth| truth.to_string()));
            match number.or_else(|| text_of(value)) {
                Some(text) => drop(policy.keys.insert(name, SourcedValue::new(text, place))),
                None => self.faults.push(format!("{place}: {name} is {}", value.type_str())),
            }
        }
        self.policies.push(policy);
    }

    /// Stores a value of the file.
    fn set(&mut self, name: &str, given: SourcedValue) {
        let queue = name.strip_prefix(QUEUES).and_then(|rest| rest.rsplit_once('.'));
        if let Some((queue, key)) = queue {
            let queue = self.queues.entry(queue.to_owned()).or_default();
            queue.insert(key.to_owned(), given);
        } else if let Some(setting) = named(name) {
            self.settings.insert(setting.name, given);
        } else {
            self.refuse(name, &given.origin);
        }
    }

    fn refuse(&mut self, name: &str, place: &str) {
        let near = match name.strip_prefix(POLICIES) {
            Some(_) => format!("; write [[{POLICIES}]] above each policy"),
            None => nearest(name, SETTINGS.iter().map(|it| it.name).chain([POLICIES])),
        };
        self.faults.push(format!("{place}: no setting is called {name}{near}"));
    }
}

/// Returns whether the variable belongs to the tests or the compose file, or is added by Kubernetes to every
/// pod for a service whose name begins with `countersign-`.
fn is_of_another_tool(name: &str) -> bool {
    let of_kubernetes = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"];
    name.starts_with("COUNTERSIGN_TEST_")
        || name == "COUNTERSIGN_SECRETS"
        || name == "COUNTERSIGN_ISOLATED"
        || name.ends_with("_PORT")
        || of_kubernetes.iter().any(|part| name.contains(part))
}

/// Returns the values of a table and its nested tables: dotted name, offset, value.
fn leaves<'d, 'i>(table: &'d DeTable<'i>) -> Vec<(String, usize, &'d DeValue<'i>)> {
    let mut leaves = Vec::new();
    let mut pending = vec![(String::new(), table)];
    while let Some((prefix, table)) = pending.pop() {
        for (key, value) in table {
            let (name, offset) = (format!("{prefix}{}", key.get_ref()), key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) => pending.push((format!("{name}."), inner)),
                value => leaves.push((name, offset, value)),
            }
        }
    }
    leaves
}

/// Formats a scalar as it would be written in the environment; a list of texts is joined by commas.
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
