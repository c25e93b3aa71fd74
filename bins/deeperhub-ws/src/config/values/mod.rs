//! Types of setting values. Each is parsed from the text of a flag, a variable or the file. Each is
//! written as TOML that parses to the same value, unless it is secret.

mod cluster;
mod history;

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use deeperhub_args::{Address, Host, HttpUrl, Ratio, Switchable, Time, UrlPath};
use deeperhub_security::proxy::Header;
use deeperhub_security::{LimitMode, Secret};

pub(crate) use cluster::{ClusterUrl, UnavailableReadiness, cluster_url};
pub(crate) use history::{HistoryStorage, HistorySync, StoreKind, forget_time, history_sync, topic_rule};

/// A value that can be written to the configuration file.
pub(crate) trait ToToml {
    /// Returns the value as TOML; secrets are masked.
    fn to_toml(&self) -> String;

    /// Returns the text that [`to_toml`](Self::to_toml) masks, if any.
    fn secret(&self) -> Option<Secret> {
        None
    }
}

/// Name of a node: 1 to 32 of `A-Z a-z 0-9 _ -`.
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

/// Parses a secret. Accepts any text, because an error would show it. `resolve` checks the text.
pub(crate) fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// Lowest level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum LogLevel {
    /// Faults of the server.
    Error,
    /// Conditions that an operator may want to look at.
    Warn,
    /// Start, stop and reload.
    Info,
    /// Connections, too.
    Debug,
    /// Messages, too.
    Trace,
}

/// Effect of rate limits and of limits per address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LimitEnforcement {
    /// Refuse what is over a limit.
    Enforce,
    /// Count it and let it through.
    Observe,
}

impl From<LimitEnforcement> for LimitMode {
    fn from(value: LimitEnforcement) -> Self {
        match value {
            LimitEnforcement::Enforce => Self::Enforce,
            LimitEnforcement::Observe => Self::Observe,
        }
    }
}

/// Use of the dashboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dashboard {
    /// Serve it.
    On,
    /// Answer 404.
    Off,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Use of io_uring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum IoUring {
    /// Use it if the kernel allows it.
    Auto,
    /// Use one system call per connection.
    Off,
}

/// Requirement for client certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ClientAuth {
    /// Clients must present a certificate.
    Required,
    /// Clients may present a certificate.
    Optional,
}

impl From<ClientAuth> for deeperhub_security::tls::ClientAuth {
    fn from(value: ClientAuth) -> Self {
        match value {
            ClientAuth::Required => Self::Required,
            ClientAuth::Optional => Self::Optional,
        }
    }
}

/// Header in which a trusted proxy names the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ForwardedHeader {
    /// The header that is present; if both are and differ, the request gets 400.
    Auto,
    /// `X-Forwarded-For` only.
    XForwardedFor,
    /// `Forwarded` (RFC 7239) only.
    Forwarded,
}

impl From<ForwardedHeader> for deeperhub_listener::ForwardedHeader {
    fn from(value: ForwardedHeader) -> Self {
        match value {
            ForwardedHeader::Auto => Self::Auto,
            ForwardedHeader::XForwardedFor => Self::Only(Header::XForwardedFor),
            ForwardedHeader::Forwarded => Self::Only(Header::Forwarded),
        }
    }
}

/// Expectation of a PROXY protocol header from trusted proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProxyProtocol {
    /// The first bytes of a connection tell.
    Detect,
    /// A connection without the header is closed.
    Required,
    /// The header is not expected.
    Off,
}

impl From<ProxyProtocol> for deeperhub_listener::ProxyProtocol {
    fn from(value: ProxyProtocol) -> Self {
        match value {
            ProxyProtocol::Detect => Self::Detect,
            ProxyProtocol::Required => Self::Required,
            ProxyProtocol::Off => Self::Off,
        }
    }
}

impl ToToml for Secret {
    fn to_toml(&self) -> String {
        quoted("********")
    }

    fn secret(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl ToToml for PathBuf {
    fn to_toml(&self) -> String {
        quoted(self.display())
    }
}

impl<T: ToToml> ToToml for Vec<T> {
    fn to_toml(&self) -> String {
        let items: Vec<_> = self.iter().map(ToToml::to_toml).collect();
        format!("[{}]", items.join(", "))
    }
}

macro_rules! impl_to_toml {
    ($write:ident: $($type:ty),*) => {
        $(impl ToToml for $type {
            fn to_toml(&self) -> String {
                $write(self)
            }
        })*
    };
}

impl_to_toml!(plain: bool, usize, u64, u32, u16, u8, Ratio);
impl_to_toml!(quoted: String, Time, Host, Address, Switchable<Address>, Switchable<HttpUrl>, Switchable<UrlPath>, UrlPath, NodeId);
impl_to_toml!(named: ClientAuth, Dashboard, ForwardedHeader, HistoryStorage, IoUring, LimitEnforcement, LogLevel, LogFormat, ProxyProtocol, StoreKind, UnavailableReadiness);

fn plain(value: impl fmt::Display) -> String {
    value.to_string()
}

fn quoted(value: impl fmt::Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn named(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |name| quoted(name.get_name()))
}

/// Asserts that a text parses to a value that is displayed as `expected`; `None` expects an error.
#[cfg(test)]
fn check<T: FromStr + fmt::Display>(input: &str, expected: Option<&str>) {
    let effective = input.parse::<T>().ok().map(|value| value.to_string());
    assert_eq!(effective.as_deref(), expected, "{input:?}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn node_ids_are_short_and_plain() {
        check::<NodeId>("node_1-a", Some("node_1-a"));
        check::<NodeId>("", None);
        check::<NodeId>("a.b", None);
        check::<NodeId>(&"a".repeat(32), Some(&"a".repeat(32)));
        check::<NodeId>(&"a".repeat(33), None);
    }

    #[test]
    fn values_are_written_as_toml() {
        assert_eq!(8080_u16.to_toml(), "8080");
        assert_eq!(Time(Duration::from_secs(10)).to_toml(), r#""10s""#);
        assert_eq!(vec!["a".to_owned(), "b".to_owned()].to_toml(), r#"["a", "b"]"#);
        assert_eq!(LogLevel::Warn.to_toml(), r#""warn""#);
        assert_eq!(Switchable::<Address>::Off.to_toml(), r#""off""#);
    }

    #[test]
    fn secrets_show_nothing() {
        let secret = secret("hunter2").unwrap();
        assert!(!format!("{secret:?}{}", secret.to_toml()).contains("hunter2"));
        assert_eq!(secret.expose(), b"hunter2");
    }
}
