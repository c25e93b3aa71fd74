//! The values that settings take: each parses from the text that a flag, a variable or a file gives, and writes
//! itself as TOML that parses back.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

/// A value as the file writes it.
pub(crate) trait Literal {
    /// The TOML literal; a secret masks itself.
    fn literal(&self) -> String;
}

/// A whole number between two bounds.
pub(crate) fn whole<N: TryFrom<u64>>(
    min: u64,
    max: u64,
) -> impl Fn(&str) -> Result<N, String> + Clone + Send + Sync + 'static {
    move |text| {
        text.parse::<u64>()
            .ok()
            .filter(|number| (min..=max).contains(number))
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| {
                // Kubernetes gives containers such variables for a service of our name.
                let hint = if text.starts_with("tcp://") {
                    " (Kubernetes sets this for a service named deeperhub: switch `enableServiceLinks` off)"
                } else {
                    ""
                };
                format!("expected a whole number from {min} to {max}{hint}")
            })
    }
}

/// A duration: `500ms`, `10s`, `2m`, `1h`, or `0`. At most a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

const LONGEST_TIME: Duration = Duration::from_secs(24 * 60 * 60);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a duration such as 500ms, 10s, 2m or 1h, at most 24h".to_owned();
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(expected()),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(milliseconds))
            .map(Duration::from_millis)
            .filter(|time| *time <= LONGEST_TIME)
            .map(Self)
            .ok_or_else(expected)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            0 => f.write_str("0s"),
            hours if hours % 3_600_000 == 0 => write!(f, "{}h", hours / 3_600_000),
            minutes if minutes % 60_000 == 0 => write!(f, "{}m", minutes / 60_000),
            seconds if seconds % 1000 == 0 => write!(f, "{}s", seconds / 1000),
            milliseconds => write!(f, "{milliseconds}ms"),
        }
    }
}

/// Where a socket listens, without the port: an IP address or a name that resolves to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name, resolved when the server starts.
    Name(String),
}

impl Host {
    pub(crate) const LOOPBACK: Self = Self::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// Whether only this machine reaches it. Of names, `localhost` is all that is known without resolving.
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.to_canonical().is_loopback(),
            Self::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = unbracketed.parse() {
            return Ok(Self::Ip(ip));
        }
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        // A name of digits and dots alone is an IP address with a slip.
        let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if numeric || text.len() > 253 || !text.split('.').all(label) {
            return Err(
                "expected an IP address or a host name, such as 127.0.0.1, 0.0.0.0, :: or localhost, \
                        without a port"
                    .to_owned(),
            );
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

impl Address {
    /// Looks a name up; of several addresses an IPv4 one goes first, as that is what people try.
    pub(crate) fn resolve(&self) -> std::io::Result<SocketAddr> {
        let name = match &self.host {
            Host::Ip(ip) => return Ok(SocketAddr::new(*ip, self.port)),
            Host::Name(name) => name,
        };
        let found: Vec<_> = (name.as_str(), self.port).to_socket_addrs()?.collect();
        found
            .iter()
            .find(|address| address.is_ipv4())
            .or_else(|| found.first())
            .copied()
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected an address and a port, such as 127.0.0.1:8081 or [::1]:8081".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(expected());
        }
        Ok(Self {
            host: host.parse().map_err(|_| expected())?,
            port: whole(0, 65_535)(port).map_err(|_| expected())?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// A value, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switchable<T> {
    /// Switched off.
    Off,
    /// Switched on, with this value.
    On(T),
}

impl<T: FromStr<Err = String>> FromStr for Switchable<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::On).map_err(|expected| format!("{expected}, or off"))
    }
}

impl<T: fmt::Display> fmt::Display for Switchable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On(value) => value.fmt(f),
        }
    }
}

/// The path of a URL: `/`, `/ws`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UrlPath(pub(crate) String);

impl FromStr for UrlPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte);
        if text.starts_with('/') && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected a path that begins with /, such as /ws, percent-encoded and without ? or #"
                .to_owned())
        }
    }
}

impl fmt::Display for UrlPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node's name: 1 to 32 of `A-Z a-z 0-9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeId(pub(crate) String);

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected 1 to 32 of A-Z, a-z, 0-9, _ and -".to_owned())
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that nobody may read in a log, an error or `config show`. Any text parses, so that no error of a parser
/// can show it; whether it will do is checked in `resolve`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The secret itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What is logged: this and all that is graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum LogLevel {
    /// What went wrong on the server's side.
    Error,
    /// What an operator may want to look at.
    Warn,
    /// Start, stop, reload.
    Info,
    /// Connections as well.
    Debug,
    /// Messages as well.
    Trace,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Literal for Secret {
    fn literal(&self) -> String {
        quoted("********")
    }
}

impl<T: Literal> Literal for Vec<T> {
    fn literal(&self) -> String {
        let items: Vec<_> = self.iter().map(Literal::literal).collect();
        format!("[{}]", items.join(", "))
    }
}

macro_rules! literal {
    ($write:ident: $($type:ty),*) => {
        $(impl Literal for $type {
            fn literal(&self) -> String {
                $write(self)
            }
        })*
    };
}

literal!(plain: usize, u32, u16);
literal!(quoted: String, Time, Host, Address, Switchable<Address>, UrlPath, NodeId);
literal!(named: LogLevel, LogFormat);

fn plain(value: impl fmt::Display) -> String {
    value.to_string()
}

fn quoted(value: impl fmt::Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn named(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |name| quoted(name.get_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr + fmt::Display>(input: &str, expected: Option<&str>) {
        let shown = input.parse::<T>().ok().map(|value| value.to_string());
        assert_eq!(shown.as_deref(), expected, "{input:?}");
    }

    #[test]
    fn durations_have_a_unit_and_show_the_largest_that_is_exact() {
        for (input, expected) in [
            ("500ms", Some("500ms")),
            ("10s", Some("10s")),
            ("2m", Some("2m")),
            ("1h", Some("1h")),
            ("1500ms", Some("1500ms")),
            ("2000ms", Some("2s")),
            ("120s", Some("2m")),
            ("0", Some("0s")),
            ("0ms", Some("0s")),
            ("24h", Some("24h")),
            ("25h", None),
            ("10", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("+1s", None),
            ("1.5s", None),
            ("1 s", None),
            ("1S", None),
            ("1d", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            check::<Time>(input, expected);
        }
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        for (input, expected) in [
            ("127.0.0.1", Some("127.0.0.1")),
            ("::", Some("::")),
            ("[::1]", Some("::1")),
            ("localhost", Some("localhost")),
            ("hub-1.example.com", Some("hub-1.example.com")),
            ("", None),
            ("127.0.0", None),
            ("300.0.0.1", None),
            ("localhost:8080", None),
            ("http://localhost", None),
            ("a b", None),
            ("a..b", None),
        ] {
            check::<Host>(input, expected);
        }
    }

    #[test]
    fn loopback_is_known_for_addresses_and_localhost() {
        for (host, expected) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("LocalHost", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("hub.example.com", false),
        ] {
            assert_eq!(host.parse::<Host>().map(|host| host.is_loopback()), Ok(expected), "{host}");
        }
    }

    #[test]
    fn api_addresses_need_a_port_or_are_off() {
        for (input, expected) in [
            ("127.0.0.1:8081", Some("127.0.0.1:8081")),
            ("[::1]:0", Some("[::1]:0")),
            ("localhost:1", Some("localhost:1")),
            ("off", Some("off")),
            ("127.0.0.1", None),
            ("::1", None),
            ("::1:8081", None),
            (":8081", None),
            ("8081", None),
            ("127.0.0.1:65536", None),
            ("127.0.0.1:", None),
            ("on", None),
        ] {
            check::<Switchable<Address>>(input, expected);
        }
    }

    #[test]
    fn paths_begin_with_a_slash() {
        for (input, expected) in [
            ("/", Some("/")),
            ("/ws/v1", Some("/ws/v1")),
            ("/a%20b", Some("/a%20b")),
            ("", None),
            ("ws", None),
            ("/a?b", None),
            ("/a b", None),
            ("/a#b", None),
            ("/é", None),
        ] {
            check::<UrlPath>(input, expected);
        }
    }

    #[test]
    fn node_ids_are_short_and_plain() {
        check::<NodeId>("node_1-a", Some("node_1-a"));
        check::<NodeId>("", None);
        check::<NodeId>("a.b", None);
        check::<NodeId>(&"a".repeat(32), Some(&"a".repeat(32)));
        check::<NodeId>(&"a".repeat(33), None);
    }

    #[test]
    fn numbers_stay_between_their_bounds() {
        let port = whole::<u16>(0, 65_535);
        assert_eq!(port("65535"), Ok(65_535));
        for text in ["65536", "-1", "", "8080 ", "0x10", "1e3", "1.0", "99999999999999999999"] {
            assert_eq!(port(text), Err("expected a whole number from 0 to 65535".to_owned()), "{text}");
        }
        assert!(port("tcp://10.0.0.1:8080").is_err_and(|reason| reason.contains("enableServiceLinks")));
    }

    #[test]
    fn literals_are_toml() {
        assert_eq!(8080_u16.literal(), "8080");
        assert_eq!(Time(Duration::from_secs(10)).literal(), r#""10s""#);
        assert_eq!(vec!["a".to_owned(), "b".to_owned()].literal(), r#"["a", "b"]"#);
        assert_eq!(LogLevel::Warn.literal(), r#""warn""#);
        assert_eq!(Switchable::<Address>::Off.literal(), r#""off""#);
    }

    #[test]
    fn secrets_show_nothing() {
        let secret: Secret = "hunter2".parse().unwrap();
        assert!(!format!("{secret:?}{}", secret.literal()).contains("hunter2"));
        assert_eq!(secret.expose(), "hunter2");
    }
}
