//! Medians of all rounds as a Markdown table.

use std::collections::HashMap;
use std::fmt::Write;

use crate::scenario::{Figures, Scenario};
use crate::servers::Server;

/// All figures by scenario and server.
#[derive(Debug, Default)]
pub(crate) struct Table {
    figures: HashMap<(&'static str, &'static str), Vec<Figures>>,
}

impl Table {
    /// Adds the figures of one run.
    pub(crate) fn add(&mut self, scenario: &'static str, server: &'static str, figures: Figures) {
        self.figures.entry((scenario, server)).or_default().push(figures);
    }

    /// Formats the table.
    pub(crate) fn to_markdown(&self, scenarios: &[&Scenario], servers: &[Server]) -> String {
        let mut text = String::from(
            "| scenario | server | CPU µs per operation (range) | per second | p50 | p99 | MB | KiB per connection | faults |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for scenario in scenarios {
            for server in servers {
                let Some(rounds) = self.figures.get(&(scenario.name, server.name)) else { continue };
                let all = |figure: fn(&Figures) -> Option<f64>| {
                    let mut all: Vec<_> = rounds.iter().filter_map(figure).collect();
                    all.sort_by(f64::total_cmp);
                    all
                };
                let cpu = all(|figures| figures.cpu);
                let range = match cpu.as_slice() {
                    [min, .., max] => format!(" ({min:.2}-{max:.2})"),
                    _ => String::new(),
                };
                let median = |figure, digits| number(median(&all(figure)), digits);
                let faults: f64 = rounds.iter().map(|figures| figures.faults).sum();
                let each =
                    if scenario.is_idle { median(|figures| figures.memory_each, 2) } else { "-".into() };
                // Writing to a string cannot fail.
                let _ = writeln!(
                    text,
                    "| {} | {} | {}{range} | {} | {} | {} | {} | {each} | {faults} |",
                    scenario.name,
                    server.name,
                    median(|figures| figures.cpu, 2),
                    median(|figures| figures.rate, 0),
                    median(|figures| figures.p50, 0),
                    median(|figures| figures.p99, 0),
                    median(|figures| figures.memory, 1),
                );
            }
        }
        text
    }
}

/// Returns the median of figures in ascending order.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        return sorted.get(middle).copied();
    }
    Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0)
}

/// Formats a figure, or `-` without one.
fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }
}
