//! The table "The path of one task" of ARCHITECTURE.md, compared with the code.

use std::path::Path;

use crate::scan::{Source, words};

/// One row of the table.
#[derive(Debug)]
struct Hop {
    number: String,
    /// The number of the hop that calls it, if the table names one.
    caller: Option<String>,
    /// Files, relative to `src/`, and a function in each.
    functions: Vec<(String, String)>,
}

/// Reads the rows of the table. A function stands behind its file, and both stand between backticks.
fn hops(document: &str) -> Vec<Hop> {
    let start = document.find("## The path of one task").unwrap_or(document.len());
    let section = document[start..].split("\n## ").next().unwrap_or_default();
    let mut hops = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, number, caller, place, ..] = cells[..] else { continue };
        if number.parse::<u32>().is_err() {
            continue;
        }
        let mut file = String::new();
        let mut functions = Vec::new();
        for word in place.split('`').skip(1).step_by(2) {
            match word.strip_suffix(".rs") {
                Some(_) => file = word.to_owned(),
                None => {
                    let name = word.rsplit("::").next().unwrap_or(word);
                    functions.push((file.clone(), name.to_owned()));
                }
            }
        }
        let caller = caller.parse::<u32>().is_ok().then(|| caller.to_owned());
        hops.push(Hop { number: number.to_owned(), caller, functions });
    }
    hops
}

fn code_of<'s>(sources: &'s [Source], file: &str) -> Option<&'s str> {
    let source = sources.iter().find(|source| source.path == format!("src/{file}"))?;
    Some(&source.code)
}

fn defines(code: &str, name: &str) -> bool {
    words(code, name).any(|at| code[..at].ends_with("fn "))
}

fn calls(code: &str, name: &str) -> bool {
    words(code, name)
        .any(|at| code[at + name.len()..].starts_with('(') && !code[..at].ends_with("fn "))
}

fn faults(document: &str, sources: &[Source]) -> Vec<String> {
    let hops = hops(document);
    let mut faults = Vec::new();
    for Hop { number, caller, functions } in &hops {
        for (file, name) in functions {
            match code_of(sources, file) {
                None => faults.push(format!("hop {number}: there is no src/{file}")),
                Some(code) if !defines(code, name) => {
                    faults.push(format!("hop {number}: src/{file} has no function {name}"));
                }
                Some(_) => {}
            }
        }
        let (Some(caller), Some((_, name))) = (caller, functions.first()) else { continue };
        let calling = hops.iter().filter(|hop| hop.number == *caller);
        let mut files = calling.flat_map(|hop| &hop.functions).map(|(file, _)| file);
        if !files.any(|file| code_of(sources, file).is_some_and(|code| calls(code, name))) {
            faults.push(format!("hop {number}: no file of hop {caller} calls {name}"));
        }
    }
    faults
}

#[test]
fn the_path_of_one_task_names_functions_that_call_each_other() {
    let table = "## The path of one task\n\
        | # | by | where | what |\n|---|---|---|---|\n\
        | 1 | | `a.rs` `A::one` | |\n\
        | 2 | 1 | `b.rs` `two`, `three` | |\n\
        | 3 | 2 | `c.rs` `four` | |\n## Next\n| 4 | | `d.rs` `x` | |";
    let sources = [
        Source::new("src/a.rs", "impl A { pub(crate) fn one() { two() } }"),
        Source::new("src/b.rs", "async fn two() {}\nfn three() { x.four() }"),
        Source::new("src/c.rs", "fn four() {}"),
    ];
    assert!(faults(table, &sources).is_empty());
    let wrong = table.replace("A::one", "A::won").replace("`four`", "`five`");
    assert_eq!(
        faults(&wrong, &sources),
        [
            "hop 1: src/a.rs has no function won",
            "hop 3: src/c.rs has no function five",
            "hop 3: no file of hop 2 calls five"
        ]
    );
    let wrong = table.replace("| 3 | 2 |", "| 3 | 1 |").replace("c.rs", "e.rs");
    assert_eq!(
        faults(&wrong, &sources),
        ["hop 3: there is no src/e.rs", "hop 3: no file of hop 1 calls four"]
    );

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let hops = hops(&document);
    assert!(hops.len() >= 10, "{hops:?}");
    let within_the_worker = hops.iter().filter(|hop| hop.caller.is_some()).count();
    assert!(within_the_worker >= 5, "the hops of the worker name their callers");
    let faults = faults(&document, &crate::tree());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
