//! The broker between nodes.

use std::path::PathBuf;

use clap::Args;
use deeperhub_args::whole;

use super::MAX_BYTES;
use crate::config::values::{ClusterUrl, UnavailableReadiness, cluster_url};

/// Options under the heading "Cluster".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterOptions {
    /// Broker that carries messages between the nodes of a hub [default: none, the node is alone]
    ///
    /// `nats://HOST:4222` or `redis://HOST:6379`; over TLS `tls://` (NATS) or `rediss://`. User and password go before
    /// the host (`nats://user:password@host`), several servers of one broker are separated by commas. Other users of the
    /// machine can read flags: with a password prefer the variable or the file.
    #[arg(long, value_name = "URL", value_parser = cluster_url)]
    pub(crate) cluster: Option<ClusterUrl>,

    /// What all names on the broker begin with, so that hubs can share one [default: deeperhub]
    ///
    /// 1 to 64 of `A-Z a-z 0-9 _ -`.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster_prefix: Option<String>,

    /// Bytes that may wait for the broker before messages to other nodes are dropped [default: 16777216]
    ///
    /// As many may wait for this node after they came from it.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(65_536, MAX_BYTES))]
    pub(crate) cluster_queue_bytes: Option<usize>,

    /// What /health/ready says while the broker cannot be reached [default: unready]
    #[arg(long, value_name = "STATE", value_enum)]
    pub(crate) cluster_unavailable: Option<UnavailableReadiness>,

    /// NATS credentials file, or a file with the seed of an nkey [default: none]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) cluster_credentials: Option<PathBuf>,

    /// PEM file with the certificates that sign the broker's [default: those that the system trusts]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) cluster_ca: Option<PathBuf>,
}
