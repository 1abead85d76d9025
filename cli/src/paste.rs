//! Commands to paste into a shell: they name the same servers as this process, and quote special characters.

use std::sync::OnceLock;

use countersign::unstable::masked;

/// The flags of this process that name its settings and servers, each with a space before it.
static FLAGS: OnceLock<String> = OnceLock::new();

/// Stores the flags that later commands repeat. Leaves out a URL with a password, because passwords are never
/// printed.
pub(crate) fn keep_flags(flags: &[(&'static str, String)]) {
    let flags = flags.iter().filter(|(_, value)| masked(value) == *value);
    let flags = flags.map(|(name, value)| {
        let flag = name.strip_suffix(".url").unwrap_or(name);
        format!(" --{flag} {}", quoted(value))
    });
    // This runs once, at the start.
    let _ = FLAGS.set(flags.collect());
}

/// Returns the command with which this user approves a request.
pub(crate) fn approve(id: &str) -> String {
    let flags = FLAGS.get().map_or("", String::as_str);
    format!("countersign{flags} approvals approve {id} --by {}", quoted(&user()))
}

/// Quotes the text as one word for a shell.
pub(crate) fn quoted(text: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_safe) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Returns the path of this command, valid in any folder.
pub(crate) fn this_command() -> String {
    let program = std::env::args().next().unwrap_or_else(|| "countersign".to_owned());
    if !program.contains('/') {
        return quoted(&program);
    }
    let path = std::path::absolute(&program).unwrap_or_else(|_| program.into());
    quoted(&path.to_string_lossy())
}

/// Returns the user's name, which decisions need; `me` if the environment has none.
pub(crate) fn user() -> String {
    let name = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "me".to_owned())
}
