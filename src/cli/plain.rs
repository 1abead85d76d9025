//! Untrusted text for terminals: no character moves the cursor, or changes the order in which text is read.

/// Formats untrusted text on one line: characters that could move a terminal's cursor, or change the order in
/// which the text is read, are shown as their codes.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) { plain.extend(c.escape_unicode()) } else { plain.push(c) }
    }
    plain
}

/// The same for a text of several lines.
pub fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// The same for a line of a log: keeps the colours that the log itself has added. Control characters in
/// logged texts are already shown as codes.
pub fn plain_log(line: &str) -> String {
    let parts = line.split_inclusive(['\n', '\u{1b}']).map(|part| {
        let text = part.trim_end_matches(['\n', '\u{1b}']);
        plain(text) + &part[text.len()..]
    });
    parts.collect()
}

/// Escapes the characters of JSON that are unsafe on a terminal: it stays the same document.
pub fn plain_json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for c in json.chars() {
        if is_hostile(c) && c != '\n' {
            // None of them needs more than 16 bits.
            plain.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            plain.push(c);
        }
    }
    plain
}

fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn hostile_text_is_shown_as_codes() {
        assert_eq!(plain("a\u{1b}[2J\u{202e}b\nc"), "a\\u{1b}[2J\\u{202e}b\\u{a}c");
        assert_eq!(plain_lines("a\nb\r\u{7f}"), "a\nb\\u{d}\\u{7f}");
        assert_eq!(
            plain_log("\u{1b}[33mWARN\u{1b}[0m a\u{202e}b\n"),
            "\u{1b}[33mWARN\u{1b}[0m a\\u{202e}b\n"
        );
        let value = json!({"a": "\u{1b}\u{9b}\u{202e}日本\n"});
        let json = plain_json(&format!("{value:#}"));
        assert!(json.is_char_boundary(0) && !json.contains(['\u{9b}', '\u{202e}']), "{json}");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), value);
    }
}
