//! Values of cluster settings.

use std::convert::Infallible;

use deeperhub_cluster::{BrokerUrl, BrokerUrlError};
use deeperhub_security::Secret;

use super::{ToToml, quoted};

/// URL of a broker, or the error of parsing it. The parser accepts any text, because its error
/// would show a password in the text. `resolve` reports the error.
#[derive(Debug, Clone)]
pub(crate) struct ClusterUrl {
    pub(crate) url: Result<BrokerUrl, BrokerUrlError>,
    /// The URL as given, with its password.
    text: Secret,
}

/// Parses a URL; never fails.
pub(crate) fn cluster_url(text: &str) -> Result<ClusterUrl, Infallible> {
    Ok(ClusterUrl { url: BrokerUrl::parse(text), text: Secret::new(text) })
}

impl ToToml for ClusterUrl {
    fn to_toml(&self) -> String {
        self.url.as_ref().map_or_else(|_| quoted("********"), quoted)
    }

    fn secret(&self) -> Option<Secret> {
        Some(self.text.clone())
    }
}

/// Answer of `/health/ready` while the broker cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum UnavailableReadiness {
    /// 503, so that clients go to other nodes.
    Unready,
    /// 200; the node serves its own clients alone.
    Ready,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_in_invalid_urls_too() {
        for (text, expected) in [
            ("nats://me:hunter2@h:4222", "\"nats://me:********@h:4222\""),
            ("redis://:hunter2@h", "\"redis://:********@h\""),
            ("natz://me:hunter2@h", "\"********\""),
        ] {
            let Ok(url) = cluster_url(text);
            assert_eq!(url.to_toml(), expected);
            assert!(!format!("{url:?}").contains("hunter2"));
        }
    }
}
