//! Import cycles between the files of one folder.

use std::collections::{BTreeMap, BTreeSet};

use crate::scan::{Source, first_word, words};

/// The cycles that exist: a folder, and the files that import each other. To be untied.
const ALLOWED: &[&str] = &[
    "src/client: dead_letters, enqueue, mod",
    "src/config: policies, sources",
    "src/protocol/arguments: call, collect, mod",
    "src/protocol/canvas: mod, plan",
    "src/protocol: body, envelope, headers, message",
];

/// The name of a folder's own file among those of its children.
const ROOT: &str = "mod";

/// Edges between the files of a folder; those of a child folder count as one file.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Returns the position of a file in the tree of modules: `["worker", "settle"]`.
fn module(path: &str) -> Vec<String> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<_> = inside.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == ROOT) {
        module.pop();
    }
    module
}

/// Returns the paths that begin at `text`: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(text: &str) -> Vec<Vec<String>> {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut found = Vec::new();
        loop {
            rest = rest.trim_start_matches([',', ' ', '\n']);
            if rest.is_empty() || rest.starts_with('}') {
                return found;
            }
            found.extend(paths(rest));
            rest = &rest[entry_end(rest)..];
        }
    }
    let head = first_word(text).to_owned();
    if head.is_empty() {
        return Vec::new();
    }
    match text[head.len()..].strip_prefix("::") {
        Some(rest) => {
            let tails = paths(rest);
            let tails = if tails.is_empty() { vec![Vec::new()] } else { tails };
            tails.into_iter().map(|tail| [vec![head.clone()], tail].concat()).collect()
        }
        None => vec![vec![head]],
    }
}

/// Returns where the entry of an import group ends.
fn entry_end(group: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b',' | b'}' if depth == 0 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    group.len()
}

/// Returns the absolute paths that a file names by `crate::` and `super::`.
fn named(source: &Source) -> Vec<Vec<String>> {
    let (code, own) = (&source.code, module(&source.path));
    let begins = |at: &usize| !code[..*at].ends_with("::");
    let absolute = words(code, "crate").filter(begins).flat_map(|at| paths(&code[at..]));
    let absolute = absolute.map(|path| path[1..].to_vec());
    let relative = words(code, "super").filter(begins).flat_map(|at| paths(&code[at..]));
    let relative = relative.filter_map(|path| {
        let ups = path.iter().take_while(|word| *word == "super").count();
        let base = own.get(..own.len().checked_sub(ups)?)?;
        Some([base, &path[ups..]].concat())
    });
    absolute.chain(relative).collect()
}

/// A statement of a folder's own file that begins with `use`.
struct Import {
    is_public: bool,
    /// Each with the name that it imports last.
    paths: Vec<Vec<String>>,
}

/// Returns the imports of a file, and its code without them.
fn imports(code: &str) -> (Vec<Import>, String) {
    let (mut found, mut left) = (Vec::new(), code.to_owned());
    for at in words(code, "use") {
        let end = code[at..].find(';').map_or(code.len(), |end| at + end);
        let start = code[..at].rfind(['\n', '}', ';']).map_or(0, |start| start + 1);
        let is_public = code[start..at].trim_start().starts_with("pub");
        found.push(Import { is_public, paths: paths(&code[at + 3..end]) });
        left.replace_range(at..end, &" ".repeat(end - at));
    }
    (found, left)
}

/// Returns the children that a folder's own file imports, and the child that each re-exported name is from.
/// A name that is only re-exported is no import.
fn of_root(
    root: &Source,
    children: &BTreeSet<String>,
) -> (BTreeSet<String>, BTreeMap<String, String>) {
    let (statements, code) = imports(&root.code);
    let (mut edges, mut origins) = (BTreeSet::new(), BTreeMap::new());
    for Import { is_public, paths } in statements {
        for path in paths {
            let path = if path[0] == "self" { path[1..].to_vec() } else { path };
            let (Some(child), Some(name)) = (path.first(), path.last()) else { continue };
            if !children.contains(child) {
                continue;
            }
            if is_public {
                origins.insert(name.clone(), child.clone());
            }
            // `Output = T` names an associated type.
            let mut uses = words(&code, name)
                .filter(|at| !code[at + name.len()..].trim_start().starts_with('='));
            if !is_public || uses.next().is_some() {
                edges.insert(child.clone());
            }
        }
    }
    let is_named = |child: &&String| {
        words(&code, child)
            .any(|at| code[at + child.len()..].starts_with("::") && !code[..at].ends_with("::"))
    };
    edges.extend(children.iter().filter(is_named).cloned());
    (edges, origins)
}

/// Returns the imports between the files of the folder that is this module.
fn graph(sources: &[&Source], folder: &[String]) -> Graph {
    let below = |source: &&&Source| {
        let module = module(&source.path);
        module.len() > folder.len() && module.starts_with(folder)
    };
    let child_of = |source: &Source| module(&source.path)[folder.len()].clone();
    let children: BTreeSet<_> =
        sources.iter().filter(below).map(|source| child_of(source)).collect();
    let mut graph = Graph::new();
    let root = sources.iter().find(|source| module(&source.path) == folder);
    let (of_root, origins) = root.map(|root| of_root(root, &children)).unwrap_or_default();
    graph.insert(ROOT.to_owned(), of_root);
    for source in sources.iter().filter(below) {
        let own = child_of(source);
        let edges = graph.entry(own.clone()).or_default();
        for path in named(source).iter().filter(|path| path.starts_with(folder)) {
            let Some(name) = path.get(folder.len()) else { continue };
            let target = match children.get(name) {
                Some(child) => child.clone(),
                None => origins.get(name).cloned().unwrap_or_else(|| ROOT.to_owned()),
            };
            if target != own {
                edges.insert(target);
            }
        }
    }
    graph
}

fn reached<'g>(graph: &'g Graph, from: &'g str) -> BTreeSet<&'g str> {
    let mut waiting = vec![from];
    let mut reached = BTreeSet::new();
    while let Some(node) = waiting.pop() {
        for next in graph.get(node).into_iter().flatten() {
            if reached.insert(next.as_str()) {
                waiting.push(next);
            }
        }
    }
    reached
}

/// Returns the sets of files that import each other.
fn cycles(graph: &Graph) -> BTreeSet<Vec<&str>> {
    let reached: BTreeMap<_, _> =
        graph.keys().map(|node| (node.as_str(), reached(graph, node))).collect();
    let in_cycle = reached.iter().filter(|(node, set)| set.contains(*node));
    let sets = in_cycle.map(|(node, set)| {
        set.iter().copied().filter(|other| reached[other].contains(node)).collect()
    });
    sets.collect()
}

/// Returns the cycles in every folder below `src/`, as `folder: files`.
fn all_cycles(sources: &[Source]) -> BTreeSet<String> {
    let is_ours = |source: &&Source| source.path.starts_with("src/") && !source.is_test();
    let sources: Vec<_> = sources.iter().filter(is_ours).collect();
    let modules = sources.iter().map(|source| module(&source.path));
    let folders: BTreeSet<_> = modules
        .filter(|module| module.len() > 1)
        .map(|module| module[..module.len() - 1].to_vec())
        .collect();
    let mut found = BTreeSet::new();
    for folder in folders {
        let graph = graph(&sources, &folder);
        for files in cycles(&graph) {
            found.insert(format!("src/{}: {}", folder.join("/"), files.join(", ")));
        }
    }
    found
}

#[test]
fn no_files_of_a_folder_import_each_other() {
    let tree = |files: &[(&str, &str)]| {
        all_cycles(&files.iter().map(|(path, text)| Source::new(path, text)).collect::<Vec<_>>())
    };
    let found = tree(&[
        ("src/a/mod.rs", "mod b; mod c; pub use c::C; struct Own(b::B);"),
        ("src/a/b.rs", "use super::{d::D, c};"),
        ("src/a/c.rs", "fn f() -> super::Own {}"),
        ("src/a/d.rs", "struct D; // super::b"),
    ]);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["src/a: b, c, mod"]);
    let found = tree(&[
        ("src/a/mod.rs", "mod b; pub use b::B; fn f() -> B {}"),
        ("src/a/b/mod.rs", "struct B;"),
        ("src/a/b/x.rs", "use crate::a::{self, Own}; use super::y::Y;"),
        ("src/a/b/y.rs", "use crate::a::b::{x::X};"),
    ]);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["src/a/b: x, y", "src/a: b, mod"]);
    let found = tree(&[
        ("src/a/mod.rs", "mod b; mod c; pub use {b::B, c::C};"),
        ("src/a/b.rs", "use super::C;"),
        ("src/a/c.rs", "#[cfg(test)] mod tests { use super::super::b; }"),
    ]);
    assert!(found.is_empty(), "{found:?}");

    let found = all_cycles(&crate::tree());
    let is_part = |part: &str, whole: &str| {
        let (Some((folder, files)), Some((other, all))) =
            (part.split_once(": "), whole.split_once(": "))
        else {
            return false;
        };
        let all: BTreeSet<_> = all.split(", ").collect();
        folder == other && files.split(", ").all(|file| all.contains(file))
    };
    let new = found.iter().filter(|cycle| !ALLOWED.iter().any(|allowed| is_part(cycle, allowed)));
    let new: Vec<_> = new.cloned().collect();
    assert!(new.is_empty(), "these files import each other:\n{}", new.join("\n"));
    let is_up_to_date = ALLOWED.iter().all(|allowed| found.contains(*allowed));
    let list: Vec<_> = found.iter().map(|cycle| format!("    {cycle:?},")).collect();
    assert!(is_up_to_date, "fewer files import each other, shorten the list:\n{}", list.join("\n"));
}
