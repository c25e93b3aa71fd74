//! State of the screen: the last sample, the rates since the one before, and the user's choices.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::sample::{Sample, Stats};

/// Maximum number of samples in the curves.
const MAX_HISTORY_SAMPLES: usize = 240;

/// State of the screen.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sample: Option<Sample>,
    pub(crate) rates: Rates,
    /// Messages received per second, the latest last.
    pub(crate) received: VecDeque<u64>,
    /// Messages sent per second, the latest last.
    pub(crate) sent: VecDeque<u64>,
    /// Error of the last request, if it failed.
    pub(crate) error: Option<String>,
    pub(crate) focus: Table,
    pub(crate) sort: [Sort; 2],
    pub(crate) selected: [usize; 2],
    pub(crate) is_paused: bool,
}

/// Rates per second between the last two samples.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    pub(crate) received: f64,
    pub(crate) sent: f64,
    pub(crate) errors: f64,
    pub(crate) received_bytes: f64,
    pub(crate) sent_bytes: f64,
    pub(crate) accepted: f64,
    pub(crate) closed: f64,
    /// CPU time; one busy core is 1.
    pub(crate) cpu: Option<f64>,
}

/// One of the two tables.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    #[default]
    Topics,
    Clients,
}

/// Sort order of a table.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Order of the server's response.
    #[default]
    Activity,
    Messages,
    /// Clients have no deliveries, so their table skips this order.
    Deliveries,
    Bytes,
    /// Clients are not behind, so their table skips this order.
    Behind,
    Name,
}

impl Sort {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Activity => "activity",
            Self::Messages => "messages",
            Self::Deliveries => "deliveries",
            Self::Bytes => "bytes",
            Self::Behind => "behind",
            Self::Name => "name",
        }
    }

    const fn next(self, table: Table) -> Self {
        match (self, table) {
            (Self::Activity, _) => Self::Messages,
            (Self::Messages, Table::Topics) => Self::Deliveries,
            (Self::Messages, Table::Clients) | (Self::Deliveries, _) => Self::Bytes,
            (Self::Bytes, Table::Topics) => Self::Behind,
            (Self::Bytes, Table::Clients) | (Self::Behind, _) => Self::Name,
            (Self::Name, _) => Self::Activity,
        }
    }
}

/// A row of a table. Its numbers are per second, except for `behind`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) messages: f64,
    pub(crate) deliveries: f64,
    pub(crate) bytes: f64,
    /// Subscriptions that are behind.
    pub(crate) behind: u64,
}

impl State {
    /// Shows a sample and updates rates and curves, unless the screen is paused.
    pub(crate) fn add_sample(&mut self, sample: Sample) {
        self.error = None;
        if self.is_paused {
            return;
        }
        if let Some(previous) = &self.sample {
            let elapsed = sample.at.saturating_duration_since(previous.at);
            // Counters of another or a restarted server cannot be compared with the previous ones.
            if previous.stats.node_id == sample.stats.node_id
                && previous.stats.uptime_ms <= sample.stats.uptime_ms
            {
                self.rates = Rates::between(&previous.stats, &sample.stats, elapsed);
                push(&mut self.received, self.rates.received);
                push(&mut self.sent, self.rates.sent);
            }
        }
        self.sample = Some(sample);
        for table in [Table::Topics, Table::Clients] {
            let last = self.rows(table).len().saturating_sub(1);
            let selected = &mut self.selected[table as usize];
            *selected = (*selected).min(last);
        }
    }

    /// Handles a key. Returns `false` if the key ends `top`.
    pub(crate) fn on_key(&mut self, key: KeyEvent) -> bool {
        let focus = self.focus as usize;
        let rows = self.rows(self.focus).len();
        let selected = &mut self.selected[focus];
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Left | KeyCode::Right | KeyCode::Tab | KeyCode::BackTab => {
                self.focus = if self.focus == Table::Topics { Table::Clients } else { Table::Topics };
            }
            KeyCode::Up | KeyCode::Char('k') => *selected = selected.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => *selected = (*selected + 1).min(rows.saturating_sub(1)),
            KeyCode::PageUp => *selected = selected.saturating_sub(10),
            KeyCode::PageDown => *selected = (*selected + 10).min(rows.saturating_sub(1)),
            KeyCode::Home => *selected = 0,
            KeyCode::End => *selected = rows.saturating_sub(1),
            KeyCode::Char('s') => {
                let mut sort = self.sort[focus].next(self.focus);
                if sort == Sort::Behind && !self.has_history() {
                    // The column is hidden.
                    sort = sort.next(self.focus);
                }
                self.sort[focus] = sort;
            }
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            _ => {}
        }
        true
    }

    /// Returns `true` if the server keeps messages of some topic.
    pub(crate) fn has_history(&self) -> bool {
        self.sample.as_ref().is_some_and(|sample| sample.stats.history.streams > 0)
    }

    /// Returns the rows of a table in the chosen order.
    pub(crate) fn rows(&self, table: Table) -> Vec<Row> {
        let Some(sample) = &self.sample else { return Vec::new() };
        let seconds = (sample.busiest.window_ms.max(1)) as f64 / 1000.0;
        let per_second = |count: u64| count as f64 / seconds;
        let mut rows: Vec<Row> = match table {
            Table::Topics => sample
                .busiest
                .topics
                .iter()
                .map(|busy| Row {
                    name: busy.topic.clone(),
                    messages: per_second(busy.messages),
                    deliveries: per_second(busy.deliveries),
                    bytes: per_second(busy.bytes),
                    behind: busy.behind,
                })
                .collect(),
            Table::Clients => sample
                .busiest
                .clients
                .iter()
                .map(|busy| Row {
                    name: busy.client_id.clone(),
                    messages: per_second(busy.messages),
                    deliveries: 0.0,
                    bytes: per_second(busy.bytes),
                    behind: 0,
                })
                .collect(),
        };
        match self.sort[table as usize] {
            Sort::Activity => {}
            Sort::Messages => rows.sort_by(|a, b| b.messages.total_cmp(&a.messages)),
            Sort::Deliveries => rows.sort_by(|a, b| b.deliveries.total_cmp(&a.deliveries)),
            Sort::Bytes => rows.sort_by(|a, b| b.bytes.total_cmp(&a.bytes)),
            Sort::Behind => rows.sort_by_key(|row| Reverse(row.behind)),
            Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        }
        rows
    }
}

impl Rates {
    fn between(old: &Stats, new: &Stats, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        let cpu_seconds = |stats: &Stats| stats.process.as_ref().map(|process| process.cpu_seconds_total);
        Self {
            received: rate(new.messages.received_total, old.messages.received_total),
            sent: rate(new.messages.sent_total, old.messages.sent_total),
            errors: rate(new.messages.errors_total, old.messages.errors_total),
            received_bytes: rate(new.bytes.received_total, old.bytes.received_total),
            sent_bytes: rate(new.bytes.sent_total, old.bytes.sent_total),
            accepted: rate(new.connections.accepted_total, old.connections.accepted_total),
            closed: rate(new.connections.closed_total, old.connections.closed_total),
            cpu: cpu_seconds(new).zip(cpu_seconds(old)).map(|(new, old)| ((new - old) / seconds).max(0.0)),
        }
    }
}

fn push(history: &mut VecDeque<u64>, rate: f64) {
    if history.len() == MAX_HISTORY_SAMPLES {
        history.pop_front();
    }
    history.push_back(rate.round() as u64);
}
