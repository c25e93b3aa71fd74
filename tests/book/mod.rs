//! The README and the book in `docs/`: programs run, tables match the code, links have targets, and
//! generated parts are up to date.

mod generated;
mod history;
mod links;
mod markdown;
mod programs;
mod tables;

use std::path::{Path, PathBuf};

use crate::support::ROOT;

use markdown::Block;

/// A Markdown file of the README and the book.
struct Page {
    /// Path from the root of the repository.
    path: String,
    text: String,
}

impl Page {
    /// Reads a page by its path from the root of the repository.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(Path::new(ROOT).join(path));
        Self { path: path.to_owned(), text: text.unwrap_or_else(|error| panic!("{path}: {error}")) }
    }

    /// Returns the README and all pages of the book, in alphabetical order.
    fn all() -> Vec<Self> {
        let entries = std::fs::read_dir(Path::new(ROOT).join("docs")).expect("the book is there");
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| entry.expect("a directory can be read").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
        paths.sort();
        let names = paths.iter().filter_map(|path| path.file_name()?.to_str());
        let pages = names.map(|name| Self::read(&format!("docs/{name}")));
        std::iter::once(Self::read("README.md")).chain(pages).collect()
    }

    fn blocks(&self) -> Vec<Block<'_>> {
        markdown::blocks(&self.path, &self.text)
    }
}

/// Longest line of prose, in columns.
const MAX_COLUMNS: usize = 120;

#[test]
fn prose_is_at_most_120_columns_wide() {
    let mut long = Vec::new();
    for page in Page::all() {
        for line in markdown::prose(&page.text).lines() {
            // Table rows, comments and long links cannot be broken.
            let is_breakable =
                !line.starts_with(['|', '<', '!']) && line.split(' ').all(|word| word.len() < 60);
            if is_breakable && line.chars().count() > MAX_COLUMNS {
                long.push(format!("{}: {line}", page.path));
            }
        }
    }
    assert_eq!(long, [""; 0]);
}
