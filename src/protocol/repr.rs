//! Python's `repr` of JSON, for logs and events. Processes the text token by token without building a tree,
//! and stops at the limit, so that large or deep arguments cost no more than small ones.

use std::fmt::Write as _;

use serde_json::value::RawValue;

use super::Arguments;
use super::body::string_end;

/// The maximum length in characters, followed by `...`.
const LIMIT: usize = 1024;

/// Formats positional arguments as a tuple: `(1, 'two')`.
pub(super) fn args(arguments: &Arguments) -> String {
    let mut repr = Repr::sized(arguments.args.iter().map(|value| value.get().len() + 2).sum());
    repr.push("(");
    for (place, value) in arguments.args.iter().enumerate() {
        if place > 0 {
            repr.push(", ");
        }
        repr.json(value);
        if repr.is_full() {
            break;
        }
    }
    repr.push(if arguments.args.len() == 1 { ",)" } else { ")" });
    repr.finish()
}

/// Formats keyword arguments as a dict: `{'x': 1}`.
pub(super) fn kwargs(arguments: &Arguments) -> String {
    let sizes = arguments.kwargs.iter().map(|(name, value)| name.len() + value.get().len() + 6);
    let mut repr = Repr::sized(sizes.sum());
    repr.push("{");
    for (place, (name, value)) in arguments.kwargs.iter().enumerate() {
        if place > 0 {
            repr.push(", ");
        }
        repr.name(name);
        repr.push(": ");
        repr.json(value);
        if repr.is_full() {
            break;
        }
    }
    repr.push("}");
    repr.finish()
}

struct Repr {
    out: String,
    chars: usize,
}

impl Repr {
    /// Allocates capacity for about this many bytes.
    fn sized(bytes: usize) -> Self {
        Self { out: String::with_capacity(bytes.min(LIMIT) + 8), chars: 0 }
    }

    fn is_full(&self) -> bool {
        self.chars > LIMIT
    }

    fn push(&mut self, text: &str) {
        if !self.is_full() {
            self.chars += text.chars().count();
            self.out.push_str(text);
        }
    }

    fn finish(mut self) -> String {
        if self.out.len() > LIMIT
            && let Some((end, _)) = self.out.char_indices().nth(LIMIT)
        {
            self.out.truncate(end);
            self.out.push_str("...");
        }
        self.out
    }

    fn json(&mut self, value: &RawValue) {
        let text = value.get();
        let json = text.as_bytes();
        let mut at = 0;
        while let Some(&byte) = json.get(at).filter(|_| !self.is_full()) {
            let start = at;
            at += 1;
            match byte {
                b'"' => {
                    let end = string_end(json, at);
                    self.string(text.get(at..end).unwrap_or_default());
                    at = end + 1;
                }
                b',' => self.push(", "),
                b':' => self.push(": "),
                b'[' => self.push("["),
                b']' => self.push("]"),
                b'{' => self.push("{"),
                b'}' => self.push("}"),
                b' ' | b'\t' | b'\n' | b'\r' => {}
                _ => {
                    let rest = text.get(start..).unwrap_or_default();
                    let ends = [',', ']', '}', ':', ' ', '\t', '\n', '\r'];
                    let token = rest.split(ends).next().unwrap_or_default();
                    at = start + token.len().max(1);
                    self.scalar(token);
                }
            }
        }
    }

    fn scalar(&mut self, token: &str) {
        match token {
            "true" => self.push("True"),
            "false" => self.push("False"),
            "null" => self.push("None"),
            "-0" => self.push("0"),
            _ if token.contains(['.', 'e', 'E']) => match token.parse() {
                Ok(number) => self.push(&float(number)),
                Err(_) => self.push(token),
            },
            // Push only as many digits as can be shown.
            _ => self.push(token.get(..=LIMIT).unwrap_or(token)),
        }
    }

    /// Writes a JSON string, given without its quotes.
    fn string(&mut self, inside: &str) {
        if is_plain(inside) {
            self.quoted(inside);
        } else {
            self.text(Unescaped { rest: inside.chars() });
        }
    }

    fn name(&mut self, name: &str) {
        if is_plain(name) { self.quoted(name) } else { self.text(name.chars().map(u32::from)) }
    }

    fn quoted(&mut self, plain: &str) {
        self.push("'");
        self.push(plain);
        self.push("'");
    }

    /// Writes a string's code points, including lone surrogates, in Python's quotes.
    fn text(&mut self, points: impl Iterator<Item = u32>) {
        let points: Vec<u32> = points.take(LIMIT + 1).collect();
        let has = |quote: char| points.contains(&u32::from(quote));
        let quote = if has('\'') && !has('"') { '"' } else { '\'' };
        let mut out = String::with_capacity(points.len() + 2);
        out.push(quote);
        for point in points {
            match char::from_u32(point) {
                Some(character) if character == quote || character == '\\' => {
                    out.push('\\');
                    out.push(character);
                }
                Some('\n') => out.push_str("\\n"),
                Some('\r') => out.push_str("\\r"),
                Some('\t') => out.push_str("\\t"),
                Some(character) if is_printable(character) => out.push(character),
                _ => escape(&mut out, point),
            }
        }
        out.push(quote);
        self.push(&out);
    }
}

/// Returns whether the text is short, and identical in JSON and in Python.
fn is_plain(text: &str) -> bool {
    let is_plain = |byte| matches!(byte, b' '..=b'~') && byte != b'\'' && byte != b'\\';
    text.len() <= LIMIT && text.bytes().all(is_plain)
}

fn escape(out: &mut String, point: u32) {
    let _ = match point {
        0..=0xff => write!(out, "\\x{point:02x}"),
        0x100..=0xffff => write!(out, "\\u{point:04x}"),
        _ => write!(out, "\\U{point:08x}"),
    };
}

fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return !character.is_ascii_control();
    }
    // Uses the escapes of Rust's `Debug`; after another character, so that accents count as printable.
    let after = String::from_iter(['a', character]);
    after.escape_debug().nth(1) == Some(character) && !character.is_whitespace()
}

/// Formats the shortest digits that parse to the same number, with an exponent where Python uses one.
fn float(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let shortest = format!("{number:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// Iterates over the code points of a JSON string without its quotes.
struct Unescaped<'a> {
    rest: std::str::Chars<'a>,
}

impl Unescaped<'_> {
    fn hex(&mut self) -> Option<u32> {
        let digits = self.rest.as_str().get(..4)?;
        let unit = u32::from_str_radix(digits, 16).ok()?;
        self.rest = self.rest.as_str()[4..].chars();
        Some(unit)
    }

    fn unit(&mut self) -> Option<u32> {
        let high = self.hex()?;
        let ahead = self.rest.clone();
        if (0xd800..0xdc00).contains(&high) && self.rest.as_str().starts_with("\\u") {
            self.rest.nth(1);
            match self.hex() {
                Some(low) if (0xdc00..0xe000).contains(&low) => {
                    return Some(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
                }
                _ => self.rest = ahead,
            }
        }
        Some(high)
    }
}

impl Iterator for Unescaped<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let character = self.rest.next()?;
        if character != '\\' {
            return Some(character.into());
        }
        match self.rest.next()? {
            'n' => Some(10),
            'r' => Some(13),
            't' => Some(9),
            'b' => Some(8),
            'f' => Some(12),
            'u' => self.unit(),
            other => Some(other.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positional(values: &[&str]) -> Arguments {
        let raw = |text: &&str| RawValue::from_string((*text).to_owned()).unwrap();
        Arguments { args: values.iter().map(raw).collect(), ..Arguments::default() }
    }

    /// The right column was printed by Python 3.11.
    #[test]
    fn values_have_the_form_of_pythons_repr() {
        for (json, python) in [
            ("1", "(1,)"),
            ("-0", "(0,)"),
            ("1180591620717411303424", "(1180591620717411303424,)"),
            (
                "[1.0,1e16,1e-5,1e5,0.1,-0.0,1e15,123456789012345680.0,1e400]",
                "([1.0, 1e+16, 1e-05, 100000.0, 0.1, -0.0, 1000000000000000.0, 1.2345678901234568e+17, inf],)",
            ),
            ("[true,false,null]", "([True, False, None],)"),
            (r#"{"a" : {"b":[]} , "c":"d"}"#, "({'a': {'b': []}, 'c': 'd'},)"),
            (r#""it's""#, r#"("it's",)"#),
            (r#""a\"b""#, r#"('a"b',)"#),
            (r#""a'b\"c\\""#, r#"('a\'b"c\\',)"#),
            (r#""\n\t\u0000\u007f\u00a0\u200b""#, r"('\n\t\x00\x7f\xa0\u200b',)"),
            (r#""\u00e9é\ud83d\ude00\ud800""#, r"('éé😀\ud800',)"),
            (r#""\ud800\u0041\udc00""#, r"('\ud800A\udc00',)"),
        ] {
            assert_eq!(args(&positional(&[json])), python, "{json}");
        }
    }

    #[test]
    fn args_are_a_tuple_and_kwargs_a_dict() {
        assert_eq!(args(&positional(&[])), "()");
        assert_eq!(args(&positional(&["1", "\"b\""])), "(1, 'b')");
        let mut arguments = positional(&["1", "[2]"]);
        assert_eq!(kwargs(&arguments), "{}");
        for (name, value) in ["x", "it's"].into_iter().zip(std::mem::take(&mut arguments.args)) {
            arguments.kwargs.insert(name.into(), value);
        }
        assert_eq!(kwargs(&arguments), r#"{'x': 1, "it's": [2]}"#);
    }

    #[test]
    fn long_and_deep_values_are_cut() {
        let long = format!("\"{}\"", "é".repeat(8 << 20));
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let digits = "1".repeat(1 << 20);
        for json in [long, deep, digits] {
            let cut = args(&positional(&[&json]));
            assert_eq!(cut.chars().count(), LIMIT + 3);
            assert!(cut.ends_with("..."));
        }
        let many = vec!["1"; 100_000];
        assert_eq!(args(&positional(&many)).chars().count(), LIMIT + 3);
    }
}
