//! The shell and settings examples of the README and of `docs/`. Rust examples are doctests, and
//! `tests/celery/test_guide.py` runs those in Python.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::path::Path;
use std::process::{Command, Output};

const DOCUMENTS: [&str; 7] = [
    "README.md",
    "docs/approvals.md",
    "docs/celery-migration.md",
    "docs/durable-steps.md",
    "docs/getting-started.md",
    "docs/operations.md",
    "docs/wire-format.md",
];

/// Returns the code blocks of all documents in this language, each with its document.
fn blocks(language: &str) -> Vec<(&'static str, String)> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let fence = format!("```{language}\n");
    let mut blocks = Vec::new();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for rest in text.split(&fence).skip(1) {
            let block = rest.split("```").next().unwrap_or_default();
            blocks.push((document, block.to_owned()));
        }
    }
    blocks
}

/// Parses a command line without performing it: with `--help` at its end, the command checks the verbs,
/// flags and values before it, and prints its help.
fn parse(arguments: &str) -> Output {
    let script = format!("\"$0\" {arguments} --help");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_countersign")]).output().unwrap()
}

#[test]
fn documented_commands_are_valid() {
    assert!(!parse("queues list --no-such-flag").status.success());
    assert!(!parse("no-such-verb").status.success());
    let mut commands = 0;
    for (document, block) in blocks("console") {
        for arguments in block.lines().filter_map(|line| line.strip_prefix("$ countersign ")) {
            let output = parse(arguments);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{document}: countersign {arguments}: {stderr}");
            commands += 1;
        }
    }
    assert!(commands > 20, "only {commands} commands were found");
}

#[test]
fn documented_settings_are_valid() {
    let blocks = blocks("toml");
    assert!(blocks.len() > 2, "only {} blocks were found", blocks.len());
    for (document, block) in blocks {
        let file = support::file("guide.toml", &block);
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        let output = command.args(["-C", &file, "config", "check"]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{document}: {stderr}\n{block}");
    }
}

/// `tests/celery/test_guide.py` runs the example.
#[test]
fn the_worker_of_the_readme_is_an_example() {
    let (_, worker) = blocks("rust,no_run").into_iter().next().unwrap();
    // rustfmt decides on line breaks and trailing commas.
    let code = |text: &str| -> String {
        let lines = text.lines().filter(|line| !line.starts_with("//!"));
        let code = lines.flat_map(|line| line.trim_start_matches("# ").chars());
        code.filter(|char| !char.is_whitespace() && *char != ',').collect()
    };
    let example = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/first_worker.rs"));
    assert_eq!(code(&std::fs::read_to_string(example).unwrap()), code(&worker));
}
