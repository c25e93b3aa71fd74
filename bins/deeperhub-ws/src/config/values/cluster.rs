//! Values of a cluster.

use std::convert::Infallible;

use deeperhub_cluster::{BrokerUrl, BrokerUrlError};

use super::{ToToml, quoted};

/// A broker's URL. Any text is taken, so that no error of a parser can show a password in it; whether it will do is
/// checked in `resolve`.
#[derive(Debug, Clone)]
pub(crate) struct ClusterUrl(pub(crate) Result<BrokerUrl, BrokerUrlError>);

/// Reads a URL, or remembers why it is none.
pub(crate) fn cluster_url(text: &str) -> Result<ClusterUrl, Infallible> {
    Ok(ClusterUrl(BrokerUrl::parse(text)))
}

impl ToToml for ClusterUrl {
    fn to_toml(&self) -> String {
        self.0.as_ref().map_or_else(|_| quoted("********"), quoted)
    }
}

/// What `/health/ready` says while the cluster cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum UnavailableReadiness {
    /// 503, so that clients go to nodes that reach it.
    Unready,
    /// 200: the node serves its own clients alone.
    Ready,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_also_where_they_stand_in_nonsense() {
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
