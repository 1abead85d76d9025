//! Output: a table on a terminal, JSON elsewhere.

use std::io::IsTerminal;

use clap::ValueEnum;
use serde_json::Value;

use super::streams;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns
    Table,
    /// One JSON document
    Json,
    /// One JSON document a line
    Jsonl,
}

impl Format {
    pub(super) fn by_terminal() -> Self {
        if std::io::stdout().is_terminal() { Self::Table } else { Self::Jsonl }
    }

    /// Prints one record, or several that all have the same fields.
    pub(super) fn print(self, records: &[Value]) {
        match self {
            Self::Table => {
                let first = records.first().and_then(Value::as_object);
                let names: Vec<_> = first.into_iter().flat_map(|it| it.keys()).collect();
                let names: Vec<_> = names.into_iter().map(String::as_str).collect();
                streams::out(table(&names, records));
            }
            Self::Json if records.len() == 1 => streams::line(format_args!("{:#}", records[0])),
            Self::Json => streams::line(format_args!("{:#}", Value::from(records.to_vec()))),
            Self::Jsonl => records.iter().for_each(streams::line),
        }
    }

    /// Prints one record of many that come one by one, on a line of its own.
    pub(super) fn print_line(self, record: &Value) {
        match self {
            Self::Table => {
                let fields = record.as_object().into_iter().flat_map(|fields| fields.values());
                streams::line(fields.map(cell).collect::<Vec<_>>().join("  "));
            }
            Self::Json | Self::Jsonl => streams::line(record),
        }
    }

    /// Prints a list, of one record too; a table has its columns in this order.
    pub(super) fn print_list(self, names: &[&str], records: &[Value]) {
        match self {
            Self::Table => streams::out(table(names, records)),
            Self::Json => streams::line(format_args!("{:#}", Value::from(records.to_vec()))),
            Self::Jsonl => self.print(records),
        }
    }
}

fn table(names: &[&str], records: &[Value]) -> String {
    if records.is_empty() {
        return String::new();
    }
    let header = names.iter().map(|name| name.to_uppercase()).collect();
    let mut rows: Vec<Vec<String>> = vec![header];
    rows.extend(
        records.iter().map(|record| names.iter().map(|name| cell(&record[*name])).collect()),
    );
    let widths: Vec<_> = (0..names.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A text that somebody else wrote, on one line: what could move a terminal's cursor, or the order
/// in which the text is read, is shown as its code.
pub(super) fn plain(text: &str) -> String {
    let is_hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) { plain.extend(c.escape_unicode()) } else { plain.push(c) }
    }
    plain
}

/// A value on one line, without what could move a terminal's cursor.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    plain(&text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hostile_text_is_shown_as_codes() {
        assert_eq!(plain("a\u{1b}[2J\u{202e}b\nc"), "a\\u{1b}[2J\\u{202e}b\\u{a}c");
    }

    #[test]
    fn columns_are_aligned_and_control_characters_are_gone() {
        let records =
            [json!({"id": "a", "state": "x\u{1b}[2J"}), json!({"id": "long", "state": null})];
        assert_eq!(table(&["id", "state"], &records), "ID    STATE\na     x [2J\nlong  -\n");
    }
}
