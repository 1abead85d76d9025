//! AMQP field tables: a producer's bytes, decoded into [`Headers`] under Countersign's own limits.
//!
//! Arrays and tables carry their length, so the decoder skips unreadable entries and keeps the others.
//! Recursion ends at [`MAX_DEPTH`].

use serde_json::{Map, Value};

/// Celery sends no deeper tables.
const MAX_DEPTH: usize = 32;
/// Values in one table, nested ones included. A value can be one byte long.
const MAX_VALUES: usize = 16_384;
/// How many characters of a name are shown in a reason.
const SHOWN: usize = 80;
/// The type of an entry without a value.
pub(crate) const VOID: u8 = b'V';

/// Message headers. AMQP's integer widths are mapped to JSON numbers, byte strings to text.
pub type Headers = Map<String, Value>;

/// A decoded table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    /// The readable entries. Integer widths are mapped to JSON numbers; byte strings become text, with U+FFFD
    /// in place of invalid UTF-8.
    pub(crate) headers: Headers,
    /// The first reason why an entry could not be read, if any.
    pub(crate) fault: Option<String>,
}

enum Fault {
    TooDeep,
    TooMany,
    Malformed,
    Name,
}

impl Fault {
    fn explain(&self) -> String {
        match self {
            Self::TooDeep => format!("is nested deeper than {MAX_DEPTH} levels"),
            Self::TooMany => format!("brings the table to more than {MAX_VALUES} values"),
            Self::Malformed => "is malformed".to_owned(),
            Self::Name => "has a name inside that is not UTF-8".to_owned(),
        }
    }
}

impl Table {
    /// Decodes the entries of a table, given without its length. Never fails: skips unreadable entries, and
    /// sets `fault`.
    #[must_use]
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let mut table = Self::default();
        let mut budget = MAX_VALUES;
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(entry) = next_entry(&mut rest) else {
                let at = bytes.len() - rest.len();
                table.note(|| format!("the header table is malformed at byte {at}"));
                break;
            };
            let shown = || entry.name[..entry.name.len().min(SHOWN)].escape_ascii();
            // Keep the length: a name has 255 bytes at most, also when it is published again.
            let mut name = entry.name.to_vec();
            if repair(&mut name) {
                table.note(|| format!("the name of header `{}` is not UTF-8", shown()));
            }
            match value(entry.kind, entry.value, 1, &mut budget) {
                Ok(value) => {
                    table.headers.insert(String::from_utf8(name).unwrap_or_default(), value);
                }
                Err(fault) => {
                    table.note(|| format!("header `{}` {}", shown(), fault.explain()));
                }
            }
        }
        table
    }

    fn note(&mut self, reason: impl FnOnce() -> String) {
        if self.fault.is_none() {
            self.fault = Some(reason());
        }
    }
}

/// Replaces each byte that is not valid UTF-8 by `?`. Returns whether there was one.
pub(crate) fn repair(text: &mut [u8]) -> bool {
    let mut from = 0;
    let mut repaired = false;
    while let Err(error) = std::str::from_utf8(&text[from..]) {
        let bad = from + error.valid_up_to();
        let end = error.error_len().map_or(text.len(), |size| bad + size);
        text[bad..end].fill(b'?');
        from = end;
        repaired = true;
    }
    repaired
}

/// One undecoded entry of a table.
pub(crate) struct Entry<'t> {
    /// The entry's name, which may be invalid UTF-8.
    pub(crate) name: &'t [u8],
    /// The type byte of the value.
    pub(crate) kind: u8,
    /// The value, without its length.
    pub(crate) value: &'t [u8],
}

impl Entry<'_> {
    /// Appends the entry to a table.
    pub(crate) fn write(&self, table: &mut Vec<u8>) {
        table.push(u8::try_from(self.name.len()).unwrap_or(u8::MAX));
        table.extend_from_slice(self.name);
        table.push(self.kind);
        if matches!(self.kind, b'S' | b'x' | b'A' | b'F') {
            let size = u32::try_from(self.value.len()).unwrap_or(u32::MAX);
            table.extend_from_slice(&size.to_be_bytes());
        }
        table.extend_from_slice(self.value);
    }
}

/// Returns whether every entry of a table can be decoded, and every text is UTF-8.
pub(crate) fn is_sound(table: &[u8]) -> bool {
    let mut budget = MAX_VALUES;
    is_sound_table(table, 0, &mut budget)
}

fn is_sound_table(mut rest: &[u8], depth: usize, budget: &mut usize) -> bool {
    while !rest.is_empty() {
        let Some(entry) = next_entry(&mut rest) else { return false };
        let is_sound = std::str::from_utf8(entry.name).is_ok()
            && is_sound_value(entry.kind, entry.value, depth + 1, budget);
        if !is_sound {
            return false;
        }
    }
    true
}

fn is_sound_value(kind: u8, mut bytes: &[u8], depth: usize, budget: &mut usize) -> bool {
    if depth > MAX_DEPTH || *budget == 0 {
        return false;
    }
    *budget -= 1;
    match kind {
        b'S' | b'x' => std::str::from_utf8(bytes).is_ok(),
        b'F' => is_sound_table(bytes, depth, budget),
        b'A' => {
            while !bytes.is_empty() {
                let Some((kind, value)) = next_value(&mut bytes) else { return false };
                if !is_sound_value(kind, value, depth + 1, budget) {
                    return false;
                }
            }
            true
        }
        // The length of the others follows from their type.
        _ => true,
    }
}

/// Decodes a value of a table that [`is_sound`].
pub(crate) fn decode_value(kind: u8, bytes: &[u8]) -> Value {
    let mut budget = MAX_VALUES;
    value(kind, bytes, 1, &mut budget).unwrap_or_default()
}

/// Splits the next entry off a table; `None` if it is malformed, and then consumes nothing.
pub(crate) fn next_entry<'t>(rest: &mut &'t [u8]) -> Option<Entry<'t>> {
    let mut ahead = *rest;
    let size = take(&mut ahead, 1)?[0];
    let name = take(&mut ahead, usize::from(size))?;
    let (kind, value) = next_value(&mut ahead)?;
    *rest = ahead;
    Some(Entry { name, kind, value })
}

/// Splits off the next value: returns its type and its bytes, without its length.
fn next_value<'t>(rest: &mut &'t [u8]) -> Option<(u8, &'t [u8])> {
    let kind = take(rest, 1)?[0];
    let size = match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'T' | b'd' => 8,
        b'S' | b'x' | b'A' | b'F' => {
            let size = take(rest, 4)?;
            usize::try_from(u32::from_be_bytes(size.try_into().ok()?)).ok()?
        }
        _ => return None,
    };
    Some((kind, take(rest, size)?))
}

fn take<'t>(rest: &mut &'t [u8], size: usize) -> Option<&'t [u8]> {
    let (taken, left) = rest.split_at_checked(size)?;
    *rest = left;
    Some(taken)
}

/// Decodes a value. Types as in RabbitMQ: `s` is a short integer, and `l` and `L` are both signed.
fn value(kind: u8, bytes: &[u8], depth: usize, budget: &mut usize) -> Result<Value, Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::TooDeep);
    }
    *budget = budget.checked_sub(1).ok_or(Fault::TooMany)?;
    let value = match kind {
        b'A' => return array(bytes, depth, budget),
        b'F' => return object(bytes, depth, budget),
        b'S' | b'x' => return Ok(Value::from(String::from_utf8_lossy(bytes))),
        b'V' => Some(Value::Null),
        b't' => bytes.first().map(|byte| Value::from(*byte != 0)),
        b'b' => bytes.try_into().ok().map(|bytes| Value::from(i8::from_be_bytes(bytes))),
        b'B' => bytes.first().map(|byte| Value::from(*byte)),
        b's' | b'U' => bytes.try_into().ok().map(|bytes| Value::from(i16::from_be_bytes(bytes))),
        b'u' => bytes.try_into().ok().map(|bytes| Value::from(u16::from_be_bytes(bytes))),
        b'I' => bytes.try_into().ok().map(|bytes| Value::from(i32::from_be_bytes(bytes))),
        b'i' => bytes.try_into().ok().map(|bytes| Value::from(u32::from_be_bytes(bytes))),
        b'f' => bytes.try_into().ok().map(|bytes| Value::from(f32::from_be_bytes(bytes))),
        b'L' | b'l' => bytes.try_into().ok().map(|bytes| Value::from(i64::from_be_bytes(bytes))),
        b'T' => bytes.try_into().ok().map(|bytes| Value::from(u64::from_be_bytes(bytes))),
        b'd' => bytes.try_into().ok().map(|bytes| Value::from(f64::from_be_bytes(bytes))),
        b'D' => decimal(bytes).map(Value::from),
        _ => None,
    };
    value.ok_or(Fault::Malformed)
}

fn decimal(bytes: &[u8]) -> Option<f64> {
    let (scale, digits) = bytes.split_first()?;
    let digits = u32::from_be_bytes(digits.try_into().ok()?);
    Some(f64::from(digits) / 10_f64.powi(i32::from(*scale)))
}

fn array(mut rest: &[u8], depth: usize, budget: &mut usize) -> Result<Value, Fault> {
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (kind, bytes) = next_value(&mut rest).ok_or(Fault::Malformed)?;
        items.push(value(kind, bytes, depth + 1, budget)?);
    }
    Ok(Value::Array(items))
}

fn object(mut rest: &[u8], depth: usize, budget: &mut usize) -> Result<Value, Fault> {
    let mut fields = Headers::new();
    while !rest.is_empty() {
        let entry = next_entry(&mut rest).ok_or(Fault::Malformed)?;
        let name = std::str::from_utf8(entry.name).map_err(|_| Fault::Name)?;
        fields.insert(name.to_owned(), value(entry.kind, entry.value, depth + 1, budget)?);
    }
    Ok(Value::Object(fields))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn long(kind: u8, bytes: &[u8]) -> Vec<u8> {
        let size = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&[kind][..], &size, bytes].concat()
    }

    fn entry(name: &[u8], value: &[u8]) -> Vec<u8> {
        [&[u8::try_from(name.len()).unwrap()][..], name, value].concat()
    }

    fn nested(kind: u8, depth: usize) -> Vec<u8> {
        let mut value = vec![b'V'];
        for _ in 0..depth {
            let inside = if kind == b'F' { entry(b"k", &value) } else { value };
            value = long(kind, &inside);
        }
        value
    }

    #[test]
    fn every_type_is_read() {
        let values: [(&[u8], Value); 15] = [
            (b"V", json!(null)),
            (b"t\x01", json!(true)),
            (b"b\xff", json!(-1)),
            (b"B\xff", json!(255)),
            (b"s\xff\xfe", json!(-2)),
            (b"u\xff\xfe", json!(65534)),
            (b"I\xff\xff\xff\xfd", json!(-3)),
            (b"i\xff\xff\xff\xfd", json!(4_294_967_293_u32)),
            (b"l\xff\xff\xff\xff\xff\xff\xff\xfc", json!(-4)),
            (b"T\x00\x00\x00\x00\x00\x00\x00\x05", json!(5)),
            (b"f\x3f\xc0\x00\x00", json!(1.5)),
            (b"d\x3f\xf8\x00\x00\x00\x00\x00\x00", json!(1.5)),
            (b"D\x02\x00\x00\x01\x00", json!(2.56)),
            (b"S\x00\x00\x00\x02a\xff", json!("a\u{fffd}")),
            (b"A\x00\x00\x00\x03Vt\x00", json!([null, false])),
        ];
        for (bytes, expected) in values {
            let table = Table::decode(&entry(b"k", bytes));
            assert_eq!(table.fault, None, "{bytes:?}");
            assert_eq!(table.headers["k"], expected, "{bytes:?}");
        }
    }

    #[test]
    fn an_entry_that_is_too_deep_is_skipped_and_the_others_are_kept() {
        for kind in [b'A', b'F'] {
            let deep = entry(b"deep", &nested(kind, 5_000));
            let table = [entry(b"id", b"S\0\0\0\x01x"), deep, entry(b"n", b"t\x01")].concat();
            let table = Table::decode(&table);
            assert_eq!(Value::Object(table.headers), json!({"id": "x", "n": true}));
            assert_eq!(table.fault.unwrap(), "header `deep` is nested deeper than 32 levels");
        }
        let fits = Table::decode(&entry(b"k", &nested(b'A', MAX_DEPTH - 1)));
        assert_eq!(fits.fault, None);
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let many = entry(b"k", &long(b'A', &vec![b'V'; MAX_VALUES]));
        let fault = Table::decode(&many).fault.unwrap();
        assert!(fault.contains("more than 16384 values"), "{fault}");
    }

    #[test]
    fn a_name_that_is_not_utf8_is_a_fault_at_any_depth() {
        let table = Table::decode(&entry(b"a\xff", b"V"));
        assert_eq!(table.fault.unwrap(), r"the name of header `a\xff` is not UTF-8");
        assert!(table.headers.contains_key("a?"));
        let longest = Table::decode(&entry(&[0xff; 255], b"V"));
        assert_eq!(longest.headers.keys().next().unwrap().len(), 255, "it can be sent on");
        let inside = Table::decode(&entry(b"k", &long(b'F', &entry(b"\xff", b"V"))));
        assert!(inside.fault.unwrap().contains("`k` has a name inside"));
    }

    #[test]
    fn a_truncated_table_is_a_fault_and_keeps_earlier_entries() {
        let first = entry(b"id", b"S\0\0\0\x01x");
        let whole = [first.clone(), entry(b"args", &long(b'A', b"t\x01V"))].concat();
        for end in 1..whole.len() {
            let table = Table::decode(&whole[..end]);
            assert_eq!(table.fault.is_none(), end == first.len(), "{end}");
            assert_eq!(table.headers.contains_key("id"), end >= first.len(), "{end}");
        }
        assert!(Table::decode(&entry(b"k", b"Z")).fault.unwrap().contains("malformed at byte 0"));
        let inside = Table::decode(&entry(b"k", &long(b'A', b"I\0")));
        assert_eq!(inside.fault.unwrap(), "header `k` is malformed");
    }
}
