//! Generated parts of the book: the table of settings and the table of metrics.
//! `UPDATE_SNAPSHOTS=1` writes them again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::disk_history::Disk;
use crate::metrics::FullServer;
use crate::support::{ROOT, Server, http, run};

use super::Page;

const END_MARKER: &str = "<!-- end of generated -->";

/// Compares the generated part of a page with the program's current output; with `UPDATE_SNAPSHOTS`
/// set, writes it instead.
fn check_generated(page: &str, name: &str, generated: &str) {
    let Page { path, text } = Page::read(page);
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{path} has no {begin}"));
    let (committed, after) =
        rest.split_once(END_MARKER).unwrap_or_else(|| panic!("{path} has no {END_MARKER}"));
    let generated = format!("\n{generated}\n");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let text = format!("{before}{begin}{generated}{END_MARKER}{after}");
        std::fs::write(Path::new(ROOT).join(path), text).expect("a page can be written");
        return;
    }
    assert_eq!(
        committed, generated,
        "{path} is not what the program says; UPDATE_SNAPSHOTS=1 cargo test --workspace --test program -- book::generated \
         writes it"
    );
}

/// One setting, as described by `--help` and `config default`.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) heading: String,
    key: String,
    /// Paragraphs of its help; the first without the default.
    help: Vec<String>,
    /// Allowed values with what each means, if they are few.
    values: Vec<String>,
    default: Option<String>,
    is_reloaded: bool,
}

impl Setting {
    pub(super) fn flag(&self) -> String {
        format!("--{}", self.key.replace('_', "-"))
    }
}

/// Returns all settings in the order of `--help`, except `config`, which names the file.
pub(super) fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    let (mut heading, mut lists_values) = (String::new(), false);
    for line in run(&["--help"], &[]).stdout.lines() {
        let text = line.trim();
        let indent = line.len() - line.trim_start().len();
        if indent == 0 && line.ends_with(':') {
            heading = text.trim_end_matches(':').to_owned();
        } else if indent == 6 && text.starts_with("--") {
            let flag = text.split([' ', '[']).next().unwrap_or_default().trim_start_matches("--");
            let (key, help) = (flag.replace('-', "_"), vec![String::new()]);
            let heading = heading.clone();
            settings.push(Setting {
                heading,
                key,
                help,
                values: Vec::new(),
                default: None,
                is_reloaded: false,
            });
            lists_values = false;
        } else if let Some(setting) = settings.last_mut().filter(|_| indent >= 10 || text.is_empty()) {
            let paragraphs = if lists_values { &mut setting.values } else { &mut setting.help };
            if text == "Possible values:" {
                lists_values = true;
            } else if let Some(value) = text.strip_prefix("- ").filter(|_| lists_values) {
                setting.values.push(value.to_owned());
            } else if text.is_empty() {
                paragraphs.extend((!lists_values).then(String::new));
            } else if let Some(last) = paragraphs.last_mut() {
                if !last.is_empty() {
                    last.push(' ');
                }
                last.push_str(text);
            }
        }
    }
    let file = run(&["config", "default"], &[]).stdout;
    settings.retain(|setting| setting.key != "config");
    for setting in &mut settings {
        setting.help.retain(|paragraph| !paragraph.is_empty());
        let assignment = format!("\n#{} = ", setting.key);
        let (comment, rest) =
            file.split_once(&assignment).unwrap_or_else(|| panic!("no {assignment} in the file"));
        let literal = rest.lines().next().unwrap_or_default();
        let comment = comment.rsplit("\n\n").next().unwrap_or_default();
        setting.is_reloaded = comment.contains("# Reloaded on SIGHUP.");
        let summary = setting.help.first_mut().expect("a setting has help");
        let stated = summary.rsplit_once("[default: ").and_then(|(before, default)| {
            let (default, after) = default.split_once(']')?;
            Some((format!("{}{after}", before.trim_end()), default.to_owned()))
        });
        setting.default = match stated {
            Some((without, default)) => {
                *summary = without;
                Some(default)
            }
            None => (!literal.contains("# not set by default")).then(|| literal.to_owned()),
        };
    }
    assert!(settings.len() > 50, "only {} settings were found", settings.len());
    settings
}

/// Escapes characters that a table cell cannot contain.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

#[test]
fn the_settings_table_matches_the_program() {
    let mut tables = String::new();
    let mut heading = "";
    for setting in &settings() {
        if setting.heading != heading {
            heading = &setting.heading;
            let head = "| key, flag, variable | default | takes effect | meaning |\n|---|---|---|---|";
            let _ = writeln!(tables, "{}### {heading}\n\n{head}", if tables.is_empty() { "" } else { "\n" });
        }
        let names = format!(
            "`{}`<br>`{}`<br>`DEEPERHUB_{}`",
            setting.key,
            setting.flag(),
            setting.key.to_uppercase()
        );
        let mut meaning: Vec<_> = setting
            .help
            .iter()
            .map(|paragraph| format!("{}.", cell(paragraph).trim_end_matches('.')))
            .collect();
        if !setting.values.is_empty() {
            let named = |value: &String| match value.split_once(':') {
                Some((name, meaning)) => format!("`{name}`: {}", cell(meaning.trim())),
                None => format!("`{value}`"),
            };
            meaning.push(format!(
                "Values: {}.",
                setting.values.iter().map(named).collect::<Vec<_>>().join("; ")
            ));
        }
        let default = setting.default.as_deref().map_or_else(|| "not set".to_owned(), cell);
        let effect = if setting.is_reloaded { "on SIGHUP" } else { "at the start" };
        let _ = writeln!(tables, "| {names} | {default} | {effect} | {} |", meaning.join(" "));
    }
    check_generated("docs/configuration.md", "settings", &tables);
}

/// One metric with all its series.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: String,
    kind: String,
    help: String,
    /// The values of each label.
    pub(super) labels: BTreeMap<String, Vec<String>>,
}

/// Returns the metrics of a server with every feature enabled, in the order of its response. A second
/// one has the history on disk, and a third one in a cluster's broker.
pub(super) fn metric_families() -> Vec<Family> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut families = families_in(&runtime.block_on(FullServer::start().metrics(&[])));
    let disk = Disk::new();
    let server = disk.start(&[]);
    let with_store = runtime.block_on(http(server.api(), "GET /metrics", &[], "")).body;
    // Nothing listens on port 1: the node starts without its broker.
    let server = Server::start(&["--cluster", "redis://127.0.0.1:1"]);
    let in_cluster = runtime.block_on(http(server.api(), "GET /metrics", &[], "")).body;
    for response in [with_store, in_cluster] {
        for family in families_in(&response) {
            if families.iter().all(|known| known.name != family.name) {
                families.push(family);
            }
        }
    }
    assert!(families.len() > 50, "only {} metrics were found", families.len());
    families
}

fn families_in(response: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for line in response.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            let (name, help) = (name.to_owned(), help.to_owned());
            families.push(Family { name, kind: String::new(), help, labels: BTreeMap::new() });
        } else if let Some(family) = families.last_mut() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                kind.rsplit(' ').next().unwrap_or_default().clone_into(&mut family.kind);
            } else if let Some((labels, _)) = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'))
            {
                for (key, value) in labels.split(',').filter_map(|label| label.split_once('=')) {
                    let values = family.labels.entry(key.to_owned()).or_default();
                    let value = value.trim_matches('"').to_owned();
                    if key != "le" && !values.contains(&value) {
                        values.push(value);
                    }
                }
            }
        }
    }
    for family in &mut families {
        family.labels.remove("le");
    }
    families
}

#[test]
fn the_metrics_table_matches_the_server() {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for Family { name, kind, help, labels } in metric_families() {
        let labels = labels.iter().map(|(key, values)| {
            let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("`{key}`: {}", values.join(", "))
        });
        let labels = labels.collect::<Vec<_>>().join("; ");
        let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {} |", cell(&help));
    }
    check_generated("docs/metrics-reference.md", "metrics", &table);
}
