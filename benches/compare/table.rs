//! Medians of all rounds, as a table in Markdown.

use std::collections::HashMap;
use std::fmt::Write;

use crate::scenario::{Figures, Scenario};
use crate::servers::Server;

/// All figures, by scenario and server.
#[derive(Debug, Default)]
pub(crate) struct Table {
    figures: HashMap<(&'static str, &'static str), Vec<Figures>>,
}

impl Table {
    pub(crate) fn add(&mut self, scenario: &'static str, server: &'static str, figures: Figures) {
        self.figures.entry((scenario, server)).or_default().push(figures);
    }

    pub(crate) fn of(&self, scenarios: &[&Scenario], servers: &[Server]) -> String {
        let mut text = String::from(
            "| scenario | server | CPU µs each (range) | each second | p50 | p99 | MB | KiB a connection | faults |\n\
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
                    [least, .., most] => format!(" ({least:.2}-{most:.2})"),
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

/// The middle of figures in ascending order.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        return sorted.get(middle).copied();
    }
    Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0)
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
    }
}
