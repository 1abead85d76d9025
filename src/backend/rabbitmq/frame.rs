//! Makes frames from the broker safe for lapin's parser.
//!
//! lapin parses a header table by recursion without a limit, and drops a whole connection for one short
//! string that is not UTF-8. So the table of each content header is passed to lapin as a single byte
//! string, which `codec.rs` decodes under its own limits, and short strings are repaired in place.

use std::fmt::Write as _;
use std::ops::Range;

use crate::protocol::table::{self, repair};

pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
pub(super) const HEARTBEAT: u8 = 8;
pub(super) const FRAME_END: u8 = 0xce;
/// The frame header: type, channel, size.
pub(super) const PREFIX: usize = 7;
/// The bytes of a frame around its payload: the prefix and the end byte.
pub(super) const OVERHEAD: usize = PREFIX + 1;

/// Names in the header table that lapin sees. A producer cannot set them: its own table is one value in
/// this one.
pub(super) const RAW_TABLE: &str = "x-raw-headers";
/// The property flags and list, if they could not be parsed.
pub(super) const RAW_PROPERTIES: &str = "x-raw-properties";
/// Why the message cannot be read.
pub(super) const REASON: &str = "x-unreadable";

const BASIC: [u8; 2] = 60_u16.to_be_bytes();
/// Class, weight and body size of a content header.
const FIXED: usize = 12;
const HAS_TABLE: u16 = 1 << 13;
/// Flags that AMQP 0-9-1 does not define; the lowest announces more flags.
const UNDEFINED: u16 = 0b11;
const MAX_REASON: usize = 1024;
/// How many bytes of a value a reason quotes.
const SHOWN: usize = 64;

#[derive(Clone, Copy, PartialEq)]
enum Field {
    Bits,
    Short,
    Long,
    LongLong,
    ShortString,
    LongString,
    Table,
}

/// The properties of the basic class, from the highest flag down.
const PROPERTIES: [(&str, Field); 14] = [
    ("content_type", Field::ShortString),
    ("content_encoding", Field::ShortString),
    ("headers", Field::Table),
    ("delivery_mode", Field::Bits),
    ("priority", Field::Bits),
    ("correlation_id", Field::ShortString),
    ("reply_to", Field::ShortString),
    ("expiration", Field::ShortString),
    ("message_id", Field::ShortString),
    ("timestamp", Field::LongLong),
    ("type", Field::ShortString),
    ("user_id", Field::ShortString),
    ("app_id", Field::ShortString),
    ("cluster_id", Field::ShortString),
];

/// Returns the range of a field in a payload, without its length prefix; `None` when the payload ends
/// within the field.
fn field(payload: &[u8], at: usize, field: Field) -> Option<Range<usize>> {
    let rest = payload.get(at..)?;
    let (start, size) = match field {
        Field::Bits => (0, 1),
        Field::Short => (0, 2),
        Field::Long => (0, 4),
        Field::LongLong => (0, 8),
        Field::ShortString => (1, usize::from(*rest.first()?)),
        Field::LongString | Field::Table => {
            let size = rest.get(..4)?.try_into().ok()?;
            (4, usize::try_from(u32::from_be_bytes(size)).ok()?)
        }
    };
    let range = at + start..(at + start).checked_add(size)?;
    (range.end <= payload.len()).then_some(range)
}

/// Returns the arguments of a method that a broker sends; `None` for any other method. lapin would
/// parse the other methods too, and the tables in them.
fn arguments(class: u16, method: u16) -> Option<&'static [Field]> {
    use Field::{Bits, Long, LongLong, LongString, Short, ShortString, Table};
    Some(match (class, method) {
        (10, 10) => &[Bits, Bits, Table, LongString, LongString],
        (10, 20) | (20, 11) => &[LongString],
        (10, 30) => &[Short, Long, Short],
        (10, 41 | 60) | (60, 21 | 31 | 72) => &[ShortString],
        (10, 50) | (20, 40) => &[Short, ShortString, Short, Short],
        (10, 51 | 61 | 71)
        | (20, 41)
        | (40, 11 | 21 | 31 | 51)
        | (50, 21 | 51)
        | (60, 11 | 111)
        | (85, 11)
        | (90, 11 | 21 | 31) => &[],
        (20, 20 | 21) => &[Bits],
        (50, 11) => &[ShortString, Long, Long],
        (50, 31 | 41) => &[Long],
        (60, 30) => &[ShortString, Bits],
        (60, 50) => &[Short, ShortString, ShortString, ShortString],
        (60, 60) => &[ShortString, LongLong, Bits, ShortString, ShortString],
        (60, 71) => &[LongLong, Bits, ShortString, ShortString, Long],
        (60, 80 | 120) => &[LongLong, Bits],
        _ => return None,
    })
}

/// A method frame, as far as the guard needs it.
#[derive(Debug, PartialEq)]
pub(super) enum Method {
    /// `connection.tune` with the broker's frame limit; 0 means no limit.
    Tune(u32),
    Other,
}

/// Repairs the short strings of a method frame's payload.
///
/// # Errors
/// No broker sends this method, the frame has the wrong length, or its table is nested too deep for
/// lapin.
pub(super) fn check_method(payload: &mut [u8]) -> Result<Method, String> {
    let size = payload.len();
    let number = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    let (Some(class), Some(method)) = (number(0), number(2)) else {
        return Err(format!("a method frame of {size} bytes"));
    };
    let Some(arguments) = arguments(class, method) else {
        return Err(format!("method {class}.{method} is none that a broker sends"));
    };
    let malformed = || format!("method {class}.{method} of {size} bytes is malformed");
    let mut at = 4;
    for kind in arguments {
        let range = field(payload, at, *kind).ok_or_else(malformed)?;
        at = range.end;
        match kind {
            Field::ShortString => drop(repair(&mut payload[range])),
            Field::Table => {
                if let Some(fault) = table::Table::decode(&payload[range]).fault {
                    return Err(format!("method {class}.{method}: {fault}"));
                }
            }
            _ => {}
        }
    }
    match payload {
        _ if at != size => Err(malformed()),
        [0, 10, 0, 30, _, _, a, b, c, d, ..] => {
            Ok(Method::Tune(u32::from_be_bytes([*a, *b, *c, *d])))
        }
        _ => Ok(Method::Other),
    }
}

/// The checked properties of a content header.
struct Properties {
    /// The range of the table with its length, or the place where it would be.
    table: Range<usize>,
    /// The names of the repaired short strings, and the start of their original bytes.
    repaired: Option<String>,
}

/// Checks the property list after `flags`, and repairs its short strings. Returns `None` when the list
/// does not end at the end of the payload.
fn check_properties(flags: u16, list: &mut [u8]) -> Option<Properties> {
    if flags & UNDEFINED != 0 {
        return None;
    }
    let (mut at, mut table, mut repaired) = (0, 0..0, None);
    for (index, (name, kind)) in PROPERTIES.into_iter().enumerate() {
        if kind == Field::Table {
            table = at..at;
        }
        if flags & (0x8000 >> index) == 0 {
            continue;
        }
        let range = field(list, at, kind)?;
        if kind == Field::Table {
            table = at..range.end;
        }
        at = range.end;
        if kind == Field::ShortString && std::str::from_utf8(&list[range.clone()]).is_err() {
            let text = &list[range.clone()];
            let shown = text[..text.len().min(SHOWN)].escape_ascii();
            let reason = repaired.get_or_insert_with(String::new);
            let comma = if reason.is_empty() { "" } else { ", " };
            let _ = write!(reason, "{comma}property {name} is not UTF-8: \"{shown}\"");
            repair(&mut list[range]);
        }
    }
    (at == list.len()).then_some(Properties { table, repaired })
}

/// Writes to `out` a content-header frame that lapin can parse whatever `payload` holds, at most
/// `limit` bytes long. The message's [`REASON`] names every part that could not be kept.
///
/// # Errors
/// The payload is too short to hold the size of the body.
pub(super) fn rewrite_header(
    channel: [u8; 2],
    payload: &mut [u8],
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let size = payload.len();
    let Some((fixed, properties)) = payload.split_at_mut_checked(FIXED) else {
        return Err(format!("a content header of {size} bytes"));
    };
    let mut reasons = String::new();
    if fixed[..2] != BASIC {
        reasons.push_str("its content header is of another class than basic");
    }
    let start = out.len();
    out.push(HEADER);
    out.extend_from_slice(&channel);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&BASIC);
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&fixed[4..]);
    let remaining = limit.saturating_sub(out.len() - start + 1);

    let (flags, list) = properties.split_at_mut(properties.len().min(2));
    let flags = flags.try_into().map(|bytes: &mut [u8; 2]| u16::from_be_bytes(*bytes));
    let checked = match flags {
        Ok(flags) => check_properties(flags, list).map(|checked| (flags, checked)),
        Err(_) => None,
    };
    match checked {
        Some((flags, checked)) => {
            add(&mut reasons, checked.repaired.as_deref());
            write_properties(flags, list, checked.table, reasons, remaining, out);
        }
        None => {
            add(&mut reasons, Some("its property list is malformed"));
            out.extend_from_slice(&HAS_TABLE.to_be_bytes());
            let retained =
                &properties[..properties.len().min(remaining.saturating_sub(2 * MAX_REASON))];
            write_table(&[(RAW_PROPERTIES, retained), (REASON, reasons.as_bytes())], out);
        }
    }
    let size = u32::try_from(out.len() - start - PREFIX).unwrap_or(u32::MAX);
    out[start + 3..start + PREFIX].copy_from_slice(&size.to_be_bytes());
    out.push(FRAME_END);
    Ok(())
}

fn add(reasons: &mut String, reason: Option<&str>) {
    if let Some(reason) = reason {
        let separator = if reasons.is_empty() { "" } else { "; " };
        let _ = write!(reasons, "{separator}{reason}");
    }
}

fn write_properties(
    flags: u16,
    list: &[u8],
    table: Range<usize>,
    mut reasons: String,
    remaining: usize,
    out: &mut Vec<u8>,
) {
    let has_table = flags & HAS_TABLE != 0;
    let (before, after) = (&list[..table.start], &list[table.end..]);
    if !has_table && reasons.is_empty() {
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(list);
        return;
    }
    out.extend_from_slice(&(flags | HAS_TABLE).to_be_bytes());
    out.extend_from_slice(before);
    let raw = list.get(table.start + 4..table.end).unwrap_or_default();
    let names = RAW_TABLE.len() + REASON.len() + 16;
    let remaining = remaining.saturating_sub(2 + before.len() + after.len() + names);
    let shrunk;
    let raw = if raw.len() + reasons.len() > remaining {
        let (retained, dropped) = shrink(raw, remaining.saturating_sub(MAX_REASON));
        let size = raw.len();
        add(
            &mut reasons,
            Some(&format!(
                "its header table of {size} bytes does not fit into a frame; dropped: {dropped}"
            )),
        );
        shrunk = retained;
        shrunk.as_slice()
    } else {
        raw
    };
    let end = reasons.floor_char_boundary(MAX_REASON);
    if reasons.is_empty() {
        write_table(&[(RAW_TABLE, raw)], out);
    } else {
        write_table(&[(RAW_TABLE, raw), (REASON, &reasons.as_bytes()[..end])], out);
    }
    out.extend_from_slice(after);
}

/// Writes a table of byte strings.
fn write_table(entries: &[(&str, &[u8])], out: &mut Vec<u8>) {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    let whole = entries.iter().map(|(name, bytes)| 1 + name.len() + 5 + bytes.len()).sum();
    out.extend_from_slice(&size(whole));
    for (name, bytes) in entries {
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name.as_bytes());
        out.push(b'x');
        out.extend_from_slice(&size(bytes.len()));
        out.extend_from_slice(bytes);
    }
}

/// Returns the entries of a table that fit into `remaining` bytes, without the largest ones, and the names
/// of those. The entries that identify the message are removed last.
fn shrink(table: &[u8], remaining: usize) -> (Vec<u8>, String) {
    let mut entries = Vec::new();
    let mut rest = table;
    while let Some(entry) = table::next_entry(&mut rest) {
        let end = table.len() - rest.len();
        let start = entries.last().map_or(0, |(_, range): &(&[u8], Range<usize>)| range.end);
        entries.push((entry.name, start..end));
    }
    let mut by_size: Vec<_> = (0..entries.len()).collect();
    by_size.sort_by_key(|index| {
        let (name, range) = &entries[*index];
        (!matches!(*name, b"id" | b"task"), range.len(), *index)
    });
    let mut size: usize = entries.iter().map(|(_, range)| range.len()).sum();
    let mut dropped = String::new();
    while size > remaining
        && let Some(largest) = by_size.pop()
    {
        let (name, range) = &entries[largest];
        size -= range.len();
        add(&mut dropped, Some(&name[..name.len().min(SHOWN)].escape_ascii().to_string()));
    }
    by_size.sort_unstable();
    let retained = by_size.into_iter().flat_map(|index| &table[entries[index].1.clone()]).copied();
    (retained.collect(), dropped)
}

#[cfg(test)]
mod tests;
