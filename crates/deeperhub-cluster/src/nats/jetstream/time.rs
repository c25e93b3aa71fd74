//! Times of JetStream's API, such as `2026-11-29T20:28:30.080066985Z`.

const DAY_SECONDS: u64 = 86_400;

/// Returns the milliseconds since the Unix epoch of a time in UTC.
pub(super) fn parse_ms(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let (hour, minute) = (time.next()?.parse::<u64>().ok()?, time.next()?.parse::<u64>().ok()?);
    let second = time.next()?;
    let (second, fraction) = second.split_once('.').unwrap_or((second, ""));
    let second = second.parse::<u64>().ok()?;
    let is_valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60
        && fraction.bytes().all(|byte| byte.is_ascii_digit());
    if !is_valid {
        return None;
    }
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    let days = days_before(year, month) + day - 1;
    let seconds = days * DAY_SECONDS + (hour * 60 + minute) * 60 + second;
    Some(seconds * 1000 + millis.parse::<u64>().ok()?)
}

/// Returns the time in UTC of nanoseconds since the Unix epoch, as the server writes it: without
/// zeros at the end.
pub(super) fn format_ns(ns: u64) -> String {
    let fraction = format!(".{:09}", ns % 1_000_000_000);
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{}{fraction}Z", format_seconds(ns / 1_000_000_000))
}

/// Returns the time in UTC of milliseconds since the Unix epoch.
pub(super) fn format_ms(ms: u64) -> String {
    format!("{}.{:03}Z", format_seconds(ms / 1000), ms % 1000)
}

/// Returns date and time in UTC of seconds since the Unix epoch.
fn format_seconds(seconds: u64) -> String {
    let (days, in_day) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
    // A year has at least 365 days, so the first guess is not too small.
    let mut year = 1970 + days / 365;
    while days_before(year, 1) > days {
        year -= 1;
    }
    let month = (1..=12).rev().find(|month| days_before(year, *month) <= days).unwrap_or(1);
    let day = days - days_before(year, month) + 1;
    let (hour, minute, second) = (in_day / 3600, in_day / 60 % 60, in_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Returns the days between the Unix epoch and the start of a month.
fn days_before(year: u64, month: u64) -> u64 {
    const BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let years = year - 1970;
    // Leap days before this year, counted from 1970 on.
    let last = year - 1;
    let leap_days = (last / 4 - last / 100 + last / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let before = BEFORE_MONTH.get(month as usize - 1).copied().unwrap_or_default();
    years * 365 + leap_days + before + u64::from(is_leap && month > 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_of_the_api_are_parsed() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01T00:00:00.5Z", Some(500)),
            ("2000-03-01T00:00:00Z", Some(951_868_800_000)),
            ("2026-11-29T20:28:30.080066985Z", Some(1_795_984_110_080)),
            ("0001-01-01T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-29T20:28Z", None),
            ("2026-11-29", None),
            ("", None),
        ] {
            assert_eq!(parse_ms(text), expected, "{text}");
        }
        assert_eq!(format_ms(1_795_984_110_080), "2026-11-29T20:28:30.080Z");
        for (ns, expected) in [
            (1_795_984_110_080_066_985, "2026-11-29T20:28:30.080066985Z"),
            (1_795_984_110_080_066_000, "2026-11-29T20:28:30.080066Z"),
            (1_795_984_110_000_000_000, "2026-11-29T20:28:30Z"),
            (0, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(format_ns(ns), expected);
        }
    }

    proptest! {
        #[test]
        fn a_formatted_time_is_parsed_again(ms in 0..253_402_300_799_999_u64) {
            prop_assert_eq!(parse_ms(&format_ms(ms)), Some(ms));
        }
    }
}
