//! The values that settings take: each parses from the text that a flag, a variable or a file gives, and writes
//! itself as TOML that parses back.

mod cluster;

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use deeperhub_args::{Address, Host, HttpUrl, Ratio, Switchable, Time, UrlPath};
use deeperhub_security::proxy::Header;
use deeperhub_security::{LimitMode, Secret};

pub(crate) use cluster::{ClusterUrl, UnavailableReadiness, cluster_url};

/// A value as the file writes it.
pub(crate) trait ToToml {
    /// The TOML literal; a secret masks itself.
    fn to_toml(&self) -> String;
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

/// Takes any text, so that no error of a parser can show it; whether it will do is checked in `resolve`.
pub(crate) fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
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

/// What becomes of what is over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LimitEnforcement {
    /// It is refused.
    Enforce,
    /// It is counted and goes through.
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

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether many connections are written by one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum IoUring {
    /// Where the system lets the server.
    Auto,
    /// Each connection is written by a call of its own.
    Off,
}

/// Requirement for client certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ClientAuth {
    /// They must.
    Required,
    /// They may.
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
    /// The one that is there; where both are and name different clients, the request is refused.
    Auto,
    /// `X-Forwarded-For`; the other is not looked at.
    XForwardedFor,
    /// `Forwarded` (RFC 7239); the other is not looked at.
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

/// Whether trusted proxies send a header of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProxyProtocol {
    /// What comes first tells.
    Detect,
    /// A connection without it is closed.
    Required,
    /// It is not looked for.
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
impl_to_toml!(named: ClientAuth, ForwardedHeader, IoUring, LimitEnforcement, LogLevel, LogFormat, ProxyProtocol, UnavailableReadiness);

fn plain(value: impl fmt::Display) -> String {
    value.to_string()
}

fn quoted(value: impl fmt::Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn named(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |name| quoted(name.get_name()))
}

/// For tests: whether a text parses, and what it then shows.
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
    fn literals_are_toml() {
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
