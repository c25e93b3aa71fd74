//! Flags of the scenario `recover`.

use deeperhub_args::{Address, Time, whole};

use super::{
    DURATION, LOAD, MAX_CONNECTIONS, MAX_RATE_PER_SECOND, MAX_SIZE_BYTES, MAX_STREAMS_U64, PublisherArgs,
};
use crate::stamp::MIN_PAYLOAD_BYTES;

/// Maximum of `--missed`. Far above any practical `history` of a rule.
const MAX_MISSED: u64 = 10_000_000;

/// The clients that are cut and return, and the load meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct RecoverArgs {
    /// Number of clients that are cut and return
    #[arg(long, value_name = "N", visible_alias = "connections", value_parser = whole::<usize>(1, MAX_CONNECTIONS), default_value = "500", help_heading = LOAD)]
    pub(crate) clients: usize,

    /// Number of topics
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_STREAMS_U64), default_value = "100", help_heading = LOAD)]
    pub(crate) topics: usize,

    /// Number of topics of each client, in one `subscribe`; at most as many as topics
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_STREAMS_U64), default_value = "1", help_heading = LOAD)]
    pub(crate) topics_per_client: usize,

    /// Messages of each topic that are published while the clients are away
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0, MAX_MISSED), default_value = "50", help_heading = LOAD)]
    pub(crate) missed: u64,

    /// Clients that return per second, each at its own time
    ///
    /// The time to live counts from the time at which a client was due, so that a stall of the
    /// server is not hidden.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1, MAX_RATE_PER_SECOND), default_value = "500", help_heading = LOAD)]
    pub(crate) rate: u64,

    /// Address at which the clients return, if it is not that of `--url`
    ///
    /// Such as another node of a cluster. Publishers and the subscribers that stay connected remain
    /// where they are. Scheme, host name and path are those of `--url`, as with a load balancer.
    #[arg(long, value_name = "HOST:PORT", help_heading = LOAD)]
    pub(crate) return_to: Option<Address>,

    /// Number of subscribers that stay connected, each subscribed to one topic
    ///
    /// The latency of the report is that of their deliveries.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(0, MAX_CONNECTIONS), default_value = "10", help_heading = LOAD)]
    pub(crate) subscribers: usize,

    #[command(flatten)]
    pub(crate) publishers: PublisherArgs,

    /// Messages per second of all publishers together, before the cut and while clients return; 0
    /// for none
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0, MAX_RATE_PER_SECOND), default_value = "1000", help_heading = LOAD)]
    pub(crate) publish_rate: u64,

    /// Bytes of JSON in each message
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(MIN_PAYLOAD_BYTES as u64, MAX_SIZE_BYTES), default_value = "128", help_heading = LOAD)]
    pub(crate) size: usize,

    /// Time under load before the clients are cut
    #[arg(long, value_name = "TIME", default_value = "1s", help_heading = DURATION)]
    pub(crate) warmup: Time,
}
