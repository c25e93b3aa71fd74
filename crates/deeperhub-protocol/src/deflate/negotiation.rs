//! Which of a client's offers is accepted, and the answer (RFC 7692 section 7.1).

use std::fmt;

use super::header::{self, Extension, Parameter};
use crate::handshake::Refusal;

/// The name that offers and answers carry (RFC 7692 section 7).
const NAME: &str = "permessage-deflate";

/// Window bits of DEFLATE's largest window, 32 KiB (RFC 1951 section 2).
const MAX_WINDOW_BITS: u8 = 15;

/// What the server offers its clients, and at what cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Whether offers are accepted at all. Default true.
    pub enabled: bool,
    /// Payload bytes below which a message goes out uncompressed, which is always allowed. Default 256. The
    /// [module's documentation](crate::deflate#figures) has the figures.
    pub threshold_bytes: usize,
    /// Compression level, 1 (fast) to 9 (small); anything else is brought into that range. Default
    /// [`Config::DEFAULT_LEVEL`].
    pub level: u8,
    /// Whether a client may compress a message with references to its earlier ones. Default false.
    ///
    /// That makes what a client sends smaller, and costs memory for each such connection, for as long as it lives:
    /// as many bytes as came out of its compressed messages, up to 32 KiB ([`History`](super::History)).
    pub client_context_takeover: bool,
}

impl Config {
    /// The level that [`Config::default`] has.
    pub const DEFAULT_LEVEL: u8 = 3;
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            threshold_bytes: 256,
            level: Self::DEFAULT_LEVEL,
            client_context_takeover: false,
        }
    }
}

/// What one connection has agreed on. Its `Display` form is the answer's header value.
///
/// Two bytes: keep it with the connection, as an `Option`, and give it wherever a message is compressed for it.
/// `server_no_context_takeover` is part of every agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Params {
    /// Answered only where it was asked for.
    server_max_window_bits: Option<WindowBits>,
    client_no_context_takeover: bool,
}

impl Params {
    /// Base-2 logarithm of the window that this client decompresses with: 8 to 15.
    #[must_use]
    pub fn server_max_window_bits(self) -> u8 {
        self.server_max_window_bits.map_or(MAX_WINDOW_BITS, |bits| bits.0)
    }

    /// Whether the client compresses each message by itself. Otherwise the connection needs a
    /// [`History`](super::History).
    #[must_use]
    pub fn client_no_context_takeover(self) -> bool {
        self.client_no_context_takeover
    }

    /// Whether a compressed message with a payload of `plain_bytes` can be decompressed with the client's window,
    /// whatever window it was compressed with: nothing in it can refer further back than its own start.
    #[inline]
    #[must_use]
    pub fn can_take(self, plain_bytes: usize) -> bool {
        match self.server_max_window_bits {
            Some(bits) if bits.0 < MAX_WINDOW_BITS => plain_bytes <= 1 << bits.0,
            _ => true,
        }
    }

    /// The value for the answer's `Sec-WebSocket-Extensions` header, for
    /// [`write_accept`](crate::handshake::write_accept). Never empty.
    #[must_use]
    pub fn header_value(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}; server_no_context_takeover")?;
        if self.client_no_context_takeover {
            f.write_str("; client_no_context_takeover")?;
        }
        match self.server_max_window_bits {
            Some(bits) => write!(f, "; server_max_window_bits={}", bits.0),
            None => Ok(()),
        }
    }
}

/// Chooses from the offers in a request's `Sec-WebSocket-Extensions` headers, given line by line
/// ([`Request::extensions`](crate::handshake::Request::extensions)), the first that is acceptable. `None`: there is
/// none, and the connection goes on without compression and without such a header in the answer.
///
/// An offer with a parameter that is unknown, stands twice or has a value that it may not have is declined, and the
/// next is looked at (RFC 7692 section 7). Other extensions are passed over. Any window is accepted:
/// [`Params::can_take`] says how that is kept. `client_max_window_bits` is understood and never answered, since
/// every message is decompressed with the largest window, which then costs no connection anything.
///
/// # Errors
///
/// 400 `bad_handshake` for a header that is not a list of extensions: RFC 6455 sections 4.2.1 and 9.1 want the
/// connection refused, not the header ignored. Where compression is not enabled the header is not read.
pub fn negotiate<'a>(
    config: &Config,
    lines: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<Params>, Refusal> {
    let mut lines = lines.into_iter().peekable();
    if !config.enabled || lines.peek().is_none() {
        return Ok(None);
    }
    let mut extensions = Vec::new();
    let parsed = lines.try_for_each(|line| header::parse(line, &mut extensions));
    if parsed.is_err() || extensions.is_empty() {
        return Err(Refusal::bad_handshake("The header sec-websocket-extensions is malformed."));
    }
    Ok(extensions.iter().find_map(|extension| accept(config, extension)))
}

/// What is agreed on if this offer is accepted; `None` declines it.
fn accept(config: &Config, extension: &Extension<'_>) -> Option<Params> {
    if extension.name != NAME {
        return None;
    }
    let mut offer = Offer::default();
    for Parameter { name, value } in &extension.parameters {
        let value = value.as_deref();
        let is_first = match *name {
            "server_no_context_takeover" => {
                none(value).map(|()| offer.server_no_context_takeover.replace(()).is_none())
            }
            "client_no_context_takeover" => {
                none(value).map(|()| offer.client_no_context_takeover.replace(()).is_none())
            }
            "server_max_window_bits" => {
                WindowBits::parse(value?).map(|bits| offer.server_max_window_bits.replace(bits).is_none())
            }
            "client_max_window_bits" => match value {
                None => Some(offer.client_max_window_bits.replace(None).is_none()),
                Some(value) => WindowBits::parse(value)
                    .map(|bits| offer.client_max_window_bits.replace(Some(bits)).is_none()),
            },
            _ => None,
        };
        if is_first != Some(true) {
            return None;
        }
    }
    Some(Params {
        server_max_window_bits: offer.server_max_window_bits,
        client_no_context_takeover: !config.client_context_takeover
            || offer.client_no_context_takeover.is_some(),
    })
}

/// The parameters of an offer; `Some` for those that have stood there.
#[derive(Default)]
struct Offer {
    server_no_context_takeover: Option<()>,
    client_no_context_takeover: Option<()>,
    server_max_window_bits: Option<WindowBits>,
    client_max_window_bits: Option<Option<WindowBits>>,
}

/// For parameters that have no value.
fn none(value: Option<&str>) -> Option<()> {
    value.is_none().then_some(())
}

/// 8 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct WindowBits(u8);

impl WindowBits {
    /// A decimal without leading zeros (RFC 7692 section 7.1.2.1).
    fn parse(value: &str) -> Option<Self> {
        let bits = match value {
            "8" => 8,
            "9" => 9,
            "10" => 10,
            "11" => 11,
            "12" => 12,
            "13" => 13,
            "14" => 14,
            "15" => MAX_WINDOW_BITS,
            _ => return None,
        };
        Some(Self(bits))
    }
}
