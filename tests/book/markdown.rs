//! The subset of Markdown that these tests read: fenced blocks, tables, headings and links.

/// A fenced block of code.
#[derive(Debug)]
pub(super) struct Block<'t> {
    /// The language after the opening fence.
    pub(super) language: &'t str,
    pub(super) code: &'t str,
    /// A text that running it must print: the comment `<!-- expect: TEXT -->` on the line before
    /// the fence.
    pub(super) expect: Option<&'t str>,
    /// `true` if the comment `<!-- server: defaults -->` precedes the block: it runs against a new
    /// server without flags.
    pub(super) needs_default_server: bool,
    /// Page and line, for messages.
    pub(super) place: String,
}

/// Returns the fenced blocks of a page.
///
/// # Panics
///
/// If a fence has no language or no end, or if a block is indented instead of fenced.
pub(super) fn blocks<'t>(path: &str, text: &'t str) -> Vec<Block<'t>> {
    let mut blocks = Vec::new();
    let (mut start, mut previous, mut before) = (0, "", "");
    let mut open: Option<(usize, Block<'t>)> = None;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let place = format!("{path}:{}", number + 1);
        let end = start + line.len();
        if let Some(language) = line.strip_prefix("```") {
            match open.take() {
                Some((from, block)) => {
                    assert_eq!(language, "\n", "{place}: text after a closing fence");
                    blocks.push(Block { code: &text[from..start], ..block });
                }
                None => {
                    let language = language.trim_end();
                    assert!(!language.is_empty(), "{place}: the block has no language");
                    let comment = |name: &str| {
                        let comments =
                            [previous, before].into_iter().filter(|line| line.starts_with("<!-- "));
                        comments.filter_map(|line| line.trim_end().strip_suffix(" -->")).find_map(|line| {
                            line.strip_prefix("<!-- ")?.strip_prefix(name)?.strip_prefix(": ")
                        })
                    };
                    let block = Block {
                        language,
                        code: "",
                        expect: comment("expect"),
                        needs_default_server: comment("server") == Some("defaults"),
                        place,
                    };
                    open = Some((end, block));
                }
            }
        } else if open.is_none() {
            let is_indented = line.starts_with("    ") && previous.trim().is_empty();
            assert!(!is_indented, "{place}: use ``` and a language instead of indentation");
        }
        (before, previous, start) = (previous, line, end);
    }
    assert!(open.is_none(), "{path}: a block has no end");
    blocks
}

/// Returns the text without its fenced blocks.
pub(super) fn prose(text: &str) -> String {
    let mut inside = false;
    let outside = text.split_inclusive('\n').filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        !inside && !is_fence
    });
    outside.collect()
}

/// Returns the rows of the first table below a heading, without its head: the cells of each,
/// trimmed.
///
/// # Panics
///
/// If there is no such heading or no table below it.
pub(super) fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let text = format!("\n{text}");
    let below =
        text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")).1;
    let lines =
        below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = lines.skip(2).map(cells).collect();
    assert!(!rows.is_empty(), "no table below {heading}");
    rows
}

fn cells(row: &str) -> Vec<String> {
    row.trim().trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
}

/// Returns the texts in backticks, outside of fenced blocks.
pub(super) fn code_spans(text: &str) -> Vec<String> {
    prose(text).split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
}

/// Returns the anchors of a page's headings, as code forges make them.
pub(super) fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for line in prose(text).lines() {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor: String = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let earlier = anchors.iter().filter(|earlier| **earlier == anchor).count();
        anchors.push(if earlier == 0 { anchor } else { format!("{anchor}-{earlier}") });
    }
    anchors
}

/// Returns the targets of links and images.
pub(super) fn links(text: &str) -> Vec<String> {
    // Code in backticks may look like a link.
    let without_code: String = prose(text).split('`').step_by(2).collect();
    without_code.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}
