//! Links between Markdown files, and to other files of the repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::ROOT;

use super::markdown;

/// Directories without files of the project.
const SKIPPED_DIRS: [&str; 5] = ["target", ".venv", "node_modules", ".git", "corpus"];

fn markdown_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a directory can be read") {
        let path = entry.expect("a directory can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if !SKIPPED_DIRS.contains(&name) {
                markdown_files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn links_have_existing_files_and_headings() {
    let root = Path::new(ROOT).canonicalize().expect("the repository can be read");
    let mut files = Vec::new();
    markdown_files(&root, &mut files);
    let texts: BTreeMap<_, _> = files
        .iter()
        .map(|file| (file.clone(), std::fs::read_to_string(file).expect("a file can be read")))
        .collect();
    let mut broken = Vec::new();
    let mut checked = 0;
    for (file, text) in &texts {
        for link in markdown::links(text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            let (path, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(path, anchor)| (path, Some(anchor)));
            let target = if path.is_empty() {
                Ok(file.clone())
            } else {
                file.parent().expect("a file is in a directory").join(path).canonicalize()
            };
            let leads_somewhere = target.is_ok_and(|target| {
                let has = |anchor: &str| {
                    texts.get(&target).is_some_and(|text| markdown::anchors(text).iter().any(|a| a == anchor))
                };
                target.starts_with(&root) && anchor.is_none_or(has)
            });
            if !leads_somewhere {
                broken.push(format!("{}: {link}", file.strip_prefix(&root).unwrap_or(file).display()));
            }
        }
    }
    assert!(checked > 100, "only {checked} links were found");
    assert_eq!(broken, [""; 0]);
}
