//! Short formats of numbers and names.

use std::fmt;

/// Shortens a name to `width` characters. Replaces its middle with `…`, because names differ at
/// their ends.
pub(super) fn shortened(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let kept = width.saturating_sub(1);
    let (start, end) = (kept / 3, kept - kept / 3);
    name.chars().take(start).chain(['…']).chain(name.chars().skip(length - end)).collect()
}

/// Formats a number: `7`, `1.2k`, `45k`, `3.1M`.
pub(super) fn count(number: f64) -> impl fmt::Display {
    scaled(number, 1000.0, ["", "k", "M", "G", "T"])
}

/// Formats a size: `512 B`, `1.2 KiB`, `45 MiB`.
pub(super) fn bytes(number: f64) -> impl fmt::Display {
    scaled(number, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"])
}

/// Formats a number with the first unit in which it has at most three digits.
fn scaled(number: f64, base: f64, units: [&'static str; 5]) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let (mut scaled, mut unit) = (number, 0);
        while scaled >= 999.5 && unit + 1 < units.len() {
            (scaled, unit) = (scaled / base, unit + 1);
        }
        short(f, scaled)?;
        f.write_str(units.get(unit).copied().unwrap_or_default())
    })
}

/// Formats microseconds: `0.12 ms`, `3.4 ms`, `120 ms`, `2.5 s`.
pub(super) fn milliseconds(micros: u64) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let time = micros as f64 / 1000.0;
        match time {
            time if time < 0.995 => write!(f, "{time:.2} ms"),
            time if time < 9.95 => write!(f, "{time:.1} ms"),
            time if time < 999.5 => write!(f, "{time:.0} ms"),
            time => write!(f, "{:.1} s", time / 1000.0),
        }
    })
}

/// Writes a number, with one decimal if it is small.
fn short(f: &mut fmt::Formatter<'_>, number: f64) -> fmt::Result {
    if number == 0.0 || number >= 9.95 { write!(f, "{number:.0}") } else { write!(f, "{number:.1}") }
}

/// Formats a duration: `3d 4h`, `4h 5m`, `5m 6s`.
pub(super) fn time(seconds: u64) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds}s"),
            (0, 0, _) => write!(f, "{minutes}m {}s", seconds % 60),
            (0, _, _) => write!(f, "{hours}h {}m", minutes % 60),
            _ => write!(f, "{days}d {}h", hours % 24),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(shortened("bench.57f99e05.00000024", 11), "ben…0000024");
        for (name, width, expected) in [("short", 5, "short"), ("é.ü.ä.ö", 4, "é….ö"), ("abc", 1, "…")]
        {
            assert_eq!(shortened(name, width), expected);
        }
    }

    #[test]
    fn numbers_are_short() {
        for (number, expected) in [
            (0.0, "0"),
            (0.04, "0.0"),
            (7.0, "7.0"),
            (42.4, "42"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (45_000.0, "45k"),
        ] {
            assert_eq!(count(number).to_string(), expected);
        }
        assert_eq!(bytes(1536.0).to_string(), "1.5 KiB");
        for (seconds, expected) in [(59, "59s"), (61, "1m 1s"), (3700, "1h 1m"), (90_000, "1d 1h")] {
            assert_eq!(time(seconds).to_string(), expected);
        }
    }
}
