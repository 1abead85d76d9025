//! Checks of the wording: retired names, paths that documents name, and the subjects of commits.

use std::path::Path;
use std::process::Command;

use crate::scan::{Source, words};

const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "DESIGN.md",
    "CONTRIBUTING.md",
    "docs/approvals.md",
    "docs/celery-migration.md",
    "docs/durable-steps.md",
    "docs/getting-started.md",
    "docs/operations.md",
    "docs/wire-format.md",
];
/// The subjects of later commits are checked.
const FIRST_CHECKED: &str = "b712c15";
const SUBJECT: usize = 72;

/// Returns the retired names in a text.
pub(crate) fn retired(path: &str, text: &str) -> Vec<String> {
    if path.starts_with("tests/tidy/") {
        return Vec::new();
    }
    let names = include_str!("retired.txt").lines().filter(|line| !line.starts_with('#'));
    let found = names.filter(|name| words(text, name).next().is_some());
    found.map(|name| format!("{path}: has the retired name {name}")).collect()
}

pub(crate) fn retired_in(source: &Source) -> Vec<String> {
    retired(&source.path, &source.text)
}

/// Returns paths between backticks that begin with one of our folders and do not exist.
fn stale_paths(document: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let named = text.split('`').skip(1).step_by(2);
    let paths = named.filter(|path| {
        ["src/", "cli/", "tests/", "workers/", "examples/", "ops/"]
            .iter()
            .any(|folder| path.starts_with(folder))
            && path.chars().all(|c| c.is_ascii_alphanumeric() || "/_.-".contains(c))
    });
    paths
        .filter(|path| !exists(path.trim_end_matches(['/', '.'])))
        .map(|path| format!("{document}: there is no {path}"))
        .collect()
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn documents_name_no_retired_name_and_no_stale_path() {
    assert_eq!(retired("a.md", "The `Crew` has one scribe.").len(), 1);
    assert_eq!(
        stale_paths("a.md", "`src/a.rs` and `src/b.rs`, `src/*.rs`", |it| it == "src/a.rs").len(),
        1
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        assert_none(&retired(document, &text));
        assert_none(&stale_paths(document, &text, |path| root.join(path).exists()));
    }
}

#[test]
fn commit_subjects_fit() {
    let log = Command::new("git")
        .args(["log", "--no-merges", "--format=%s", &format!("{FIRST_CHECKED}..HEAD")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let Some(log) = log.ok().filter(|log| log.status.success()) else {
        eprintln!("SKIPPED: this is no clone that has commit {FIRST_CHECKED}");
        return;
    };
    let subjects = String::from_utf8_lossy(&log.stdout).into_owned();
    let long: Vec<_> = subjects.lines().filter(|line| line.chars().count() > SUBJECT).collect();
    assert!(long.is_empty(), "{long:?}");
}
