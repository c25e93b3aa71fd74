//! Imports between the files of the node: they go in one direction.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::support::ROOT;

/// A module, by the names on its path below the crate.
type Module = Vec<String>;

/// Modules with the paths that they import and re-export.
#[derive(Debug, Default)]
struct Imports {
    private: BTreeMap<Module, Vec<Vec<String>>>,
    public: BTreeMap<Module, Vec<Vec<String>>>,
}

/// Reads the modules of a folder. Files of tests are left out.
fn read_modules(folder: &Path, below: &[String], modules: &mut BTreeMap<Module, String>) {
    for entry in std::fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("names are UTF-8").to_owned();
        let module = match name.as_str() {
            "tests" | "simulation" => continue,
            "lib" | "mod" => below.to_vec(),
            _ => [below, &[name]].concat(),
        };
        if path.is_dir() {
            read_modules(&path, &module, modules);
        } else {
            let text = std::fs::read_to_string(&path).expect("the file can be read");
            let code: String = text
                .split("\n#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default()
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .flat_map(|line| [line, "\n"])
                .collect();
            modules.insert(module, code);
        }
    }
}

/// Returns the paths of a `use` declaration: `a::{b, c::d}` has two.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|name| name.trim().to_owned()).collect()];
    };
    let prefix: Vec<_> =
        prefix.split("::").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let group = group.rsplit_once('}').map_or(group, |(group, _)| group);
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, character) in group.char_indices().chain([(group.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(group.get(start..at).unwrap_or_default().trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let items = items.into_iter().filter(|item| !item.is_empty());
    items.flat_map(paths).map(|path| [&prefix[..], &path].concat()).collect()
}

fn imports(modules: &BTreeMap<Module, String>) -> Imports {
    let mut imports = Imports::default();
    for (module, code) in modules {
        for declaration in code.split(';') {
            let Some(start) = declaration.find("use ") else { continue };
            let before = declaration.get(..start).unwrap_or_default();
            let visibility = before.rsplit('\n').next().unwrap_or_default().trim();
            let to = match visibility {
                "" => &mut imports.private,
                _ if visibility.starts_with("pub") => &mut imports.public,
                _ => continue,
            };
            let tree = declaration.get(start + 4..).unwrap_or_default();
            to.entry(module.clone()).or_default().extend(paths(tree));
        }
    }
    imports
}

/// Returns the module whose item a path of `here` names, and the name of the item. There is no name
/// if the path names a module.
fn resolve<'p>(
    path: &'p [String],
    here: &Module,
    modules: &BTreeMap<Module, String>,
) -> Option<(Module, Option<&'p String>)> {
    let (mut module, mut rest) = match path.first()?.as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "super" => {
            let levels = path.iter().take_while(|name| *name == "super").count();
            (here[..here.len().checked_sub(levels)?].to_vec(), &path[levels..])
        }
        _ => (here.clone(), path),
    };
    let is_relative = module == *here && rest.len() == path.len();
    while let [name, after @ ..] = rest {
        let child = [&module[..], std::slice::from_ref(name)].concat();
        if !modules.contains_key(&child) {
            break;
        }
        (module, rest) = (child, after);
    }
    (!is_relative || module != *here).then_some((module, rest.first()))
}

/// Returns each module with the modules whose items it imports. An item that a module only
/// re-exports counts for the module that has it.
fn edges(modules: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let imports = imports(modules);
    let mut exports = BTreeMap::<(Module, &String), Module>::new();
    let mut exported = BTreeMap::<Module, BTreeSet<Module>>::new();
    for (module, paths) in &imports.public {
        for path in paths {
            if let Some((target, Some(item))) = resolve(path, module, modules) {
                exports.insert((module.clone(), item), target.clone());
                exported.entry(module.clone()).or_default().insert(target);
            }
        }
    }
    let mut edges: BTreeMap<_, BTreeSet<_>> =
        modules.keys().map(|module| (module.clone(), BTreeSet::new())).collect();
    for (module, paths) in &imports.private {
        let to = edges.get_mut(module).expect("every module has an entry");
        for path in paths {
            match resolve(path, module, modules) {
                Some((target, Some(item))) => {
                    to.insert(exports.get(&(target.clone(), item)).cloned().unwrap_or(target));
                }
                // A whole module: all that it re-exports.
                Some((target, None)) => {
                    to.extend(exported.get(&target).cloned().unwrap_or_default());
                    to.insert(target);
                }
                None => {}
            }
        }
        to.remove(module);
    }
    edges
}

/// Returns the modules that import themselves over others.
fn modules_in_circles(edges: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<String> {
    let reaches_itself = |start: &Module| {
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![start]);
        while let Some(module) = waiting.pop() {
            for next in edges.get(module).into_iter().flatten() {
                if next == start {
                    return true;
                }
                if seen.insert(next) {
                    waiting.push(next);
                }
            }
        }
        false
    };
    edges.keys().filter(|module| reaches_itself(module)).map(|module| module.join("/")).collect()
}

#[test]
fn files_of_the_node_import_each_other_in_one_direction() {
    let mut modules = BTreeMap::new();
    read_modules(&Path::new(ROOT).join("crates/deeperhub-node/src"), &[], &mut modules);
    let edges = edges(&modules);
    // The search finds edges: over a re-export, and in a group.
    let edge = |from: &str, to: &str| {
        let module = |path: &str| path.split('/').map(str::to_owned).collect::<Module>();
        edges.get(&module(from)).is_some_and(|targets| targets.contains(&module(to)))
    };
    assert!(edge("session", "worker/state") && edge("worker/execute", "worker/sweep"), "{edges:?}");
    let circles = modules_in_circles(&edges);
    // A session executes commands, and a command replies through its session.
    assert!(circles.contains("session") && circles.contains("commands/echo"), "{circles:?}");
    let others: Vec<_> = circles
        .iter()
        .filter(|module| !matches!(module.split('/').next(), Some("session" | "commands")))
        .collect();
    assert!(others.is_empty(), "files that import each other in a circle: {others:?}");
}
