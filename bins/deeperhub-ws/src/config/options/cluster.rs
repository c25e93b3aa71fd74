//! The broker between nodes.

use std::path::PathBuf;

use clap::Args;
use deeperhub_args::whole;

use super::MAX_BYTES;
use crate::config::values::{ClusterUrl, HistoryStorage, UnavailableReadiness, cluster_url};

/// Options under the heading "Cluster".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterOptions {
    /// Join the nodes of a cluster through the broker at this URL
    ///
    /// `nats://HOST:4222` or `redis://HOST:6379`; over TLS `tls://` (NATS) or `rediss://`. User and
    /// password go before the host (`nats://user:password@host`); separate several servers of one
    /// broker with commas. Other users of the machine can see flags: if there is a password, prefer
    /// the variable or the file.
    #[arg(long, value_name = "URL", value_parser = cluster_url)]
    pub(crate) cluster: Option<ClusterUrl>,

    /// Start all names on the broker with this prefix, so that several hubs can share a broker
    ///
    /// 1 to 64 of `A-Z a-z 0-9 _ -`.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster_prefix: Option<String>,

    /// Queue at most this many bytes for the broker; more are dropped
    ///
    /// The same limit applies to messages received from the broker.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(65_536, MAX_BYTES))]
    pub(crate) cluster_queue_bytes: Option<usize>,

    /// Answer /health/ready like this while the broker cannot be reached
    #[arg(long, value_name = "STATE", value_enum)]
    pub(crate) cluster_unavailable: Option<UnavailableReadiness>,

    /// Authenticate to NATS with this credentials file or nkey seed file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) cluster_credentials: Option<PathBuf>,

    /// Verify the broker's certificate against these CAs, in PEM
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) cluster_ca: Option<PathBuf>,

    /// Keep the history on so many servers of NATS JetStream
    ///
    /// 1, 3 or 5. With 3, the history survives the loss of a server.
    #[arg(long, value_name = "N", value_parser = whole::<u8>(1, 5))]
    pub(crate) history_replicas: Option<u8>,

    /// Keep the history of NATS JetStream in its memory or in its files
    ///
    /// A stream that exists already stays where it is.
    #[arg(long, value_name = "STORAGE", value_enum)]
    pub(crate) history_storage: Option<HistoryStorage>,
}
