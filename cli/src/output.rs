//! Output: a table on a terminal, JSON elsewhere. `json` is one document, `jsonl` one line for each record.

use std::io::IsTerminal;

use clap::ValueEnum;
use console::Term;
use countersign::cli::plain::plain_json;
use countersign::cli::streams;
use countersign::unstable::now;
use serde_json::Value;

use crate::table;
use crate::table::{fields, table, untruncated};

/// The assumed width of a terminal that does not report its width.
const COLUMNS: usize = 80;

/// The output format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Table,
    /// One JSON document
    Json,
    /// One JSON document a line
    Jsonl,
}

impl Format {
    pub(crate) fn by_terminal() -> Self {
        if std::io::stdout().is_terminal() { Self::Table } else { Self::Jsonl }
    }

    /// Prints one record; as a table, one line for each field.
    pub(crate) fn print(self, record: &Value) {
        match self {
            Self::Table => {
                let all = record.as_object().into_iter().flatten();
                let all = all.map(|(name, value)| (name.as_str(), value));
                streams::out(fields(all, columns(), now()));
            }
            Self::Json => json(&format!("{record:#}")),
            Self::Jsonl => json(&record.to_string()),
        }
    }

    /// Prints one record; in a table these fields come first.
    pub(crate) fn print_ordered(self, names: &[&str], record: &Value) {
        if self != Self::Table {
            return self.print(record);
        }
        let rest = record.as_object().into_iter().flatten();
        let rest = rest.map(|(name, value)| (name.as_str(), value));
        let rest = rest.filter(|(name, _)| !names.contains(name));
        let first = names.iter().map(|name| (*name, &record[*name]));
        streams::out(fields(first.chain(rest), columns(), now()));
    }

    /// Prints a list. A table has these columns, and cuts long texts on a terminal.
    pub(crate) fn print_list(self, names: &[&str], records: &[Value]) {
        match self {
            Self::Table => streams::out(table(names, records, columns(), now())),
            _ => self.print_documents(records),
        }
    }

    /// Prints a list without cutting any text: problems and their fixes.
    pub(crate) fn print_findings(self, names: &[&str], records: &[Value]) {
        match self {
            Self::Table => streams::out(untruncated(names, records, columns(), now())),
            _ => self.print_documents(records),
        }
    }

    fn print_documents(self, records: &[Value]) {
        match self {
            Self::Json => json(&format!("{:#}", Value::from(records.to_vec()))),
            _ => records.iter().for_each(|record| json(&record.to_string())),
        }
    }
}

/// Records that arrive one by one. As `json` they are one array, which [`Records::end`] closes.
pub(crate) struct Records {
    format: Format,
    is_begun: bool,
}

impl Records {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, is_begun: false }
    }

    /// Prints one record on a line of its own.
    pub(crate) fn print(&mut self, record: &Value) {
        match self.format {
            Format::Table => streams::out(table::line(record, now())),
            Format::Jsonl => json(&record.to_string()),
            Format::Json => {
                // Comma first, so that a program that reads lines has the whole record at the end of its
                // line.
                streams::out(if self.is_begun { "," } else { "[" });
                json(&record.to_string());
            }
        }
        self.is_begun = true;
        streams::flush();
    }

    /// Ends the output.
    pub(crate) fn end(self) {
        if self.format == Format::Json {
            streams::out(if self.is_begun { "]\n" } else { "[]\n" });
        }
    }
}

fn json(text: &str) {
    streams::line(for_terminal(text));
}

fn for_terminal(text: &str) -> String {
    if std::io::stdout().is_terminal() { plain_json(text) } else { text.to_owned() }
}

/// Returns the width of the terminal, if standard output is one.
fn columns() -> Option<usize> {
    let size = || Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    std::io::stdout().is_terminal().then(|| size().filter(|it| *it > 0).unwrap_or(COLUMNS))
}
