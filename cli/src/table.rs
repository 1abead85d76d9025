//! Tables and fields for people: as wide as the terminal, with short ids and relative times.

use std::collections::BTreeSet;

use countersign::cli::plain::plain;
use jiff::{Timestamp, Unit};
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The number of characters of an id that a table shows, unless more are needed for distinct ids.
const ID_SHOWN: usize = 8;
/// The minimum width of a column.
const NARROWEST: usize = 6;
const GAP: &str = "  ";
/// The prefix of an approval's id.
const APPROVAL: &str = "ap_";

/// Returns whether a text has the form of an id: a UUID, or an approval's id.
fn is_id(text: &str) -> bool {
    match text.strip_prefix(APPROVAL) {
        Some(digits) => digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => text.len() == 36 && begins_uuid(text),
    }
}

/// Returns whether the text can be the beginning of a UUID.
pub(crate) fn begins_uuid(text: &str) -> bool {
    let fits = |(at, b): (usize, u8)| match at {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_hexdigit(),
    };
    text.len() <= 36 && text.bytes().enumerate().all(fits)
}

/// Returns the beginning of an id, as a table of one row shows it.
pub(crate) fn short_id(id: &str) -> &str {
    shortened(id, ID_SHOWN)
}

fn shortened(id: &str, digits: usize) -> &str {
    let start = if id.starts_with(APPROVAL) { APPROVAL.len() } else { 0 };
    if is_id(id) { id.get(..start + digits).unwrap_or(id) } else { id }
}

/// Returns the number of characters that keep all these ids distinct.
fn digits_needed<'t>(ids: impl Iterator<Item = &'t str>) -> usize {
    let ids: BTreeSet<_> = ids.filter(|id| is_id(id)).collect();
    let are_distinct = |digits| {
        let short: BTreeSet<_> = ids.iter().map(|id| shortened(id, digits)).collect();
        short.len() == ids.len()
    };
    (ID_SHOWN..40).find(|digits| are_distinct(*digits)).unwrap_or(40)
}

/// Formats how long ago a time was, or how far ahead it is.
pub(crate) fn relative(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.as_second() - now.as_second();
    let (number, unit) = match seconds.unsigned_abs() {
        0 => return "now".to_owned(),
        seconds @ 1..120 => (seconds, "s"),
        seconds @ 120..7200 => (seconds / 60, "m"),
        seconds @ 7200..172_800 => (seconds / 3600, "h"),
        seconds => (seconds / 86_400, "d"),
    };
    if seconds < 0 { format!("{number}{unit} ago") } else { format!("in {number}{unit}") }
}

fn both(at: Timestamp, now: Timestamp) -> String {
    let second = at.round(Unit::Second).unwrap_or(at);
    format!("{second} ({})", relative(at, now))
}

/// Parses a time in the format of Countersign's records.
fn parse_time(text: &str) -> Option<Timestamp> {
    let begins = text.get(10..11) == Some("T") && text.ends_with('Z');
    text.parse().ok().filter(|_| begins)
}

/// Formats a value on one line.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        Value::Null => "-".to_owned(),
        Value::Array(all) if all.iter().all(Value::is_string) => {
            let texts: Vec<_> = all.iter().filter_map(Value::as_str).map(plain).collect();
            texts.join(", ")
        }
        other => plain(&other.to_string()),
    }
}

/// Cuts a text that takes more than `columns` columns; a cut text ends with `…`.
fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut width = 1;
    for c in text.chars() {
        width += c.width().unwrap_or(0);
        if width > columns {
            break;
        }
        short.push(c);
    }
    short.push('…');
    short
}

/// Splits the text into rows of at most `columns` columns. An empty text is one row.
pub(crate) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let (mut rows, mut row, mut width) = (Vec::new(), String::new(), 0);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if width + wide > columns && width > 0 {
            rows.push(std::mem::take(&mut row));
            width = 0;
        }
        row.push(c);
        width += wide;
    }
    rows.push(row);
    rows
}

/// The same, but breaks at blanks. A word that is longer than a row is split.
fn wrapped_words(text: &str, columns: usize) -> Vec<String> {
    let (mut rows, mut row) = (Vec::new(), String::new());
    for word in text.split_inclusive(' ') {
        if !row.is_empty() && row.width() + word.trim_end().width() > columns {
            rows.push(std::mem::take(&mut row));
        }
        row.push_str(word);
        if row.trim_end().width() > columns {
            let mut parts = wrapped(&row, columns);
            row = parts.pop().unwrap_or_default();
            rows.extend(parts);
        }
    }
    rows.push(row);
    rows
}

/// Returns the rows of a table, the header first, and the width of each column.
fn rows(names: &[&str], records: &[Value], now: Timestamp) -> (Vec<Vec<String>>, Vec<usize>) {
    let mut rows = vec![names.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>()];
    rows.resize(records.len() + 1, Vec::new());
    for name in names {
        let digits = digits_needed(records.iter().filter_map(|record| record[*name].as_str()));
        for (row, record) in rows.iter_mut().skip(1).zip(records) {
            row.push(match record[*name].as_str() {
                Some(text) if is_id(text) => shortened(text, digits).to_owned(),
                Some(text) => parse_time(text).map_or_else(|| plain(text), |at| relative(at, now)),
                None => cell(&record[*name]),
            });
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
    let widths = (0..names.len()).map(width).collect();
    (rows, widths)
}

/// Aligned columns, one row for each record, in at most `columns` columns. If a table has no room for all
/// columns, formats the records one below the other.
pub(crate) fn table(
    names: &[&str],
    records: &[Value],
    columns: Option<usize>,
    now: Timestamp,
) -> String {
    if records.is_empty() {
        return String::new();
    }
    let (rows, mut widths) = rows(names, records, now);
    let gaps = GAP.len() * names.len().saturating_sub(1);
    if let Some(columns) = columns {
        while widths.iter().sum::<usize>() + gaps > columns {
            match widths.iter_mut().max() {
                Some(widest) if *widest > NARROWEST => *widest -= 1,
                _ => return each(names, records, Some(columns), now),
            }
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let cell = cut(cell, *width);
            line.push_str(&cell);
            line.push_str(&" ".repeat(width - cell.width() + GAP.len()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns a table if that needs no cut; otherwise the records one below the other, untruncated.
pub(crate) fn untruncated(
    names: &[&str],
    records: &[Value],
    columns: Option<usize>,
    now: Timestamp,
) -> String {
    let (_, widths) = rows(names, records, now);
    let gaps = GAP.len() * names.len().saturating_sub(1);
    let fits = columns.is_none_or(|columns| widths.iter().sum::<usize>() + gaps <= columns);
    if fits { table(names, records, columns, now) } else { each(names, records, columns, now) }
}

fn each(names: &[&str], records: &[Value], columns: Option<usize>, now: Timestamp) -> String {
    let blocks = records.iter().map(|record| {
        let named = names.iter().map(|name| (*name, &record[*name]));
        fields(named, columns, now)
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// Formats one record, or a list of values, on one line.
pub(crate) fn line(record: &Value, now: Timestamp) -> String {
    let fields = record.as_object().into_iter().flat_map(|fields| fields.values());
    let values = fields.chain(record.as_array().into_iter().flatten());
    let cells = values.filter(|value| !value.is_null()).map(|value| match value.as_str() {
        Some(text) => parse_time(text).map_or_else(|| plain(text), |at| relative(at, now)),
        None => cell(value),
    });
    cells.collect::<Vec<_>>().join(GAP) + "\n"
}

/// Formats one record with one line for each field. Skips a field without a value; a long value continues on
/// the next line.
pub(crate) fn fields<'v>(
    fields: impl Iterator<Item = (&'v str, &'v Value)>,
    columns: Option<usize>,
    now: Timestamp,
) -> String {
    let is_present = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        _ => true,
    };
    let fields: Vec<_> = fields.filter(|(_, value)| is_present(value)).collect();
    let label = fields.iter().map(|(name, _)| name.width()).max().unwrap_or(0) + GAP.len();
    let mut text = String::new();
    for (name, value) in fields {
        let shown = match value {
            Value::Array(all) => all.iter().map(cell).collect(),
            Value::String(text) => {
                vec![parse_time(text).map_or_else(|| plain(text), |at| both(at, now))]
            }
            other => vec![cell(other)],
        };
        let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(label).max(20));
        let mut name = plain(name);
        for row in shown.iter().flat_map(|line| wrapped_words(line, room)) {
            let line = format!("{name:<label$}{row}");
            text.push_str(line.trim_end());
            text.push('\n');
            name.clear();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn columns_are_aligned_by_the_width_of_their_characters() {
        let records = [json!({"name": "日本", "n": 1}), json!({"name": "x\u{1b}", "n": null})];
        let text = table(&["name", "n"], &records, None, NOW);
        assert_eq!(text, "NAME     N\n日本     1\nx\\u{1b}  -\n");
    }

    #[test]
    fn a_long_title_is_cut_and_never_widens_a_table() {
        let long = "日本 pay ".repeat(40);
        let records = [
            json!({"id": "a", "title": long, "queue": ["x", "y"]}),
            json!({"id": "b", "title": "short", "queue": []}),
        ];
        let text = table(&["id", "title", "queue"], &records, Some(40), NOW);
        assert!(text.lines().all(|line| line.width() <= 40), "{text}");
        assert!(text.contains('…') && text.contains("x, y"), "{text}");
        let whole = table(&["id", "title", "queue"], &records, None, NOW);
        assert!(whole.contains(long.trim_end()), "not cut without a terminal");
        let narrow = table(&["id", "title", "queue"], &records, Some(12), NOW);
        assert!(narrow.starts_with("id     a\n"), "one under the other: {narrow}");
    }

    #[test]
    fn ids_are_as_long_as_needed_to_be_distinct() {
        let ids = ["6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f", "6f1f3c1e-6daa-4f0f-9e3b-2f0a4c7d8e9f"];
        let one = table(&["id"], &[json!({"id": ids[0]})], None, NOW);
        assert_eq!(one, "ID\n6f1f3c1e\n");
        let two = table(&["id"], &[json!({"id": ids[0]}), json!({"id": ids[1]})], None, NOW);
        assert_eq!(two, "ID\n6f1f3c1e-6d9\n6f1f3c1e-6da\n");
        let approval = format!("ap_{}", "0123456789".repeat(4));
        assert_eq!(table(&["id"], &[json!({"id": approval})], None, NOW), "ID\nap_01234567\n");
        let custom = table(&["id"], &[json!({"id": "an-id-of-their-own-that-is-long"})], None, NOW);
        assert_eq!(custom, "ID\nan-id-of-their-own-that-is-long\n");
        assert!(
            begins_uuid("6f1f3c1e-6d9") && !begins_uuid("6f1f3c1e6") && !begins_uuid("order-1")
        );
    }

    #[test]
    fn times_are_relative_in_a_table_and_both_in_a_record() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let texts = [0, -5, -180, 7300, -90_000, 200_000].map(|at_| relative(at(at_), NOW));
        assert_eq!(texts, ["now", "5s ago", "3m ago", "in 2h", "25h ago", "in 2d"]);
        let at_ = Timestamp::from_millisecond(7_300_123).unwrap();
        let record = json!({"at": at_, "none": null, "all": [], "text": "t"});
        assert_eq!(table(&["at"], std::slice::from_ref(&record), None, NOW), "AT\nin 2h\n");
        let named = record.as_object().unwrap().iter().map(|(name, value)| (&name[..], value));
        let text = fields(named, None, NOW);
        assert_eq!(text, "at    1970-01-01T02:01:40Z (in 2h)\ntext  t\n");
    }

    #[test]
    fn a_record_wraps_its_long_values() {
        let record = json!({"title": "x".repeat(70), "id": "a"});
        let named = record.as_object().unwrap().iter().map(|(name, value)| (&name[..], value));
        let text = fields(named, Some(40), NOW);
        let rest = "x".repeat(33);
        assert_eq!(text, format!("id     a\ntitle  {rest}\n       {rest}\n       xxxx\n"));
        let record =
            json!({"why": format!("a long reason with {} words", "w".repeat(40)), "empty": ""});
        let named = record.as_object().unwrap().iter().map(|(name, value)| (&name[..], value));
        let (long, rest) = ("w".repeat(35), "w".repeat(5));
        let expected = format!("why  a long reason with\n     {long}\n     {rest} words\n");
        assert_eq!(fields(named, Some(40), NOW), expected);
        let records = [json!({"what": "y".repeat(50), "why": "z"})];
        let whole = untruncated(&["what", "why"], &records, Some(40), NOW);
        assert_eq!(whole.matches('y').count(), 51, "nothing is cut: {whole}");
    }
}
