//! Negotiation of `permessage-deflate` (RFC 7692 section 7.1).

use std::fmt;
use std::mem;
use std::num::NonZeroU8;

use super::header::{self, Extension, Parameter};
use crate::handshake::Refusal;

/// Name of the extension (RFC 7692 section 7).
const EXTENSION_NAME: &str = "permessage-deflate";

/// Window bits of DEFLATE's largest window, 32 KiB (RFC 1951 section 2).
pub(super) const MAX_WINDOW_BITS: u8 = 15;

/// Window bits of the smallest window that can be negotiated (RFC 7692 section 7.1.2.1).
pub(super) const MIN_WINDOW_BITS: u8 = 8;

/// Configuration of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// If `true`, the server accepts clients' offers of compression. Default `true`.
    pub enabled: bool,
    /// Minimum payload length for compression, in bytes. Shorter messages, and messages that would
    /// not shrink, are sent uncompressed, which is always allowed. 0 compresses every message, even
    /// if it grows. Default 256; the [module documentation](crate::deflate#figures) has the
    /// measurements.
    pub threshold_bytes: usize,
    /// Compression level from 1 (fast) to 9 (small); other values are clamped. Default
    /// [`Config::DEFAULT_LEVEL`].
    pub level: u8,
    /// If `true`, a client may use context takeover: its messages may refer to its earlier
    /// messages. Default `false`.
    ///
    /// Context takeover makes clients' messages smaller. In return, each such connection holds up
    /// to 32 KiB of its decompressed messages for its lifetime ([`History`](super::History)).
    pub client_context_takeover: bool,
}

impl Config {
    /// Default compression level.
    pub const DEFAULT_LEVEL: u8 = 2;
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

/// The negotiated parameters of one connection. `Display` writes the response's header value.
///
/// The value has two bytes: store it with the connection as an `Option`, and pass it when a message
/// is compressed for the connection. `server_no_context_takeover` is always negotiated, so it has
/// no field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Params {
    /// The client's window bits; `None` if the client did not offer this parameter.
    server_max_window_bits: Option<WindowBits>,
    client_no_context_takeover: bool,
}

impl Params {
    /// Returns the base-2 logarithm of the client's decompression window, 8 to 15.
    #[must_use]
    pub fn server_max_window_bits(self) -> u8 {
        self.server_max_window_bits.map_or(MAX_WINDOW_BITS, |bits| bits.0.get())
    }

    /// Returns `true` if the client compresses each message separately. Otherwise the connection
    /// needs a [`History`](super::History).
    #[must_use]
    pub fn client_no_context_takeover(self) -> bool {
        self.client_no_context_takeover
    }

    /// Returns `true` if a payload of `plain_bytes` fits the client's window. The payload
    /// can then be compressed with any window, because no back-reference reaches beyond its start.
    #[inline]
    #[must_use]
    pub fn fits_window(self, plain_bytes: usize) -> bool {
        match self.server_max_window_bits {
            Some(bits) if bits.0.get() < MAX_WINDOW_BITS => plain_bytes <= 1 << bits.0.get(),
            _ => true,
        }
    }

    /// Returns the window bits for compressing a message of `plain_bytes` for this client. They are
    /// those of the largest window if the message fits the client's window, otherwise those of the
    /// client's window. Returns `None` if the window has 8 bits, because zlib and its descendants
    /// do not support 8 bits for raw streams.
    pub(super) fn compressor_window_bits(self, plain_bytes: usize) -> Option<u8> {
        let bits =
            if self.fits_window(plain_bytes) { MAX_WINDOW_BITS } else { self.server_max_window_bits() };
        (bits > MIN_WINDOW_BITS).then_some(bits)
    }

    /// Returns the value of the response's `Sec-WebSocket-Extensions` header, for
    /// [`write_accept`](crate::handshake::write_accept). The value is never empty.
    #[must_use]
    pub fn header_value(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{EXTENSION_NAME}; server_no_context_takeover")?;
        if self.client_no_context_takeover {
            f.write_str("; client_no_context_takeover")?;
        }
        match self.server_max_window_bits {
            Some(bits) => write!(f, "; server_max_window_bits={}", bits.0),
            None => Ok(()),
        }
    }
}

/// Returns the parameters of the first acceptable offer in a request's `Sec-WebSocket-Extensions`
/// lines ([`Request::extensions`](crate::handshake::Request::extensions)). Returns `None` if no
/// offer is acceptable, or if compression is disabled. The connection then works without
/// compression, and the response omits the header.
///
/// An offer is declined if it has an unknown parameter, a duplicate parameter or an invalid value.
/// The next offer is then tried (RFC 7692 section 7). Other extensions are ignored. Any window is
/// accepted, see [`Params::fits_window`]. `client_max_window_bits` is accepted but never sent back:
/// every message is decompressed with the largest window, which costs no memory per connection.
///
/// # Errors
///
/// Returns 400 `bad_handshake` for a header that is not a list of extensions. RFC 6455 sections
/// 4.2.1 and 9.1 require the server to refuse such a connection instead of ignoring the header. A
/// list without elements counts as absent, since some gateways send an empty header if the client
/// sent none. If compression is disabled, the header is not parsed.
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
    if parsed.is_err() {
        return Err(Refusal::bad_handshake("The header sec-websocket-extensions is malformed."));
    }
    Ok(extensions.iter().find_map(|extension| accept_offer(config, extension)))
}

/// Returns the negotiated parameters for an offer, or `None` if it is not acceptable.
fn accept_offer(config: &Config, extension: &Extension<'_>) -> Option<Params> {
    if extension.name != EXTENSION_NAME {
        return None;
    }
    let mut offer = Offer::default();
    for Parameter { name, value } in &extension.parameters {
        let is_duplicate = match (*name, value.as_deref()) {
            ("server_no_context_takeover", None) => mem::replace(&mut offer.server_no_context_takeover, true),
            ("client_no_context_takeover", None) => mem::replace(&mut offer.client_no_context_takeover, true),
            ("server_max_window_bits", Some(value)) => {
                let bits = WindowBits::parse(value)?;
                offer.server_max_window_bits.replace(bits).is_some()
            }
            ("client_max_window_bits", value) => {
                if let Some(value) = value {
                    WindowBits::parse(value)?;
                }
                mem::replace(&mut offer.client_max_window_bits, true)
            }
            _ => return None,
        };
        if is_duplicate {
            return None;
        }
    }
    Some(Params {
        server_max_window_bits: offer.server_max_window_bits,
        client_no_context_takeover: !config.client_context_takeover || offer.client_no_context_takeover,
    })
}

/// The parameters that an offer contains.
#[derive(Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<WindowBits>,
    client_max_window_bits: bool,
}

/// The base-2 logarithm of a window's size in bytes, 8 to 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct WindowBits(NonZeroU8);

impl WindowBits {
    /// Parses a decimal number from 8 to 15 without leading zeros (RFC 7692 section 7.1.2.1).
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
        NonZeroU8::new(bits).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn answer(config: &Config, lines: &[&str]) -> Result<Option<String>, u16> {
        let negotiated = negotiate(config, lines.iter().map(|line| line.as_bytes()));
        negotiated.map(|params| params.map(Params::header_value)).map_err(|refusal| refusal.status)
    }

    fn check(lines: &[&str], expected: Option<&str>) {
        let expected = expected.map(|more| format!("{ANSWER}{more}"));
        assert_eq!(answer(&Config::default(), lines), Ok(expected), "{lines:?}");
    }

    #[test]
    fn negotiated_params_are_two_bytes() {
        assert_eq!(size_of::<Option<Params>>(), 2);
    }

    #[test]
    fn offers_of_common_clients_are_accepted() {
        for offer in [
            // The offers of Chromium and Firefox, of Safari, and of libraries.
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate",
            "permessage-deflate; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; client_max_window_bits=15",
            "permessage-deflate;client_max_window_bits=8 ; client_no_context_takeover",
            "x-webkit-deflate-frame, permessage-deflate",
        ] {
            check(&[offer], Some(""));
        }
    }

    #[test]
    fn the_first_acceptable_offer_wins_over_all_lines() {
        check(
            &[
                "permessage-deflate; server_max_window_bits=7, permessage-deflate; server_max_window_bits=12",
                "permessage-deflate",
            ],
            Some("; server_max_window_bits=12"),
        );
        check(
            &["permessage-deflate; unknown", "permessage-deflate; server_max_window_bits=\"9\", foo"],
            Some("; server_max_window_bits=9"),
        );
        check(&["", "permessage-deflate"], Some(""));
        check(&["foo, bar; permessage-deflate"], None);
        check(&["permessage-deflate; x=1, permessage-deflate; y"], None);
    }

    #[test]
    fn a_requested_window_is_confirmed_and_stored() {
        for bits in 8..=15 {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            check(&[&offer], Some(&format!("; server_max_window_bits={bits}")));
            let params = negotiate(&Config::default(), [offer.as_bytes()]).unwrap().unwrap();
            assert_eq!(params.server_max_window_bits(), bits);
            assert!(params.fits_window(1 << bits));
            assert_eq!(params.fits_window((1 << bits) + 1), bits == 15);
        }
        let params = negotiate(&Config::default(), [&b"permessage-deflate"[..]]).unwrap().unwrap();
        assert_eq!((params.server_max_window_bits(), params.fits_window(usize::MAX)), (15, true));
    }

    #[test]
    fn bad_parameters_decline_the_offer_but_not_the_connection() {
        for parameters in [
            "server_no_context_takeover; server_no_context_takeover",
            "client_no_context_takeover; client_no_context_takeover",
            "server_max_window_bits=10; server_max_window_bits=10",
            "client_max_window_bits; client_max_window_bits=10",
            "server_no_context_takeover=true",
            "client_no_context_takeover=\"1\"",
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=08",
            "server_max_window_bits=+9",
            "server_max_window_bits=9x",
            "server_max_window_bits=265",
            "client_max_window_bits=0",
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=015",
            "Server_No_Context_Takeover",
            "unknown",
            "unknown=1",
        ] {
            check(&[&format!("permessage-deflate; {parameters}")], None);
            check(&[&format!("permessage-deflate; {parameters}"), "permessage-deflate"], Some(""));
        }
    }

    #[test]
    fn a_list_without_elements_counts_as_absent() {
        for lines in [&[""][..], &[" \t"], &[","], &[", ,"], &["", ""], &[",", " "]] {
            check(lines, None);
        }
        check(&[",, permessage-deflate ,", ""], Some(""));
    }

    #[test]
    fn a_malformed_extensions_header_refuses_the_handshake() {
        for lines in [&["permessage-deflate;"][..], &["permessage-deflate", "foo bar"], &[";"], &["\"a\""]] {
            assert_eq!(answer(&Config::default(), lines), Err(400), "{lines:?}");
        }
        let bytes = negotiate(&Config::default(), [&b"permessage-deflate; \xff"[..]]).unwrap_err();
        assert_eq!(bytes.to_string(), "400 bad_handshake: The header sec-websocket-extensions is malformed.");
    }

    #[test]
    fn compression_is_off_without_offers_or_when_disabled() {
        check(&[], None);
        let off = Config { enabled: false, ..Config::default() };
        assert_eq!(answer(&off, &["permessage-deflate"]), Ok(None));
        assert_eq!(answer(&off, &[";"]), Ok(None));
    }

    #[test]
    fn context_takeover_needs_the_setting_and_the_offer() {
        let config = Config { client_context_takeover: true, ..Config::default() };
        for (offer, expected) in [
            ("permessage-deflate", "permessage-deflate; server_no_context_takeover"),
            ("permessage-deflate; client_max_window_bits", "permessage-deflate; server_no_context_takeover"),
            ("permessage-deflate; client_no_context_takeover", ANSWER),
        ] {
            assert_eq!(answer(&config, &[offer]), Ok(Some(expected.to_owned())));
        }
    }

    /// The reference rule: an offer is acceptable if it contains only known parameters, each at
    /// most once and with a valid value. Returns the confirmed parameters of an acceptable offer.
    fn model(parameters: &[(&str, Option<String>)]) -> Option<String> {
        let names = [
            "server_no_context_takeover",
            "client_no_context_takeover",
            "server_max_window_bits",
            "client_max_window_bits",
        ];
        let mut more = String::new();
        for name in names {
            let values: Vec<_> =
                parameters.iter().filter(|parameter| parameter.0 == name).map(|p| &p.1).collect();
            let is_window = |value: &str| (8..=15).any(|bits: u8| bits.to_string() == value);
            let is_valid = match (values.as_slice(), name) {
                ([], _) => true,
                ([None], "server_max_window_bits") => false,
                ([None], _) => true,
                ([Some(value)], _) => name.ends_with("bits") && is_window(value),
                _ => false,
            };
            if !is_valid {
                return None;
            }
            if let ([Some(value)], "server_max_window_bits") = (values.as_slice(), name) {
                more = format!("; server_max_window_bits={value}");
            }
        }
        parameters.iter().all(|parameter| names.contains(&parameter.0)).then_some(more)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn offers_are_accepted_by_the_rules_of_the_rfc(
            offers in proptest::collection::vec(
                proptest::collection::vec(
                    (
                        prop_oneof![
                            4 => Just("server_no_context_takeover"),
                            4 => Just("client_no_context_takeover"),
                            4 => Just("server_max_window_bits"),
                            4 => Just("client_max_window_bits"),
                            1 => Just("other"),
                        ],
                        prop_oneof![
                            4 => Just(None),
                            4 => (8..=15u8).prop_map(|bits| Some(bits.to_string())),
                            1 => "[0-9]{1,3}|x".prop_map(Some),
                        ],
                    ),
                    0..4,
                ),
                1..4,
            ),
        ) {
            let lines: Vec<String> = offers.iter().map(|parameters| {
                parameters.iter().fold("permessage-deflate".to_owned(), |line, (name, value)| {
                    line + &value.as_ref().map_or(format!("; {name}"), |value| format!("; {name}={value}"))
                })
            }).collect();
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            let expected = offers.iter().find_map(|parameters| model(parameters));
            check(&lines, expected.as_deref());
            check(&[&lines.join(" , ")], expected.as_deref());
        }
    }
}
