//! The settings as they can be typed. One field is one setting: the flag `--max-queue-bytes`, the variable
//! `DEEPERHUB_MAX_QUEUE_BYTES` and the key `max_queue_bytes` of the file all come from the field's name, take the
//! same values and are read by the same parser (see `layers`). What a setting means is decided in `resolve`, which
//! takes this struct apart without `..`, so that a field added here cannot be forgotten there.

use std::path::PathBuf;

use clap::{Args, Command};
use deeperhub_security::Secret;

use crate::config::values::{
    ClientAuth, ClusterUrl, ForwardedHeader, IoUring, LimitEnforcement, LogFormat, LogLevel, NodeId,
    ProxyProtocol, UnavailableReadiness, cluster_url, secret,
};
use deeperhub_args::{Address, Host, HttpUrl, Ratio, Switchable, Time, UrlPath, whole};

const GENERAL: &str = "General";
const LISTENING: &str = "Listening";
const TLS: &str = "TLS";
const API: &str = "Server API";
const TOKENS: &str = "Tokens";
const LIMITS: &str = "Limits";
const COMPRESSION: &str = "Compression";
const ORIGINS: &str = "Web pages";
const CLUSTER: &str = "Cluster";
const LOGS: &str = "Logs";
const TELEMETRY: &str = "Telemetry";

/// 1 GiB: frames and queues are counted in 32 bits in places.
const MAX_BYTES: u64 = 1 << 30;
const MAX_COUNT: u64 = 100_000_000;

/// Everything that can be set, each optional: what is absent is decided by the next layer, at last by the default.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Options {
    /// TOML file with settings; flags and variables win over it
    ///
    /// Its keys are the names of the flags with `_` for `-`, all at the top level. An unknown key is an error.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = GENERAL)]
    pub(crate) config: Option<PathBuf>,

    /// Threads that carry connections [default: the cores]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, 1024), help_heading = GENERAL)]
    pub(crate) workers: Option<usize>,

    /// Whether many connections are written and read by one system call (Linux's io_uring) [default: auto]
    ///
    /// `auto`: where the system lets the server, which most container engines do not by default; a log line says so, and
    /// deeperhub_io_uring_workers counts the workers that do. It takes up to a third off the CPU time of a fan-out.
    #[arg(long, value_name = "WHEN", value_enum, help_heading = GENERAL)]
    pub(crate) io_uring: Option<IoUring>,

    /// Name of this node, with which client ids begin [default: random]
    ///
    /// 1 to 32 of `A-Z a-z 0-9 _ -`. Give each node a name of its own.
    #[arg(long, value_name = "NAME", help_heading = GENERAL)]
    pub(crate) node_id: Option<NodeId>,

    /// Time over which connections are closed at SIGTERM or SIGINT [default: 30s]
    ///
    /// The first is closed at once, the others follow evenly, the last some time before the end, so that it can answer.
    /// New connections are refused with 503 meanwhile. The server exits as soon as all are gone, at the latest when
    /// the time is over; a second signal ends the wait. `0` closes all at once.
    #[arg(long, value_name = "TIME", help_heading = GENERAL)]
    pub(crate) drain_timeout: Option<Time>,

    /// Time from the end of the server to when its successor listens [default: 5s]
    ///
    /// Where no other node is there, clients that a drain closes or refuses are told to come back
    /// when the drain is over and this time has passed; with other nodes in the cluster, at once.
    /// Either way one follows the other, at `--reconnect-rate`.
    #[arg(long, value_name = "TIME", help_heading = GENERAL)]
    pub(crate) restart_time: Option<Time>,

    /// Address that clients connect to [default: localhost]
    ///
    /// An IP address or a host name; `localhost` stands for both loopback addresses, 127.0.0.1 and
    /// ::1, and `0.0.0.0` and `::` for every interface.
    #[arg(long, value_name = "ADDRESS", help_heading = LISTENING)]
    pub(crate) host: Option<Host>,

    /// Port that clients connect to; 0 takes any free one, which is printed [default: 8080]
    #[arg(long, value_parser = whole::<u16>(0, 65_535), help_heading = LISTENING)]
    pub(crate) port: Option<u16>,

    /// Path that clients connect to; may be repeated [default: / and /ws]
    #[arg(long, value_delimiter = ',', help_heading = LISTENING)]
    pub(crate) path: Option<Vec<UrlPath>>,

    /// Path on the client port where a load balancer sees whether the node is ready, or `off`
    /// [default: off]
    ///
    /// A plain GET or HEAD is answered with 200, and with 503 while the node starts, drains or is
    /// not ready, also when it has as many connections as it may have. WebSocket handshakes are
    /// answered as ever, so it may be one of --path.
    #[arg(long, value_name = "PATH", help_heading = LISTENING)]
    pub(crate) probe_path: Option<Switchable<UrlPath>>,

    /// Network of proxies whose word on a client's address is taken; may be repeated [default: none]
    ///
    /// An address or a network such as `10.0.0.0/8`. From there `X-Forwarded-For` or `Forwarded` in the request is
    /// believed, and so is a header of the PROXY protocol, version 1 or 2, before everything else. Limits of addresses and
    /// events then show clients instead of proxies.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', help_heading = LISTENING)]
    pub(crate) trusted_proxy: Option<Vec<String>>,

    /// Header in which trusted proxies name the client [default: auto]
    ///
    /// `auto` takes the one that is there, and refuses a request with 400 whose two headers name different clients: one
    /// of them may be the client's own invention. Name the one that your proxies write where they write both.
    #[arg(long, value_name = "HEADER", value_enum, help_heading = LISTENING)]
    pub(crate) forwarded_header: Option<ForwardedHeader>,

    /// Whether trusted proxies put a header of the PROXY protocol before everything else [default: detect]
    ///
    /// Say `required` where they all do. A proxy that forwards TCP without it must not be trusted otherwise than with
    /// `off`: its clients could write the header themselves.
    #[arg(long, value_name = "WHEN", value_enum, help_heading = LISTENING)]
    pub(crate) proxy_protocol: Option<ProxyProtocol>,

    /// Certificate for TLS, in PEM: the server's first, then those above it [default: none, no TLS]
    ///
    /// Needs --tls-key; clients then connect with wss://. The files are read again on SIGHUP and within 10 s when they
    /// change. Connections stay; when the new files are no good, that is logged and the old ones stay too.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = TLS)]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM: PKCS#8, SEC1 or PKCS#1, not encrypted [default: none]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = TLS)]
    pub(crate) tls_key: Option<PathBuf>,

    /// CAs whose certificates clients show, in PEM [default: clients are not asked]
    ///
    /// The common name of a client's certificate is its user, unless it brings a token. Clients without a certificate
    /// are refused in the TLS handshake, unless --tls-client-auth is `optional`; those with one of another CA, or with
    /// one that is past its time, are refused in either case.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = TLS)]
    pub(crate) tls_client_ca: Option<PathBuf>,

    /// Whether clients must show a certificate of --tls-client-ca [default: required]
    ///
    /// Needs --tls-client-ca. With `optional` a client without a certificate is let in; one with a bad certificate is not.
    #[arg(long, value_name = "WHEN", value_enum, help_heading = TLS)]
    pub(crate) tls_client_auth: Option<ClientAuth>,

    /// Address of the server API, or `off` [default: 127.0.0.1:8081]
    ///
    /// Backends publish, list and disconnect there; metrics and health checks are there too. Off loopback it needs
    /// --api-key. Port 0 takes any free one, which is printed.
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = API)]
    pub(crate) api_listen: Option<Switchable<Address>>,

    /// Key that calls of the server API bring as `Authorization: Bearer KEY` [default: none needed]
    ///
    /// Other users of the machine can read flags: prefer the variable or the file. Calls of /health need no key.
    #[arg(long, value_name = "KEY", value_parser = secret, help_heading = API)]
    pub(crate) api_key: Option<Secret>,

    /// Connections of the server API at one time [default: 512]
    ///
    /// Over it, the connection that has been idle the longest is closed. While none has been for 5 s, 256 more are served
    /// one request each: health checks and metrics always, others when fewer than this number are being served within a
    /// second, or they get 503.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT), help_heading = API)]
    pub(crate) max_api_connections: Option<usize>,

    /// Time that a connection of the server API may be open without a request [default: 2m]
    ///
    /// Longer than backends keep idle connections.
    #[arg(long, value_name = "TIME", help_heading = API)]
    pub(crate) api_idle_timeout: Option<Time>,

    /// Time that a caller of the server API has for each step of a request [default: 30s]
    ///
    /// For the rest of a request's head, for its body, and to take some more of an answer or of events. A body, and an
    /// answer, gets another second for each 4 KiB.
    #[arg(long, value_name = "TIME", help_heading = API)]
    pub(crate) api_timeout: Option<Time>,

    /// Bytes that bodies and answers of the server API may take together; a request that needs more gets 503
    /// [default: 67108864]
    ///
    /// Answers of up to 8 KiB do not count.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES), help_heading = API)]
    pub(crate) max_api_bytes: Option<usize>,

    /// Streams of GET /v1/events at one time; more get 503 [default: 64]
    ///
    /// At most half of --max-api-connections.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT), help_heading = API)]
    pub(crate) max_event_streams: Option<usize>,

    /// Bytes of events that may wait for one stream; more are lost to it, and it is told how many [default: 4194304]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES), help_heading = API)]
    pub(crate) max_event_bytes: Option<usize>,

    /// Time between two probes that prove delivery for /health/ready; 0 sends none [default: 5s]
    ///
    /// A probe is published to each worker and must come back. While one is missing, /health/ready answers 503.
    #[arg(long, value_name = "TIME", help_heading = API)]
    pub(crate) canary_interval: Option<Time>,

    /// Time within which a probe must be back [default: 5s]
    #[arg(long, value_name = "TIME", help_heading = API)]
    pub(crate) canary_timeout: Option<Time>,

    /// File with the secret that tokens (JWTs) are signed with: HS256, HS384, HS512 [default: none]
    ///
    /// Its bytes, without one line's end at their end; at least 32, as from `openssl rand -base64 32`. Read again on
    /// SIGHUP and when it changes.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = TOKENS)]
    pub(crate) auth_secret_file: Option<PathBuf>,

    /// File with the public keys (a JWKS) that tokens are signed with: RS, PS, ES, EdDSA [default: none]
    ///
    /// Read again on SIGHUP and when it changes.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = TOKENS)]
    pub(crate) auth_jwks_file: Option<PathBuf>,

    /// Let clients do nothing but authenticate until they bring a token [default: false]
    ///
    /// Needs --auth-secret-file or --auth-jwks-file. A client without a token is closed with 4001 after
    /// --auth-grace.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", help_heading = TOKENS)]
    pub(crate) auth_required: Option<bool>,

    /// Time that a client without a token may stay where --auth-required is set [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = TOKENS)]
    pub(crate) auth_grace: Option<Time>,

    /// Name of this server that a token's `aud` must have; may be repeated [default: `aud` is not looked at]
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = TOKENS)]
    pub(crate) auth_audience: Option<Vec<String>>,

    /// Issuer that a token's `iss` must be; may be repeated [default: `iss` is not looked at]
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = TOKENS)]
    pub(crate) auth_issuer: Option<Vec<String>>,

    /// How far in the future a token's `nbf` may be, as clocks differ [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = TOKENS)]
    pub(crate) auth_leeway: Option<Time>,

    /// Bytes of a token; a longer one is refused [default: 16384]
    ///
    /// A token in the handshake counts for --max-handshake-bytes too, one in a message for --max-message-bytes.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(64, MAX_BYTES), help_heading = TOKENS)]
    pub(crate) max_token_bytes: Option<usize>,

    /// Calls in one request of POST /v1/batch [default: 256]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT), help_heading = API)]
    pub(crate) max_batch_calls: Option<usize>,

    /// Bytes of a body of POST /v1/batch [default: 1048576]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES), help_heading = API)]
    pub(crate) max_batch_bytes: Option<usize>,

    /// Time for which an Idempotency-Key is remembered; 0 remembers none [default: 5m]
    #[arg(long, value_name = "TIME", help_heading = API)]
    pub(crate) idempotency_ttl: Option<Time>,

    /// Idempotency keys that are remembered; the oldest goes first [default: 10000]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT), help_heading = API)]
    pub(crate) max_idempotency_keys: Option<usize>,

    /// Bytes that remembered idempotency keys may take [default: 4194304]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES), help_heading = API)]
    pub(crate) max_idempotency_bytes: Option<usize>,

    /// Connections at one time; more are refused with 503 [default: 1000]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT), help_heading = LIMITS)]
    pub(crate) max_connections: Option<usize>,

    /// Connections at one time of one address; 0 is no limit [default: 0]
    ///
    /// IPv6 addresses count by their /64.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(0, MAX_COUNT), help_heading = LIMITS)]
    pub(crate) max_connections_per_ip: Option<usize>,

    /// New connections a second of one address; more are refused with 429; 0 is no limit [default: 200]
    ///
    /// IPv6 addresses count by their /64. Five times as many may come at once. Many clients can
    /// share an address: set it well above what they need together, and not below
    /// `--reconnect-rate`. Loopback addresses have no limit unless this is set.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000), help_heading = LIMITS)]
    pub(crate) connection_rate_per_ip: Option<u32>,

    /// Bytes of a message; a longer one closes its connection with 1009 [default: 65536]
    ///
    /// All fragments of a message together. Bodies of the server API have the same limit.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES), help_heading = LIMITS)]
    pub(crate) max_message_bytes: Option<usize>,

    /// Fragments of a message; more close the connection with 1009 [default: 65536]
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, MAX_COUNT), help_heading = LIMITS)]
    pub(crate) max_fragments: Option<u32>,

    /// Levels of arrays and objects in a message, its own object among them [default: 127]
    ///
    /// One that is deeper is answered with `invalid_message`. A payload may have two fewer, since its delivery puts two
    /// around it; that holds for bodies of the server API, too.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(2, 127), help_heading = LIMITS)]
    pub(crate) max_json_depth: Option<usize>,

    /// Subscriptions of a connection [default: 128]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1, MAX_COUNT), help_heading = LIMITS)]
    pub(crate) max_subscriptions: Option<usize>,

    /// Bytes that may wait for a slow client before it is closed with 1013 [default: 1048576]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(1, MAX_BYTES), help_heading = LIMITS)]
    pub(crate) max_queue_bytes: Option<usize>,

    /// Work of a round for what clients send, in bytes [default: 4194304]
    ///
    /// Counts bytes read, decompressed and replied, 512 for each message or control frame, and 64 for
    /// each fragment. A connection gets a sixteenth for its turn; the rest of its input waits for its
    /// next turn, behind the others. A smaller value keeps others' latency lower under load; a larger
    /// one costs less per message.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(4096, 1 << 30), help_heading = LIMITS)]
    pub(crate) round_bytes: Option<usize>,

    /// Time of a round after which no more of what clients send is handled in it [default: 5ms]
    #[arg(long, value_name = "TIME", help_heading = LIMITS)]
    pub(crate) round_time: Option<Time>,

    /// Whether rates and limits of addresses refuse, or only count whom they would have refused [default: enforce]
    ///
    /// Metrics count both alike (deeperhub_messages_limited_total, deeperhub_connections_limited_total). Limits that keep
    /// memory in bounds (connections, message and queue bytes, subscriptions, memory) are enforced in either case.
    #[arg(long, value_name = "MODE", value_enum, help_heading = LIMITS)]
    pub(crate) limits: Option<LimitEnforcement>,

    /// Bytes of memory that this process may use; 0 is no limit [default: what the system grants]
    ///
    /// What counts is the larger of resident memory and what the control group with the smallest limit is charged. From
    /// 80 % on, new connections are refused with 503; from 90 % on, those that hold the most are closed with 1013, and up
    /// to 95 % is taken in between two measurements. The default is the smallest limit of the control groups (containers, systemd) or the machine's memory.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u64>(0, 1 << 60), help_heading = LIMITS)]
    pub(crate) max_memory: Option<u64>,

    /// Clients a second that are asked to come back when the server is full or shuts down [default: 200]
    ///
    /// Refused and drained clients are told times to come back at, one behind the other at this rate.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, 1_000_000), help_heading = LIMITS)]
    pub(crate) reconnect_rate: Option<u32>,

    /// Messages a second from a connection; 0 is no limit [default: 100]
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000), help_heading = LIMITS)]
    pub(crate) rate_limit: Option<u32>,

    /// Messages that a connection may send at once before --rate-limit holds [default: 200]
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, 1_000_000_000), help_heading = LIMITS)]
    pub(crate) rate_burst: Option<u32>,

    /// Bytes of messages a second from a connection; 0 is no limit [default: 0]
    ///
    /// Beside --rate-limit, which bounds bytes too: messages a second times --max-message-bytes.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u32>(0, MAX_BYTES), help_heading = LIMITS)]
    pub(crate) byte_rate_limit: Option<u32>,

    /// Bytes that a connection may send at once before --byte-rate-limit holds [default: 1048576]
    ///
    /// A message larger than that counts as that many.
    #[arg(long, value_name = "BYTES", value_parser = whole::<u32>(1, MAX_BYTES), help_heading = LIMITS)]
    pub(crate) byte_rate_burst: Option<u32>,

    /// WebSocket pings and pongs a second from a connection; 0 is no limit [default: 50]
    ///
    /// Twice as many may come at once. A ping that is over the limit gets no pong; whoever goes on is closed with 1008.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000), help_heading = LIMITS)]
    pub(crate) control_rate_limit: Option<u32>,

    /// `authenticate` messages a second from a connection; 0 is no limit [default: 5]
    ///
    /// Ten times as many may come at once.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000), help_heading = LIMITS)]
    pub(crate) token_rate_limit: Option<u32>,

    /// Bursts a second that new connections of one address may take together; 0 is no limit [default: 20]
    ///
    /// Five times as many may be taken at once. A connection takes of a burst (--rate-burst and the like) what it sends
    /// beyond its rate while it is new; with none left for its address it sends at its rate alone. Who reconnects gains
    /// nothing that way. IPv6 addresses count by their /64; trusted proxies themselves are exempt.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000), help_heading = LIMITS)]
    pub(crate) burst_rate_per_ip: Option<u32>,

    /// Bytes of a handshake's request line and headers; more are refused with 400 [default: 32768]
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(512, 65_535), help_heading = LIMITS)]
    pub(crate) max_handshake_bytes: Option<usize>,

    /// Header lines of a handshake; more are refused with 400 [default: 96]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(8, 4096), help_heading = LIMITS)]
    pub(crate) max_handshake_headers: Option<usize>,

    /// Time from connecting to the end of the handshake [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = LIMITS)]
    pub(crate) handshake_timeout: Option<Time>,

    /// Time between two pings to a client; 0 sends none [default: 25s]
    #[arg(long, value_name = "TIME", help_heading = LIMITS)]
    pub(crate) ping_interval: Option<Time>,

    /// Time for a sign of life after a ping [default: 10s]
    ///
    /// Any byte that comes or is taken counts. Without one, 4200 closes the connection.
    #[arg(long, value_name = "TIME", help_heading = LIMITS)]
    pub(crate) pong_timeout: Option<Time>,

    /// Never compress, whatever clients offer [default: false]
    ///
    /// Otherwise messages from and to clients that offer `permessage-deflate`, as browsers do, are compressed.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", help_heading = COMPRESSION)]
    pub(crate) no_compression: Option<bool>,

    /// Bytes of a message from which on it is compressed; 0 compresses all [default: 256]
    ///
    /// What would not get smaller goes uncompressed in any case, but for 0.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(0, MAX_BYTES), help_heading = COMPRESSION)]
    pub(crate) compression_threshold: Option<usize>,

    /// How hard to compress, 1 (fast) to 9 (small) [default: 2]
    #[arg(long, value_name = "N", value_parser = whole::<u8>(1, 9), help_heading = COMPRESSION)]
    pub(crate) compression_level: Option<u8>,

    /// Let clients refer to their earlier messages when they compress [default: false]
    ///
    /// What they send gets smaller, and each connection that does so costs up to 32 KiB of memory while it lives.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", help_heading = COMPRESSION)]
    pub(crate) client_context_takeover: Option<bool>,

    /// Web origin whose pages may connect; may be repeated [default: the server's own]
    ///
    /// Scheme, host and port as in `https://app.example.com`, `https://*.example.com` for all below it, or `*` for
    /// all. Clients that send no `Origin` are no browsers and always pass.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', help_heading = ORIGINS)]
    pub(crate) allowed_origin: Option<Vec<String>>,

    /// Broker that carries messages between the nodes of a hub [default: none, the node is alone]
    ///
    /// `nats://HOST:4222` or `redis://HOST:6379`; over TLS `tls://` (NATS) or `rediss://`. User and password go before
    /// the host (`nats://user:password@host`), several servers of one broker are separated by commas. Other users of the
    /// machine can read flags: with a password prefer the variable or the file.
    #[arg(long, value_name = "URL", value_parser = cluster_url, help_heading = CLUSTER)]
    pub(crate) cluster: Option<ClusterUrl>,

    /// What all names on the broker begin with, so that hubs can share one [default: deeperhub]
    ///
    /// 1 to 64 of `A-Z a-z 0-9 _ -`.
    #[arg(long, value_name = "NAME", help_heading = CLUSTER)]
    pub(crate) cluster_prefix: Option<String>,

    /// Bytes that may wait for the broker before messages to other nodes are dropped [default: 16777216]
    ///
    /// As many may wait for this node after they came from it.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(65_536, MAX_BYTES), help_heading = CLUSTER)]
    pub(crate) cluster_queue_bytes: Option<usize>,

    /// What /health/ready says while the broker cannot be reached [default: unready]
    #[arg(long, value_name = "STATE", value_enum, help_heading = CLUSTER)]
    pub(crate) cluster_unavailable: Option<UnavailableReadiness>,

    /// NATS credentials file, or a file with the seed of an nkey [default: none]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = CLUSTER)]
    pub(crate) cluster_credentials: Option<PathBuf>,

    /// PEM file with the certificates that sign the broker's [default: those that the system trusts]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = CLUSTER)]
    pub(crate) cluster_ca: Option<PathBuf>,

    /// What is logged, to standard error [default: info]
    #[arg(long, value_name = "LEVEL", value_enum, help_heading = LOGS)]
    pub(crate) log_level: Option<LogLevel>,

    /// How it is logged [default: text]
    #[arg(long, value_name = "FORMAT", value_enum, help_heading = LOGS)]
    pub(crate) log_format: Option<LogFormat>,

    /// Bytes of log lines that may wait for whoever reads standard error; more are dropped and
    /// counted [default: 1048576]
    ///
    /// A line tells where lines are missing (deeperhub_log_lines_lost_total counts them). The last
    /// quarter is for lines of level `info` and graver.
    #[arg(long, value_name = "BYTES", value_parser = whole::<usize>(4096, MAX_BYTES), help_heading = LOGS)]
    pub(crate) log_queue_bytes: Option<usize>,

    /// Collector that spans and metrics go to by OTLP, or `off` [default: off]
    ///
    /// The URL of its gRPC port (4317) or of its HTTP port. `OTEL_EXPORTER_OTLP_ENDPOINT` and the other `OTEL_…`
    /// variables of OpenTelemetry are honoured too, below this setting.
    #[arg(long, value_name = "URL", help_heading = TELEMETRY)]
    pub(crate) otlp_endpoint: Option<Switchable<HttpUrl>>,

    /// Part of the traces that begin here which is recorded, from 0 to 1 [default: 1]
    ///
    /// Traces that backends bring are recorded if they are sampled there, those that clients bring
    /// up to --trace-client-rate.
    #[arg(long, value_name = "RATIO", help_heading = TELEMETRY)]
    pub(crate) trace_sample_ratio: Option<Ratio>,

    /// Messages and handshakes a second that are recorded because a client says that its trace is
    /// sampled [default: 10]
    ///
    /// Of all clients of the node together. What is over it, all with 0, is recorded with the ratio
    /// of traces that begin here (--trace-sample-ratio).
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, 1_000_000_000), help_heading = TELEMETRY)]
    pub(crate) trace_client_rate: Option<u32>,
}

impl Options {
    /// A command that has nothing but these options, for reading values that do not come from the command line.
    pub(crate) fn parser() -> Command {
        Self::augment_args(Command::new("options").no_binary_name(true).disable_help_flag(true))
    }

    /// The names of all settings, in the order of the fields.
    pub(crate) fn keys() -> Vec<String> {
        Self::parser().get_arguments().map(|argument| argument.get_id().to_string()).collect()
    }
}

/// The flag of a setting.
pub(crate) fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// The environment variable of a setting.
pub(crate) fn variable(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase())
}

/// Settings whose values are shown nowhere.
pub(crate) const SECRET_KEYS: &[&str] = &["api_key", "cluster"];

/// What all our variables begin with.
pub(crate) const VARIABLE_PREFIX: &str = "DEEPERHUB_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_flag_of_its_name_a_heading_and_help() {
        let parser = Options::parser();
        for argument in parser.get_arguments() {
            let key = argument.get_id().as_str();
            assert_eq!(argument.get_long().map(|long| format!("--{long}")), Some(flag(key)), "{key}");
            assert!(argument.get_help_heading().is_some(), "{key} stands under no heading");
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("[default: ") || key == "config", "help of {key} names no default: {help}");
        }
    }

    #[test]
    fn names_of_flag_and_variable_follow_the_key() {
        assert_eq!(flag("max_queue_bytes"), "--max-queue-bytes");
        assert_eq!(variable("max_queue_bytes"), "DEEPERHUB_MAX_QUEUE_BYTES");
    }
}
