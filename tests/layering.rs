//! Dependencies between crates: the table in `ARCHITECTURE.md` against cargo's metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

use crate::support::ROOT;

/// Each of our crates with its dependencies among our crates, except for development.
type Edges = BTreeMap<String, BTreeSet<String>>;

fn metadata() -> Metadata {
    // This platform only: packages for other platforms have not been downloaded.
    let host = Command::new("rustc").args(["--print", "host-tuple"]).output().expect("rustc runs");
    let host = String::from_utf8_lossy(&host.stdout);
    MetadataCommand::new()
        .manifest_path(Path::new(ROOT).join("Cargo.toml"))
        .other_options(["--locked", "--filter-platform", host.trim()].map(str::to_owned))
        .exec()
        .expect("cargo metadata describes the workspace")
}

/// Returns the edges in the manifests. Packages outside the product (benches, the kit for
/// clients) are left out.
fn edges_in_manifests(metadata: &Metadata) -> Edges {
    let root = &metadata.workspace_root;
    metadata
        .workspace_packages()
        .iter()
        .filter(|package| {
            let folder = package.manifest_path.strip_prefix(root).expect("members lie in the workspace");
            folder.starts_with("crates") || folder.starts_with("bins")
        })
        .map(|package| {
            let ours = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind == DependencyKind::Normal && dependency.path.is_some())
                .map(|dependency| dependency.name.clone())
                .collect();
            (package.name.to_string(), ours)
        })
        .collect()
}

/// Returns the edges in the table of `ARCHITECTURE.md`; `None` for a crate that may depend on all
/// others.
fn edges_in_architecture() -> BTreeMap<String, Option<BTreeSet<String>>> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("ARCHITECTURE.md"))
        .expect("ARCHITECTURE.md can be read");
    let layers = text.split_once("\n## Layers\n").expect("it has a section on layers").1;
    let layers = layers.split("\n## ").next().unwrap_or_default();
    layers
        .lines()
        .filter_map(|line| line.strip_prefix("| deeperhub-"))
        .map(|row| {
            let mut cells = row.split('|').map(str::trim);
            let name = cells.next().unwrap_or_default();
            let edges = match cells.next().unwrap_or_default() {
                "all" => None,
                "–" => Some(BTreeSet::new()),
                list => Some(list.split(", ").map(|name| format!("deeperhub-{name}")).collect()),
            };
            (format!("deeperhub-{name}"), edges)
        })
        .collect()
}

#[test]
fn crate_dependencies_match_the_architecture() {
    let manifests = edges_in_manifests(&metadata());
    let architecture = edges_in_architecture();
    let names = |edges: &mut dyn Iterator<Item = &String>| edges.cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&mut manifests.keys()),
        names(&mut architecture.keys()),
        "crates (left) and table (right)"
    );
    for (name, allowed) in architecture {
        if let Some(allowed) = allowed {
            assert_eq!(manifests[&name], allowed, "{name}: its manifest (left) and the table (right)");
        }
    }
}

#[test]
fn pure_crates_do_not_depend_on_a_runtime() {
    let metadata = metadata();
    for name in ["types", "protocol", "router", "history", "metrics"] {
        let name = &format!("deeperhub-{name}");
        let dependencies = dependencies_of(&metadata, name);
        for runtime in ["tokio", "mio", "async-std", "smol", "socket2"] {
            assert!(!dependencies.contains(runtime), "{name} depends on {runtime}: {dependencies:?}");
        }
    }
}

#[test]
fn the_core_of_the_client_does_not_depend_on_a_runtime() {
    // Tests of other crates use the whole client, so the metadata of the workspace has its features.
    let dependencies = dependencies_alone("deeperhub-client", &["--no-default-features"]);
    assert!(dependencies.contains("serde_json"), "{dependencies:?}");
    for runtime in ["tokio", "mio", "rustls", "futures-util"] {
        assert!(!dependencies.contains(runtime), "the client's core depends on {runtime}: {dependencies:?}");
    }
    assert!(dependencies_alone("deeperhub-client", &[]).contains("tokio"), "its driver does");
}

#[test]
fn the_dependency_search_finds_a_runtime() {
    assert!(dependencies_of(&metadata(), "deeperhub-listener").contains("tokio"));
}

/// Returns all packages that a crate depends on when it is built without the rest of the workspace.
fn dependencies_alone(name: &str, options: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}", "-p", name])
        .args(options)
        .current_dir(ROOT)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

/// Returns all packages that a crate depends on, except for tests and builds.
fn dependencies_of(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let nodes: BTreeMap<&PackageId, _> =
        metadata.resolve.iter().flat_map(|resolve| &resolve.nodes).map(|node| (&node.id, node)).collect();
    let root = metadata.workspace_packages().into_iter().find(|package| package.name == name);
    let mut waiting = vec![&root.unwrap_or_else(|| panic!("{name} is in the workspace")).id];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if seen.insert(id) {
            let normal = nodes[id]
                .deps
                .iter()
                .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
            waiting.extend(normal.map(|dep| &dep.pkg));
        }
    }
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}
