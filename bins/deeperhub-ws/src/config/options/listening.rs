//! Addresses and paths of clients, and the proxies before them.

use clap::Args;
use deeperhub_args::{Host, Switchable, UrlPath, whole};

use crate::config::values::{ForwardedHeader, ProxyProtocol};

/// Options under the heading "Listening".
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Listening")]
pub(crate) struct ListeningOptions {
    /// Address that clients connect to [default: localhost]
    ///
    /// An IP address or a host name; `localhost` stands for both loopback addresses, 127.0.0.1 and
    /// ::1, and `0.0.0.0` and `::` for every interface.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host: Option<Host>,

    /// Port that clients connect to; 0 takes any free one, which is printed [default: 8080]
    #[arg(long, value_parser = whole::<u16>(0, 65_535))]
    pub(crate) port: Option<u16>,

    /// Path that clients connect to; may be repeated [default: / and /ws]
    #[arg(long, value_delimiter = ',')]
    pub(crate) path: Option<Vec<UrlPath>>,

    /// Path on the client port where a load balancer sees whether the node is ready, or `off`
    /// [default: off]
    ///
    /// A plain GET or HEAD is answered with 200, and with 503 while the node starts, drains or is
    /// not ready, also when it has as many connections as it may have. WebSocket handshakes are
    /// answered as ever, so it may be one of --path.
    #[arg(long, value_name = "PATH")]
    pub(crate) probe_path: Option<Switchable<UrlPath>>,

    /// Network of proxies whose word on a client's address is taken; may be repeated [default: none]
    ///
    /// An address or a network such as `10.0.0.0/8`. From there `X-Forwarded-For` or `Forwarded` in the request is
    /// believed, and so is a header of the PROXY protocol, version 1 or 2, before everything else. Limits of addresses and
    /// events then show clients instead of proxies.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub(crate) trusted_proxy: Option<Vec<String>>,

    /// Header in which trusted proxies name the client [default: auto]
    ///
    /// `auto` takes the one that is there, and refuses a request with 400 whose two headers name different clients: one
    /// of them may be the client's own invention. Name the one that your proxies write where they write both.
    #[arg(long, value_name = "HEADER", value_enum)]
    pub(crate) forwarded_header: Option<ForwardedHeader>,

    /// Whether trusted proxies put a header of the PROXY protocol before everything else [default: detect]
    ///
    /// Say `required` where they all do. A proxy that forwards TCP without it must not be trusted otherwise than with
    /// `off`: its clients could write the header themselves.
    #[arg(long, value_name = "WHEN", value_enum)]
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
}
