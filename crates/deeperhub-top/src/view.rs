//! Draws the screen of `top`. All numbers fit into 80 columns and 24 lines; a larger screen shows
//! more rows and longer names.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{self, Block, Borders, Cell, Paragraph, RenderDirection, Sparkline, TableState};

use super::sample::Stats;
use super::state::{Rates, Row, Sort, State, Table};
use super::units::{bytes, count, milliseconds, shortened, time};

const KEY_HELP: &str = " q quit · ←→ table · ↑↓ scroll · s sort · p pause";

/// Minimum columns to show both tables side by side; a narrower screen shows the one with the
/// focus.
const TWO_TABLES_MIN_WIDTH: u16 = 64;

/// Minimum columns of the names in a table. A narrow table has fewer, because its numbers come
/// first.
const MIN_NAME_WIDTH: u16 = 24;

/// Columns of the topics' table. The last one is hidden if no topic has history.
const TOPIC_COLUMNS: [(&str, Sort); 4] =
    [("msg/s", Sort::Messages), ("dlv/s", Sort::Deliveries), ("B/s", Sort::Bytes), ("behind", Sort::Behind)];

/// Columns of a number in a table.
const NUMBER_WIDTH: u16 = 6;

/// Draws the whole screen.
pub(crate) fn draw(state: &State, address: &str, frame: &mut Frame<'_>) {
    let [title, numbers, curves, tables, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(5),
        Constraint::Length(4),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let Some(sample) = &state.sample else {
        frame.render_widget(Paragraph::new(format!("Connecting to {address} …")), title);
        return;
    };
    frame.render_widget(title_line(&sample.stats, state, address), title);
    frame.render_widget(Paragraph::new(number_lines(&sample.stats, &state.rates)), numbers);

    let [received, sent] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(1).areas(curves);
    curve("messages in", state.rates.received, &state.received, Color::Cyan, frame, received);
    curve("messages out", state.rates.sent, &state.sent, Color::Green, frame, sent);

    if tables.width < TWO_TABLES_MIN_WIDTH {
        table(state, state.focus, frame, tables);
    } else {
        let [topics, clients] =
            Layout::horizontal([Constraint::Fill(6), Constraint::Fill(5)]).spacing(1).areas(tables);
        table(state, Table::Topics, frame, topics);
        table(state, Table::Clients, frame, clients);
    }
    frame.render_widget(Paragraph::new(KEY_HELP).dim(), keys);
}

fn title_line<'a>(stats: &Stats, state: &State, address: &str) -> Line<'a> {
    let mut spans = vec![
        Span::from(format!("deeperhub-ws {}", stats.version)).bold(),
        Span::from(format!(" · {} · {address} · ", stats.node_id)),
        match stats.phase.as_str() {
            "serving" => Span::from("serving").green(),
            other => Span::from(other.to_owned()).yellow(),
        },
        Span::from(format!(" · up {}", time(stats.uptime_ms / 1000))),
    ];
    if state.is_paused {
        spans.push(Span::from(" · paused").yellow().bold());
    }
    if let Some(error) = &state.error {
        spans.push(Span::from(" · ").bold());
        spans.push(Span::from(error.clone()).red().bold());
    }
    Line::from(spans)
}

fn number_lines<'a>(stats: &Stats, rates: &Rates) -> Vec<Line<'a>> {
    let label = |text: &'static str| Span::from(text).dim();
    let connections = &stats.connections;
    let canary = match (stats.canary.failing_workers, stats.canary.round_trip_us) {
        (0, Some(time)) => Span::from(milliseconds(time).to_string()).green(),
        (0, None) => Span::from("off"),
        (failing, _) => {
            Span::from(format!("{failing} of {} workers not delivering", stats.workers)).red().bold()
        }
    };
    let mut process = vec![label("workers "), Span::from(stats.workers.to_string())];
    if let Some(cpu) = rates.cpu {
        process.extend([label("   cpu "), Span::from(format!("{:.0} %", cpu * 100.0))]);
    }
    if let Some(memory) = stats.process.as_ref().map(|process| process.resident_bytes) {
        process.extend([label("   memory "), Span::from(bytes(memory as f64).to_string())]);
    }
    let mut delivered = Vec::new();
    if let Some(latency) = &stats.publish_latency {
        let percentiles = [
            ("publish to write p50 ", latency.p50_us),
            ("  p99 ", latency.p99_us),
            ("  p99.9 ", latency.p999_us),
        ];
        for (name, time) in percentiles {
            delivered.extend([label(name), Span::from(milliseconds(time).to_string()).bold()]);
        }
        delivered.push(Span::from("   "));
    }
    delivered.extend([label("probe "), canary]);
    if let Some(time) = stats.canary.cluster_round_trip_us {
        process.extend([label("   probe via broker "), Span::from(milliseconds(time).to_string())]);
    }
    let errors = format!("{}/s", count(rates.errors));
    vec![
        Line::from(vec![
            label("connections "),
            Span::from(connections.active.to_string()).bold(),
            Span::from(format!(" of {}", connections.max)),
            label("   new "),
            Span::from(format!("{}/s", count(rates.accepted))),
            label("   ended "),
            Span::from(format!("{}/s", count(rates.closed))),
            label("   too slow "),
            Span::from(connections.slow_total.to_string()),
        ]),
        [
            label("subscriptions "),
            Span::from(stats.subscriptions.to_string()).bold(),
            label("   topics "),
            Span::from(stats.topics.to_string()),
            label("   errors "),
            if rates.errors > 0.0 { Span::from(errors).yellow() } else { Span::from(errors) },
        ]
        .into_iter()
        .chain(history_numbers(stats))
        .collect::<Vec<_>>()
        .into(),
        Line::from(vec![
            label("bytes in "),
            Span::from(format!("{}/s", bytes(rates.received_bytes))),
            label("   out "),
            Span::from(format!("{}/s", bytes(rates.sent_bytes))),
            label("   queued "),
            Span::from(bytes(stats.bytes.queued as f64).to_string()),
        ]),
        Line::from(delivered),
        Line::from(process),
    ]
}

/// Returns a number without a fraction if it is short, or else rounded.
fn whole(number: u64) -> String {
    if number < 1000 { number.to_string() } else { count(number as f64).to_string() }
}

/// Returns the numbers of topics with history, or nothing if there is no such topic.
fn history_numbers<'a>(stats: &Stats) -> Vec<Span<'a>> {
    let history = &stats.history;
    if history.streams == 0 {
        return Vec::new();
    }
    let behind = Span::from(whole(history.behind));
    let kept = format!("{} in {}", whole(history.messages), bytes(history.bytes as f64));
    vec![
        Span::from("   behind ").dim(),
        if history.behind > 0 { behind.yellow() } else { behind },
        Span::from("   kept ").dim(),
        Span::from(kept),
    ]
}

fn curve(name: &str, rate: f64, history: &VecDeque<u64>, colour: Color, frame: &mut Frame<'_>, area: Rect) {
    let block = Block::new().borders(Borders::TOP).title(format!(" {name} {}/s ", count(rate)));
    let width = usize::from(area.width);
    // The latest rate is at the right edge.
    let shown: Vec<u64> = history.iter().rev().take(width).copied().collect();
    let highest = shown.iter().copied().max().unwrap_or(0).max(1);
    let curve = Sparkline::default().direction(RenderDirection::RightToLeft).data(&shown).max(highest);
    frame.render_widget(curve.block(block).fg(colour), area);
}

fn table(state: &State, table: Table, frame: &mut Frame<'_>, area: Rect) {
    let rows = state.rows(table);
    let sort = state.sort[table as usize];
    let has_focus = state.focus == table;
    let (name, columns): (_, &[(&str, Sort)]) = match table {
        Table::Topics if state.has_history() => ("topics", &TOPIC_COLUMNS),
        Table::Topics => ("topics", &TOPIC_COLUMNS[..3]),
        Table::Clients => ("clients", &[("msg/s", Sort::Messages), ("B/s", Sort::Bytes)]),
    };
    let value = |row: &Row, column: Sort| match column {
        Sort::Deliveries => count(row.deliveries).to_string(),
        Sort::Bytes => count(row.bytes).to_string(),
        Sort::Behind => whole(row.behind),
        _ => count(row.messages).to_string(),
    };
    let mut header = vec![Cell::from(name)];
    header.extend(columns.iter().map(|&(title, column)| {
        let title = Line::from(title).right_aligned();
        Cell::from(if column == sort { title.underlined() } else { title })
    }));
    // Beyond its minimum, the column of names is no wider than the longest name, so that the
    // numbers are next to the names.
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let room = area.width.saturating_sub((NUMBER_WIDTH + 1) * columns.len() as u16);
    let name_width = u16::try_from(longest).unwrap_or(u16::MAX).max(MIN_NAME_WIDTH).min(room);
    let body = rows.iter().map(|row| {
        let values =
            columns.iter().map(|&(_, column)| Cell::from(Line::from(value(row, column)).right_aligned()));
        widgets::Row::new([Cell::from(shortened(&row.name, name_width.into()))].into_iter().chain(values))
    });
    let numbers = columns.iter().map(|_| Constraint::Length(NUMBER_WIDTH));
    let widths = [Constraint::Length(name_width)].into_iter().chain(numbers);
    let title = format!(" busiest {name} by {} ", sort.name());
    let mut block = Block::new().borders(Borders::TOP).title(title);
    if has_focus {
        block = block.border_style(Style::new().fg(Color::Cyan)).title_style(Modifier::BOLD);
    }
    let highlight = if has_focus { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
    let selected = (!rows.is_empty()).then_some(state.selected[table as usize]);
    let widget = widgets::Table::new(body, widths)
        .header(widgets::Row::new(header).style(Modifier::DIM))
        .row_highlight_style(highlight)
        .block(block);
    frame.render_stateful_widget(widget, area, &mut TableState::new().with_selected(selected));
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};
    use serde_json::json;

    use super::super::sample::{History, Sample};
    use super::*;

    /// Returns a server's responses `seconds` after its start, at a rate of `per_second` messages.
    fn sample(start: Instant, seconds: u64, per_second: u64) -> Sample {
        let total = seconds * per_second;
        let stats = json!({
            "node_id": "n1", "version": "1.2.3", "phase": "serving", "uptime_ms": seconds * 1000, "workers": 2,
            "connections": {"active": 12, "max": 1000, "accepted_total": 20, "closed_total": 8, "slow_total": 1},
            "subscriptions": 30, "topics": 4,
            "messages": {"received_total": total, "sent_total": total * 10, "errors_total": 0},
            "bytes": {"received_total": total * 100, "sent_total": total * 1000, "queued": 2048},
            "history": {"streams": 0, "messages": 0, "bytes": 0, "behind": 0},
            "publish_latency": {"p50_us": 120, "p99_us": 3400, "p999_us": 1_300_000},
            "canary": {"round_trip_us": 240, "cluster_round_trip_us": 1200, "failing_workers": 0},
            "process": {"cpu_seconds_total": seconds as f64 / 4.0, "resident_bytes": 10 << 20}
        });
        let busiest = json!({
            "window_ms": 10_000,
            "topics": [
                {"topic": "sports.football", "messages": 500, "deliveries": 12_000, "bytes": 9000, "behind": 0},
                {"topic": "a.topic.with.a.name.that.is.far.too.long.for.a.column", "messages": 900, "deliveries": 900, "bytes": 10, "behind": 7}
            ],
            "clients": [{"client_id": "n1.0-1f-5c2a", "messages": 700, "bytes": 700}]
        });
        Sample {
            at: start + Duration::from_secs(seconds),
            stats: serde_json::from_value(stats).unwrap(),
            busiest: serde_json::from_value(busiest).unwrap(),
        }
    }

    fn screen(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(state, "127.0.0.1:8081", frame)).unwrap();
        terminal.backend().to_string()
    }

    fn state() -> State {
        let (mut state, start) = (State::default(), Instant::now());
        state.add_sample(sample(start, 100, 50));
        state.add_sample(sample(start, 101, 50));
        state
    }

    #[test]
    fn a_small_screen_shows_all_numbers() {
        let screen = screen(&state(), 80, 24);
        for text in [
            "deeperhub-ws 1.2.3 · n1 · 127.0.0.1:8081 · serving · up 1m 41s",
            "connections 12 of 1000",
            "subscriptions 30   topics 4",
            "queued 2.0 KiB",
            "messages in 50/s",
            "messages out 500/s",
            "publish to write p50 0.12 ms  p99 3.4 ms  p99.9 1.3 s   probe 0.24 ms",
            "cpu 25 %   memory 10 MiB   probe via broker 1.2 ms",
            "sports.football",
            "1.2k",
            "n1.0-1f-5c2a",
            "q quit",
        ] {
            assert!(screen.contains(text), "{text:?} is not in\n{screen}");
        }
    }

    #[test]
    fn topics_with_history_show_who_is_behind() {
        let mut state = state();
        let press_s = |state: &mut State, times| {
            for _ in 0..times {
                state.on_key(KeyEvent::from(KeyCode::Char('s')));
            }
        };
        press_s(&mut state, 4);
        assert_eq!(state.sort[0], Sort::Name, "without history, nobody is behind");
        assert!(!screen(&state, 80, 24).contains("behind"), "no topic has history");
        let stats = &mut state.sample.as_mut().unwrap().stats;
        stats.history = History { streams: 3, messages: 1200, bytes: 2048, behind: 7 };
        press_s(&mut state, 5);
        assert!(state.rows(Table::Topics)[0].name.starts_with("a.topic"), "by behind");
        let screen = screen(&state, 80, 24);
        for text in [
            "subscriptions 30   topics 4   errors 0/s   behind 7   kept 1.2k in 2.0 KiB",
            "busiest topics by behind",
            "dlv/s    B/s behind",
            "sports.football",
        ] {
            assert!(screen.contains(text), "{text:?} is not in\n{screen}");
        }
        assert!(screen.contains("    90     90    1.0      7"), "{screen}");
    }

    #[test]
    fn a_narrow_screen_shows_the_chosen_table() {
        let mut state = state();
        let narrow = |state: &State| screen(state, 50, 18);
        assert!(narrow(&state).contains("busiest topics") && !narrow(&state).contains("busiest clients"));
        state.on_key(KeyEvent::from(KeyCode::Right));
        assert!(!narrow(&state).contains("busiest topics") && narrow(&state).contains("n1.0-1f-5c2a"));
    }

    #[test]
    fn no_size_is_too_small() {
        for (width, height) in [(1, 1), (10, 3), (20, 10), (40, 12), (300, 100)] {
            screen(&state(), width, height);
        }
        screen(&State::default(), 80, 24);
    }

    #[test]
    fn keys_choose_table_order_and_row() {
        let mut state = state();
        let first = |state: &State| state.rows(Table::Topics)[0].name.clone();
        assert_eq!(first(&state), "sports.football");
        state.on_key(KeyEvent::from(KeyCode::Char('s')));
        assert!(first(&state).starts_with("a.topic"), "by messages");
        assert!(screen(&state, 80, 24).contains("busiest topics by messages"));
        state.on_key(KeyEvent::from(KeyCode::Down));
        state.on_key(KeyEvent::from(KeyCode::Down));
        assert_eq!(state.selected, [1, 0]);
        state.on_key(KeyEvent::from(KeyCode::Right));
        assert_eq!(state.focus, Table::Clients);
        for expected in ["messages", "bytes", "name", "activity"] {
            state.on_key(KeyEvent::from(KeyCode::Char('s')));
            assert_eq!(state.sort[1].name(), expected);
        }
        assert!(!state.on_key(KeyEvent::from(KeyCode::Char('q'))));
    }

    #[test]
    fn a_restarted_server_has_no_negative_rates() {
        let (mut state, start) = (State::default(), Instant::now());
        state.add_sample(sample(start, 100, 50));
        let mut restarted = sample(start, 1, 10);
        restarted.at = start + Duration::from_secs(101);
        state.add_sample(restarted);
        assert_eq!(state.rates, Rates::default());
    }
}
