//! Addresses and paths of clients, and the proxies before them.

use clap::Args;
use deeperhub_args::{Host, Switchable, UrlPath, whole};

use crate::config::values::{ForwardedHeader, ProxyProtocol};

/// Options under the heading "Listening".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Listening")]
pub(crate) struct ListeningOptions {
    /// Listen for clients on this address
    ///
    /// An IP address or a host name. `localhost` is both loopback addresses, 127.0.0.1 and ::1;
    /// `0.0.0.0` and `::` are all interfaces.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<Host>,

    /// Listen for clients on this port; 0 picks a free one and prints it
    #[arg(long, value_parser = whole::<u16>(0, 65_535))]
    pub(crate) port: Option<u16>,

    /// Accept WebSocket connections at this path; may be repeated
    #[arg(long, value_delimiter = ',')]
    pub(crate) path: Option<Vec<UrlPath>>,

    /// Answer load balancer probes at this path of the client port; `off` disables it
    ///
    /// A plain GET or HEAD gets 200, or 503 while the node starts, drains or is not ready. A full
    /// node still answers probes. WebSocket handshakes are not affected, so the path may equal a
    /// --path.
    #[arg(long, value_name = "PATH")]
    pub(crate) probe_path: Option<Switchable<UrlPath>>,

    /// Trust proxies in this network to name the client's address; may be repeated
    ///
    /// An address or a network such as `10.0.0.0/8`. The address comes from `X-Forwarded-For` or
    /// `Forwarded`, or from a PROXY protocol header (version 1 or 2) at the start of the
    /// connection. Limits per address and events then apply to clients instead of proxies.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub(crate) trusted_proxy: Option<Vec<String>>,

    /// Read the client's address from this header of trusted proxies
    ///
    /// `auto` uses the header that is present. If both are present and name different clients, the
    /// request gets 400, because one of them may come from the client. If your proxies write both,
    /// name one.
    #[arg(long, value_name = "HEADER", value_enum)]
    pub(crate) forwarded_header: Option<ForwardedHeader>,

    /// Expect a PROXY protocol header from trusted proxies
    ///
    /// Use `required` if all of them send it. Use `off` if one forwards TCP without it; otherwise
    /// its clients could send the header themselves.
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
}
