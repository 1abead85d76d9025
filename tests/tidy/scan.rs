//! Rust scanned as text: finds code, literals, and the ends of blocks.

/// A file: its path from the root of the repository, its text, and its code, in which comments, literals
/// and test modules are blanked out and lines are kept.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = without_tests(&without_literals(text));
        Self { path: path.into(), text: text.into(), code }
    }

    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("tests/")
    }

    pub(crate) fn fault(&self, at: usize, what: &str) -> String {
        let line = self.code[..at].matches('\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }
}

fn blank(code: &mut [u8], range: std::ops::Range<usize>) {
    for byte in &mut code[range] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

/// Returns the text with comments, strings and characters blanked out, byte for byte.
pub(crate) fn without_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(text, at);
        blank(&mut code, at..end);
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&code).into_owned()
}

/// Returns the end of the comment or literal that begins at `at`, or `at` if there is none.
fn literal_end(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let rest = &bytes[at..];
    let after = |needle: &str, from: usize| {
        let found = text.get(from..).and_then(|rest| rest.find(needle));
        found.map_or(text.len(), |found| from + found + needle.len())
    };
    let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => after("\n", at) - 1,
        [b'/', b'*', ..] => after("*/", at + 2),
        [b'r', b'"' | b'#', ..] if !word_before || bytes[at - 1] == b'b' => {
            let hashes = rest[1..].iter().take_while(|&&byte| byte == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return at;
            }
            after(&format!("\"{}", "#".repeat(hashes)), at + 2 + hashes)
        }
        [b'"', ..] => quoted_end(bytes, at, b'"'),
        [b'\'', b'\\', ..] => quoted_end(bytes, at, b'\''),
        [b'\'', ..] => {
            let character = text[at + 1..].chars().next().map_or(0, char::len_utf8);
            let closed = bytes.get(at + 1 + character) == Some(&b'\'');
            if closed { at + character + 2 } else { at }
        }
        _ => at,
    }
}

fn quoted_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut left = code.as_bytes().to_vec();
    for (at, _) in code.match_indices(MARK) {
        let item = &code[at + MARK.len()..];
        let end = match item.find(['{', ';']) {
            Some(open) if item.as_bytes()[open] == b'{' => block_end(code, at + MARK.len() + open),
            Some(semicolon) => at + MARK.len() + semicolon + 1,
            None => code.len(),
        };
        blank(&mut left, at..end);
    }
    String::from_utf8_lossy(&left).into_owned()
}

/// Returns the position after the brace that closes the one at `open`.
pub(crate) fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Returns the positions of a word that are not part of a longer word.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part)
    })
}

pub(crate) fn first_word(code: &str) -> &str {
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    &code[..end]
}

/// Returns the first segments of imported paths: `a` of `a::b`, and each of `{a, b::{c, d}}`.
pub(crate) fn heads(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![first_word(path).into()];
    };
    let mut depth = 0;
    let mut heads = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(String::new()),
            _ if depth == 0 => heads.iter_mut().last().into_iter().for_each(|head| head.push(c)),
            _ => {}
        }
    }
    let heads = heads.iter().map(|head| first_word(head.trim()).to_owned());
    heads.filter(|head| !head.is_empty()).collect()
}
