//! Checks of the source that a program can make. Each check has a test that it finds a violation.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

mod cycles;
mod documents;
mod path;
mod scan;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use scan::{Source, block_end, first_word, heads, without_literals, words};

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

/// The allowed imports: a top-level module, and the modules that it may import.
const ROOMS: &[(&str, &[&str])] = &[
    ("address", &[]),
    ("approval", &["task"]),
    ("task", &["breaker", "error", "retry", "protocol"]),
    ("error", &["approval", "task"]),
    ("retry", &["error"]),
    ("breaker", &[]),
    ("clock", &["failpoints"]),
    ("failpoints", &[]),
    ("journal", &["error", "task"]),
    ("keyed_notify", &[]),
    ("protocol", &["approval", "error", "task"]),
    ("trace", &["protocol", "task"]),
    ("lifecycle", &["approval", "error", "task", "protocol"]),
    ("config", &["address", "approval", "error", "protocol"]),
    (
        "blocking",
        &["approval", "backend", "client", "config", "error", "handle", "protocol", "task"],
    ),
    (
        "backend",
        &[
            "address",
            "approval",
            "clock",
            "config",
            "error",
            "keyed_notify",
            "lifecycle",
            "protocol",
            "task",
        ],
    ),
    ("handle", &["backend", "error", "protocol", "task"]),
    ("context", &["approval", "backend", "error", "journal", "protocol", "task", "trace"]),
    (
        "client",
        &[
            "approval",
            "backend",
            "clock",
            "config",
            "error",
            "failpoints",
            "handle",
            "lifecycle",
            "protocol",
            "task",
            "trace",
        ],
    ),
    (
        "worker",
        &[
            "approval",
            "backend",
            "breaker",
            "client",
            "clock",
            "config",
            "context",
            "error",
            "failpoints",
            "journal",
            "keyed_notify",
            "lifecycle",
            "protocol",
            "retry",
            "task",
            "trace",
        ],
    ),
    ("testing", &["approval", "backend", "client", "error", "protocol", "task", "worker"]),
    ("cli", &["address", "client", "clock", "config", "error", "worker"]),
    ("unstable", &["address", "approval", "client", "clock", "error"]),
];
/// The files that declare and start the concrete backends.
const STARTING: [&str; 2] = ["src/backend/mod.rs", "src/backend/connect.rs"];
const BACKENDS: &[&str] = &["rabbitmq", "redis", "embedded"];
const FORBIDDEN_NAMES: &[&str] =
    &["util", "utils", "common", "manager", "helper", "helpers", "misc"];

/// Returns the top-level module of a library file; `lib.rs` has none.
fn room(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let room = inside.split('/').next()?.trim_end_matches(".rs");
    (room != "lib").then_some(room)
}

fn edges(source: &Source) -> Vec<String> {
    let Some(room) = room(&source.path) else {
        return Vec::new();
    };
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{}: room {room} is not in the table of tests/tidy.rs", source.path)];
    };
    let mut faults = Vec::new();
    for at in words(&source.code, "crate").filter(|at| source.code[at + 5..].starts_with("::")) {
        let path = &source.code[at + 7..];
        for named in heads(path).iter().filter(|named| *named != room) {
            if !allowed.contains(&named.as_str()) {
                faults.push(source.fault(at, &format!("{room} may not name {named}")));
            }
        }
        faults.extend(concrete(source, at, path));
    }
    let top =
        source.path == format!("src/{room}.rs") || source.path == format!("src/{room}/mod.rs");
    let upwards = words(&source.code, "super").filter(|at| source.code[at + 5..].starts_with("::"));
    faults.extend(upwards.filter(|_| top).map(|at| source.fault(at, "leaves its room by super")));
    faults
}

/// Concrete backends may be named in their own modules and where they are started.
fn concrete(source: &Source, at: usize, path: &str) -> Vec<String> {
    let Some(inside) = path.strip_prefix("backend::") else {
        return Vec::new();
    };
    let named = heads(inside).into_iter().filter(|head| BACKENDS.contains(&head.as_str()));
    let foreign = named.filter(|head| !source.path.starts_with(&format!("src/backend/{head}")));
    let foreign = foreign.filter(|_| !STARTING.contains(&source.path.as_str()));
    foreign.map(|head| source.fault(at, &format!("names the concrete backend {head}"))).collect()
}

fn crates(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, folder) in [("lapin", "src/backend/rabbitmq"), ("redis", "src/backend/redis")] {
        let inside = source.path.starts_with(folder);
        for at in words(&source.code, name).filter(|_| room(&source.path).is_some() && !inside) {
            let (before, after) = (source.code[..at].trim_end(), &source.code[at + name.len()..]);
            let imported = before.ends_with("use") && !after.starts_with(';');
            let path = after.starts_with("::") && !before.ends_with("::");
            // In these files `redis::` is the folder next to them, unless it is imported.
            let folder_beside = STARTING.contains(&source.path.as_str()) && name == "redis";
            if imported || (path && !folder_beside) {
                faults.push(source.fault(at, &format!("{name} belongs into {folder}")));
            }
        }
    }
    faults
}

fn sizes(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let long = (lines > FILE_LINES).then(|| format!("{}: {lines} lines", source.path));
    let mut faults: Vec<_> = long.into_iter().collect();
    // `fn(` is a pointer type, and has no body.
    let named = words(&source.code, "fn").filter(|at| !source.code[at + 2..].starts_with('('));
    for at in named {
        let Some(body) = source.code[at..].find(['{', ';']).map(|found| at + found) else {
            continue;
        };
        if source.code.as_bytes()[body] == b'{' {
            let lines = source.code[at..block_end(&source.code, body)].lines().count();
            if lines > FUNCTION_LINES {
                faults.push(source.fault(at, &format!("a function of {lines} lines")));
            }
        }
    }
    faults
}

fn wording(source: &Source) -> Vec<String> {
    let banned = [".unwrap()", ".expect(", "todo!", "unimplemented!", "dbg!", "macro_rules!"];
    let mut faults = Vec::new();
    for word in banned.iter().filter(|_| !source.is_test()) {
        let found = source.code.match_indices(word);
        faults.extend(found.map(|(at, _)| source.fault(at, &format!("has {word}"))));
    }
    let is_ours = |path: &str| path.starts_with("src/") || path.starts_with("cli/src/");
    let has_clock =
        !is_ours(&source.path) || room(&source.path) == Some("clock") || source.is_test();
    for word in ["Timestamp::now", "SystemTime::now"].iter().filter(|_| !has_clock) {
        let found = source.code.match_indices(word);
        faults.extend(found.map(|(at, _)| source.fault(at, "reads the clock past src/clock.rs")));
    }
    for word in ["#[allow", "#![allow"] {
        let found = source.code.match_indices(word);
        faults.extend(found.map(|(at, _)| source.fault(at, "has an allow: use #[expect]")));
    }
    faults
}

fn layout(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            faults.push(format!("{}:{}: trailing space", source.path, number + 1));
        }
    }
    let words = source.path.trim_end_matches(".rs").split('/');
    let forbidden = words.filter(|word| FORBIDDEN_NAMES.contains(word));
    faults.extend(forbidden.map(|word| format!("{}: {word} is no name", source.path)));
    faults
}

/// Returns the files in `src` and `cli/src` that no `mod` declaration reaches.
fn unreachable(sources: &[Source]) -> Vec<String> {
    let mut waiting = vec![String::from("src/lib.rs"), String::from("cli/src/main.rs")];
    let mut reached = BTreeSet::new();
    while let Some(path) = waiting.pop() {
        let Some(source) = sources.iter().find(|source| source.path == path) else {
            continue;
        };
        let folder = match Path::new(&path).file_stem().and_then(|stem| stem.to_str()) {
            Some("lib" | "main" | "mod") => path.rsplit_once('/').map_or("", |(parent, _)| parent),
            _ => path.trim_end_matches(".rs"),
        };
        // Test modules are declared in lines that `code` leaves out.
        let declared = without_literals(&source.text);
        for at in words(&declared, "mod") {
            let name = first_word(declared[at + 3..].trim_start());
            waiting.extend([format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")]);
        }
        reached.insert(path);
    }
    let lost = sources
        .iter()
        .filter(|source| source.path.starts_with("src/") || source.path.starts_with("cli/src/"));
    let lost = lost.filter(|source| !reached.contains(&source.path));
    lost.map(|source| format!("{}: no mod declaration leads here", source.path)).collect()
}

fn tree() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> =
        ["src", "cli", "workers", "tests", "examples"].map(|name| root.join(name)).into();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                sources.push(Source::new(name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"));
    sources
}

fn assert_clean(rule: fn(&Source) -> Vec<String>) {
    let faults: Vec<_> = tree().iter().flat_map(rule).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn faults(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
    rule(&Source::new(path, text)).len()
}

#[test]
fn rooms_import_only_rooms_below_them() {
    let bites = |path, text| faults(edges, path, text);
    assert_eq!(bites("src/protocol/body.rs", "use crate::worker::Worker;"), 1);
    assert_eq!(
        bites("src/protocol/body.rs", "use crate::{error::Error, client, worker::{A, B}};"),
        2
    );
    assert_eq!(bites("src/lifecycle/mod.rs", "fn f() -> crate::backend::Queue {}"), 1);
    assert_eq!(bites("src/worker/mod.rs", "use crate::backend::redis::Redis;"), 1);
    assert_eq!(bites("src/backend/redis/mod.rs", "use crate::backend::{Queue, rabbitmq::X};"), 1);
    assert_eq!(bites("src/retry.rs", "use super::client::Client;"), 1);
    assert_eq!(bites("src/newroom.rs", ""), 1);
    assert_eq!(bites("src/worker/limits.rs", "use crate::Client; // crate::cli"), 1);
    assert_eq!(bites("src/backend/redis/mod.rs", "use crate::backend::redis::Kept;"), 0);
    assert_eq!(bites("src/protocol/body.rs", "use crate::protocol::Body; use super::Head;"), 0);
    assert_eq!(bites("src/retry.rs", "#[cfg(test)]\nmod tests { use super::*; }"), 0);
    assert_clean(edges);
}

#[test]
fn each_server_crate_is_named_in_one_folder() {
    let bites = |path, text| faults(crates, path, text);
    assert_eq!(bites("src/worker/mod.rs", "use lapin::Channel;"), 1);
    assert_eq!(bites("src/backend/redis/mod.rs", "fn f(c: lapin::Channel) {}"), 1);
    assert_eq!(bites("src/backend/mod.rs", "use redis::Client;"), 1);
    assert_eq!(bites("src/client.rs", "fn f() -> redis::Value {}"), 1);
    assert_eq!(bites("src/backend/mod.rs", "mod redis; fn f() { redis::connect() }"), 0);
    assert_eq!(bites("src/backend/rabbitmq/link.rs", "use lapin::Channel;"), 0);
    assert_eq!(bites("src/cli/logs.rs", "const FILTER: &str = \"lapin::x=off\"; // lapin::x"), 0);
    assert_clean(crates);
}

#[test]
fn files_and_functions_are_short() {
    let bites = |text: &str| faults(sizes, "src/task.rs", text);
    assert_eq!(bites(&"\n".repeat(FILE_LINES + 1)), 1);
    assert_eq!(bites(&format!("fn f() {{{}}}", "\n".repeat(FUNCTION_LINES))), 1);
    assert_eq!(bites(&format!("fn f() {{{}}}", "\n".repeat(FUNCTION_LINES - 1))), 0);
    assert_eq!(bites(&format!("fn f() {{ '}}'; \"}}\" }}{}fn g();", "\n".repeat(90))), 0);
    assert_clean(sizes);
}

#[test]
fn nothing_panics_on_purpose_and_no_lint_is_allowed() {
    let bites = |text| faults(wording, "src/task.rs", text);
    assert_eq!(bites("fn f() { g().unwrap(); g().expect(\"x\"); todo!() }"), 3);
    assert_eq!(bites("#![allow(dead_code)]\n#[allow(unused)]\nfn f() {}"), 2);
    assert_eq!(bites("fn f() { jiff::Timestamp::now(); SystemTime::now() }"), 2);
    assert_eq!(bites("/// `x.unwrap()`\nfn f() { let _ = r#\"a\".unwrap()\"#; }"), 0);
    assert_eq!(bites("#[cfg(test)]\nmod tests { fn f() { g().unwrap() } }"), 0);
    assert_eq!(bites("#[cfg(test)]\nmod tests;\nfn f() { g().unwrap() }"), 1);
    assert_eq!(faults(wording, "src/backend/redis/tests/wait.rs", "fn f() { g().unwrap() }"), 0);
    assert_clean(wording);
}

#[test]
fn no_name_is_retired() {
    assert_eq!(faults(documents::retired_in, "src/task.rs", "struct Crew; // a crew"), 2);
    assert_clean(documents::retired_in);
}

#[test]
fn lines_and_names_are_clean() {
    assert_eq!(faults(layout, "src/task.rs", "fn f() {} \nfn g() {}\t\n"), 2);
    assert_eq!(faults(layout, "src/worker/utils.rs", ""), 1);
    assert_eq!(faults(layout, "src/helper/mod.rs", ""), 1);
    assert_clean(layout);
}

#[test]
fn every_file_is_part_of_the_program() {
    let small = [
        Source::new("src/lib.rs", "pub mod a;\n// mod ghost;\n#[cfg(test)]\nmod tests;"),
        Source::new("src/a/mod.rs", "mod b;"),
        Source::new("src/a/b.rs", "#[cfg(test)]\nmod tests;"),
        Source::new("src/a/b/tests.rs", ""),
        Source::new("src/tests.rs", ""),
        Source::new("src/ghost.rs", ""),
        Source::new("src/a/lost.rs", ""),
        Source::new("cli/src/main.rs", "mod b;"),
        Source::new("cli/src/b.rs", ""),
        Source::new("cli/src/lost.rs", ""),
    ];
    assert_eq!(unreachable(&small).len(), 3);
    let faults = unreachable(&tree());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
